"""Deterministic mode: the bits of a session do not depend on who shares its batches, nor on being paged out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract import (
    CONFIG_FILE,
    GOLDEN_FILE,
    MODEL_FILE,
    Batching,
    Golden,
    decode_config,
    decode_golden,
)
from service.engine.graph import Graph
from service.engine.shapes import Shapes
from service.engine.stable import stable_shapes
from service.sessions.session import Chunk, Session
from service.sessions.step import Applied, Wanted
from service.sessions.table import Sessions
from tests.engines import RemoteJournal, load_graph, running, table, until
from tests.models import WORDS

BATCHING = Batching(max_batch_size=8, max_chunk_length=8, max_batch_tokens=32)


class Blurred(Graph):
    """The language model on a device whose last bits depend on the rows of a batch and on its time steps."""

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
        rows, time = feeds["tokens"].shape
        found = super().run(feeds, outputs)
        for name, values in found.items():
            if values.dtype == np.float32:
                found[name] = values + np.float32(1e-6) * (rows < 4) + np.float32(1e-6) * time
        return found


def blurred(directory: Path) -> tuple[Blurred, Golden]:
    config = decode_config((directory / CONFIG_FILE).read_bytes())
    config = msgspec.structs.replace(config, batching=BATCHING)
    graph = Blurred((directory / MODEL_FILE).read_bytes(), config)
    return graph, decode_golden((directory / GOLDEN_FILE).read_bytes())


async def logits(
    graph: Graph,
    shapes: Shapes | None,
    requests: Sequence[Sequence[int]],
    mates: Sequence[Sequence[int]],
    *,
    capacity: int,
) -> bytes:
    """All bits a session answers to its requests, while each of its mates takes steps of its own beside it."""
    wanted = Wanted(("logits",), deadline=np.inf)

    async def live(tokens: Sequence[Sequence[int]]) -> bytes:
        session, _ = await sessions.create(engine, "t", 9.0)
        answers = b""
        for each in tokens:
            chunk = Chunk({"tokens": np.array(each)}, np.arange(len(each)))
            answers += (await sessions.apply(session, chunk, wanted)).outputs["logits"].tobytes()
        return answers

    async with running(graph, shapes=shapes, capacity=capacity) as engine:
        sessions = table(engine, RemoteJournal(), snapshot_every=6)
        if capacity > 1:
            found = await asyncio.gather(live(requests), *(live([[t] for t in m]) for m in mates))
            return found[0]
        # One slot for all: whoever steps pages the others out.
        others = [(await sessions.create(engine, "t", 9.0))[0] for _ in mates]
        session, _ = await sessions.create(engine, "t", 9.0)
        answers = b""
        for number, each in enumerate(requests):
            chunk = Chunk({"tokens": np.array(each)}, np.arange(len(each)))
            answers += (await sessions.apply(session, chunk, wanted)).outputs["logits"].tobytes()
            for other, tokens in zip(others, mates, strict=True):
                token = Chunk({"tokens": np.array([tokens[number % len(tokens)]])}, np.arange(1))
                await sessions.apply(other, token, wanted)
        return answers


word = st.integers(0, len(WORDS) - 1)
requests = st.lists(st.lists(word, min_size=1, max_size=12), min_size=1, max_size=5)
mates = st.lists(st.lists(word, min_size=1, max_size=8), min_size=1, max_size=7)


def test_the_mode_finds_what_there_is_to_avoid(language: Path) -> None:
    graph, golden = blurred(language)
    assert [rows for rows, time in stable_shapes(graph, golden) if time == 1] == [4, 8]


@settings(max_examples=30)
@given(requests=requests, mates=mates)
async def test_a_session_has_the_same_bits_alone_in_company_and_paged_out(
    language: Path, requests: list[list[int]], mates: list[list[int]]
) -> None:
    graph, golden = blurred(language)
    shapes = stable_shapes(graph, golden)
    alone = await logits(graph, shapes, requests, [], capacity=8)
    assert await logits(graph, shapes, requests, mates, capacity=8) == alone
    assert await logits(graph, shapes, requests, mates, capacity=1) == alone


async def test_without_the_mode_they_differ(language: Path) -> None:
    graph, _ = blurred(language)
    requests, mates = [[1], [2], [3]], [[4, 5, 6]] * 7
    alone = await logits(graph, None, requests, [], capacity=8)
    assert await logits(graph, None, requests, mates, capacity=8) != alone


async def test_the_shipped_kind_of_model_is_deterministic(language: Path) -> None:
    graph = load_graph(language, BATCHING)
    shapes = stable_shapes(graph, decode_golden((language / GOLDEN_FILE).read_bytes()))
    requests, mates = [[1, 2, 3], [2], [3], [4, 5]], [[4, 5, 6, 7, 8]] * 7
    alone = await logits(graph, shapes, requests, [], capacity=8)
    assert await logits(graph, shapes, requests, mates, capacity=8) == alone


@given(
    rows=st.integers(1, 20),
    requests=st.lists(st.lists(word, min_size=1, max_size=11), min_size=1, max_size=4),
    place=st.integers(0, 19),
)
@settings(max_examples=20, deadline=None)
def test_bits_of_a_session_do_not_depend_on_the_group_it_steps_in(
    language: Path, rows: int, requests: list[list[int]], place: int
) -> None:
    graph, golden = blurred(language)
    shapes = stable_shapes(graph, golden)
    alone = asyncio.run(logits(graph, shapes, [[0], *requests], [], capacity=1))
    assert asyncio.run(grouped(graph, shapes, [[0], *requests], rows, place % rows)) == alone


async def grouped(
    graph: Graph, shapes: Shapes | None, requests: list[list[int]], rows: int, place: int
) -> bytes:
    """All bits of the session at a place among as many that step together."""
    wanted = Wanted(("logits",), deadline=np.inf)
    async with running(graph, shapes=shapes, capacity=rows) as engine:
        sessions = table(engine, RemoteJournal(), snapshot_every=6)
        opened = [(await sessions.create(engine, "t", 9.0))[0] for _ in range(rows)]
        for session in opened:
            await sessions.slots.wake(session)
        answers = b""
        for tokens in requests:
            inputs = np.random.default_rng(0).integers(0, len(WORDS), (rows, len(tokens)))
            inputs[place] = tokens
            answers += (await together(sessions, opened, {"tokens": inputs}, wanted))[place]
        return answers


async def together(
    sessions: Sessions, opened: list[Session], inputs: dict[str, np.ndarray], wanted: Wanted
) -> dict[int, bytes]:
    """The bits that each of some sessions answers to a step of all."""
    found: dict[int, bytes] = {}

    def end(first: int, seqs: list[int], outputs: Mapping[str, np.ndarray]) -> None:
        for row, values in enumerate(outputs["logits"], first):
            found[row] = values.tobytes()

    def end_row(at: int, outcome: Applied | Exception) -> None:
        assert not isinstance(outcome, Exception)
        found[at] = outcome.outputs["logits"].tobytes()

    sessions.begin_together(opened, inputs, b"", wanted, end, end_row)
    await until(lambda: len(found) == len(opened))
    return found
