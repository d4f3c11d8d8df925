from __future__ import annotations

import json
from pathlib import Path

import pytest

from service.contract import decode_config
from training import floors
from training.cli import main

PLANNER = Path(__file__).parents[2] / "training" / "configs" / "weekend_planner.toml"


def test_fit_export_evaluate(
    tiny_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--runs", str(tmp_path / "runs"), "--exported", str(tmp_path / "exported")]
    assert main(["fit", str(tiny_toml), *places]) == 0
    assert main(["export", str(tiny_toml), *places]) == 0
    directory = tmp_path / "exported" / "tiny" / "1"
    config = decode_config((directory / "config.json").read_bytes())
    (metric,) = config.provenance.metrics
    assert metric.name == "perplexity"
    assert config.provenance.config["encoder"]["hidden_size"] == 24
    assert config.provenance.command.startswith("seqtrain fit")
    assert config.files.keys() == {"model.onnx", "golden.json", "tokenizer.json"}
    capsys.readouterr()
    assert main(["evaluate", str(tiny_toml), *places]) == 0
    assert capsys.readouterr().out.startswith(
        f"perplexity on files valid: {metric.value:.5g}, floor unknown"
    )
    (directory / "model.onnx").write_bytes(b"something else")
    assert main(["evaluate", str(tiny_toml), *places]) == 1
    assert "SHA-256 of" in capsys.readouterr().err


def test_floors_are_kept_in_a_file(
    tiny_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "floors.json"
    for config in (tiny_toml, PLANNER):
        assert main(["floors", str(config), "--to", str(file)]) == 0
    first, _, guess, last = capsys.readouterr().out.splitlines()
    words, planner = floors.read(file)
    (floor,) = words.metrics
    assert first == f"perplexity on files valid: {floor.value:.4g} (modified Kneser-Ney 5-gram)"
    assert words.data.keys() == {"files"}
    assert guess == "accuracy on all weather of up to 10 weekends: 0.3333 (a guess)"
    assert planner.data == {}
    assert last == f"wrote {file}"


def test_the_planner_is_exported_without_training_and_measured_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(PLANNER), "--exported", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(PLANNER), "--exported", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (
        "accuracy on all weather of up to 10 weekends: 1, floor 0.3333 (a guess)\n"
    )
    config = json.loads((tmp_path / "weekend-planner" / "1" / "config.json").read_text())
    assert config["tolerance"] == 0


def test_there_is_nothing_to_fit_in_the_planner(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(PLANNER)]) == 1
    assert "weekend-planner has nothing to train" in capsys.readouterr().err


def test_export_before_fit_says_what_to_do(
    tiny_toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(tiny_toml), "--runs", str(tmp_path)]) == 1
    assert "run `seqtrain fit` first" in capsys.readouterr().err
    assert main(["evaluate", str(tiny_toml), "--exported", str(tmp_path)]) == 1
    assert "run `seqtrain export` first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("batch_size = 8", "batch_size = 50000", "tokens are too few for 50000 columns"),
        ("cutoffs = [10, 20]", "cutoffs = [10, 2000]", "do not fit a vocabulary of"),
    ],
)
def test_a_run_that_does_not_fit_its_data_is_refused_in_words(
    tiny_toml: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    message: str,
) -> None:
    tiny_toml.write_text(tiny_toml.read_text().replace(old, new))
    assert main(["fit", str(tiny_toml), "--runs", str(tmp_path / "runs")]) == 1
    assert message in capsys.readouterr().err
