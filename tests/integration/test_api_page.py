"""The OpenAPI page is valid, complete, and its examples work as printed against the shipped models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration import process
from tests.integration.process import Service
from tests.integration.wire import events

EXPORTED = Path(__file__).resolve().parents[2] / "exported"


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with the models of this repository."""
    service = process.start(EXPORTED, tmp_path_factory.mktemp("shipped") / "log")
    yield service
    assert process.stop(service) == 0


@pytest.fixture(scope="module")
def page(shipped: Service) -> Any:
    return shipped.http.get("/openapi.json").json()


def operations(page: Any) -> Iterator[tuple[str, str, Any]]:
    for path, methods in page["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "$ref":
                yield inner
            else:
                yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


def test_the_page_is_openapi_3_1_and_every_reference_leads_somewhere(page: Any) -> None:
    assert page["openapi"].startswith("3.1.")
    assert {"title", "version"} <= page["info"].keys()
    for reference in references(page):
        at = page
        for part in reference.removeprefix("#/").split("/"):
            at = at[part]
    names = [operation["operationId"] for _, _, operation in operations(page)]
    assert len(set(names)) == len(names)
    tags = {tag["name"] for tag in page["tags"]}
    for _, path, operation in operations(page):
        assert set(operation.get("tags", [])) <= tags
        parameters = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert parameters == set(re.findall(r"\{(\w+)\}", path)), path


def test_packed_values_are_described_as_raw_bytes_of_binary_frames_alone(page: Any) -> None:
    schemas = page["components"]["schemas"]
    listed, packed = schemas["StepOf"]["properties"]["inputs"]["anyOf"]
    output = schemas["PackedStepsAnswer"]["properties"]["results"]["additionalProperties"]
    for raw in (packed, output):
        assert raw["contentMediaType"] == "application/octet-stream"
        assert "little-endian" in raw["description"].lower()
    for only in ("JsonStepOf", "StepsRequest"):
        assert schemas[only]["properties"]["inputs"] == listed
    assert "base64" not in str(page)


def test_every_route_is_described_with_its_errors_and_with_examples_of_its_body(page: Any) -> None:
    paths = {
        "/health/live", "/health/ready", "/metrics", "/v1/models", "/v1/models/{model}",
        "/v1/models/{model}/predict", "/v1/models/{model}/generate", "/v1/sessions",
        "/v1/sessions/{session}", "/v1/sessions/{session}/steps", "/v1/sessions/{session}/generate",
    }  # fmt: skip
    assert paths <= page["paths"].keys()
    for method, path, operation in operations(page):
        assert operation["description"], path
        assert operation["summary"], path
        assert any(status.startswith("2") for status in operation["responses"])
        if path.startswith("/v1"):
            for status in ("4XX", "5XX"):
                assert "application/problem+json" in operation["responses"][status]["content"]
        if method in ("post", "put"):
            assert operation["requestBody"]["content"]["application/json"]["examples"], path


def kinds(value: Any) -> Any:
    """The fields of an answer and what they hold; of a list that of its first item."""
    if isinstance(value, dict):
        return {name: kinds(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [kinds(value[0])] if value else []
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def test_every_example_is_answered_as_the_page_says(shipped: Service, page: Any) -> None:
    sent = 0
    for method, path, operation in operations(page):
        if "requestBody" not in operation:
            continue
        content = operation["requestBody"]["content"]["application/json"]["examples"]
        successes = [status for status in operation["responses"] if status.startswith("2")]
        status = max(successes)
        answers = operation["responses"][status]["content"]["application/json"]["examples"]
        for name, example in content.items():
            expected = answers[name]["value"]
            route = path.format(
                model=expected.get("model"), session=prepared(shipped, path, expected)
            )
            answer = shipped.http.request(method, route, json=example["value"])
            assert answer.status_code == int(status), (name, answer.text)
            assert kinds(answer.json()) == kinds(expected), name
            exact = ("model", "version", "seq", "first", "finish_reason", "ttl_s", "duplicate")
            for field in exact:
                assert answer.json().get(field) == expected.get(field), (name, field)
            if "weekend" in name:
                assert answer.json()["results"] == expected["results"]
            sent += 1
    assert sent >= 7


def prepared(shipped: Service, path: str, expected: Any) -> str:
    """A session in the state an example begins with."""
    if "{session}" not in path:
        return ""
    if path.endswith("{session}"):
        return "an-id-of-ones-own"
    generate = path.endswith("generate")
    body = {"model": "next-word-lstm" if generate else "weekend-planner"}
    session: str = shipped.http.post("/v1/sessions", json=body).json()["session"]
    if generate:
        before = expected["seq"] - len(expected["tokens"])
        inputs = {"inputs": ["the"] * before}
        shipped.http.post(f"/v1/sessions/{session}/steps", json=inputs).raise_for_status()
    return session


def test_the_shipped_model_streams(shipped: Service) -> None:
    body = {"inputs": "The game was", "max_tokens": 5, "seed": 7, "stream": True}
    with shipped.http.stream("POST", "/v1/models/next-word-lstm/generate", json=body) as answer:
        names = [event.name for event in events(answer.iter_lines())]
    assert names == ["start", *["token"] * (len(names) - 2), "done"]


def test_the_pages_for_people_are_there(shipped: Service) -> None:
    for path in ("/docs", "/redoc"):
        assert shipped.http.get(path).status_code == 200
