"""Patience judged by what comes of it, in a simulated engine whose model and clients take the time they are told to."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random

import pytest

from service.engine.patience import Patience, RunTimes

MOST = 64


def steps_per_second(
    sessions: int,
    run_s: Callable[[int], float],
    back_s: Callable[[int], float],
    patience: Patience | None,
    seconds: float = 1.2,
) -> float:
    """Steps a second of sessions that step again as soon as they are answered.

    Args:
        sessions: How many.
        run_s: Time of a batch by its rows.
        back_s: Time from an answer to the next step, by the number of the answer among those told together.
        patience: What decides; None runs whatever is there, at once.
        seconds: How long to play; the first third does not count.
    """
    now, done = 0.0, 0
    due: list[tuple[float, int]] = [(0.0, i) for i in range(sessions)]
    answered: dict[int, int] = {}
    told = 0
    waiting: list[int] = []
    ended: list[int] = []

    def arrive(until: float) -> None:
        while due and due[0][0] <= until:
            at, session = heappop(due)
            if patience is not None and answered.get(session) == told:
                patience.returned(at)
            waiting.append(session)

    def tell(awaited: bool) -> None:
        nonlocal told
        if not ended:
            return
        told += 1
        if patience is not None:
            patience.told(len(ended), now, awaited=awaited)
        for number, session in enumerate(ended):
            answered[session] = told
            heappush(due, (now + back_s(number), session))
        ended.clear()

    while now < seconds:
        arrive(now)
        if not waiting:
            tell(awaited=True)
            now = max(now, due[0][0])
            continue
        if patience is not None:
            if ended:
                if patience.answer_first(len(waiting), len(ended)):
                    tell(awaited=True)
                    continue
            else:
                wait_s = patience.wait_s(len(waiting), now)
                until = now + wait_s
                if wait_s and due and due[0][0] <= until:
                    now = due[0][0]
                    continue
                now = until
                arrive(now)
            patience.begin(now)
        batch, waiting[:] = waiting[:MOST], waiting[MOST:]
        tell(awaited=False)
        now += run_s(len(batch))
        if patience is not None:
            patience.ran(len(batch), run_s(len(batch)))
        ended += batch
        if now > seconds / 3:
            done += len(batch)
    return done / (now - seconds / 3)


def heavy(rows: int) -> float:
    """A model whose weights cost more than a few rows."""
    return 3e-3 + 0.17e-3 * rows


def light(rows: int) -> float:
    return 90e-6 + 4e-6 * rows


def soon(number: int) -> float:
    return 100e-6 + 40e-6 * number


@pytest.mark.parametrize("sessions", [2, 8, 32, 64])
def test_sessions_of_a_heavy_model_run_together_instead_of_in_turns(sessions: int) -> None:
    patient = steps_per_second(sessions, heavy, soon, Patience(MOST))
    together = sessions / (heavy(sessions) + soon(sessions - 1))
    assert patient > 0.93 * together
    # Without patience they settle into groups that take turns.
    assert patient > 0.99 * steps_per_second(sessions, heavy, soon, None)


def test_a_second_session_is_nearly_free() -> None:
    one = steps_per_second(1, heavy, soon, Patience(MOST))
    two = steps_per_second(2, heavy, soon, Patience(MOST))
    assert two > 1.8 * one
    assert steps_per_second(2, heavy, soon, None) < 1.2 * one


@pytest.mark.parametrize("sessions", [1, 2, 64, 200])
@pytest.mark.parametrize("run_s", [heavy, light])
@pytest.mark.parametrize("think_s", [0.0, 2e-3, 20e-3])
def test_waiting_never_costs_much(
    sessions: int, run_s: Callable[[int], float], think_s: float
) -> None:
    def back_s(number: int) -> float:
        return think_s + soon(number)

    patient = steps_per_second(sessions, run_s, back_s, Patience(MOST))
    assert patient > 0.9 * steps_per_second(sessions, run_s, back_s, None)


@pytest.mark.parametrize("run_s", [heavy, light])
@pytest.mark.parametrize("sessions", [2, 64, 200])
@pytest.mark.parametrize("think_s", [5e-3, 20e-3, 100e-3])
def test_a_run_that_was_held_up_once_is_forgotten(
    run_s: Callable[[int], float], sessions: int, think_s: float
) -> None:
    def thinking() -> Callable[[int], float]:
        random = Random(1)
        return lambda number: random.expovariate(1 / think_s)

    patience = Patience(MOST)
    # The first run of one row, on a machine that had no time for it.
    patience.ran(1, 0.5)
    patience.ran(MOST, run_s(MOST))
    patient = steps_per_second(sessions, run_s, thinking(), patience, seconds=4.0)
    assert patient > 0.8 * steps_per_second(sessions, run_s, thinking(), None, seconds=4.0)


def test_a_single_session_is_never_kept_waiting() -> None:
    patience = Patience(MOST)
    patience.ran(1, 3e-3)
    for turn in range(10):
        patience.told(1, turn, awaited=True)
        patience.returned(turn + 1e-4)
        assert patience.wait_s(1, turn + 1e-4) == 0


def test_nobody_waits_for_sessions_that_do_not_come_back() -> None:
    patience = Patience(MOST)
    patience.ran(1, 3e-3)
    patience.ran(8, 4e-3)
    for turn in range(40):
        patience.told(8, turn, awaited=True)
        patience.begin(turn + 1e-3)
    assert patience.wait_s(1, 40.0) == 0
    assert patience.expected == 1
    assert not patience.answer_first(1, 8)


def test_those_who_came_back_once_are_tried_again() -> None:
    patience = Patience(MOST)
    patience.ran(1, 3e-3)
    patience.ran(8, 4e-3)
    for turn in range(40):
        patience.told(8, turn, awaited=True)
        patience.begin(turn + 1e-3)
    assert any(patience.answer_first(1, 8) for _ in range(1000))


def test_a_full_batch_waits_for_nobody() -> None:
    patience = Patience(MOST)
    patience.ran(64, 10e-3)
    patience.told(64, 0.0, awaited=True)
    assert patience.wait_s(64, 0.0) == 0
    assert not patience.answer_first(64, 64)


def test_times_between_and_beyond_what_was_measured() -> None:
    times = RunTimes()
    assert times.of(5) == 0
    times.add(1, 2.0)
    times.add(4, 5.0)
    assert [times.of(rows) for rows in (1, 2.5, 4)] == [2, 3.5, 5]
    # Nothing is known of more rows: hope that they cost nothing.
    assert times.of(64) == 5
    # Seven rows are learned as eight.
    times.add(7, 9.0)
    assert times.of(6) == 7


def test_times_follow_the_machine() -> None:
    times = RunTimes()
    times.add(1, 1.0)
    for _ in range(50):
        times.add(1, 3.0)
    assert times.of(1) == pytest.approx(3, rel=1e-3)
