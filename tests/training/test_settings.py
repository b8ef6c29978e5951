import math
import shlex
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
import torch
import typer.main

from qslm.cli.train import app
from qslm.errors import TrainingError
from qslm.models.spikegpt import ResidualDropout
from qslm.training import ClassifierSettings, LanguageModelSettings
from qslm.training.settings import LARGEST_DROPOUT, command

LM = LanguageModelSettings(Path("some/where/mine"), Path("data"))
CLASSIFIER = ClassifierSettings(Path("runs/spikegpt-mini-sst2"), Path("data"))
OPTION_OF = {"peak_rate": "rate"}


@pytest.mark.parametrize("settings", [LM, CLASSIFIER])
@pytest.mark.parametrize(
    ("name", "value"),
    [("batch", 0), ("peak_rate", -1.0), ("peak_rate", math.nan), ("warmup_steps", -1), ("weight_decay", -0.1)]
    + [("dropout", value) for value in (-0.1, 0.998, 1.0, 2.0, math.nan)],
)
def test_settings_outside_their_range_are_refused(settings, name, value):
    with pytest.raises(TrainingError, match=rf"The setting {name} is {value}\."):
        replace(settings, **{name: value})


@pytest.mark.parametrize("name", ["width", "layers", "context", "tokens"])
def test_a_network_of_no_size_is_refused(name):
    with pytest.raises(TrainingError, match=f"The setting {name} is 0"):
        replace(LM, **{name: 0})


def test_the_largest_dropout_keeps_something():
    dropout = ResidualDropout().train()
    dropout.rate, dropout.generator = LARGEST_DROPOUT, torch.Generator().manual_seed(0)
    x = dropout(torch.ones(4096))
    assert torch.isfinite(x).all() and 0 < int(x.count_nonzero()) < 200


def test_the_command_names_what_differs_from_the_defaults():
    assert command("qslm train lm", LM) == "qslm train lm -o mine"
    given = ("--init", "spikegpt-mini")
    told = command("qslm train classifier", replace(CLASSIFIER, peak_rate=1e-3, seed=7), given)
    assert told == "qslm train classifier --init spikegpt-mini -o spikegpt-mini-sst2 --rate 0.001 --seed 7"


def test_the_words_of_a_command_are_quoted():
    words = shlex.split(command("qslm train lm", replace(LM, output=Path("my runs"))))
    assert words == ["qslm", "train", "lm", "-o", "my runs"]


@pytest.mark.parametrize(("verb", "settings"), [("lm", LanguageModelSettings), ("classifier", ClassifierSettings)])
def test_the_command_line_has_every_setting_with_its_default(verb, settings):
    options = {option.name: option for option in typer.main.get_command(app).commands[verb].params}
    for field in fields(settings):
        option = options[OPTION_OF.get(field.name, field.name)]
        assert field.default is MISSING or option.default == field.default
        assert f"--{OPTION_OF.get(field.name, field.name).replace('_', '-')}" in option.opts
