from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from service.contract import Metric, digest
from training import pictures, results
from training.cli import main
from training.experiments.catalogue import EXPERIMENTS
from training.experiments.experiment import numbers_file, picture_file
from training.targets import TARGETS

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_command_writes() -> None:
    page = results.page(ROOT / "exported", ROOT / "docs")
    assert (ROOT / "docs" / results.PAGE).read_text() == page, "run `seqtrain results`"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_picture_shows_the_numbers_beside_it(name: str) -> None:
    directory = ROOT / "docs" / results.RESULTS
    numbers = numbers_file(EXPERIMENTS[name], directory).read_bytes()
    assert pictures.source(picture_file(EXPERIMENTS[name], directory)) == digest(numbers)


def test_a_page_without_models_and_experiments_says_what_is_missing(tmp_path: Path) -> None:
    page = results.page(tmp_path / "exported", tmp_path)
    for target in TARGETS:
        assert target.title in page.replace("\n", " ")
    for name in EXPERIMENTS:
        assert f"Not measured yet; run `seqtrain experiment {name}`." in page


def test_figures_of_a_model_that_is_not_shipped_are_kept_and_shown(tmp_path: Path) -> None:
    elsewhere, docs = tmp_path / "elsewhere", tmp_path / "docs"
    shutil.copytree(ROOT / "exported" / "next-word-lstm", elsewhere / "next-word-lstm")
    results.keep(elsewhere, docs)
    shutil.rmtree(elsewhere)
    page = results.page(tmp_path / "exported", docs)
    assert "| next-word-lstm | perplexity |" in page
    assert "not shipped: next-word-lstm." in page
    shipped = results.page(ROOT / "exported", docs)
    assert shipped.count("| next-word-lstm | perplexity |") == 1
    assert "not shipped" not in shipped


@pytest.mark.parametrize(
    ("name", "split", "value", "verdict"),
    [
        ("perplexity", "wikitext-2 valid", 80.0, "aim met"),
        ("perplexity", "wikitext-2 valid", 102.0, "reach met"),
        ("perplexity", "wikitext-2 valid", 141.0, "below reach"),
        ("macro F1", "goemotions-sentiment valid", 0.63, "aim met"),
        ("macro F1", "goemotions-sentiment valid", 0.56, "below reach"),
        ("MSE H=24", "etth1 test, 7 columns", 0.31, "reach met"),
        ("MSE H=24", "etth1 test, OT", 0.31, "below reach"),
    ],
)
def test_a_goal_knows_its_metric_and_which_way_is_up(
    name: str, split: str, value: float, verdict: str
) -> None:
    metric = Metric(name=name, split=split, value=value)
    (target,) = [target for target in TARGETS if target.matches(metric)]
    assert target.verdict(value) == verdict


def test_an_unknown_experiment_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["experiment", "alchemy"])
    assert "alchemy" in capsys.readouterr().err
