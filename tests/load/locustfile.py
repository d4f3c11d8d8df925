"""Load that knows the right answers: one-shot predictions, sessions over HTTP, sessions over a WebSocket.

The weekend planner is compared with five lines of Python, and the language model with its own one-shot answers,
taken one at a time before the load begins: so whoever shares a batch, and however a text is cut into steps, the
answers must not change. A wrong answer is a failure like any other. Needs nothing that locust does not bring.
"""

from __future__ import annotations

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import msgpack
import requests
import websocket
from locust import FastHttpUser, User, between, events, task
from locust.env import Environment
from locust.exception import RescheduleTask
from locust.runners import LocalRunner

PLANNER = "weekend-planner"
LANGUAGE_MODEL = "next-word-lstm"
ACTIVITIES = ("museum", "movies", "party")
TEXTS = (
    "The weather today is very cold and the river is high",
    "In the first half of the season the team won four games",
    "She was born in London and studied music at the university",
    "The storm moved to the north and became a hurricane",
    "Critics praised the film for its story and the music",
    "The battle began in the morning when the army crossed the river",
)
TOP_K = 5
TOLERANCE = 1e-4
BUSY = 503

Record = dict[str, Any]
log = logging.getLogger(__name__)
# Answers looked at and found right, and found wrong, by kind of user.
right: Counter[str] = Counter()
wrong: Counter[str] = Counter()
# For each text, the answer after each of its words, as a one-shot prediction of the words so far gives it.
continuations: dict[str, list[list[Record]]] = {}


class WrongAnswer(Exception):
    """The service answered, and the answer is not the right one."""


class Refused(Exception):
    """The service answered with an error."""

    def __init__(self, status: int, problem: str) -> None:
        # A busy service says so in other numbers each time; locust is to count all of it as one.
        super().__init__(status, code_of(problem) if status == BUSY else problem)


def code_of(problem: str) -> str:
    """The code of a problem document, or the text that was sent instead of one."""
    try:
        return str(json.loads(problem)["code"])
    except (ValueError, KeyError, TypeError):
        return problem


def refusal(problem: Record) -> Refused:
    """A problem that came in a frame."""
    return Refused(problem["status"], json.dumps(problem))


def planned(weather: list[str]) -> list[str]:
    """The weekend planner: sunny repeats the last activity, rainy takes the next one; before all was museum."""
    at, result = 0, []
    for each in weather:
        at = (at + (each == "rainy")) % 3
        result.append(ACTIVITIES[at])
    return result


def compare_plans(results: list[Record], expected: list[str]) -> None:
    if [result["label"] for result in results] != expected:
        raise WrongAnswer(f"expected {expected}, got {results}")


def compare_words(results: list[list[Record]], expected: list[list[Record]]) -> None:
    if len(results) != len(expected):
        raise WrongAnswer(f"expected {len(expected)} results, got {len(results)}")
    for got, due in zip(results, expected, strict=True):
        same = [word["id"] for word in got] == [word["id"] for word in due]
        if not same or any(
            abs(a["score"] - b["score"]) > TOLERANCE for a, b in zip(got, due, strict=True)
        ):
            raise WrongAnswer(f"expected {due}, got {got}")


class Story:
    """One session's inputs and the answers due, to be taken in pieces of any size."""

    def __init__(self) -> None:
        self.seq = 0
        if random.random() < 0.5:
            self.model = PLANNER
            self.inputs = random.choices(["sunny", "rainy"], k=12)
            self.due: list[Any] = planned(self.inputs)
            self._compare: Callable[..., None] = compare_plans
            self._parameters: Record = {}
        else:
            text = random.choice(TEXTS)
            self.model = LANGUAGE_MODEL
            self.inputs = text.split()
            self.due = continuations[text]
            self._compare = compare_words
            self._parameters = {"top_k": TOP_K}

    @property
    def done(self) -> bool:
        return self.seq == len(self.inputs)

    def steps(self) -> Record:
        """The next one to four inputs."""
        inputs = self.inputs[self.seq : self.seq + random.randint(1, 4)]
        return {"inputs": inputs, "seq": self.seq + 1, "parameters": self._parameters}

    def check(self, sent: Record, answer: Record, *, retry: bool = False) -> None:
        """Compare an answer with what is due; moves on unless it is that of a retry."""
        first, last = sent["seq"], sent["seq"] + len(sent["inputs"]) - 1
        if (answer["first"], answer["seq"], answer["duplicate"]) != (first, last, retry):
            raise WrongAnswer(f"expected inputs {first} to {last}, duplicate {retry}: {answer}")
        self._compare(answer["results"], self.due[first - 1 : last])
        self.seq = last


