from __future__ import annotations

import os
from pathlib import Path

import msgspec
import numpy as np
import pytest

from training.data.download import DataError
from training.forecast import data
from training.forecast.config import DataConfig
from training.forecast.data import filled, table

TEXT = "date,a,b\n2020,1,2\n2021,,nan\n2022,NA,-3.5e1\n"


def test_columns_of_numbers_are_found_and_empty_cells_are_missing() -> None:
    names, values = table(TEXT, (), "x.csv")
    # The years are numbers too.
    assert names == ("date", "a", "b")
    np.testing.assert_array_equal(
        values, [[2020, 1, 2], [2021, np.nan, np.nan], [2022, np.nan, -35]]
    )
    names, values = table(TEXT.replace("2020", "1 May 2020"), (), "x.csv")
    assert names == ("a", "b")


def test_columns_come_in_the_order_asked_for() -> None:
    names, values = table(TEXT, ("b", "a"), "x.csv")
    assert names == ("b", "a")
    assert values[0].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        (TEXT, ("c",), "x.csv has no column c; it has date, a, b"),
        (TEXT + "2023,1\n", (), "line 5: 2 cells, the header has 3"),
        (TEXT + "2023,one,2\n", (), "line 5: 'one' is not a number"),
        (TEXT + "2023,inf,2\n", (), "line 5: 'inf' is not finite"),
        ("a,b\n", (), "no rows"),
        ("", (), "no rows"),
        ("a\nx\n", (), "no column of numbers"),
    ],
)
def test_what_is_no_table_of_numbers_is_refused(
    text: str, columns: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        table(text, columns, "x.csv")


def test_gaps_are_filled_with_the_value_before() -> None:
    values = np.random.default_rng(1).standard_normal((50, 3))
    values[np.random.default_rng(2).random((50, 3)) < 0.4] = np.nan
    values[:3, 0] = np.nan
    due = values.copy()
    for column in range(3):
        last = 0.0
        for row in range(50):
            last = last if np.isnan(due[row, column]) else due[row, column]
            due[row, column] = last
    np.testing.assert_array_equal(filled(values), due)


def test_a_file_of_ones_own_is_cut_by_shares(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("t,x\n" + "\n".join(f"a,{i}" for i in range(10)) + "\n")
    config = DataConfig(name="csv", path=str(path), train=0.5, valid=0.3, licence="mine")
    series = data.load(config, {})
    assert series.columns == ("x",)
    assert series.parts == {"train": (0, 5), "valid": (5, 8), "test": (8, 10)}
    assert series.dataset.name == "own.csv"
    assert series.dataset.licence == "mine"
    # Of the train part only: 0 to 4.
    mean, deviation = series.scale()
    assert (mean.tolist(), deviation.tolist()) == ([2.0], [pytest.approx(2**0.5)])
    with pytest.raises(DataError, match="leave a part"):
        data.load(msgspec.structs.replace(config, train=0.9), {})


def test_a_constant_column_is_not_divided_by_zero(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("x\n" + "3\n" * 10)
    series = data.load(DataConfig(name="csv", path=str(path)), {})
    assert np.all(series.standardised() == 0)


def test_a_column_that_nothing_can_be_learnt_of_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("x,y\n" + "1,\n" * 6 + "1,2\n" * 4)
    with pytest.raises(DataError, match=r"own\.csv has no value of y in the train part"):
        data.load(DataConfig(name="csv", path=str(path)), {})


@pytest.mark.parametrize(
    ("name", "content"), [("own.csv", "größe\n1\n".encode("latin-1")), ("own.csv.gz", b"x\n1\n")]
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=name):
        data.load(DataConfig(name="csv", path=str(path)), {})


def test_a_mark_of_byte_order_is_not_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("x\n" + "1\n" * 10, "utf-8-sig")
    assert data.load(DataConfig(name="csv", path=str(path)), {}).columns == ("x",)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ETTh1\.csv"):
        data.load(DataConfig(name="etth1"), {"SEQSERVE_DATA": str(tmp_path)})


@pytest.mark.skipif(not os.environ.get("SEQSERVE_DATA"), reason="needs the real series")
@pytest.mark.parametrize(("name", "rows"), [("etth1", 1), ("etth2", 1), ("ettm1", 4)])
def test_the_public_series_are_cut_by_the_published_protocol(name: str, rows: int) -> None:
    series = data.load(msgspec.convert({"name": name}, DataConfig))
    assert series.columns == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    month = 30 * 24 * rows
    assert list(series.parts.values()) == [
        (0, 12 * month),
        (12 * month, 16 * month),
        (16 * month, 20 * month),
    ]
    assert series.values.shape == (17420 * rows, 7)
    train = series.standardised()[: 12 * month]
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(train.std(axis=0), 1, atol=1e-9)
