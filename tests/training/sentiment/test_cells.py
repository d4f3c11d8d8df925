"""Every cell of the matrix: trained a little, exported by the commands, loaded by the service, streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from service.contract import Sentiment
from service.loading import load_model
from service.settings import Settings
from tests.integration.inside import serving
from training import cli, runs
from training.config import EncoderConfig, RecurrentConfig, TransformerConfig
from training.sentiment.config import SentimentRun

CAUSAL: dict[str, EncoderConfig] = {
    "rnn": RecurrentConfig(cell="rnn_tanh", hidden_size=12),
    "rnn_relu": RecurrentConfig(cell="rnn_relu", hidden_size=12),
    "lstm": RecurrentConfig(cell="lstm", hidden_size=12, num_layers=2, layer_norm=True),
    "gru": RecurrentConfig(cell="gru", hidden_size=12),
    "transformer": TransformerConfig(width=16, heads=2, num_layers=2, window=4, feedforward=24),
}
WHOLE: dict[str, EncoderConfig] = {
    name: msgspec.structs.replace(encoder, bidirectional=True) for name, encoder in CAUSAL.items()
}
TEXT = "We saw the movie today, a lovely thing; is the movie not bad, not awful, not dull today?"
"""An export of a run by the commands: its directory."""
Exported = Callable[[SentimentRun], Path]


@pytest.fixture
def exported(few_sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exported:
    monkeypatch.setenv("SEQSERVE_DATA", str(few_sets))

    def write(run: SentimentRun) -> Path:
        monkeypatch.setattr(cli, "load", lambda path: run)
        for command in ("fit", "export", "evaluate"):
            places = [f"--runs={tmp_path / 'runs'}", f"--exported={tmp_path / 'exported'}"]
            assert cli.main([command, "run.toml", *places]) == 0
        return tmp_path / "exported" / run.name / str(run.version)

    return write


@pytest.mark.parametrize("pooling", ["max", "attention"])
@pytest.mark.parametrize("architecture", CAUSAL)
def test_a_causal_cell_streams_what_it_answers_offline(
    make_run: Callable[..., SentimentRun], exported: Exported, architecture: str, pooling: str
) -> None:
    run = make_run(encoder=CAUSAL[architecture], pooling=pooling, prefix_loss=0.5, epochs=1)
    loaded = load_model(exported(run), "mood", 1, "cpu", threads=1)
    assert loaded.config.streaming
    pieces = [loaded.task.piece(text, "$")["tokens"] for text in TEXT.split()]
    tokens = np.concatenate(pieces)
    states = {s.input_name: s.initial_array()[None] for s in loaded.config.state}
    names = ["scores", *(s.output_name for s in loaded.config.state)]

    def step(words: Any, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        lengths = np.array([len(words)], np.int32)
        found = loaded.graph.run({"tokens": words[None], "lengths": lengths, **state}, names)
        after = {s.input_name: found[s.output_name] for s in loaded.config.state}
        return found["scores"][0], after

    whole, _ = step(tokens, states)
    streamed = []
    for piece in pieces:
        scores, states = step(piece, states)
        streamed.append(scores)
    np.testing.assert_allclose(np.concatenate(streamed), whole, atol=1e-5)


@pytest.mark.parametrize("pooling", ["max", "attention"])
@pytest.mark.parametrize("architecture", WHOLE)
def test_a_bidirectional_cell_is_exported_without_state(
    make_run: Callable[..., SentimentRun], exported: Exported, architecture: str, pooling: str
) -> None:
    run = make_run(encoder=WHOLE[architecture], pooling=pooling, epochs=1)
    loaded = load_model(exported(run), "mood", 1, "cpu", threads=1)
    assert not loaded.config.streaming
    assert loaded.config.state == ()
    assert isinstance(loaded.config.task, Sentiment)
    assert len(loaded.config.task.thresholds) == 3
    assert next(m.name for m in loaded.config.provenance.metrics) == "macro F1"


def test_the_service_answers_whole_texts_and_after_every_input(
    make_run: Callable[..., SentimentRun],
    exported: Exported,
    sets: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SEQSERVE_DATA", str(sets))
    for name, encoder in (("mood", WHOLE["lstm"]), ("mood-stream", CAUSAL["gru"])):
        directory = exported(msgspec.structs.replace(make_run(encoder=encoder), name=name))
    asyncio.run(_answers(directory.parents[1]))


async def _answers(models: Path) -> None:
    async with serving(Settings(models=models, port=0, device="cpu")) as running:
        http = running.http
        answer = await http.post(
            "/v1/models/mood/predict",
            json={"inputs": ["The movie is LOVELY!", "a dull thing"], "parameters": {"top_k": 1}},
        )
        assert answer.status_code == 200
        assert [r[0]["label"] for r in answer.json()["results"]] == ["positive", "negative"]

        empty = await http.post("/v1/models/mood/predict", json={"inputs": ["good", " "]})
        assert empty.status_code == 422
        assert (empty.json()["detail"], empty.json()["path"]) == (
            "the text has no words",
            "$.inputs[1]",
        )
        longest = await http.post("/v1/models/mood/predict", json={"inputs": ["good " * 128]})
        assert longest.status_code == 200
        longer = await http.post("/v1/models/mood/predict", json={"inputs": ["good " * 129]})
        assert (longer.status_code, longer.json()["limit"]) == (413, 128)

        refused = await http.post("/v1/sessions", json={"model": "mood"})
        assert (refused.status_code, refused.json()["streaming_sibling"]) == (422, "mood-stream")

        session = (await http.post("/v1/sessions", json={"model": "mood-stream"})).json()
        inputs = ["This movie is", "lovely", ", a thing we saw"]
        steps = await http.post(f"/v1/sessions/{session['session']}/steps", json={"inputs": inputs})
        assert steps.status_code == 200
        best = [result[0]["label"] for result in steps.json()["results"]]
        assert best[1:] == ["positive", "positive"]
        whole = await http.post(
            "/v1/models/mood-stream/predict", json={"inputs": [" ".join(inputs)]}
        )
        for given, due in zip(steps.json()["results"][-1], whole.json()["results"][0], strict=True):
            assert given["label"] == due["label"]
            assert given["score"] == pytest.approx(due["score"], abs=1e-5)
        await http.delete(f"/v1/sessions/{session['session']}")


@pytest.mark.parametrize(
    "path", sorted(Path("training/configs").glob("sentiment_*.toml")), ids=lambda path: path.stem
)
def test_shipped_configurations_are_read(path: Path) -> None:
    run = runs.load(path)
    assert isinstance(run, SentimentRun)
    assert bool(run.streaming_sibling) == run.encoder.bidirectional or run.name == "sentiment-sst2"
