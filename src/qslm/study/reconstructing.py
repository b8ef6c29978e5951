"""Reconstruction of finalists: which allocation is next, and its learned rounding, kept in the run folder."""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from qslm.allocation import Allocation
from qslm.digest import update_digest
from qslm.errors import ArtifactError, LedgerError, StudyError
from qslm.evaluation import Evaluator, Ledger
from qslm.evaluation.reconstruction import Flips, Reconstruction, reconstruct
from qslm.formats import Format, canonical_json, stored_tensors
from qslm.formats.container import write
from qslm.formats.quantized import QuantizedTensor
from qslm.formats.reading import file_digest, metadata_of, parse_object, read_header, read_tensors, reading
from qslm.progress import Progress
from qslm.quantizers import Learned
from qslm.study import folder
from qslm.study.expecting import calibration_meaning
from qslm.study.judging import BASELINE, Judge, Judged
from qslm.study.measuring import Measurements

PARTIAL = ".partial"  # the ending of the file in which a reconstruction in progress is kept
HOPED = 0.1  # of the limit of quality, what learning is trusted to win (derived)


def next_finalist(judge: Judge, judged: Collection[Judged]) -> Judged | None:
    """What is to be reconstructed next; None where nothing could be preferred to what is chosen already.

    By size, of what is smaller than the chosen one: the smallest that misses the limit of quality by HOPED at most;
    where there is none, that which comes closest to it. By score: the best by what is known of it, whether it keeps
    the limit or not.
    """
    chosen, budget = judge.choose(judged), judge.budget
    known = {one.allocation.key for one in judged}
    open_ = [
        one
        for one in judged
        if one.tier != BASELINE
        and one.verdict.memory_ok
        and not one.allocation.is_reconstructed
        and one.allocation.reconstructed().key not in known
        and any(fmt.is_integer for fmt in one.allocation.formats)
    ]
    if budget.prefer == "score":
        order = budget.order(judge.task.higher_is_better)
        return min((one for one in open_ if one.complete), key=lambda one: order(one.candidate), default=None)
    hoped = (1 + HOPED) * (budget.max_loss or 0.0)

    def promise(one: Judged) -> tuple[float, int, str]:
        loss = one.comparison.bound if budget.decision == "bound" else one.comparison.loss
        return max(loss - hoped, 0.0), one.evaluation.footprint_file, one.allocation.key

    most = None if chosen is None else chosen.evaluation.footprint_file
    return min(
        (one for one in open_ if most is None or one.evaluation.footprint_file < most), key=promise, default=None
    )


def learned_sites(
    run: Path, measurements: Measurements, allocation: Allocation, progress: Progress
) -> Mapping[str, QuantizedTensor]:
    """The integer sites of an allocation with learned rounding: as the run folder has them, or learned now.

    Raises LedgerError where what is learned now differs from what was measured, and what `reconstruct` raises.
    """
    ledger, evaluator = measurements.ledger, measurements.evaluator
    name = allocation.reconstructed().quantizer
    assert isinstance(name, str)
    path, told = _path(run, name), ledger.estimate(name)
    recorded, text = None if told is None else json.loads(told), calibration_meaning(evaluator.task)
    if recorded is not None and recorded["text"] != text:
        raise LedgerError(
            f"{run} holds a reconstruction that was learned on another calibration text.",
            "Give the same calibration text as before, or name another folder.",
        )
    if recorded is None or not path.is_file() or file_digest(path) != recorded["sha256"]:
        digest = _learn(path, evaluator, allocation, text, progress)
        if recorded is not None and recorded["sha256"] != digest:
            raise LedgerError(
                f"{run} holds evaluations of another reconstruction of the same allocation.",
                "Give the same calibration text and threads as before, or name another folder.",
            )
        if recorded is None:
            ledger.put_estimate(name, canonical_json({"sha256": digest, "text": text}))
    found, _ = _read(path)
    before, after = (sum(getattr(one, when) for one in found.flips) / len(found.flips) for when in ("before", "after"))
    progress.message(
        f"reconstruction: learned on {found.tokens:,} tokens of calibration text; of the spikes of a block "
        f"{before:.2%} differed from the float network's, now {after:.2%}"
    )
    return found.sites