@events.test_start.add_listener
def learn(environment: Environment, **_: Any) -> None:
    """Ask for the continuation of every beginning of every text, alone and one at a time."""
    with requests.Session() as session:
        for text in TEXTS:
            words = text.split()
            continuations[text] = [
                predict(session, f"{environment.host}", " ".join(words[: end + 1]))
                for end in range(len(words))
            ]


def predict(session: requests.Session, host: str, text: str) -> list[Record]:
    body = {"inputs": [text], "parameters": {"top_k": TOP_K}}
    response = session.post(f"{host}/v1/models/{LANGUAGE_MODEL}/predict", json=body, timeout=30)
    response.raise_for_status()
    result: list[Record] = response.json()["results"][0]
    return result


@events.quitting.add_listener
def conclude(environment: Environment, **_: Any) -> None:
    """A run in which a kind of user saw no right answer has shown nothing."""
    if not isinstance(environment.runner, LocalRunner):
        return
    log.info("right answers: %s; wrong answers: %d", dict(sorted(right.items())), wrong.total())
    if missing := {"predict", "session", "stream"} - right.keys():
        log.error("no right answer was seen by: %s", ", ".join(sorted(missing)))
        environment.process_exit_code = 1


class HttpUser(FastHttpUser):
    """What both kinds of HTTP user share: a request whose answer is looked at."""

    abstract = True
    wait_time = between(0, 0.1)

    def ask(
        self,
        kind: str,
        method: str,
        path: str,
        body: Record | None = None,
        check: Callable[[Any], None] = lambda _: None,
        name: str | None = None,
    ) -> Any:
        """Send a request and check its answer; an error or a wrong answer ends the task."""
        with self.client.request(
            method, path, name=name or path, json=body, catch_response=True
        ) as response:
            if not 200 <= response.status_code < 300:
                response.failure(Refused(response.status_code, f"{response.text}"))
                raise RescheduleTask
            answer = response.json() if response.text else None
            try:
                check(answer)
            except WrongAnswer as error:
                response.failure(error)
                wrong[kind] += 1
                raise RescheduleTask from None
        right[kind] += 1
        return answer


class PredictUser(HttpUser):
    """One-shot requests: whole inputs, several at a time."""

    @task
    def plan(self) -> None:
        weathers = [random.choices(["sunny", "rainy"], k=random.randint(1, 12)) for _ in range(4)]

        def check(answer: Record) -> None:
            for got, weather in zip(answer["results"], weathers, strict=True):
                compare_plans(got, planned(weather))

        self.ask("predict", "POST", f"/v1/models/{PLANNER}/predict", {"inputs": weathers}, check)

    @task
    def continue_texts(self) -> None:
        texts = random.choices(TEXTS, k=random.randint(1, 4))
        ends = [random.randint(1, len(continuations[text])) for text in texts]
        begun = [" ".join(text.split()[:end]) for text, end in zip(texts, ends, strict=True)]
        due = [continuations[text][end - 1] for text, end in zip(texts, ends, strict=True)]
        self.ask(
            "predict",
            "POST",
            f"/v1/models/{LANGUAGE_MODEL}/predict",
            {"inputs": begun, "parameters": {"top_k": TOP_K}},
            lambda answer: compare_words(answer["results"], due),
        )


