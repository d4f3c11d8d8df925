"""Every metric is there and moves with what it counts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.settings import Settings
from tests.integration import inside
from tests.integration.inside import Running
from tests.integration.process import Service
from tests.integration.wire import Socket

PER_MODEL = {
    "batch_size": "histogram",
    "batch_fill_ratio": "histogram",
    "queue_seconds": "histogram",
    "run_seconds": "histogram",
    "steps": "counter",
    "tokens": "counter",
    "generated_tokens": "counter",
    "pending_steps": "gauge",
    "state_bytes": "gauge",
    "sessions_active": "gauge",
    "sessions_resident": "gauge",
    "sessions_opened": "counter",
    "sessions_expired": "counter",
    "sessions_evicted": "counter",
    "duplicate_steps": "counter",
    "model_ready": "gauge",
}
PER_PROCESS = {
    "requests": "counter",
    "request_seconds": "histogram",
    "rejected": "counter",
    "stream_frames": "counter",
    "stream_sockets": "gauge",
}


def test_the_page_of_metrics_parses_and_holds_every_metric_with_its_type(service: Service) -> None:
    answer = service.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    for name, kind in (PER_MODEL | PER_PROCESS).items():
        family = families[f"seqserve_{name}"]
        assert (family.type, bool(family.documentation)) == (kind, True)
        for sample in family.samples:
            if name in PER_MODEL:
                assert {"model", "version"} <= sample.labels.keys()
    for name in ("process_resident_memory_bytes", "process_cpu_seconds"):
        assert name in families


class Moves:
    """Differences of metrics since it was made."""

    def __init__(self, service: Service, model: str) -> None:
        self._service, self._labels = service, {"model": model, "version": "1"}
        self._before = {
            name: self._read(name)
            for name in (
                *(f"{name}_count" for name, kind in PER_MODEL.items() if kind == "histogram"),
                *(f"{name}_sum" for name, kind in PER_MODEL.items() if kind == "histogram"),
                *(f"{name}_total" for name, kind in PER_MODEL.items() if kind == "counter"),
                *(name for name, kind in PER_MODEL.items() if kind == "gauge"),
            )
        }

    def _read(self, name: str) -> float:
        return self._service.metric(name, **self._labels)

    def __getitem__(self, name: str) -> float:
        return self._read(name) - self._before[name]


def test_the_metrics_of_a_model_move_with_its_sessions(service: Service) -> None:
    moves = Moves(service, "accumulator")
    service.http.put("/v1/sessions/m", json={"model": "accumulator"})
    assert (moves["sessions_active"], moves["sessions_opened_total"]) == (1, 1)
    assert (moves["sessions_resident"], moves["state_bytes"]) == (0, 0)
    body = {"inputs": [1, 2, 3], "seq": 1}
    for _ in range(3):
        service.http.post("/v1/sessions/m/steps", json=body)
    assert (moves["steps_total"], moves["tokens_total"]) == (1, 3)
    assert (moves["batch_size_count"], moves["batch_size_sum"]) == (1, 1)
    assert (moves["batch_fill_ratio_count"], moves["batch_fill_ratio_sum"]) == (1, 1)
    assert (moves["queue_seconds_count"], moves["run_seconds_count"]) == (1, 1)
    assert moves["run_seconds_sum"] > 0
    assert moves["duplicate_steps_total"] == 2
    assert (moves["sessions_resident"], moves["state_bytes"]) == (1, 8)
    service.http.delete("/v1/sessions/m")
    assert (moves["sessions_active"], moves["sessions_resident"], moves["state_bytes"]) == (0, 0, 0)
    assert moves["sessions_expired_total"] == 1
    assert service.metric("sessions_expired_total", model="accumulator", reason="deleted") >= 1
    assert moves["pending_steps"] == 0
    assert service.metric("model_ready", model="accumulator") == 1


def test_requests_are_counted_by_route_and_not_by_path(service: Service) -> None:
    def count(**labels: str) -> float:
        return service.metric("requests_total", **labels)

    before = count(route="/v1/sessions/{session}", status="404")
    unmatched = count(route="unmatched")
    for name in ("x", "y", "z"):
        service.http.get(f"/v1/sessions/nobody-{name}")
        service.http.get(f"/nowhere/{name}")
    # A request is counted when all of its answer is sent: a client may be quicker.
    route = "/v1/sessions/{session}"
    service.wait_until_metric("requests_total", before + 3, route=route, status="404")
    service.wait_until_metric("requests_total", unmatched + 3, route="unmatched")
    text = service.http.get("/metrics").text
    assert "nobody-x" not in text
    assert "nowhere" not in text


def test_errors_are_counted_by_reason_wherever_they_are_met(service: Service) -> None:
    def rejected(reason: str) -> float:
        return service.metric("rejected_total", reason=reason)

    before = {r: rejected(r) for r in ("unknown_session", "malformed", "unknown_model", "invalid")}
    service.http.get("/v1/sessions/nobody")
    service.http.post("/v1/models/no/predict", json={"inputs": [[1]]})
    service.http.post("/v1/models/accumulator/predict", content=b"{")
    with Socket(service.stream_url) as stream:
        stream.connection.send("{")
        stream.receive()
        stream.step({"session": "nobody", "inputs": [1]})
        stream.ask("close", session="nobody")
        frames = service.metric("stream_frames_total", op="step")
        assert frames >= 1
    after = {reason: rejected(reason) - count for reason, count in before.items()}
    assert after == {"unknown_session": 3, "malformed": 2, "unknown_model": 1, "invalid": 0}


def test_generated_tokens_are_counted(service: Service) -> None:
    moves = Moves(service, "language")
    body = {"inputs": "the", "max_tokens": 9, "seed": 1, "ignore_eos": True}
    service.http.post("/v1/models/language/generate", json=body)
    # The prompt and all but the last token are steps.
    assert (moves["generated_tokens_total"], moves["steps_total"]) == (9, 9)


async def read(running: Running, name: str, **labels: str) -> float:
    text = (await running.http.get("/metrics")).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"seqserve_{name}" and labels.items() <= sample.labels.items()
    )


async def test_steps_that_wait_together_run_as_one_batch(running: Running) -> None:
    gate = running.gate("accumulator")
    gate.shut()
    engine = running.engine("accumulator")

    async def predict(length: int) -> None:
        body = {"inputs": [[1] * length] * 2}
        await running.http.post("/v1/models/accumulator/predict", json=body)

    async with asyncio.TaskGroup() as requests:
        requests.create_task(predict(1))
        await gate.arrival()
        # Lengths 3 and 4 share a size class: two rows of three and two of four, padded to four.
        requests.create_task(predict(3))
        requests.create_task(predict(4))
        await running.until(lambda: engine.pending == 6)
        gate.open()
    assert gate.runs == [2, 4]
    assert await read(running, "batch_size_sum", model="accumulator") == 6
    assert await read(running, "batch_fill_ratio_sum", model="accumulator") == 1 + 14 / 16
    assert await read(running, "batch_size_bucket", model="accumulator", le="2.0") == 1


async def test_sessions_that_end_are_counted_by_why(model_directory: Path) -> None:
    settings = Settings(
        models=model_directory, port=0, log_level="warning", max_sessions=2, evict_idle_s=30
    )
    async with inside.serving(settings) as running:
        for name, ttl_s in (("a", 10), ("b", 1000)):
            body = {"model": "accumulator", "session": name, "ttl_s": ttl_s}
            assert (await running.http.post("/v1/sessions", json=body)).status_code == 201
        running.clock.now += 11
        assert (await running.http.get("/v1/sessions/a")).status_code == 410
        assert await read(running, "sessions_expired_total", reason="ttl") == 1
        body = {"model": "accumulator", "session": "c"}
        assert (await running.http.post("/v1/sessions", json=body)).status_code == 201
        running.clock.now += 31
        assert (
            await running.http.post("/v1/sessions", json={"model": "language"})
        ).status_code == 201
        gone = await running.http.get("/v1/sessions/b")
        assert (gone.status_code, gone.json()["reason"]) == (410, "evicted")
        assert await read(running, "sessions_evicted_total", model="accumulator") == 1
        assert await read(running, "sessions_active") == 2


@pytest.mark.parametrize("binary", [False, True])
def test_open_sockets_are_counted(service: Service, binary: bool) -> None:
    service.wait_until_metric("stream_sockets", 0)
    with Socket(service.stream_url, binary=binary), Socket(service.stream_url, binary=binary):
        service.wait_until_metric("stream_sockets", 2)
    service.wait_until_metric("stream_sockets", 0)
