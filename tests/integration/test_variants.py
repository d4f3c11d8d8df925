"""The shipped int8 language model in a service of its own, beside a model that has no variant."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from service.contract import MODEL_FILE
from tests.integration import planner, process

EXPORTED = Path(__file__).resolve().parents[2] / "exported"
MODEL = "next-word-lstm"
WORDS = ("the", "president", "of", "the", "United")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for model in (MODEL, planner.MODEL):
        shutil.copytree(EXPORTED / model, tmp_path / "models" / model)
    return tmp_path / "models"


def asked(root: Path, log_file: Path, **settings: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Which variant of each model a service runs, and its likeliest word after `WORDS`, stepped."""
    service = process.start(root, log_file, **settings)
    try:
        variants = {}
        for model in (MODEL, planner.MODEL):
            (found,) = service.http.get(f"/v1/models/{model}").json()["models"]
            variants[model] = found["variant"]
            assert service.metric("model_variant", model=model, variant=found["variant"]) == 1
        service.http.put("/v1/sessions/s", json={"model": MODEL}).raise_for_status()
        for seq, word in enumerate(WORDS, start=1):
            body = {"inputs": [word], "seq": seq, "parameters": {"top_k": 1}}
            answer = service.http.post("/v1/sessions/s/steps", json=body).json()
    finally:
        assert process.stop(service) == 0, log_file.read_text()[-5000:]
    return variants, answer["results"][0][0]


def test_the_shipped_int8_model_serves_and_says_so(root: Path, tmp_path: Path) -> None:
    variants, exact = asked(root, tmp_path / "exact.log")
    assert variants == {MODEL: "exact", planner.MODEL: "exact"}
    # Not even there: the graph that runs is the only one that is read.
    (root / MODEL / "1" / MODEL_FILE).unlink()
    variants, near = asked(root, tmp_path / "int8.log", variant="int8")
    assert variants == {MODEL: "int8", planner.MODEL: "exact"}
    assert near["token"] == exact["token"] == "States"
    assert 0 < abs(math.log(near["score"] / exact["score"])) < 0.3
