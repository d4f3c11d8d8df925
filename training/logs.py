"""Scalars of a run, read back from its TensorBoard files."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# A name's steps and values, in the order of the steps.
Series = tuple[tuple[int, float], ...]
PROCESSOR_MINUTES = "train/processor_minutes"


def scalars(directory: Path) -> dict[str, Series]:
    """Every scalar of a run, by name; none if nothing was logged. Where a run was resumed, the later value counts."""
    if not any(directory.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    found: dict[str, Series] = {}
    for name in events.Tags()["scalars"]:
        by_step = {event.step: event.value for event in events.Scalars(name)}
        found[name] = tuple(sorted(by_step.items()))
    return found
