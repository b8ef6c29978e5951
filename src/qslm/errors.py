"""The error tree: every failure that a user can cause or meet is one of these."""


class QslmError(Exception):
    """Base of all errors of qslm; the command line ends with exit status 2 on it.

    `problem` says what was wrong, where, and with which numbers; `remedy` says what to do about it.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n{self.remedy}" if self.remedy else self.problem


class CheckpointError(QslmError):
    """A checkpoint cannot be read, or is not what its keys and shapes say."""


class FormatError(QslmError):
    """A number format is not known, or a tensor does not fit into it."""


class AllocationError(QslmError):
    """An allocation does not suit the network."""


class BudgetError(QslmError):
    """A budget cannot be read or cannot be met."""


class DataError(QslmError):
    """A text, a label or a tokenizer is missing or unusable."""


class TaskError(QslmError):
    """A task cannot be measured on this model."""


class ArtifactError(QslmError):
    """A packed model is damaged, altered or not one of ours."""


class LedgerError(QslmError):
    """A ledger belongs to another study, or cannot be written."""


class StudyError(QslmError):
    """A study cannot start or go on."""


class TrainingError(QslmError):
    """A training cannot start or go on."""


class SpikeError(QslmError):
    """Activations or weights cannot be turned into spikes, or spikes are damaged."""


class EnergyError(QslmError):
    """A table of energies is damaged or lacks something, or an account cannot be made."""
