"""Named entities over HTTP: places in the client's own text, one-shot and in a session, whatever the requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.contract import Batching
from service.settings import Settings
from tests import models
from tests.integration import inside

MODEL, WHOLE = "tagger", "whole-tagger"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[inside.Running]:
    models.tagger(tmp_path)
    models.tagger(
        tmp_path,
        name=WHOLE,
        streaming=False,
        batching=Batching(max_batch_size=4, max_chunk_length=12, max_batch_tokens=24),
    )
    settings = Settings(models=tmp_path, port=0, log_level="warning")
    async with inside.serving(settings) as running:
        yield running


async def predicted(running: inside.Running, model: str, *texts: str) -> list[Any]:
    answer = await running.http.post(f"/v1/models/{model}/predict", json={"inputs": texts})
    assert answer.status_code == 200, answer.text
    results: list[Any] = answer.json()["results"]
    return results


def words_of(entities: list[dict[str, Any]]) -> list[tuple[str, str, int, int]]:
    return [(e["entity_group"], e["word"], e["start"], e["end"]) for e in entities]


@pytest.mark.parametrize("model", [MODEL, WHOLE])
async def test_entities_of_whole_texts(running: inside.Running, model: str) -> None:
    texts = ["Ann  Lee\r\nsaw Paris.", "saw", "😀 “Paris”: Ann"]
    found = await predicted(running, model, *texts)
    assert [words_of(each) for each in found] == [
        [("PER", "Ann  Lee", 0, 8), ("LOC", "Paris", 14, 19)],
        [],
        [("LOC", "Paris", 3, 8), ("PER", "Ann", 11, 14)],
    ]
    assert all(0.5 < entity["score"] <= 1 for each in found for entity in each)


async def test_a_long_text_is_read_in_chunks_with_nothing_lost(running: inside.Running) -> None:
    text = "Ann Lee saw Paris . " * 50
    (found,) = await predicted(running, MODEL, text)
    assert len(found) == 100
    assert all(text[e["start"] : e["end"]] == e["word"] for e in found)


async def test_a_session_answers_each_input_by_its_own_places(running: inside.Running) -> None:
    opened = await running.http.post("/v1/sessions", json={"model": MODEL, "session": "mine"})
    assert opened.status_code == 201
    request = {"inputs": ["we saw Ann", "Lee in Paris , Ann saw us again and again"], "seq": 1}
    first = await running.http.post("/v1/sessions/mine/steps", json=request)
    assert first.status_code == 200, first.text
    answer = first.json()
    assert (answer["first"], answer["seq"]) == (1, 2)
    assert [words_of(each) for each in answer["results"]] == [
        [("PER", "Ann", 7, 10)],
        [("PER", "Lee", 0, 3), ("LOC", "Paris", 7, 12), ("PER", "Ann", 15, 18)],
    ]
    begun, gone_on = answer["results"][0][0], answer["results"][1][0]
    assert "continues" not in begun
    assert gone_on["continues"] is True
    retry = (await running.http.post("/v1/sessions/mine/steps", json=request)).json()
    assert retry["duplicate"] is True
    assert retry["results"] == answer["results"]
    alone = await running.http.post("/v1/sessions/mine/steps", json={"inputs": ["Ann"]})
    assert alone.json()["seq"] == 3
    assert words_of(alone.json()["results"][0]) == [("PER", "Ann", 0, 3)]


async def test_texts_that_cannot_be_read_are_refused_with_the_reason(
    running: inside.Running,
) -> None:
    url = f"/v1/models/{WHOLE}/predict"
    blank = await running.http.post(url, json={"inputs": ["Ann", " \n"]})
    assert blank.status_code == 422
    assert blank.json()["path"] == "$.inputs[1]"
    long = await running.http.post(url, json={"inputs": ["Ann " * 13]})
    assert long.status_code == 413
    assert long.json()["limit"] == 12
    assert (await predicted(running, WHOLE, "Ann " * 12)) != [[]]
    top = await running.http.post(url, json={"inputs": ["Ann"], "parameters": {"top_k": 2}})
    assert top.status_code == 422
    stepped = await running.http.post("/v1/sessions", json={"model": WHOLE})
    assert stepped.status_code == 422
