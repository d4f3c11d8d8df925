from __future__ import annotations

import numpy as np
import pytest

from service.contract import Batching
from service.engine.arena import Slot
from service.engine.scheduler import Scheduler
from service.engine.shapes import Shapes
from service.engine.work import Batch, Flow, Work

LIMITS = Batching(max_batch_size=4, max_chunk_length=8, max_batch_tokens=16)


def work(length: int = 1, deadline: float = np.inf) -> Work:
    return Work(
        slot=Slot(1, 1),
        inputs={},
        length=length,
        keep=np.arange(length),
        outputs=(),
        deadline=deadline,
        queued_at=0.0,
        on_end=lambda outcome: None,
    )


def scheduled(*works: Work, limits: Batching = LIMITS) -> Scheduler:
    scheduler = Scheduler(limits)
    scheduler.extend(works)
    return scheduler


def batch(scheduler: Scheduler) -> Batch:
    decision = scheduler.next_batch(0.0)
    assert decision.batch is not None
    return decision.batch


def test_nothing_waiting_gives_nothing() -> None:
    decision = Scheduler(LIMITS).next_batch(0.0)
    assert (decision.batch, decision.cancelled, decision.late) == (None, (), ())


def test_all_that_waits_runs_together_in_order() -> None:
    works = [work() for _ in range(3)]
    scheduler = scheduled(*works)
    assert batch(scheduler) == Batch(tuple(works), (1, 1, 1), 1)
    assert len(scheduler) == 0


def test_a_batch_has_at_most_so_many_rows() -> None:
    works = [work() for _ in range(6)]
    scheduler = scheduled(*works)
    assert batch(scheduler).works == tuple(works[:4])
    assert batch(scheduler).works == tuple(works[4:])


def test_a_batch_has_at_most_so_many_time_steps_with_padding() -> None:
    works = [work(5), work(5), work(6), work(5)]
    scheduler = scheduled(*works)
    assert batch(scheduler).lengths == (5, 5)
    assert batch(scheduler).lengths == (6, 5)


@pytest.mark.parametrize("rest", [(), (1,), (1, 1)])
def test_a_chunk_is_never_longer_than_a_batch_may_be(rest: tuple[int, ...]) -> None:
    limits = Batching(max_batch_size=4, max_chunk_length=64, max_batch_tokens=16)
    scheduler = scheduled(work(100), *map(work, rest), limits=limits)
    assert batch(scheduler).lengths == (16,)


def test_only_lengths_of_one_size_class_share_a_batch() -> None:
    works = [work(n) for n in (1, 5, 1, 8, 2)]
    scheduler = scheduled(*works)
    assert [batch(scheduler).lengths for _ in range(3)] == [(1, 1), (5, 8), (2,)]


def test_the_class_that_waited_longest_runs_first() -> None:
    scheduler = scheduled(work(4), work(1))
    assert batch(scheduler).lengths == (4,)


def test_a_long_input_is_cut_and_single_steps_go_between() -> None:
    long, single = work(20), work()
    scheduler = scheduled(long)
    assert batch(scheduler).lengths == (8,)
    long.done = 8
    scheduler.add(single)
    scheduler.add(long)
    assert batch(scheduler).works == (single,)
    assert batch(scheduler).works == (long,)
    long.done = 16
    scheduler.add(long)
    assert batch(scheduler).lengths == (4,)


def test_cancelled_and_late_work_is_dropped_and_named() -> None:
    left, late, good = work(), work(deadline=4.9), work(deadline=5.0)
    left.cancelled = True
    scheduler = scheduled(left, late, good)
    decision = scheduler.next_batch(5.0)
    assert (decision.cancelled, decision.late) == ((left,), (late,))
    assert decision.batch is not None
    assert decision.batch.works == (good,)


def test_a_class_with_nothing_but_dropped_work_does_not_hide_the_next() -> None:
    left, good = work(8), work(1)
    left.cancelled = True
    decision = scheduled(left, good).next_batch(0.0)
    assert decision.cancelled == (left,)
    assert decision.batch is not None
    assert decision.batch.works == (good,)


def test_only_dropped_work_gives_no_batch() -> None:
    left = work()
    left.cancelled = True
    decision = scheduled(left).next_batch(0.0)
    assert (decision.batch, decision.cancelled) == (None, (left,))


ALICE, BOB, HEAVY = Flow("alice"), Flow("bob"), Flow("alice", weight=3.0)


