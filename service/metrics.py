"""Names, labels and buckets of every Prometheus metric, stated once. No I/O, no web framework."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

_MODEL = ("model", "version")
_DURATION_BUCKETS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_FILL_BUCKETS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class Distribution:
    """Counts values by bucket. Fed by one thread, without the locks that take longer than the counting.

    Args:
        buckets: Upper bounds, rising.
    """

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self._bounds = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def observe_all(self, values: Sequence[float]) -> None:
        """Count values."""
        bounds, counts = self._bounds, self._counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
        self._sum += sum(values)

    def add_to(self, family: HistogramMetricFamily, labels: tuple[str, ...]) -> None:
        """Give the counts so far to a scrape."""
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        totals = accumulate(self._counts)
        family.add_metric(labels, list(zip(bounds, totals, strict=True)), self._sum)


class Count:
    """A count. Fed by one thread, without the lock that takes longer than the counting."""

    def __init__(self) -> None:
        self.value = 0

    def inc(self, by: int = 1) -> None:
        """Count some."""
        self.value += by


class Counts(Collector):
    """Counts of one kind, by label."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._described = (name, text)
        self._labels = labels
        self._found: dict[tuple[str, ...], Count] = {}

    def labels(self, *values: str) -> Count:
        """The count with these labels; made when it is first asked for."""
        return self._found.setdefault(values, Count())

    def collect(self) -> Iterator[CounterMetricFamily]:
        """All of them, for a scrape."""
        family = CounterMetricFamily(*self._described, labels=self._labels)
        for values, count in list(self._found.items()):
            family.add_metric(values, count.value)
        yield family


class Histogram(Collector):
    """Distributions of one kind, by label."""

    def __init__(
        self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> None:
        self._described = (name, text)
        self._labels = labels
        self._buckets = buckets
        self._found: dict[tuple[str, ...], Distribution] = {}

    def labels(self, *values: str) -> Distribution:
        """The distribution with these labels; made when it is first asked for."""
        return self._found.setdefault(values, Distribution(self._buckets))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """All of them, for a scrape."""
        family = HistogramMetricFamily(*self._described, labels=self._labels)
        for values, distribution in list(self._found.items()):
            distribution.add_to(family, values)
        yield family


class Metrics:
    """All metrics of one process, in a registry of their own so that a process may hold several services."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(f"seqserve_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, labels: tuple[str, ...]) -> Gauge:
            return Gauge(f"seqserve_{name}", text, labels, registry=registry)

        def histogram(
            name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
        ) -> Histogram:
            made = Histogram(f"seqserve_{name}", text, labels, buckets)
            registry.register(made)
            return made

        def counts(name: str, text: str, labels: tuple[str, ...]) -> Counts:
            made = Counts(f"seqserve_{name}_total", text, labels)
            registry.register(made)
            return made

        self.requests = counts("requests", "HTTP requests answered.", ("route", "method", "status"))
        self.request_seconds = histogram(
            "request_seconds", "Time from request to last byte.", ("route",), _DURATION_BUCKETS
        )
        self.frames = counts("stream_frames", "WebSocket frames received.", ("op",))
        self.sockets = gauge("stream_sockets", "WebSockets open.", ())
        self.rejected = counter(
            "rejected_total", "Requests answered with an error, by its code.", ("reason",)
        )
        self.batch_size = histogram("batch_size", "Rows of a batch.", _MODEL, _SIZE_BUCKETS)
        self.batch_fill = histogram(
            "batch_fill_ratio",
            "Time steps of a batch that are not padding, over all.",
            _MODEL,
            _FILL_BUCKETS,
        )
        self.queue_seconds = histogram(
            "queue_seconds",
            "Time from arrival to first run, of the step of each batch that waited longest.",
            _MODEL,
            _DURATION_BUCKETS,
        )
        self.run_seconds = histogram(
            "run_seconds", "Time of one batch in the engine.", _MODEL, _DURATION_BUCKETS
        )
        self.steps = counts("steps", "Steps applied.", _MODEL)
        self.tokens = counts("tokens", "Time steps applied.", _MODEL)
        self.pending = gauge("pending_steps", "Steps in flight or waiting.", _MODEL)
        self.state_bytes = gauge("state_bytes", "State of resident sessions in memory.", _MODEL)
        # No series where models run on the CPU.
        self.device_memory = gauge(
            "device_memory_bytes", "Memory of the GPU, used by anyone and in all.", ("kind",)
        )
        self.generated = counter("generated_tokens_total", "Tokens sampled.", _MODEL)
        self.sessions = gauge("sessions_active", "Sessions open.", _MODEL)
        self.sessions_resident = gauge("sessions_resident", "Sessions holding a slot.", _MODEL)
        self.sessions_opened = counter("sessions_opened_total", "Sessions opened.", _MODEL)
        self.sessions_expired = counter(
            "sessions_expired_total", "Sessions ended, by why.", (*_MODEL, "reason")
        )
        self.sessions_evicted = counter(
            "sessions_evicted_total", "Sessions ended to make room for others.", _MODEL
        )
        self.sessions_paged = counter(
            "sessions_paged_total",
            "Sessions moved out of (out) or into (in) memory.",
            (*_MODEL, "way"),
        )
        self.duplicate_steps = counter(
            "duplicate_steps_total", "Retries answered from the journal.", _MODEL
        )
        self.model_ready = gauge("model_ready", "1 when the model serves.", _MODEL)
        self.model_variant = gauge(
            "model_variant", "1 for the arithmetic that the model runs in.", (*_MODEL, "variant")
        )


class EngineMetrics:
    """The metrics an engine feeds, bound to its model and version."""

    def __init__(self, metrics: Metrics, model: str, version: int) -> None:
        labels = (model, str(version))
        self.batch_size = metrics.batch_size.labels(*labels)
        self.batch_fill = metrics.batch_fill.labels(*labels)
        self.queue_seconds = metrics.queue_seconds.labels(*labels)
        self.run_seconds = metrics.run_seconds.labels(*labels)
        self.steps = metrics.steps.labels(*labels)
        self.tokens = metrics.tokens.labels(*labels)
        self.pending = metrics.pending.labels(*labels)
        self.state_bytes = metrics.state_bytes.labels(*labels)
