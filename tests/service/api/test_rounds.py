from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter

from service.api.rounds import Rounds
from service.contract import CONFIG_FILE, NextWord, decode_config
from service.engine.sampling import Sampling, uniforms
from service.errors import ServiceError
from service.tasks.generation import Writer
from service.tasks.next_word import NextWordTask
from tests.models import TOP_K, tokenizer


@dataclass
class Text:
    """A row that notes what it is told."""

    writer: Writer
    outputs: dict[str, np.ndarray]
    generated: Counter
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0))
    numbers: Iterator[float] = field(default_factory=lambda: uniforms(1))
    open: bool = True
    told: list[Any] = field(default_factory=list)
    raises: bool = False

    @property
    def passing(self) -> tuple[str, ...]:
        return self.writer.passing(self.sampling)

    def chosen(self, token: int, logprob: float) -> None:
        if self.raises:
            raise ValueError("cannot go on")
        self.told.append((token, logprob))

    def fail(self, error: Exception) -> None:
        self.told.append(error)


def outputs(best: int) -> dict[str, np.ndarray]:
    """Of a step after which `best` has half of the probability."""
    ids = np.array([[best, *[i for i in range(1, 12) if i != best]]])[:, :TOP_K]
    scores = np.linspace(0, -5, TOP_K, dtype=np.float32)[None]
    return {
        "top_indices": ids,
        "top_scores": scores,
        "logsumexp": np.full(1, np.log(2), np.float32),
    }


@pytest.fixture
def writer(language: Path) -> Writer:
    config = decode_config((language / CONFIG_FILE).read_bytes())
    assert isinstance(config.task, NextWord)
    return NextWordTask(config, config.task, tokenizer()).writer


@pytest.fixture
def counter() -> Counter:
    return Counter("tokens", "Tokens.", registry=CollectorRegistry())


async def turn() -> None:
    """Let the event loop turn once."""
    await asyncio.sleep(0)


async def test_all_texts_of_a_turn_are_told_at_its_end(writer: Writer, counter: Counter) -> None:
    rounds, texts = Rounds(), [Text(writer, outputs(best), counter) for best in range(2, 9)]
    for text in texts:
        rounds.add(text)
    assert [text.told for text in texts] == [[]] * 7
    await turn()
    for best, text in enumerate(texts, 2):
        assert text.told == [(best, pytest.approx(np.log(0.5)))]
    assert counter.collect()[0].samples[0].value == 7
    # None is told again.
    rounds.add(texts[0])
    await turn()
    assert [len(text.told) for text in texts] == [2, 1, 1, 1, 1, 1, 1]


async def test_a_text_that_ended_meanwhile_is_left_out(writer: Writer, counter: Counter) -> None:
    rounds, texts = Rounds(), [Text(writer, outputs(best), counter) for best in (2, 3)]
    for text in texts:
        rounds.add(text)
    texts[0].open = False
    await turn()
    assert texts[0].told == []
    assert texts[1].told == [(3, pytest.approx(np.log(0.5)))]


async def test_a_text_that_cannot_go_on_fails_alone(
    writer: Writer, counter: Counter, caplog: pytest.LogCaptureFixture
) -> None:
    rounds, texts = Rounds(), [Text(writer, outputs(best), counter) for best in (2, 3, 4)]
    texts[0].raises = True
    for text in texts:
        rounds.add(text)
    await turn()
    (error,) = texts[0].told
    assert isinstance(error, ServiceError)
    assert error.status == 500
    assert [text.told[0][0] for text in texts[1:]] == [3, 4]
    assert "cannot go on" in caplog.text


async def test_when_choosing_fails_every_text_of_the_model_hears_of_it_and_the_next_round_goes_on(
    writer: Writer, counter: Counter, caplog: pytest.LogCaptureFixture
) -> None:
    rounds, texts = Rounds(), [Text(writer, outputs(best), counter) for best in (2, 3)]
    # Those of another kind are chosen for apart.
    logits = outputs(5) | {"logits": np.eye(12, dtype=np.float32)[[5]] * 50}
    other = Text(writer, logits, counter, Sampling(top_k=0))
    del texts[1].outputs["top_scores"]
    for text in (*texts, other):
        rounds.add(text)
    await turn()
    assert [type(text.told[0]) for text in texts] == [ServiceError] * 2
    assert "choosing for 2 texts failed" in caplog.text
    assert other.told[0][0] == 5
    texts[0].told.clear()
    rounds.add(texts[0])
    await turn()
    assert texts[0].told == [(2, pytest.approx(np.log(0.5)))]
