from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.training.conftest import TINY
from training.config import ConfigError
from training.next_word.config import NextWordRun
from training.next_word.model import LanguageModel
from training.runs import load, parse

CONFIGS = Path(__file__).parents[3] / "training" / "configs"
CHARACTERS = 65


def test_the_character_models_are_of_one_size_and_get_one_budget() -> None:
    runs = [load(path) for path in sorted(CONFIGS.glob("next_character_*.toml"))]
    sizes, budgets = [], set()
    for run in runs:
        assert isinstance(run, NextWordRun)
        model = LanguageModel(run.model, run.encoder, CHARACTERS)
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
        # A step of the Transformer takes about twice the processor time; docs/results.md has the minutes of each.
        epochs = run.training.epochs * (14 / 8 if run.encoder.architecture == "transformer" else 1)
        budgets.add((epochs, run.training.batch_size, run.training.bptt))
    assert len(runs) == 4
    assert sizes == pytest.approx([sizes[0]] * 4, rel=0.01)
    assert len(budgets) == 1


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("encoder", "bidirectional", True, "has seen the next token"),
        ("encoder", "dropout", 1.0, r"`float` < 1.0 - at `\$\.encoder\.dropout`"),
        ("training", "valid_every", 0, r"`int` >= 1 - at `\$\.training\.valid_every`"),
        ("training", "warmup", 1.5, r"`float` <= 1.0 - at `\$\.training\.warmup`"),
    ],
)
def test_a_language_model_that_cannot_be_trained_is_refused(
    section: str, key: str, value: object, message: str
) -> None:
    wrong = tomllib.loads(TINY.read_text())
    wrong[section][key] = value
    with pytest.raises(ConfigError, match=message):
        parse(wrong)
