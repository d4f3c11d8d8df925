from __future__ import annotations

import re

from prometheus_client import generate_latest

from service.metrics import EngineMetrics, Metrics


def test_every_metric_is_ours_or_the_processs_and_says_what_it_is() -> None:
    for family in Metrics().registry.collect():
        assert family.name.startswith(("seqserve_", "process_"))
        assert family.documentation


def test_durations_and_sizes_name_their_unit() -> None:
    names = {family.name for family in Metrics().registry.collect()}
    assert {"seqserve_request_seconds", "seqserve_state_bytes"} <= names
    for name in names:
        assert not re.search(r"_(ms|s|mb|percent)$", name)


def test_engine_metrics_carry_model_and_version() -> None:
    metrics = Metrics()
    engine = EngineMetrics(metrics, "m", 3)
    engine.steps.inc(2)
    engine.batch_size.observe(5)
    text = generate_latest(metrics.registry).decode()
    assert 'seqserve_steps_total{model="m",version="3"} 2.0' in text
    assert 'seqserve_batch_size_bucket{le="8.0",model="m",version="3"} 1.0' in text


def test_two_services_in_one_process_count_apart() -> None:
    one, other = Metrics(), Metrics()
    EngineMetrics(one, "m", 1).steps.inc()
    EngineMetrics(other, "m", 1)
    labels = {"model": "m", "version": "1"}
    assert one.registry.get_sample_value("seqserve_steps_total", labels) == 1
    assert other.registry.get_sample_value("seqserve_steps_total", labels) == 0
