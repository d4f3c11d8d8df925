"""Choosing the next tokens of all texts whose outputs came in one turn of the event loop, in one call a model.

The steps of a batch end in one turn, so texts that shared a batch are chosen for together and go on together, into the
next batch.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Protocol

import numpy as np
from prometheus_client import Counter

from service.api import http
from service.engine.sampling import Sampling
from service.tasks.generation import Writer
from service.tasks.protocol import Outputs

log = logging.getLogger(__name__)


class Row(Protocol):
    """A text whose next token is due."""

    writer: Writer
    """What chooses for it, with others of its model."""

    outputs: Outputs
    """What to choose from."""

    sampling: Sampling
    """How."""

    passing: tuple[str, ...]
    """See `Writer.passing`."""

    numbers: Iterator[float]
    """Its random numbers, the next of which is due."""

    generated: Counter
    """Counts tokens."""

    @property
    def open(self) -> bool:
        """Whether it is to go on."""

    def chosen(self, token: int, logprob: float) -> None:
        """Go on with a token."""

    def fail(self, error: Exception) -> None:
        """End with an error."""


class Rounds:
    """Collects texts until the turn of the event loop is over."""

    def __init__(self) -> None:
        self._due: list[Row] = []

    def add(self, row: Row) -> None:
        """Choose for a text at the end of this turn; it is told by `chosen` or `fail`."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._choose)
        self._due.append(row)

    def _choose(self) -> None:
        due, self._due = self._due, []
        alike: dict[tuple[Writer, tuple[str, ...]], list[Row]] = {}
        for row in due:
            if row.open:
                alike.setdefault((row.writer, row.passing), []).append(row)
        for (writer, passing), rows in alike.items():
            _choose(writer, passing, rows)


def _choose(writer: Writer, passing: tuple[str, ...], rows: list[Row]) -> None:
    try:
        chosen = writer.choose(
            [row.outputs for row in rows],
            [row.sampling for row in rows],
            np.array([next(row.numbers) for row in rows]),
            passing,
        )
    except Exception:
        # A fault of ours; nobody is to wait for what will not come.
        log.exception("choosing for %d texts failed", len(rows))
        for row in rows:
            row.fail(http.fault())
        return
    rows[0].generated.inc(len(rows))
    for row, (token, logprob) in zip(rows, chosen, strict=True):
        try:
            row.chosen(token, logprob)
        except Exception:
            log.exception("a text could not go on")
            row.fail(http.fault())
