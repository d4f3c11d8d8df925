"""The product's promise: however a text is cut and whoever shares its batches, the numbers are those of one pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.contract import Batching
from service.sessions.session import Chunk
from service.sessions.step import Wanted
from tests.engines import PATIENCE_S, RemoteJournal, load_graph, running, table, used
from tests.models import WORDS, reference_logits
from tests.references import plan, torch_logits

TOLERANCE = 1e-5

limits = st.builds(
    Batching,
    max_batch_size=st.integers(1, 8),
    max_chunk_length=st.integers(1, 16),
    max_batch_tokens=st.integers(1, 64),
)


@dataclass(frozen=True)
class Story:
    """A sequence cut into requests, and each request into inputs: the end of every input, by request."""

    sequence: tuple[int, ...]
    requests: tuple[tuple[int, ...], ...]


@st.composite
def stories(draw: st.DrawFn, symbols: int, longest: int = 40) -> Story:
    """A sequence of numbers below `symbols`, cut anyhow."""
    sequence = draw(st.lists(st.integers(0, symbols - 1), min_size=1, max_size=longest))
    cuts = draw(st.sets(st.integers(1, len(sequence))).map(lambda s: sorted(s | {len(sequence)})))
    requests: list[tuple[int, ...]] = []
    rest = cuts
    while rest:
        size = draw(st.integers(1, len(rest)))
        requests.append(tuple(rest[:size]))
        rest = rest[size:]
    return Story(tuple(sequence), tuple(requests))


async def tell(
    directory: Path,
    batching: Batching,
    told: Sequence[Story],
    as_inputs: Callable[[Sequence[int]], dict[str, np.ndarray]],
    output: str,
    *,
    together: bool,
) -> list[np.ndarray]:
    """Each story in a session of its own: all at once, or by turns through a single slot."""
    wanted = Wanted((output,), deadline=np.inf)
    answers: list[list[np.ndarray]] = [[] for _ in told]
    async with running(
        load_graph(directory, batching), capacity=len(told) if together else 1
    ) as engine:
        sessions = table(engine, RemoteJournal(), snapshot_every=7)
        opened = [(await sessions.create(engine, "t", 9.0))[0] for _ in told]

        async def step(number: int, request: int) -> None:
            story, session = told[number], opened[number]
            first = story.requests[request - 1][-1] if request else 0
            ends = np.array(story.requests[request]) - first - 1
            pieces = story.sequence[first : story.requests[request][-1]]
            applied = await sessions.apply(session, Chunk(as_inputs(pieces), ends), wanted)
            answers[number].append(applied.outputs[output])

        async def whole(number: int) -> None:
            for request in range(len(told[number].requests)):
                await step(number, request)

        async with asyncio.timeout(PATIENCE_S):
            if together:
                await asyncio.gather(*(whole(number) for number in range(len(told))))
            else:
                turns = sorted((r, n) for n, s in enumerate(told) for r in range(len(s.requests)))
                for request, number in turns:
                    await step(number, request)
        for session in opened:
            await sessions.delete(session)
        assert used(engine) == 0
    return [np.concatenate(parts) for parts in answers]


def ends(story: Story) -> np.ndarray:
    return np.concatenate(story.requests) - 1


def tokens(pieces: Sequence[int]) -> dict[str, np.ndarray]:
    return {"tokens": np.array(pieces, np.int64)}


def weather(pieces: Sequence[int]) -> dict[str, np.ndarray]:
    return {"weather": np.eye(2, dtype=np.float32)[list(pieces)]}


def test_pytorch_and_the_written_out_equations_agree() -> None:
    text = np.random.default_rng(3).integers(0, len(WORDS), 200).tolist()
    assert np.abs(torch_logits(text) - reference_logits(text)).max() < TOLERANCE


@settings(max_examples=60)
@given(limits, st.lists(stories(len(WORDS)), min_size=1, max_size=6), st.booleans())
async def test_any_split_with_any_mates_gives_the_logits_of_one_pass_in_pytorch(
    language: Path, batching: Batching, told: list[Story], together: bool
) -> None:
    answers = await tell(language, batching, told, tokens, "logits", together=together)
    for story, answer in zip(told, answers, strict=True):
        assert np.abs(answer - torch_logits(story.sequence)[ends(story)]).max() <= TOLERANCE


@settings(max_examples=40)
@given(limits, st.lists(stories(2), min_size=1, max_size=6), st.booleans())
async def test_any_split_of_the_weather_gives_the_very_plan(
    planner: Path, batching: Batching, told: list[Story], together: bool
) -> None:
    answers = await tell(planner, batching, told, weather, "scores", together=together)
    for story, answer in zip(told, answers, strict=True):
        due = plan(["sunny" if day == 0 else "rainy" for day in story.sequence])
        one_hot = [
            [float(name == due[end]) for name in ("museum", "movies", "party")]
            for end in ends(story)
        ]
        assert answer.tolist() == one_hot


@pytest.mark.parametrize("together", [True, False])
async def test_a_long_text_does_not_drift(language: Path, together: bool) -> None:
    random = np.random.default_rng(5)
    told = []
    for _ in range(3):
        text = random.integers(0, len(WORDS), 600)
        cuts = np.unique([*random.integers(1, 600, 40), 600])
        told.append(Story(tuple(text.tolist()), tuple((int(cut),) for cut in cuts)))
    answers = await tell(language, Batching(), told, tokens, "logits", together=together)
    for story, answer in zip(told, answers, strict=True):
        assert np.abs(answer - torch_logits(story.sequence)[ends(story)]).max() <= TOLERANCE
