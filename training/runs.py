"""Runs as TOML files. A file starts with `task`, which says which record the rest must fit."""

from __future__ import annotations

import tomllib
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import msgspec

from training.config import ConfigError, Record
from training.forecast.config import ForecastRun
from training.ner.config import NerRun
from training.next_word.config import NextWordRun
from training.sentiment.config import SentimentRun
from training.weekend_planner.config import WeekendPlannerRun

Run = NerRun | ForecastRun | NextWordRun | SentimentRun | WeekendPlannerRun


def load(path: Path) -> Run:
    """Read a run.

    Raises:
        ConfigError: The file is missing or not TOML, a key is unknown, missing, or of the wrong type.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    try:
        return parse(table)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(table: dict[str, Any]) -> Run:
    """Fit a TOML table to its record.

    Raises:
        ConfigError: A key is unknown, missing, or of the wrong type.
    """
    tasks = {run.__struct_config__.tag: run for run in get_args(Run)}
    task = table.get("task")
    if not isinstance(task, str) or task not in tasks:
        raise ConfigError(f"task must be one of {', '.join(map(str, tasks))}, not {task!r}")
    _refuse_unknown_keys(table, tasks[task], "")
    try:
        run: Run = msgspec.convert(table, Run)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from None
    return run


def _refuse_unknown_keys(table: dict[str, Any], record: type[Record], path: str) -> None:
    """Raise for a key that the record lacks, with those it has; msgspec would name the key alone."""
    fields = get_type_hints(record)
    tag = record.__struct_config__.tag_field
    for key, value in table.items():
        if key == tag:
            continue
        if key not in fields:
            raise ConfigError(f"unknown key {path}{key}; known keys are {', '.join(fields)}")
        inner = _record_of(fields[key], value)
        if inner is not None:
            _refuse_unknown_keys(value, inner, f"{path}{key}.")


def _record_of(kind: Any, value: Any) -> type[Record] | None:
    """The record that a table has to fit, if its field takes one; of a union, the one that its tag names."""
    choices = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    records = [c for c in choices if isinstance(c, type) and issubclass(c, Record)]
    if not isinstance(value, dict) or not records:
        return None
    if len(records) == 1:
        return records[0]
    config = records[0].__struct_config__
    assert config.tag_field is not None
    return next(
        (r for r in records if r.__struct_config__.tag == value.get(config.tag_field)), None
    )
