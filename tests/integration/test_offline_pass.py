"""Any split into steps, over any protocol, with any batch mates: the numbers of one offline pass in PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.integration import offline
from tests.integration.planner import planned
from tests.integration.process import Service
from tests.integration.wire import Socket
from tests.models import WORDS

TOP_K = 6
PROPERTY = settings(max_examples=20, deadline=None)
_names = count()


@dataclass(frozen=True)
class Input:
    """One input of a session: a token id, or some words."""

    tokens: tuple[int, ...]
    as_text: bool

    @property
    def sent(self) -> Any:
        return " ".join(WORDS[i] for i in self.tokens) if self.as_text else self.tokens[0]


@dataclass(frozen=True)
class Story:
    """What one session is sent: requests of one or more inputs."""

    requests: tuple[tuple[Input, ...], ...]

    def answers_due(self) -> list[list[offline.Array]]:
        """Log-probabilities after each input of each request."""
        tokens = [t for request in self.requests for each in request for t in each.tokens]
        passed = offline.log_probabilities(tokens)
        at, due = 0, []
        for request in self.requests:
            due.append([])
            for each in request:
                at += len(each.tokens)
                due[-1].append(passed[at - 1])
        return due


TOKENS = st.integers(0, len(WORDS) - 1)
# Up to 20 words, where a chunk of the model takes 8.
INPUT = st.one_of(
    st.builds(Input, st.tuples(TOKENS), st.just(False)),
    st.builds(Input, st.lists(TOKENS, min_size=1, max_size=20).map(tuple), st.just(True)),
)
STORY = st.builds(
    Story,
    st.lists(st.lists(INPUT, min_size=1, max_size=4).map(tuple), min_size=1, max_size=4).map(tuple),
)
WEATHER = st.lists(st.sampled_from(["sunny", "rainy"]), max_size=30)


def check(results: list[Any], due: list[offline.Array]) -> None:
    assert len(results) == len(due)
    for answer, expected in zip(results, due, strict=True):
        assert len(answer) == TOP_K
        offline.compare(answer, expected)


@PROPERTY
@given(texts=st.lists(st.lists(INPUT, min_size=1, max_size=5), min_size=1, max_size=6))
def test_predictions_are_those_of_one_offline_pass(
    service: Service, texts: list[list[Input]]
) -> None:
    body = {
        "inputs": [[each.sent for each in text] for text in texts],
        "parameters": {"top_k": TOP_K},
    }
    answer = service.http.post("/v1/models/language/predict", json=body)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    due = [
        offline.log_probabilities([t for each in text for t in each.tokens])[-1] for text in texts
    ]
    check(results, due)


@PROPERTY
@given(story=STORY, numbered=st.booleans())
def test_any_split_of_a_text_into_requests_gives_the_same_answers(
    service: Service, story: Story, numbered: bool
) -> None:
    name = f"offline-{next(_names)}"
    service.http.put(f"/v1/sessions/{name}", json={"model": "language"})
    seq = 0
    for request, due in zip(story.requests, story.answers_due(), strict=True):
        body = {"inputs": [each.sent for each in request], "parameters": {"top_k": TOP_K}}
        if numbered:
            body["seq"] = seq + 1
        answer = service.http.post(f"/v1/sessions/{name}/steps", json=body).json()
        assert (answer["first"], answer["seq"]) == (seq + 1, seq + len(request))
        seq = answer["seq"]
        check(answer["results"], due)
    assert service.http.delete(f"/v1/sessions/{name}").status_code == 204


@PROPERTY
@given(
    stories=st.lists(STORY, min_size=1, max_size=6),
    weather=st.lists(WEATHER, max_size=3),
    binary=st.booleans(),
)
def test_sessions_of_one_socket_share_batches_and_not_their_answers(
    service: Service, stories: list[Story], weather: list[list[str]], binary: bool
) -> None:
    with Socket(service.stream_url, binary=binary) as stream:
        words = {stream.ask("open", model="language")["session"]: story for story in stories}
        plans = {stream.ask("open", model="weekend-planner")["session"]: w for w in weather}
        due = {name: story.answers_due() for name, story in words.items()}
        rounds = max(
            [len(story.requests) for story in stories] + [len(w) // 4 + 1 for w in weather]
        )
        for number in range(rounds):
            steps: list[dict[str, Any]] = [
                {
                    "session": name,
                    "inputs": [each.sent for each in story.requests[number]],
                    "parameters": {"top_k": TOP_K},
                }
                for name, story in words.items()
                if number < len(story.requests)
            ]
            steps += [
                {"session": name, "inputs": w[4 * number : 4 * number + 4]}
                for name, w in plans.items()
                if 4 * number < len(w)
            ]
            if not steps:
                continue
            for step, reply in zip(steps, stream.step(*steps), strict=True):
                name = step["session"]
                assert reply["session"] == name
                if name in words:
                    check(reply["results"], due[name][number])
                else:
                    labels = [each["label"] for each in reply["results"]]
                    assert labels == planned(plans[name])[4 * number : 4 * number + 4]
        for name in [*words, *plans]:
            assert stream.ask("close", session=name)["op"] == "closed"


@PROPERTY
@given(weather=st.lists(WEATHER.filter(len), min_size=1, max_size=8))
def test_the_weekend_planner_is_exact(service: Service, weather: list[list[str]]) -> None:
    answer = service.http.post("/v1/models/weekend-planner/predict", json={"inputs": weather})
    results = answer.json()["results"]
    assert [[each["label"] for each in plan] for plan in results] == [planned(w) for w in weather]
    assert {each["score"] for plan in results for each in plan} == {1.0}
