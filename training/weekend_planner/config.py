"""A run of the weekend planner."""

from __future__ import annotations

from training.config import Record


class WeekendPlannerRun(Record, frozen=True, kw_only=True, tag="weekend_planner", tag_field="task"):
    """Export the weekend planner, whose weights are known and need no training."""

    name: str
    version: int
    description: str
