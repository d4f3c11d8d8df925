from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from service.__main__ import list_models, main
from tests.models import accumulator


def test_models_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accumulator(tmp_path)
    assert list_models(tmp_path) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("accumulator/1  ")
    assert "  streaming  " in line


def test_a_model_that_cannot_be_read_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accumulator(tmp_path)
    (tmp_path / "accumulator" / "1" / "config.json").write_text("{}")
    assert list_models(tmp_path) == 1
    assert "accumulator/1: " in capsys.readouterr().out


def test_a_directory_without_models_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list_models(tmp_path) == 1
    assert f"{tmp_path} has no <name>/<version>/config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "--port", "65536"], "port is 0 to 65535, not 65536"),
        (["serve", "--port", "-1"], "port is 0 to 65535, not -1"),
        (["serve", "--models", "nowhere"], "nowhere is not a directory"),
        (["models", "--models", "nowhere"], "nowhere is not a directory"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["seqserve", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="needs a runtime without CUDA",
)
def test_a_service_that_is_to_run_on_a_gpu_does_not_start_without_one(tmp_path: Path) -> None:
    accumulator(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--models", str(tmp_path), "--port", "0"],
        env=os.environ | {"SEQSERVE_DEVICE": "cuda"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert "SEQSERVE_DEVICE=cuda, but the installed onnxruntime has no CUDA" in ended.stderr
    assert "Traceback" not in ended.stderr