def _learn(path: Path, evaluator: Evaluator, allocation: Allocation, text: str, progress: Progress) -> str:
    """Learn the rounding of an allocation on `text` into a file; its sha256.

    What is learned is kept beside it block by block, so that a killed study goes on with the block in flight.
    """
    partial = path.with_suffix(PARTIAL)
    evaluator.restore()
    found = reconstruct(
        evaluator.model,
        evaluator.anatomy,
        evaluator.task,
        allocation,
        evaluator.inputs,
        progress,
        done=_done(partial, text),
        keep=lambda so_far: _write(partial, so_far, text),
    )
    digest = _write(path, found, text)
    partial.unlink(missing_ok=True)
    return digest


def _done(partial: Path, text: str) -> Reconstruction | None:
    """What was learned on a text before a kill; None without it, or where the file is not to be trusted."""
    try:
        found, its_text = _read(partial)
    except ArtifactError:
        return None
    return found if its_text == text else None


def stored_learned(run: Path, allocation: Allocation) -> Learned | None:
    """The learned rounding that a study has left in its folder, where `allocation` has one. Raises StudyError."""
    if not allocation.is_reconstructed:
        return None
    name = str(allocation.quantizer)
    path = _path(run, name)
    try:
        with Ledger.read(run / folder.LEDGER) as ledger:
            told = ledger.estimate(name)
        if told is None or json.loads(told)["sha256"] != file_digest(path):
            raise StudyError(f"{path} is not as the study has written it.", folder.AGAIN)
        found, _ = _read(path)
        return {name: found.sites}
    except ArtifactError as error:
        raise StudyError(error.problem, folder.AGAIN) from error


def _path(run: Path, name: str) -> Path:
    return run / folder.RECONSTRUCTIONS / f"{name}.safetensors"


def _write(path: Path, found: Reconstruction, text: str) -> str:
    """Keep what was learned on `text` in a file; its sha256. Raises LedgerError or ArtifactError where it cannot be."""
    tensors: dict[str, torch.Tensor] = {}
    for name, site in found.sites.items():
        tensors |= replace(site, exponents=None).stored(name)
        if site.exponents is not None:
            tensors[f"{name}.exponents"] = site.exponents
    scaled = sorted(name for name, site in found.sites.items() if site.exponents is not None)
    sites = {name: [str(site.format), list(site.shape)] for name, site in found.sites.items()}
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise LedgerError(f"Cannot make {path.parent}: {error.strerror}.", "Name another folder.") from error
    learned = {"text": text, "tokens": found.tokens, "flips": [asdict(one) for one in found.flips]}
    learned["digest"] = _digest(found)
    return write(path, tensors, canonical_json({"sites": sites, "scaled": scaled, **learned}))


def _read(path: Path) -> tuple[Reconstruction, str]:
    """The inverse of `_write`: what was learned, and on which text. Raises ArtifactError."""
    with reading(path):
        content = parse_object(metadata_of(read_header(path)), "The metadata")
        try:
            sites = {name: (Format.parse(fmt), tuple(shape)) for name, (fmt, shape) in content["sites"].items()}
            flips = tuple(Flips(**one) for one in content["flips"])
            scaled, tokens, text = set(content["scaled"]), int(content["tokens"]), str(content["text"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ArtifactError("The metadata is not that of a reconstruction.", folder.AGAIN) from error
        wanted = [
            [*stored_tensors(*site, name), *[(f"{name}.exponents", "I8", ())] * (name in scaled)]
            for name, site in sites.items()
        ]
        found = {}
        for (name, site), parts in zip(sites.items(), read_tensors(path, wanted), strict=True):
            tensor = QuantizedTensor.from_stored(*site, name, parts)
            found[name] = replace(tensor, exponents=parts.get(f"{name}.exponents"))
    reconstruction = Reconstruction(found, flips, tokens)
    if _digest(reconstruction) != content.get("digest"):
        raise ArtifactError(f"{path} is not as it was written.", folder.AGAIN)
    return reconstruction, text


def _digest(found: Reconstruction) -> str:
    """The sha256 of the numbers of all sites, whatever types they are held in."""
    digest = hashlib.sha256()
    for _, site in sorted(found.sites.items()):
        parts = (site.codes, site.scales, site.zeros, site.exponents)
        update_digest(digest, [part.double() for part in parts if part is not None])
    return digest.hexdigest()
