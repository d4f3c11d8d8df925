"""Generated text: the same tokens by every way to ask for them, none lost, none fed twice, resumable."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration import offline
from tests.integration.inside import Running
from tests.integration.process import Service
from tests.integration.wire import Event, Socket, events
from tests.models import CHARACTERS, WORDS

UNKNOWN, END = WORDS.index("<unk>"), WORDS.index("<eos>")
PROMPT = "the cat sat"
NO_END = {"ignore_eos": True}


def one_shot(service: Service, **body: Any) -> Any:
    answer = service.http.post("/v1/models/language/generate", json={"inputs": PROMPT} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def streamed(service: Service, path: str, after: int | None = None, **body: Any) -> list[Event]:
    headers = {} if after is None else {"Last-Event-ID": str(after)}
    body = {"stream": True} | body
    with service.http.stream("POST", path, json=body, headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        return list(events(answer.iter_lines()))


def split_stream(stream: list[Event]) -> tuple[Any, list[Any], Any]:
    """Data of the first event, of the tokens and of the last event, if they come as they should."""
    start, *tokens, done = stream
    assert [start.name, done.name] == ["start", "done"]
    assert {each.name for each in tokens} <= {"token"}
    assert [each.id for each in tokens] == [str(each.data["index"]) for each in tokens]
    assert (start.id, done.id) == (None, None)
    return start.data, [each.data for each in tokens], done.data


def ids_of(tokens: list[Any]) -> list[int]:
    return [token["id"] for token in tokens]


@pytest.fixture
def session(service: Service) -> Any:
    identifier = service.http.post("/v1/sessions", json={"model": "language"}).json()["session"]
    yield identifier
    service.http.delete(f"/v1/sessions/{identifier}")


@settings(max_examples=15, deadline=None)
@given(prompt=st.lists(st.integers(1, 11), min_size=1, max_size=12), count=st.integers(1, 20))
def test_greedy_text_is_the_best_word_of_an_offline_pass_at_every_step(
    service: Service, prompt: list[int], count: int
) -> None:
    body = {"inputs": prompt, "max_tokens": count, "temperature": 0} | NO_END
    tokens = one_shot(service, **body)["tokens"]
    assert len(tokens) == count
    passed = offline.log_probabilities(prompt + ids_of(tokens))
    for token, scores in zip(tokens, passed[len(prompt) - 1 :], strict=False):
        allowed = np.delete(scores, UNKNOWN)
        assert scores[token["id"]] >= allowed.max() - 1e-5
        assert abs(token["logprob"] - scores[token["id"]]) <= 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 11},
        {"seed": 12, "top_k": 3, "temperature": 0.7},
        {"seed": 13, "top_k": 0, "top_p": 0.8, "temperature": 2.0},
        {"seed": 2**63 - 1, "top_k": 5, "temperature": 100},
        {"temperature": 0},
    ],
    ids=str,
)
def test_the_same_seed_gives_the_same_tokens_by_every_way(
    service: Service, session: str, options: dict[str, Any]
) -> None:
    options = {"max_tokens": 12, "inputs": PROMPT} | NO_END | options
    whole = one_shot(service, **options)
    expected = ids_of(whole["tokens"])
    assert len(expected) == 12
    assert UNKNOWN not in expected
    if options["temperature" if "temperature" in options else "seed"] != 0:
        assert whole["seed"] == options["seed"]

    start, tokens, done = split_stream(streamed(service, "/v1/models/language/generate", **options))
    assert ids_of(tokens) == expected
    assert done["text"] == whole["text"] == "".join(token["text"] for token in tokens)
    assert start["seed"] == done["seed"]

    answer = service.http.post(f"/v1/sessions/{session}/generate", json=options).json()
    assert ids_of(answer["tokens"]) == expected
    assert [token["seq"] for token in answer["tokens"]] == list(range(2, 14))
    assert (answer["seq"], answer["session"], answer["text"]) == (13, session, whole["text"])

    for binary in (False, True):
        with Socket(service.stream_url, binary=binary) as stream:
            other = stream.ask("open", model="language")["session"]
            stream.send({"op": "generate", "id": "g", "session": other} | options)
            frames = [stream.receive() for _ in range(13)]
            assert [frame["op"] for frame in frames] == ["token"] * 12 + ["generated"]
            assert {frame["id"] for frame in frames} == {"g"}
            assert ids_of([frame["token"] for frame in frames[:-1]]) == expected
            assert (frames[-1]["text"], frames[-1]["seq"]) == (whole["text"], 13)
            stream.ask("close", session=other)


def test_a_generation_without_a_seed_says_which_it_took(service: Service) -> None:
    first, second = one_shot(service, max_tokens=20), one_shot(service, max_tokens=20)
    assert first["seed"] != second["seed"]
    again = one_shot(service, max_tokens=20, seed=first["seed"])
    assert again == first


def test_a_session_holds_all_that_it_wrote(service: Service, session: str) -> None:
    body = {"inputs": PROMPT, "max_tokens": 7, "seed": 5} | NO_END
    first = service.http.post(f"/v1/sessions/{session}/generate", json=body).json()
    text = offline.ids(PROMPT) + ids_of(first["tokens"])
    steps = {"inputs": ["dog"], "seq": first["seq"] + 1, "parameters": {"top_k": 6}}
    answer = service.http.post(f"/v1/sessions/{session}/steps", json=steps).json()
    text.append(WORDS.index("dog"))
    offline.compare(answer["results"][0], offline.log_probabilities(text)[-1])
    # Without inputs it goes on from there.
    body = {"max_tokens": 3, "temperature": 0} | NO_END
    second = service.http.post(f"/v1/sessions/{session}/generate", json=body).json()
    greedy = one_shot(service, inputs=text, max_tokens=3, temperature=0, **NO_END)
    assert ids_of(second["tokens"]) == ids_of(greedy["tokens"])
    assert second["seq"] == answer["seq"] + 3


def test_every_length_is_kept(service: Service) -> None:
    for count in (1, 2, 200):
        whole = one_shot(service, max_tokens=count, seed=3, **NO_END)
        assert (len(whole["tokens"]), whole["finish_reason"]) == (count, "length")


def test_the_end_of_a_line_ends_the_text_unless_told_otherwise(service: Service) -> None:
    ended = 0
    for seed in range(10):
        options = {"max_tokens": 40, "seed": seed, "temperature": 3.0, "top_k": 0}
        going_on = ids_of(one_shot(service, **options, **NO_END)["tokens"])
        whole = one_shot(service, **options)
        if END in going_on:
            ended += 1
            assert ids_of(whole["tokens"]) == going_on[: going_on.index(END) + 1]
            assert (whole["finish_reason"], whole["text"][-1]) == ("eos", "\n")
        else:
            assert (ids_of(whole["tokens"]), whole["finish_reason"]) == (going_on, "length")
    assert ended


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    at=st.integers(0, 60),
    length=st.integers(1, 15),
    more=st.lists(st.text("ab cdthe", min_size=1, max_size=6), max_size=3),
)
def test_text_ends_before_the_first_stop_string_wherever_its_tokens_split(
    service: Service, seed: int, at: int, length: int, more: list[str]
) -> None:
    options = {"max_tokens": 20, "seed": seed} | NO_END
    answer = one_shot(service, **options)
    free = answer["text"]
    stop = [free[at : at + length] or "never to be found", *more]
    # The first token that completes a stop string is the last.
    texts = itertools.accumulate(token["text"] for token in answer["tokens"])
    cuts = ([i for s in stop if (i := text.find(s)) >= 0] for text in texts)
    cut = next((min(found) for found in cuts if found), None)
    whole = one_shot(service, stop=stop, **options)
    _, tokens, done = split_stream(
        streamed(service, "/v1/models/language/generate", inputs=PROMPT, stop=stop, **options)
    )
    assert whole["text"] == done["text"] == (free if cut is None else free[:cut])
    assert "".join(token["text"] for token in tokens) == done["text"]
    assert whole["finish_reason"] == done["finish_reason"] == ("length" if cut is None else "stop")


def test_a_generation_of_a_session_is_answered_again_by_its_seq(
    service: Service, session: str
) -> None:
    path = f"/v1/sessions/{session}/generate"
    body = {"inputs": PROMPT, "seq": 1, "max_tokens": 5} | NO_END
    first = service.http.post(path, json=body)
    again = service.http.post(path, json=body)
    assert again.status_code == 200, again.text
    assert again.json() == first.json()
    assert first.json()["seq"] == 6
    with_stream = streamed(service, path, **body)
    assert ids_of(split_stream(with_stream)[1]) == ids_of(first.json()["tokens"])

    other = service.http.post(path, json=body | {"inputs": "a dog"})
    assert (other.status_code, other.json()["code"]) == (422, "payload_mismatch")
    more = service.http.post(path, json={"seq": 7, "max_tokens": 2, "top_k": 3} | NO_END)
    assert more.json()["seq"] == 8
    late = service.http.post(path, json=body)
    assert (late.status_code, late.json()["code"]) == (409, "wrong_seq")
    assert late.json()["committed"] == 8


@pytest.mark.parametrize("after", [0, 3, 8, 11])
def test_a_one_shot_stream_is_resumed_by_its_seed(service: Service, after: int) -> None:
    options = {"inputs": PROMPT, "max_tokens": 12, "seed": 9} | NO_END
    path = "/v1/models/language/generate"
    _, tokens, done = split_stream(streamed(service, path, **options))
    _, rest, done_again = split_stream(streamed(service, path, after, **options))
    assert rest == tokens[after + 1 :]
    assert done_again == done


@pytest.mark.parametrize("received", [1, 2, 5, 9])
async def test_a_session_stream_is_resumed_where_its_connection_broke(
    running: Running, received: int
) -> None:
    """What was missing comes, and no token is fed twice: the committed seq proves it."""
    await running.http.put("/v1/sessions/s", json={"model": "language"})
    await running.http.put("/v1/sessions/unbroken", json={"model": "language"})
    body = {"inputs": PROMPT, "max_tokens": 12, "seed": 4, "top_k": 4, "stream": True} | NO_END

    async def read(name: str, limit: int, **headers: str) -> list[Event]:
        path = f"/v1/sessions/{name}/generate"
        lines: list[str] = []
        async with running.http.stream("POST", path, json=body, headers=headers) as answer:
            assert answer.status_code == 200, await answer.aread()
            async for line in answer.aiter_lines():
                lines.append(line)
                if sum(each.startswith("id:") for each in lines) == limit and not line:
                    break
        return list(events(lines))

    _, expected, done = split_stream(await read("unbroken", 99))
    gate = running.gate("language")
    gate.shut()
    # The prompt and one run for each token; one more token is on its way when the caller leaves.
    gate.let(received + 1)
    first = await read("s", received)
    gate.open()
    session = await running.context.sessions.find("s", "default")
    await running.until(lambda: session.idle)
    assert [event.name for event in first] == ["start"] + ["token"] * received
    committed = session.seq
    assert committed in (1 + received, 2 + received)

    _, rest, done_again = split_stream(await read("s", 99, **{"Last-Event-ID": str(first[-1].id)}))
    tokens = [event.data for event in first[1:]] + rest
    assert tokens == expected
    assert [token["seq"] for token in tokens] == list(range(2, 14))
    assert session.seq == 13
    assert done_again == done | {"session": "s"}
    # Once more, after the end: nothing is fed, the rest comes again.
    _, rest, _ = split_stream(await read("s", 99, **{"Last-Event-ID": "7"}))
    assert rest == expected[8:]
    assert session.seq == 13
    # And not when the session has gone its own way since.
    await running.http.post("/v1/sessions/s/steps", json={"inputs": ["the"]})
    answer = await running.http.post(
        "/v1/sessions/s/generate", json=body, headers={"Last-Event-ID": "7"}
    )
    assert (answer.status_code, answer.json()["code"]) == (409, "wrong_seq")
    assert answer.json()["committed"] == 14


# Characters.


def test_characters_follow_each_other_by_every_way(service: Service) -> None:
    session = service.http.post("/v1/sessions", json={"model": "characters"}).json()["session"]
    body = {"inputs": "the cat\n", "max_tokens": 150, "seed": 3, "temperature": 3, "top_k": 0}
    whole = service.http.post("/v1/models/characters/generate", json=body).json()
    by_model = streamed(service, "/v1/models/characters/generate", **body)
    by_session = streamed(service, f"/v1/sessions/{session}/generate", **body)
    for stream in (by_model, by_session):
        _, tokens, done = split_stream(stream)
        assert "".join(token["text"] for token in tokens) == whole["text"]
        assert done["finish_reason"] == "length"
    assert whole["text"] == "".join(token["token"] for token in whole["tokens"])
    assert set(whole["text"]) == set(CHARACTERS)
    answer = service.http.post(f"/v1/sessions/{session}/steps", json={"inputs": ["the", " "]})
    assert answer.json()["seq"] == 1 + 150 + 2


def test_a_character_that_the_model_does_not_know_is_the_clients_mistake(service: Service) -> None:
    body = {"inputs": ["the cat", "the d\u00f6g"]}
    answer = service.http.post("/v1/models/characters/predict", json=body)
    assert answer.status_code == 422
    assert "character 4 of the text (from 0) is 'd'" in answer.json()["detail"]
    assert answer.json()["path"] == "$.inputs[1]"


@pytest.mark.parametrize("runs", [0, 1, 2, 4])
async def test_a_caller_lost_before_any_token_gets_them_all_by_the_same_seq(
    running: Running, runs: int
) -> None:
    await running.http.put("/v1/sessions/s", json={"model": "language"})
    await running.http.put("/v1/sessions/unbroken", json={"model": "language"})
    body = {"inputs": PROMPT, "seq": 1, "max_tokens": 6, "seed": 4, "top_k": 4} | NO_END
    expected = (await running.http.post("/v1/sessions/unbroken/generate", json=body)).json()
    gate = running.gate("language")
    gate.shut()
    lost = asyncio.create_task(running.http.post("/v1/sessions/s/generate", json=body))
    for _ in range(runs):
        await gate.arrival()
        gate.let()
    await gate.arrival()
    lost.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lost
    gate.open()
    session = await running.context.sessions.find("s", "default")
    await running.until(lambda: session.idle)

    answer = await running.http.post("/v1/sessions/s/generate", json=body)
    assert answer.json() == expected | {"session": "s"}
    assert session.seq == expected["seq"] == 7


async def test_an_error_inside_a_stream_is_its_last_event(running: Running) -> None:
    await running.http.put("/v1/sessions/s", json={"model": "language"})
    body = {"inputs": PROMPT, "max_tokens": 5, "seed": 4, "top_k": 4, "stream": True} | NO_END
    gate = running.gate("language")
    gate.shut()

    async def read() -> tuple[httpx.Response, list[str]]:
        path = "/v1/sessions/s/generate"
        async with running.http.stream("POST", path, json=body) as answer:
            return answer, [line async for line in answer.aiter_lines()]

    task = asyncio.create_task(read())
    for _ in range(3):
        await gate.arrival()
        gate.let()
    await gate.arrival()
    gate.raise_once(ValueError("first"))
    gate.let()
    await gate.arrival()
    gate.raise_once(ValueError("second"))
    gate.open()
    answer, lines = await task
    stream = list(events(lines))
    assert [event.name for event in stream] == ["start", "token", "token", "error"]
    assert stream[-1].data["code"] == "model_failed"
    assert stream[-1].data["request_id"] == answer.headers["x-request-id"]
    again = await running.http.post(
        "/v1/sessions/s/generate", json=body, headers={"Last-Event-ID": "1"}
    )
    _, rest, done = split_stream(list(events(again.text.splitlines())))
    assert [token["index"] for token in rest] == [2, 3, 4]
    assert done["seq"] == 6
