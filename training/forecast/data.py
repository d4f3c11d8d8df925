"""Series that a forecaster may be trained on: rows in order of time, cut into train, valid and test parts.

ETT follows the published protocol (Zhou et al. 2021, Informer): 12, 4 and 4 months of 30 days; later rows are unused.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from service.contract import Dataset
from training.data.download import DataError, Source, fetch
from training.forecast.config import DataConfig

Array = npt.NDArray[np.float64]

_ETT = (
    "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/"
    "1d16c8f4f943005d613b5bc962e9eeb06058cf07/ETT-small/"
)
_LICENCE = "CC BY-ND 4.0 (Electricity Transformer Temperature; Zhou et al. 2021)"
_MONTH = 30 * 24  # hours


class _Known(msgspec.Struct, frozen=True):
    """A public series: its file, and its rows in an hour."""

    file: str
    source: Source
    rows_per_hour: int = 1


_KNOWN = {
    "etth1": _Known(
        "ETTh1.csv",
        Source(
            url=_ETT + "ETTh1.csv",
            sha256="f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
        ),
    ),
    "etth2": _Known(
        "ETTh2.csv",
        Source(
            url=_ETT + "ETTh2.csv",
            sha256="a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b",
        ),
    ),
    "ettm1": _Known(
        "ETTm1.csv",
        Source(
            url=_ETT + "ETTm1.csv",
            sha256="6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e",
        ),
        rows_per_hour=4,
    ),
}


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Observations in order of time.

    Attributes:
        columns: Names of the n columns.
        values: Observations (N, n) in their own units; NaN is missing.
        parts: First row and the row after the last of `train`, `valid` and `test`.
        period: Rows of one season.
        dataset: Name, licence and digests, for the provenance of a model.
        told: Observations (N, n) as a model is told them, if others than `values`.
    """

    columns: tuple[str, ...]
    values: Array
    parts: dict[str, tuple[int, int]]
    period: int
    dataset: Dataset
    told: Array | None = None

    def scale(self) -> tuple[Array, Array]:
        """Mean and standard deviation of each column over the train part, (n,) each; a constant column has 1."""
        train = self.values[slice(*self.parts["train"])]
        mean, deviation = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
        return mean, np.where(deviation > 0, deviation, 1.0)

    def standardised(self) -> Array:
        """Observations (N, n) less the mean, over the standard deviation."""
        mean, deviation = self.scale()
        return (self.values - mean) / deviation


def load(config: DataConfig, environ: Mapping[str, str] = os.environ) -> Series:
    """Read a series, downloading it where it is public and not there.

    Args:
        config: Which one.
        environ: `SEQSERVE_DATA` names a directory with a folder `ett`; `SEQSERVE_CACHE` one for downloads.

    Raises:
        DataError: The file is missing, is not what it should be, or lacks a column or its values to learn from.
    """
    known = _KNOWN.get(config.name)
    path = Path(config.path) if known is None else _path(known, environ)
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        text = data.decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"series {config.name}, {path}: {error}") from None
    columns, values = table(text, config.columns, str(path))
    rows = 1 if known is None else known.rows_per_hour
    parts = _shares(config, len(values)) if known is None else _months(rows * _MONTH, len(values))
    empty = np.isnan(values[slice(*parts["train"])]).all(axis=0)
    if empty.any():
        raise DataError(f"{path} has no value of {columns[empty.argmax()]} in the train part")
    return Series(
        columns=columns,
        values=values,
        parts=parts,
        period=config.period * rows,
        dataset=Dataset(
            name=config.name if known else path.name,
            licence=_LICENCE if known else config.licence,
            sha256={known.file if known else path.name: hashlib.sha256(data).hexdigest()},
        ),
    )


def _path(known: _Known, environ: Mapping[str, str]) -> Path:
    if directory := environ.get("SEQSERVE_DATA"):
        plain = Path(directory, "ett", known.file)
        return plain if plain.exists() else plain.with_name(known.file + ".gz")
    cache = Path(environ.get("SEQSERVE_CACHE") or Path.home() / ".cache" / "seqserve")
    return fetch(known.source, cache / "ett" / known.file)


def _months(month: int, rows: int) -> dict[str, tuple[int, int]]:
    if rows < 20 * month:
        raise DataError(f"{rows} rows are fewer than the {20 * month} of the protocol")
    return {
        "train": (0, 12 * month),
        "valid": (12 * month, 16 * month),
        "test": (16 * month, 20 * month),
    }


def _shares(config: DataConfig, rows: int) -> dict[str, tuple[int, int]]:
    first = round(config.train * rows)
    second = first + round(config.valid * rows)
    if not 0 < first < second < rows:
        raise DataError(f"shares {config.train} and {config.valid} leave a part of the rows empty")
    return {"train": (0, first), "valid": (first, second), "test": (second, rows)}


def table(text: str, wanted: tuple[str, ...], where: str) -> tuple[tuple[str, ...], Array]:
    """Columns of numbers of a CSV text.

    Args:
        text: A header and rows; an empty cell, `NA` or `nan` is missing.
        wanted: Which columns; empty for all whose first row holds a number or nothing.
        where: Name of the text in errors.

    Returns:
        Names (n) and values (N, n).

    Raises:
        DataError: A column is not there, a row has another length than the header, or a cell is no number.
    """
    header, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    for line, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(f"{where}, line {line}: {len(row)} cells, the header has {len(header)}")
    if not rows:
        raise DataError(f"{where} has no rows")
    if missing := [name for name in wanted if name not in header]:
        raise DataError(f"{where} has no column {missing[0]}; it has {', '.join(header)}")
    names = wanted or tuple(n for n, cell in zip(header, rows[0], strict=True) if _is_number(cell))
    places = [header.index(name) for name in names]
    if not places:
        raise DataError(f"{where} has no column of numbers")
    values = np.empty((len(rows), len(places)))
    for number, row in enumerate(rows):
        for i, place in enumerate(places):
            values[number, i] = _number(row[place], f"{where}, line {number + 2}")
    return names, values


def _is_number(cell: str) -> bool:
    try:
        _number(cell, "")
    except DataError:
        return False
    return True


def _number(cell: str, where: str) -> float:
    if cell.strip() in ("", "NA"):
        return math.nan
    try:
        value = float(cell)
    except ValueError:
        raise DataError(f"{where}: {cell!r} is not a number") from None
    if math.isinf(value):
        raise DataError(f"{where}: {cell!r} is not finite")
    return value


def filled(values: Array) -> Array:
    """Missing values (N, n) replaced by the one before in their column, or 0 where there is none."""
    place = np.where(np.isnan(values), -1, np.arange(len(values))[:, None])
    last = np.maximum.accumulate(place, axis=0)
    known = np.take_along_axis(values, np.maximum(last, 0), axis=0)
    return np.where(last < 0, 0.0, known)
