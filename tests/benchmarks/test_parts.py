"""Every measurement runs to its end and compares its answers; how fast it is, is nobody's business here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.__main__ import PARTS, run, save
from benchmarks.aims import aims
from benchmarks.bench import Bench

Measured = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def measured(bench: Bench) -> Measured:
    """Measures a part when it is first asked for; gives the whole record."""
    return cache(lambda name: run(bench, [name]))


@pytest.fixture
def result(measured: Measured) -> dict[str, Any]:
    """The record of a run of all parts."""
    records = [measured(name) for name in PARTS]
    parts = {name: part for record in records for name, part in record["parts"].items()}
    return records[0] | {"parts": parts}


@pytest.mark.parametrize("name", PARTS)
def test_part_is_measured(measured: Measured, name: str) -> None:
    assert measured(name)["parts"].keys() == {name}


def test_aims_are_judged_from_what_was_measured(result: dict[str, Any]) -> None:
    found = aims(result["parts"])

    assert len({aim.name for aim in found}) == len(found) > 30
    assert not [aim for aim in found if aim.value != aim.value]


def test_deterministic_service_gives_the_same_bits(measured: Measured) -> None:
    bits = measured("deterministic")["parts"]["deterministic"]["bits"]

    assert [row["differing"] for row in bits] == [0, 0]


def test_under_overload_every_request_is_answered(measured: Measured) -> None:
    for row in measured("overload")["parts"]["overload"]:
        assert (row["lost"], row["improper"]) == (0, 0)


def test_page_tells_every_aim_and_shows_pictures_that_exist(
    result: dict[str, Any], tmp_path: Path
) -> None:
    save(result, tmp_path)

    page = (tmp_path / "README.md").read_text()
    for aim in aims(result["parts"]):
        assert f"| {aim.name} |" in page
    pictures = list(tmp_path.glob("*.png"))
    assert len(pictures) == 3
    assert all(picture.name in page for picture in pictures)
    assert msgspec.json.decode((tmp_path / "cpu.json").read_bytes()) == result
