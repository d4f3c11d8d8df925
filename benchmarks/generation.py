"""Generated text, many at once, alone and beside single steps and long texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median
from typing import Any

import msgspec
import numpy as np

from benchmarks import sessions
from benchmarks.bench import Bench
from benchmarks.client import Reply, Run, Source, closed, percentiles
from benchmarks.frames import beside, middle
from benchmarks.models import LSTM
from benchmarks.server import Server
from benchmarks.sources import Steps, players, post
from benchmarks.tape import TAPES, TOLERANCE, Model, WrongAnswer

GENERATIONS, TOKENS, PROMPT = 64, 32, 4
# Of the mixed load.
MIXED_GENERATIONS, MIXED_STEPS, MIXED_TEXTS, TEXT_WORDS = 16, 32, 2, 512
_CHECKED_AT_ONCE = 64

Row = dict[str, Any]


@dataclass
class Generations:
    """Requests to continue a few words, each with a seed of its own."""

    model: Model
    asked: int = 0

    def take(self) -> tuple[bytes, int]:
        """See `Source`."""
        seed = self.asked
        self.asked += 1
        body = {
            "inputs": _words(self.model, seed % TAPES, PROMPT),
            "max_tokens": TOKENS,
            "seed": seed,
            "ignore_eos": True,
        }
        return post(f"/v1/models/{self.model.name}/generate", msgspec.json.encode(body)), seed

    def done(self, tag: int, response: bytes) -> None:
        """See `Source`."""

    def check(self, replies: Iterable[Reply]) -> None:
        """Follow every text with ONNX Runtime: each token has the probability that was told.

        Raises:
            WrongAnswer: One has another, or the text is too short.
        """
        texts = []
        for *_, seed, response in replies:
            answer = _decode(response.partition(b"\r\n\r\n")[2])
            if len(answer.tokens) != TOKENS:
                raise WrongAnswer(f"{len(answer.tokens)} of {TOKENS} tokens")
            texts.append((seed % TAPES, answer.tokens))
        for start in range(0, len(texts), _CHECKED_AT_ONCE):
            self._follow(texts[start : start + _CHECKED_AT_ONCE])

    def _follow(self, texts: list[tuple[int, list[_Token]]]) -> None:
        raw = self.model.raw
        ids = np.array([[token.id for token in tokens] for _, tokens in texts])
        told = np.array([[token.logprob for token in tokens] for _, tokens in texts])
        prompts = np.stack([self.model.tapes[tape].arrays[:PROMPT] for tape, _ in texts])
        feeds = raw.feeds(len(texts), PROMPT + TOKENS - 1)
        feeds[self.model.input] = np.concatenate([prompts, ids[:, :-1]], axis=1)
        outputs = raw.step(feeds)
        scores = outputs["top_scores"] - outputs["logsumexp"][:, :, None]
        same = outputs["top_indices"][:, PROMPT - 1 :] == ids[:, :, None]
        due = np.where(same, scores[:, PROMPT - 1 :], -np.inf).max(axis=2)
        if not abs(due - told).max() <= 10 * TOLERANCE:
            raise WrongAnswer(f"log-probabilities {told}, not {due}")


class _Token(msgspec.Struct):
    id: int
    logprob: float


class _Text(msgspec.Struct):
    tokens: list[_Token]


_decode = msgspec.json.Decoder(_Text).decode


@dataclass
class Texts:
    """Requests for the word after a long text, which comes whole."""

    model: Model
    asked: int = 0

    def take(self) -> tuple[bytes, int]:
        """See `Source`."""
        tape = self.asked % TAPES
        self.asked += 1
        body = {"inputs": [_words(self.model, tape, TEXT_WORDS)]}
        return post(f"/v1/models/{self.model.name}/predict", msgspec.json.encode(body)), tape

    def done(self, tag: int, response: bytes) -> None:
        """See `Source`."""

    def check(self, replies: Iterable[Reply]) -> None:
        """Compare every answer."""
        for *_, tape, response in replies:
            results = msgspec.json.decode(response.partition(b"\r\n\r\n")[2])["results"]
            self.model.tapes[tape].answers.check(np.array([TEXT_WORDS - 1]), results)


def _words(model: Model, tape: int, count: int) -> str:
    return " ".join(model.tapes[tape].inputs[:count])


def measure(bench: Bench) -> dict[str, Any]:
    """Generations alone, then the mixed load."""
    model = bench.model(LSTM)
    with bench.service() as server:
        rows = [_alone(bench, server, model) for _ in range(bench.rounds)]
        mixed = [_mixed(bench, server, model) for _ in range(bench.rounds)]
    together = {name: median(turn[name] for turn in mixed) for name in mixed[0]}
    return {"generation": middle(rows), "mixed": together}


def _alone(bench: Bench, server: Server, model: Model) -> Row:
    bare = model.raw.speed(GENERATIONS, model.batches(GENERATIONS, whole=True), bench.seconds / 2)
    source = Generations(model)
    cpu = server.cpu_s
    run = closed(server.port, [(source, GENERATIONS)], 2 * bench.seconds)
    cpu = server.cpu_s - cpu
    source.check(run.replies)
    row = {
        "model": model.name,
        "way": "generation",
        "sessions": GENERATIONS,
        "tokens": TOKENS,
        "steps_s": _tokens_s(run),
        # A prompt is read at once, and each text's last token is not fed again.
        "server_cpu_us": cpu / (len(run.replies) * TOKENS) * 1e6,
        "client_cpu_us": run.client_us / TOKENS,
    }
    return beside(row, bare) | percentiles(run.latencies())


def _tokens_s(run: Run) -> float:
    """Tokens a second; of a text that was begun or ended outside, the share of its time that lies inside."""
    total = 0.0
    for _, sent, answered, *_ in run.replies:
        inside = min(answered, run.end) - max(sent, run.begin)
        total += TOKENS * max(0.0, inside) / (answered - sent)
    return total / (run.end - run.begin)


def _mixed(bench: Bench, server: Server, model: Model) -> dict[str, float]:
    generations, texts = Generations(model), Texts(model)
    with sessions.opened(server, model.name, MIXED_STEPS) as ids:
        steps = Steps(players(model, ids))
        alone = closed(server.port, [(steps, MIXED_STEPS)], bench.seconds)
        groups: list[tuple[Source, int]] = [
            (steps, MIXED_STEPS),
            (generations, MIXED_GENERATIONS),
            (texts, MIXED_TEXTS),
        ]
        run = closed(server.port, groups, 2 * bench.seconds)
    parts = {kind: _of(run, kind) for kind in ("step", "generation", "text")}
    steps.check([*alone.replies, *parts["step"].replies])
    generations.check(parts["generation"].replies)
    texts.check(parts["text"].replies)
    alone_ms, mixed_ms = (percentiles(each.latencies()) for each in (alone, parts["step"]))
    figures = {
        "alone_steps_s": alone.rate(),
        "steps_s": parts["step"].rate(),
        "tokens_s": _tokens_s(parts["generation"]),
        "words_s": parts["text"].rate() * TEXT_WORDS,
        "alone_p50_ms": alone_ms["p50_ms"],
        "alone_p99_ms": alone_ms["p99_ms"],
    } | mixed_ms
    return figures | {"sum_s": figures["steps_s"] + figures["tokens_s"] + figures["words_s"]}


def _of(run: Run, kind: str) -> Run:
    """The replies of one source: texts are long, steps have a `first`, generations have tokens."""
    marks = {"step": b'"first":', "generation": b'"tokens":', "text": b'"results":'}
    mine = []
    for reply in run.replies:
        body = reply[4]
        found = next(name for name in ("step", "generation", "text") if marks[name] in body)
        if found == kind:
            mine.append(reply)
    return Run(mine, run.begin, run.end, len(mine), 0.0)
