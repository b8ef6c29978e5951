"""What `import qslm` gives."""

import subprocess
import sys
from types import ModuleType

import qslm

VERBS = ("demo", "inspect", "search", "select", "evaluate", "verify", "generate", "train_lm", "train_classifier")


def test_the_public_names_are_few_and_all_there():
    assert 1 < len(qslm.__all__) <= 25
    assert len(set(qslm.__all__)) == len(qslm.__all__)
    for name in qslm.__all__:
        assert not isinstance(getattr(qslm, name), ModuleType), name


def test_every_verb_is_a_call():
    assert all(callable(getattr(qslm, verb)) for verb in (*VERBS, "describe_data", "write_report"))


def test_the_verb_search_is_no_module_whatever_is_imported_first():
    code = (
        "from qslm.search.tiered import TieredSearch; import qslm; print(callable(qslm.search), TieredSearch.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "TieredSearch"]


def test_the_package_alone_does_not_load_pytorch():
    code = "import qslm, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
