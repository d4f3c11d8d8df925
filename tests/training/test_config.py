from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import TINY
from training.config import ConfigError
from training.next_word.config import NextWordRun
from training.runs import load, parse

CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.toml"))


def table() -> dict[str, Any]:
    return tomllib.loads(TINY.read_text())


def test_shipped_configs_are_read_and_make_a_model_each() -> None:
    made = [(run.name, run.version) for run in map(load, CONFIGS)]
    assert len(set(made)) == len(CONFIGS) > 20


def test_an_unknown_key_is_named_with_the_known_ones() -> None:
    wrong = table()
    wrong["training"]["learning_rate"] = 1e-3
    with pytest.raises(ConfigError, match=r"training\.learning_rate.*epochs, batch_size, lr, bptt"):
        parse(wrong)


def test_an_unknown_key_at_the_top_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown key sede; known keys are .*name, version"):
        parse(table() | {"sede": 1})


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("training", "epochs", "three", r"Expected `int`, got `str` - at `\$\.training\.epochs`"),
        ("encoder", "cell", "lstn", r"Invalid enum value 'lstn' - at `\$\.encoder\.cell`"),
        ("encoder", "width", 8, r"unknown key encoder\.width; known keys are cell, hidden_size"),
        ("model", "cutoffs", [25, 10], "cutoffs must rise"),
        ("model", "cutoff_dims", [6], "one width each"),
    ],
)
def test_a_wrong_value_is_named_with_its_path(
    section: str, key: str, value: object, message: str
) -> None:
    wrong = table()
    wrong[section][key] = value
    with pytest.raises(ConfigError, match=message):
        parse(wrong)


def test_a_missing_key_is_named() -> None:
    wrong = table()
    del wrong["encoder"]["hidden_size"]
    with pytest.raises(ConfigError, match="missing required field `hidden_size`"):
        parse(wrong)


@pytest.mark.parametrize("task", ["weather", ["ner"], 3])
def test_an_unknown_task_is_named_with_the_known_ones(task: Any) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(table() | {"task": task})
    assert "next_word, sentiment, weekend_planner" in str(refused.value)
    assert str(refused.value).endswith(f"not {task!r}")


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        load(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("task = ")
    with pytest.raises(ConfigError, match=r"broken\.toml: Invalid value"):
        load(tmp_path / "broken.toml")


def test_numbers_in_scientific_notation_are_read() -> None:
    run = load(TINY)
    assert isinstance(run, NextWordRun)
    assert run.training.lr == 0.02