class SessionUser(HttpUser):
    """A session over HTTP, from its opening to its end, with every third request sent twice."""

    @task
    def session(self) -> None:
        story = Story()
        opened = self.ask("session", "POST", "/v1/sessions", {"model": story.model})
        path = f"/v1/sessions/{opened['session']}"
        while not story.done:
            sent = story.steps()
            self._step(story, path, sent)
            if random.random() < 1 / 3:
                self._step(story, path, sent, retry=True)
        self.ask("session", "DELETE", path, name="/v1/sessions/{session}")

    def _step(self, story: Story, path: str, sent: Record, *, retry: bool = False) -> None:
        self.ask(
            "session",
            "POST",
            f"{path}/steps",
            sent,
            lambda answer: story.check(sent, answer, retry=retry),
            name="/v1/sessions/{session}/steps" + (" (retry)" if retry else ""),
        )


class StreamUser(User):
    """Eight sessions on one socket, all stepped by one frame; every other user speaks MessagePack."""

    wait_time = between(0, 0.1)
    sessions = 8
    numbers = count()

    def on_start(self) -> None:
        self.binary = next(self.numbers) % 2 == 1
        self.ids = count(1)
        self.socket: websocket.WebSocket | None = None

    def on_stop(self) -> None:
        if self.socket is not None:
            self.socket.close()

    @task
    def stories(self) -> None:
        try:
            self._connect()
            self._stories()
        except (WrongAnswer, Refused, OSError, websocket.WebSocketException):
            # Reported where it was met; what the socket still holds is of no use.
            self.on_stop()
            self.socket = None

    def _stories(self) -> None:
        stories = {}
        for _ in range(self.sessions):
            story = Story()
            opened = self.ask({"op": "open", "model": story.model})
            stories[opened["session"]] = story
        while open_ := {name: story for name, story in stories.items() if not story.done}:
            self._step(open_)
        for name in stories:
            self.ask({"op": "close", "session": name})

    def _step(self, stories: dict[str, Story]) -> None:
        sent = {name: story.steps() for name, story in stories.items()}
        frame = {"op": "step", "steps": [{"session": name, **s} for name, s in sent.items()]}

        def check(answer: Record, *, retry: bool) -> None:
            for reply, (name, story) in zip(answer["replies"], stories.items(), strict=True):
                if "error" in reply:
                    raise refusal(reply["error"])
                story.check(sent[name], reply, retry=retry)

        self.ask(frame, lambda answer: check(answer, retry=False))
        if random.random() < 1 / 3:
            self.ask(frame, lambda answer: check(answer, retry=True), name="step (retry)")

    def _connect(self) -> None:
        if self.socket is None:
            url = f"{self.host}".replace("http", "ws", 1) + "/v1/stream"
            with self._reported("connect"):
                self.socket = websocket.create_connection(url, timeout=30)

    def ask(
        self, frame: Record, check: Callable[[Any], None] = lambda _: None, name: str | None = None
    ) -> Record:
        """Send a frame, wait for its answer and check it."""
        with self._reported(name or frame["op"]):
            try:
                answer = self._exchange({"id": next(self.ids), **frame})
                check(answer)
            except WrongAnswer:
                wrong["stream"] += 1
                raise
        right["stream"] += 1
        return answer

    @contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        """Tell locust the time of what happens inside, and how it ended."""
        started = time.perf_counter()

        def report(error: Exception | None) -> None:
            events.request.fire(
                request_type="WS msgpack" if self.binary else "WS json",
                name=f"/v1/stream {name}",
                response_time=1000 * (time.perf_counter() - started),
                response_length=0,
                exception=error,
                context={},
            )

        try:
            yield
        except Exception as error:
            report(error)
            raise
        report(None)

    def _exchange(self, frame: Record) -> Record:
        assert self.socket is not None
        if self.binary:
            self.socket.send_binary(msgpack.packb(frame))
        else:
            self.socket.send(json.dumps(frame))
        data = self.socket.recv()
        answer: Record = msgpack.unpackb(data) if self.binary else json.loads(data)
        if "error" in answer:
            raise refusal(answer["error"])
        if answer.get("id") != frame["id"]:
            raise WrongAnswer(f"expected an answer to {frame['id']}, got {answer}")
        return answer
