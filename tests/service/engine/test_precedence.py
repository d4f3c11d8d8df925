from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from service.engine.precedence import give_way, take_over
from tests.engines import add, load_graph, running, total
from tests.service.engine.test_engine import taken


@pytest.fixture
def giving_way() -> Iterator[None]:
    give_way()
    try:
        yield
    finally:
        take_over()


def policies_after(*steps: Callable[[], None]) -> list[int]:
    """Of a thread of its own, after each step."""
    found = []

    def work() -> None:
        for step in steps:
            step()
            found.append(os.sched_getscheduler(0))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return found


def test_who_gives_way_takes_over_again() -> None:
    assert policies_after(give_way, give_way, take_over) == [
        os.SCHED_BATCH,
        os.SCHED_BATCH,
        os.SCHED_OTHER,
    ]


def test_what_the_operator_chose_stays() -> None:
    def chosen() -> None:
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

    assert policies_after(chosen, give_way, take_over) == [os.SCHED_IDLE] * 3


def test_a_sandbox_that_forbids_it_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", forbidden)
    assert policies_after(give_way) == [os.SCHED_OTHER]


@pytest.mark.usefixtures("giving_way")
async def test_a_model_runs_like_any_other_thread(accumulator: Path) -> None:
    graph = load_graph(accumulator)
    found = []
    graph.before = lambda run: found.append(os.sched_getscheduler(0))
    async with running(graph) as engine:
        await total(add(engine, taken(engine), 1.0)[1])
    assert found == [os.SCHED_OTHER]
    assert os.sched_getscheduler(0) == os.SCHED_BATCH
