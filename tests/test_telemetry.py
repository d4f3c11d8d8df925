"""ONNX Runtime reports to its maker unless told not to before its import; it must find itself told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import models


@pytest.mark.parametrize("module", ["service.engine.graph", "training.export.runtime"])
def test_loading_a_model_leaves_no_trace_of_telemetry(module: str, tmp_path: Path) -> None:
    model = models.accumulator(tmp_path / "models") / "model.onnx"
    home = tmp_path / "home"
    home.mkdir()
    # CI switches telemetry off too, and so does the Makefile; neither may be what makes this pass.
    inherited = {k: v for k, v in os.environ.items() if k not in {"CI", "ORT_DISABLE_TELEMETRY"}}
    script = f"import {module}, onnxruntime; onnxruntime.InferenceSession({str(model)!r})"
    subprocess.run(
        [sys.executable, "-c", script],
        env=inherited | {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")},
        check=True,
        timeout=60,
    )
    assert [str(path) for path in home.rglob("*") if path.is_file()] == []
