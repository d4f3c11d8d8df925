from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import numpy as np
import pytest

from service.contract import decode_config, decode_golden
from training.export import package
from training.export.bundle import Bundle
from training.export.golden import rounded
from training.export.parity import ParityError
from training.export.runtime import Arrays
from training.weekend_planner.bundle import bundle, step
from training.weekend_planner.config import WeekendPlannerRun

RUN = WeekendPlannerRun(name="planner", version=2, description="A test")


@pytest.fixture
def good() -> Bundle:
    return bundle(RUN, "first && second")


def wrong(good: Bundle) -> Bundle:
    """The same model, but for an original that answers a little differently in its fourth time step."""

    def other(inputs: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        outputs, after = step(inputs, state)
        outputs["scores"][3:4] += 1e-3
        return outputs, after

    return msgspec.structs.replace(good, original=other)


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_every_file_is_there_and_hashed(good: Bundle, tmp_path: Path) -> None:
    directory = package.write(good, tmp_path)
    assert directory == tmp_path / "planner" / "2"
    files = content(directory)
    assert set(files) == {"README.md", "config.json", "golden.json", "model.onnx"}
    config = decode_config(files["config.json"])
    assert config.files == {
        name: hashlib.sha256(files[name]).hexdigest() for name in ("golden.json", "model.onnx")
    }
    assert decode_golden(files["golden.json"]).cases
    card = files["README.md"].decode()
    assert "first\nsecond" in card
    assert "| accuracy | all weather of up to 10 weekends | 1 | 0.3333 (a guess) |" in card


def test_a_training_curve_lies_beside_the_card_that_shows_it(good: Bundle, tmp_path: Path) -> None:
    directory = package.write(msgspec.structs.replace(good, curve=b"a picture"), tmp_path)
    files = content(directory)
    assert files["curve.png"] == b"a picture"
    assert "![Training curve](curve.png)" in files["README.md"].decode()
    # The service does not read it.
    assert "curve.png" not in decode_config(files["config.json"]).files


def test_a_graph_that_differs_is_refused_and_the_old_export_stays(
    good: Bundle, tmp_path: Path
) -> None:
    before = content(package.write(good, tmp_path))
    with pytest.raises(ParityError, match=r"planner: scores differs by 0\.001 at B=1, T=2, row 0"):
        package.write(wrong(good), tmp_path)
    assert content(tmp_path / "planner" / "2") == before
    assert [path.name for path in (tmp_path / "planner").iterdir()] == ["2"]


def test_an_export_replaces_the_one_before(good: Bundle, tmp_path: Path) -> None:
    directory = package.write(good, tmp_path)
    (directory / "left-over").touch()
    package.write(good, tmp_path)
    assert "left-over" not in content(directory)
    assert [path.name for path in (tmp_path / "planner").iterdir()] == ["2"]


def test_golden_numbers_keep_what_float32_can_tell_apart() -> None:
    values = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    assert np.shape(rounded(values)) == (3, 4)
    np.testing.assert_allclose(rounded(values), values, rtol=1e-6)
    assert len(str(rounded(values)[0][0])) <= 11