def of(flow: Flow, length: int = 1) -> Work:
    each = work(length)
    each.flow = flow
    return each


def tenants(scheduler: Scheduler, batches: int) -> list[str]:
    return [each.flow.tenant for _ in range(batches) for each in batch(scheduler).works]


def test_a_tenant_that_sends_much_does_not_keep_another_waiting() -> None:
    scheduler = scheduled(*(of(ALICE) for _ in range(40)), of(BOB), of(BOB))
    assert tenants(scheduler, 1).count("bob") == 2


def test_flows_that_always_have_work_share_by_weight() -> None:
    scheduler = scheduled(*(of(HEAVY) for _ in range(60)), *(of(BOB) for _ in range(60)))
    served = tenants(scheduler, 10)
    assert served.count("alice") == 30
    assert served.count("bob") == 10


def test_shares_are_of_time_steps_not_of_requests() -> None:
    limits = Batching(max_batch_size=1, max_chunk_length=8, max_batch_tokens=16)
    long, single = Flow("", "once"), Flow("", "session")
    scheduler = scheduled(
        *(of(long, 8) for _ in range(20)), *(of(single) for _ in range(80)), limits=limits
    )
    steps = {long: 0, single: 0}
    for _ in range(45):
        done = batch(scheduler)
        steps[done.works[0].flow] += sum(done.lengths)
    assert steps[long] == pytest.approx(steps[single], abs=8)


def test_a_flow_that_was_away_has_no_share_saved_up() -> None:
    scheduler = scheduled(*(of(ALICE) for _ in range(20)))
    tenants(scheduler, 4)
    scheduler.extend([of(BOB) for _ in range(20)] + [of(ALICE) for _ in range(20)])
    served = tenants(scheduler, 4)
    assert 6 <= served.count("bob") <= 10


def test_a_batch_has_no_more_rows_than_its_largest_shape() -> None:
    shapes = Shapes({1: [1, 2, 3], 2: [1], 4: [1, 2], 8: [1]})
    scheduler = Scheduler(LIMITS, shapes)
    scheduler.extend([*(work() for _ in range(4)), work(2), work(2)])
    assert [batch(scheduler).lengths for _ in range(4)] == [(1, 1, 1), (1,), (2,), (2,)]


def test_shares_are_of_the_time_that_the_model_was_seen_to_take() -> None:
    limits = Batching(max_batch_size=1, max_chunk_length=8, max_batch_tokens=16)
    long, single = Flow("", "once"), Flow("", "session")
    scheduler = Scheduler(limits, Shapes({1: [1], 2: [1], 4: [1], 8: [1]}))
    spent = {long: 0.0, single: 0.0}

    def run(batch: Batch) -> None:
        # A time step of a long text takes five times as long as one of a batch of many.
        seconds = 5.0 * batch.time if batch.time > 1 else 1.0
        scheduler.ran(len(batch.works), batch.time, seconds)
        for each in batch.works:
            spent[each.flow] += seconds

    for flow, length in ((long, 8), (single, 1)):
        scheduler.add(of(flow, length))
        run(batch(scheduler))
    scheduler.extend([of(long, 8) for _ in range(20)] + [of(single) for _ in range(800)])
    for _ in range(300):
        run(batch(scheduler))
    # Within two chunks of the long ones.
    assert spent[long] == pytest.approx(spent[single], abs=80)


def test_a_chunk_is_no_longer_than_some_batches_of_single_steps_while_there_are_any() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.ran(1, 8, 8.0)
    scheduler.ran(1, 1, 2.0)
    long = work(8)
    scheduler.add(long)
    assert batch(scheduler).lengths == (4,)
    long.done = 4
    scheduler.add(long)
    assert batch(scheduler).lengths == (4,)


def test_without_single_steps_chunks_are_as_long_as_they_may_be() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.ran(1, 1, 1.0)
    for _ in range(3):
        scheduler.ran(1, 8, 8.0)
    scheduler.add(work(8))
    assert batch(scheduler).lengths == (8,)


def test_fixed_shapes_keep_the_cuts_of_an_input() -> None:
    scheduler = Scheduler(LIMITS, Shapes({1: [1], 2: [1], 4: [1], 8: [1]}))
    scheduler.ran(1, 8, 8.0)
    scheduler.ran(1, 1, 1.0)
    scheduler.add(work(8))
    assert batch(scheduler).lengths == (8,)
