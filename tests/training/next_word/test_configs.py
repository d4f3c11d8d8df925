from __future__ import annotations

from pathlib import Path

import pytest

from training.next_word.config import NextWordRun
from training.next_word.model import LanguageModel
from training.runs import load

CONFIGS = Path(__file__).parents[3] / "training" / "configs"
CHARACTERS = 65


def test_the_character_models_are_of_one_size_and_get_one_budget() -> None:
    runs = [load(path) for path in sorted(CONFIGS.glob("next_character_*.toml"))]
    sizes, budgets = [], set()
    for run in runs:
        assert isinstance(run, NextWordRun)
        model = LanguageModel(run.model, run.encoder, CHARACTERS)
        sizes.append(sum(parameter.numel() for parameter in model.parameters()))
        budgets.add((run.training.epochs, run.training.batch_size, run.training.bptt))
    assert len(runs) == 4
    assert sizes == pytest.approx([sizes[0]] * 4, rel=0.01)
    assert len(budgets) == 1
