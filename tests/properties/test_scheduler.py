"""The scheduler as a pure function of what was asked of it, simulated without an engine."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.contract import Batching
from service.engine.arena import Slot
from service.engine.scheduler import Scheduler
from service.engine.work import Batch, Work

limits = st.builds(
    Batching,
    max_batch_size=st.integers(1, 6),
    max_chunk_length=st.integers(1, 12),
    max_batch_tokens=st.integers(1, 24),
)


@dataclass(frozen=True)
class Asked:
    """A step to come: when, how long, and what becomes of its caller."""

    arrives: int
    length: int
    lasts: int
    leaves: bool


asked = st.lists(
    st.builds(
        Asked,
        # Crowded enough that batches fill.
        arrives=st.integers(0, 4),
        length=st.integers(1, 8) | st.integers(1, 40),
        lasts=st.just(1000) | st.integers(0, 30),
        leaves=st.sampled_from([False, False, False, True]),
    ),
    max_size=25,
)


@dataclass
class Story:
    """What became of all that was asked."""

    works: list[Work]
    batches: list[tuple[int, Batch]]
    ends: list[tuple[Work, str]]


def play(limits: Batching, steps: list[Asked]) -> Story:
    """Run a scheduler in turns, as the engine does; a turn is a second."""
    scheduler = Scheduler(limits)
    works = [
        Work(
            slot=Slot(i + 1, 1),
            inputs={},
            length=step.length,
            keep=np.arange(step.length),
            outputs=(),
            deadline=step.arrives + step.lasts,
            queued_at=step.arrives,
            on_end=lambda outcome: None,
        )
        for i, step in enumerate(steps)
    ]
    story = Story(works, [], [])
    turn = 0
    while turn <= 4 or len(scheduler):
        for work, step in zip(works, steps, strict=True):
            if step.arrives == turn:
                work.cancelled = step.leaves
                scheduler.add(work)
        decision = scheduler.next_batch(float(turn))
        story.ends += [(work, "cancelled") for work in decision.cancelled]
        story.ends += [(work, "late") for work in decision.late]
        if decision.batch is not None:
            story.batches.append((turn, decision.batch))
            for work, length in zip(decision.batch.works, decision.batch.lengths, strict=True):
                work.done += length
                if work.done < work.length:
                    scheduler.add(work)
                else:
                    story.ends.append((work, "done"))
        turn += 1
        assert turn < 5000, "work is left waiting for ever"
    return story


@given(limits, asked)
def test_every_step_ends_exactly_once_and_as_it_should(
    limits: Batching, steps: list[Asked]
) -> None:
    story = play(limits, steps)
    assert Counter(id(work) for work, _ in story.ends) == Counter(map(id, story.works))
    ran = Counter()
    for turn, batch in story.batches:
        for work, length in zip(batch.works, batch.lengths, strict=True):
            assert not work.cancelled
            assert turn <= work.deadline
            ran[id(work)] += length
    for work, end in story.ends:
        assert (end == "cancelled") == work.cancelled
        assert (end == "done") == (ran[id(work)] == work.length == work.done)


@given(limits, asked)
def test_no_batch_is_above_its_limits_nor_half_padding(
    limits: Batching, steps: list[Asked]
) -> None:
    for _, batch in play(limits, steps).batches:
        rows = len(batch.works)
        assert 1 <= rows <= limits.max_batch_size
        assert max(batch.lengths) == batch.time <= limits.max_chunk_length
        assert min(batch.lengths) >= 1
        assert rows * batch.time <= limits.max_batch_tokens
        assert len({id(work) for work in batch.works}) == rows
        assert rows == 1 or sum(batch.lengths) * 2 > rows * batch.time


@given(limits, asked)
def test_steps_of_one_length_begin_in_the_order_they_came(
    limits: Batching, steps: list[Asked]
) -> None:
    story = play(limits, steps)
    begun: list[Work] = []
    for _, batch in story.batches:
        begun += [work for work in batch.works if work not in begun]
    arrival = {
        work: (step.arrives, i)
        for i, (work, step) in enumerate(zip(story.works, steps, strict=True))
    }
    for length in {work.length for work in begun}:
        order = [arrival[work] for work in begun if work.length == length]
        assert order == sorted(order)


@given(limits, st.lists(st.integers(1, 40), min_size=1, max_size=15), st.integers(1, 40))
def test_nobody_waits_for_more_than_what_was_there_before(
    limits: Batching, earlier: list[int], length: int
) -> None:
    """Whatever keeps coming, a step begins once each that waited before it had one turn."""
    scheduler = Scheduler(limits)

    def add(length: int) -> Work:
        work = Work(
            Slot(1, 1), {}, length, np.arange(length), (), np.inf, 0.0, lambda outcome: None
        )
        scheduler.add(work)
        return work

    for each in earlier:
        add(each)
    patient = add(length)
    for _ in range(len(earlier) + 1):
        decision = scheduler.next_batch(0.0)
        assert decision.batch is not None
        for work, chunk in zip(decision.batch.works, decision.batch.lengths, strict=True):
            work.done += chunk
            if work.done < work.length:
                scheduler.add(work)
        if patient.done:
            return
        add(1)
        add(length)
    raise AssertionError("it never began")
