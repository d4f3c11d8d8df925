"""What the shipped models are to reach: the goals that the table of results is held against."""

from __future__ import annotations

from service.contract import Metric
from training.config import Record
from training.floors import LOSSES


class Target(Record, frozen=True, kw_only=True):
    """A goal.

    Attributes:
        title: The data, for people.
        metric: Name of the metric.
        split: Name of the split.
        reach: What can be had on a processor in the time there is.
        aim: What is hoped for.
    """

    title: str
    metric: str
    split: str
    reach: float
    aim: float

    def matches(self, metric: Metric) -> bool:
        """Whether it speaks of a metric."""
        return metric.name == self.metric and metric.split == self.split

    def verdict(self, value: float) -> str:
        """What a value is worth."""
        if better_or_equal(self.metric, value, self.aim):
            return "aim met"
        return "reach met" if better_or_equal(self.metric, value, self.reach) else "below reach"


def better_or_equal(metric: str, value: float, other: float) -> bool:
    """Whether a value of a metric is as good as another."""
    return value <= other if metric.startswith(LOSSES) else value >= other


TARGETS = (
    Target(
        title="WikiText-2",
        metric="perplexity",
        split="wikitext-2 valid",
        reach=140,
        aim=80,
    ),
    Target(
        title="Tiny Shakespeare",
        metric="nats per character",
        split="tinyshakespeare valid",
        reach=1.66,
        aim=1.60,
    ),
    Target(title="SST-2", metric="accuracy", split="sst2 valid", reach=0.83, aim=0.86),
    Target(
        title="GoEmotions",
        metric="macro F1",
        split="goemotions-sentiment valid",
        reach=0.57,
        aim=0.62,
    ),
    Target(title="UNER-EWT", metric="span F1", split="uner-ewt valid", reach=64, aim=70),
    Target(
        title="ETTh1, all columns, 24 hours",
        metric="MSE H=24",
        split="etth1 test, 7 columns",
        reach=0.318,
        aim=0.300,
    ),
    Target(
        title="ETTh1, all columns, 96 hours",
        metric="MSE H=96",
        split="etth1 test, 7 columns",
        reach=0.370,
        aim=0.360,
    ),
    Target(
        title="ETTh1, oil temperature, 24 hours",
        metric="MSE H=24",
        split="etth1 test, OT",
        reach=0.026,
        aim=0.025,
    ),
)
