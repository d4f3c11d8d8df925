from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from service.contract import Dataset, Metric
from training import floors
from training.floors import Floors

BOOKS = Dataset(name="books", licence="none", sha256={"train.txt": "aa", "valid.txt": "bb"})
NOTES = Dataset(name="notes", licence="none", sha256={"train.txt": "cc"})


def metric(value: float, method: str = "", name: str = "accuracy", split: str = "valid") -> Metric:
    return Metric(name=name, split=split, value=value, floor_name=method)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "floors.json"


@pytest.mark.parametrize(
    ("name", "hardest"),
    [
        ("accuracy", 0.7),
        ("macro F1", 0.7),
        ("perplexity", 0.2),
        ("nats per character", 0.2),
        ("MSE at 24 steps", 0.2),
    ],
)
def test_the_hardest_floor_stands_beside_a_metric(file: Path, name: str, hardest: float) -> None:
    methods = tuple(metric(v, f"method {v}", name) for v in (0.5, 0.7, 0.2))
    floors.save(Floors((BOOKS,), methods), file)
    (beside,) = floors.beside([metric(0.6, name=name)], [BOOKS], file)
    assert (beside.value, beside.floor, beside.floor_name) == (0.6, hardest, f"method {hardest}")


def test_a_floor_is_of_its_metric_and_split_only(file: Path) -> None:
    floors.save(Floors((BOOKS,), (metric(0.5, "guess"),)), file)
    others = (metric(0.6, name="recall"), metric(0.6, split="test"))
    assert floors.beside(others, [BOOKS], file) == others


def test_a_floor_is_of_its_data_only(file: Path) -> None:
    floors.save(Floors((BOOKS,), (metric(0.5, "guess"),)), file)
    changed = msgspec.structs.replace(BOOKS, sha256=BOOKS.sha256 | {"valid.txt": "dd"})
    assert floors.best("accuracy", "valid", [changed], file) is None
    assert floors.best("accuracy", "valid", [NOTES], file) is None


def test_a_model_of_more_data_has_the_same_floor(file: Path) -> None:
    floors.save(Floors((BOOKS,), (metric(0.5, "guess"),)), file)
    found = floors.best("accuracy", "valid", [NOTES, BOOKS], file)
    assert floors.in_words(found) == "0.5 (guess)"


def test_a_metric_keeps_the_floor_that_it_has(file: Path) -> None:
    floors.save(Floors((BOOKS,), (metric(0.5, "guess"),)), file)
    own = msgspec.structs.replace(metric(0.6), floor=0.1, floor_name="own")
    assert floors.beside([own], [BOOKS], file) == (own,)


def test_floors_are_replaced_by_method_and_others_stay(file: Path) -> None:
    floors.save(Floors((BOOKS,), (metric(0.5, "guess"), metric(0.6, "count"))), file)
    floors.save(Floors((NOTES,), (metric(0.1, "guess"),)), file)
    floors.save(Floors((BOOKS,), (metric(0.7, "guess"), metric(0.4, "guess", split="test"))), file)
    entries = floors.read(file)
    assert [entry.data.keys() for entry in entries] == [{"books"}, {"notes"}]
    found = {(m.split, m.floor_name): m.value for m in entries[0].metrics}
    due = {("valid", "guess"): 0.7, ("valid", "count"): 0.6, ("test", "guess"): 0.4}
    assert found == due
    assert [each.name for each in file.parent.iterdir()] == ["floors.json"]


def test_no_file_knows_nothing(file: Path) -> None:
    assert floors.read(file) == []
    assert floors.in_words(floors.best("accuracy", "valid", [BOOKS], file)) == "unknown"
