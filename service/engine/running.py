"""Runs batches on the states of one model: inputs of many steps to one run, its results to what each step wanted.

In the engine's thread; nothing here waits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from service.contract import ALL_SCORES, LOGITS, TOP_K
from service.engine.arena import SCRATCH, Arena, Finite, Rows
from service.engine.graph import Runs
from service.engine.rows import block, join, keep, keep_single, pad, single
from service.engine.shapes import Shapes
from service.engine.work import Array, Batch, Group, Item, Outputs, apart
from service.errors import ModelFailed, NonFinite

log = logging.getLogger(__name__)

Ended = tuple[Item, Outputs | Exception]
"""What ended, and with what."""


class Running:
    """The way from steps to a run and back.

    Args:
        arena: The states.
        graph: The model that steps them.
        shapes: Shapes that batches are padded to; None runs each in its own.
        before: Called when a run is about to begin.
    """

    def __init__(
        self, arena: Arena, graph: Runs, shapes: Shapes | None, before: Callable[[], None]
    ) -> None:
        self._arena = arena
        self._config = config = graph.config
        self._options = graph.options
        # How many of the best there are of each ranked output.
        sizes = {tensor.name: tensor.shape[-1] for tensor in config.outputs if tensor.shape}
        self._ranked = {name: sizes[name] for name in config.ranked}
        self._shapes = shapes
        self._before = before

    def batch(self, batch: Batch) -> list[Outputs | Exception | None]:
        """Apply a batch: of each row its outputs, or why it was not applied, or None if there is more of it to do.

        Should the model raise, each row is applied alone, so that only the guilty one fails.
        """
        try:
            return self._apply(batch)
        except Exception:
            # Whatever a graph raises must not end the loop or leave a caller without an answer.
            log.exception("model %s raised on %d rows", self._config.name, len(batch.works))
        return self._isolated(batch)

    def together(self, items: Sequence[Item]) -> list[Ended]:
        """Apply all of some items of as many time steps, whole ones; see `Scheduler.straight`.

        Where all comes out finite, a group ends as one; else each of its rows ends as a work.
        """
        length = items[0].length
        count = sum([item.rows for item in items])
        try:
            result, finite = self._run_items(items, count, length)
        except Exception:
            log.exception("model %s raised on %d rows", self._config.name, count)
            works = tuple(apart(items))
            outcomes = self._isolated(Batch(works, (length,) * count, length))
            assert None not in outcomes, "all of each was to be applied"
            return [(w, o) for w, o in zip(works, outcomes, strict=True) if o is not None]
        ended: list[Ended] = []
        first = 0
        for item in items:
            end = first + item.rows
            outputs = {name: result[name][first:end, :length] for name in item.outputs}
            outputs = self._best(item, outputs)
            ended += _ended(item, outputs, None if finite is None else finite[first:end])
            first = end
        return ended

    def _run_items(
        self, items: Sequence[Item], count: int, length: int
    ) -> tuple[dict[str, Array], Finite]:
        """Run items of so many rows, of as many time steps each."""
        states = np.concatenate([self._states(item) for item in items])
        rows, time = count, length
        if self._shapes is not None:
            rows, time = self._shapes.padded(rows, time)
        feeds = {t.name: block(items, t, rows, time) for t in self._config.inputs}
        feeds[self._config.lengths] = lengths = np.full(rows, time, np.int32)
        lengths[:count] = length
        return self._run(states, feeds, items)

    @staticmethod
    def _states(item: Item) -> Rows:
        # Those in flight cannot have been given back.
        return item.states if isinstance(item, Group) else np.array([item.slot.index], np.int64)

    def _isolated(self, batch: Batch) -> list[Outputs | Exception | None]:
        outcomes: list[Outputs | Exception | None] = []
        for work, length in zip(batch.works, batch.lengths, strict=True):
            try:
                outcomes += self._apply(Batch((work,), (length,), length))
            except Exception as error:
                log.exception("model %s raised on one row", self._config.name)
                detail = f"model {self._config.name} raised {type(error).__name__}"
                outcomes.append(ModelFailed(f"{detail}; the step was not applied"))
        return outcomes

    def _apply(self, batch: Batch) -> list[Outputs | Exception | None]:
        """Run rows once; those that come out finite keep their next state, the others' stays as it was."""
        works, config = batch.works, self._config
        rows, time = len(works), batch.time
        if self._shapes is not None:
            rows, time = self._shapes.padded(rows, time)
        feeds = {t.name: pad(batch, t.name, t.shape, t.dtype, rows, time) for t in config.inputs}
        lengths = batch.lengths + (time,) * (rows - len(works))
        feeds[config.lengths] = np.array(lengths, np.int32)
        states = np.array([work.slot.index for work in works], np.int64)
        result, finite = self._run(states, feeds, works)
        if finite is None and single(batch):
            for work in works:
                work.done = 1
            return [
                self._best(work, outputs)
                for work, outputs in zip(works, keep_single(batch, result), strict=True)
            ]
        outcomes: list[Outputs | Exception | None] = []
        kept = keep(batch, result)
        for row, (work, length) in enumerate(zip(works, batch.lengths, strict=True)):
            if finite is not None and not finite[row]:
                outcomes.append(_not_finite())
                continue
            if (part := kept[row]) is not None:
                work.parts += (self._best(work, part),)
            work.done += length
            outcomes.append(join(work) if work.done == work.length else None)
        return outcomes

    def _run(
        self, states: Rows, feeds: dict[str, Array], items: Sequence[Item]
    ) -> tuple[dict[str, Array], Finite]:
        """Run the model on rows of state, filled up to the rows of `feeds`, for items; see `Arena.run`."""
        if fill := len(feeds[self._config.lengths]) - len(states):
            states = np.concatenate([states, np.full(fill, SCRATCH.index)])
        names = {name for outputs in {item.outputs for item in items} for name in outputs}
        # Order of the model's outputs.
        wanted = [tensor.name for tensor in self._config.outputs if tensor.name in names]
        if len(wanted) < len(names):
            raise KeyError(f"the model has not all of the outputs {', '.join(sorted(names))}")
        if ALL_SCORES in self._options:
            feeds[ALL_SCORES] = np.array([int(LOGITS in names)])
        if TOP_K in self._options:
            asked = {item.top_k for item in items}
            most = max(self._ranked.values()) if 0 in asked else max(asked)
            feeds[TOP_K] = np.array([most])
        self._before()
        # Every output has the shape its config says, so nothing raises after the states are written.
        return self._arena.run(states, feeds, wanted)

    def _best(self, item: Item, outputs: Outputs) -> Outputs:
        """Of ranked outputs as much as an item asked for: others of its batch may have asked for more."""
        if item.top_k:
            for name in self._ranked:
                if name in outputs:
                    outputs[name] = outputs[name][..., : item.top_k]
        return outputs


def _ended(item: Item, outputs: Outputs, finite: Finite) -> list[Ended]:
    """What ended of an item that ran whole; outputs are (rows, T, *shape)."""
    if isinstance(item, Group) and (finite is None or finite.all()):
        return [(item, outputs)]
    ended: list[Ended] = []
    for row, work in enumerate(item.apart()):
        if finite is None or finite[row]:
            work.done = work.length
            ended.append((work, {name: values[row].copy() for name, values in outputs.items()}))
        else:
            ended.append((work, _not_finite()))
    return ended


def _not_finite() -> NonFinite:
    return NonFinite("the model computed NaN or infinity; the step was not applied")
