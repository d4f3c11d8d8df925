"""Steps that are read in one turn of the event loop: in groups where they are alike, in order, and right anyhow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from service.api.schema import AnyStepsAnswer, StepOf
from service.api.stepping import Asked, prepare
from service.api.together import Turn
from service.errors import Invalid, Overloaded, SessionBusy
from service.sessions.session import Session
from service.sessions.step import Applied, Together
from tests.integration.inside import Running

MODEL = "accumulator"


class Askers:
    """Those who ask, by number, and what they were told: totals, or the error."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self.told: dict[int, Any] = {}
        self.seqs: dict[int, int] = {}
        self.together: list[int] = []
        self.gone: set[int] = set()

    def waits(self, caller: int) -> bool:
        return caller not in self.gone

    def begun(self, callers: Sequence[int], together: Together, first: int) -> None:
        self.together += callers

    def answered(self, callers: Sequence[int], answers: Sequence[AnyStepsAnswer]) -> None:
        for caller, answer in zip(callers, answers, strict=True):
            assert caller not in self.told
            results: Any = answer.results
            self.told[caller] = [each["total"] for each in results]
            self.seqs[caller] = answer.seq

    def ended(self, caller: int, asked: Asked, outcome: Applied | Exception) -> None:
        assert caller not in self.told
        if isinstance(outcome, Exception):
            self.told[caller] = outcome
        else:
            self.told[caller] = outcome.outputs["total"].tolist()
            self.seqs[caller] = outcome.seq

    def begin(self, caller: int, session: Session, step: StepOf) -> None:
        context = self._running.context
        try:
            ready = prepare(context, session, step.inputs, step.parameters, None)
            on_end = partial(self.ended, caller, ready.asked)
            context.sessions.begin(session, ready.chunk, ready.wanted, step.seq, on_end)
        except Exception as error:
            self.told[caller] = error


async def stepped(running: Running, *steps: dict[str, Any], callers: int = 1) -> list[Askers]:
    """Ask for steps in one turn, in this order, by turns of so many who ask; waits until all are told."""
    turn = Turn(running.context)
    askers = [Askers(running) for _ in range(callers)]
    for number, each in enumerate(steps):
        step = StepOf(**each)
        session = await running.context.sessions.find(step.session, "default")
        turn.add(askers[number % callers], number, session, step, None)
    await running.until(lambda: sum(len(each.told) for each in askers) == len(steps))
    return askers


async def opened(running: Running, names: str) -> None:
    """Sessions with their states at hand, one input committed."""
    for name in names:
        await running.http.put(f"/v1/sessions/{name}", json={"model": MODEL})
        await running.http.post(f"/v1/sessions/{name}/steps", json={"inputs": [1.0]})


async def test_steps_that_are_alike_go_together(running: Running) -> None:
    await opened(running, "abcd")
    (askers,) = await stepped(
        running, *({"session": name, "inputs": [i, 10.0]} for i, name in enumerate("abcd"))
    )
    assert askers.together == [0, 1, 2, 3]
    assert askers.told == {i: [1 + i, 11 + i] for i in range(4)}
    assert askers.seqs == dict.fromkeys(range(4), 3)


async def test_whoever_asks_is_told_of_its_own(running: Running) -> None:
    await opened(running, "abcdef")
    steps = [{"session": name, "inputs": [float(i)]} for i, name in enumerate("abcdef")]
    askers = await stepped(running, *steps, callers=2)
    assert [each.told for each in askers] == [
        {i: [1.0 + i] for i in (0, 2, 4)},
        {i: [1.0 + i] for i in (1, 3, 5)},
    ]


async def test_of_two_steps_of_a_session_the_first_is_applied(running: Running) -> None:
    await opened(running, "abc")
    for others in ((), ("b", "c")):
        steps = [{"session": "a", "inputs": [10.0]}, {"session": "a", "inputs": [100.0]}]
        steps += [{"session": name, "inputs": [1.0]} for name in others]
        (askers,) = await stepped(running, *steps)
        assert isinstance(askers.told[1], SessionBusy)
        assert askers.told[0] == [11.0 if not others else 21.0]


async def test_a_retry_comes_before_the_step_behind_it(running: Running) -> None:
    await opened(running, "abcd")
    (askers,) = await stepped(
        running,
        {"session": "a", "inputs": [1.0], "seq": 1},
        {"session": "a", "inputs": [2.0], "seq": 2},
        *({"session": name, "inputs": [2.0], "seq": 2} for name in "bcd"),
    )
    assert askers.told == {0: [1.0], 1: [3.0], 2: [3.0], 3: [3.0], 4: [3.0]}
    assert askers.together == [2, 3, 4]


@pytest.mark.parametrize("bad", range(8))
async def test_one_that_is_wrong_is_told_so_and_the_others_are_applied(
    running: Running, bad: int
) -> None:
    names = "abcdefgh"
    await opened(running, names)
    steps: list[dict[str, Any]] = [{"session": name, "inputs": [2.0]} for name in names]
    steps[bad]["inputs"] = ["two"]
    (askers,) = await stepped(running, *steps)
    assert isinstance(askers.told.pop(bad), Invalid)
    assert askers.told == {i: [3.0] for i in range(8) if i != bad}
    assert len(askers.together) == 4


async def test_as_many_go_together_as_there_is_room_for(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await opened(running, "abcdef")
    engine = running.engine(MODEL)
    monkeypatch.setattr(engine, "_room", 4)
    steps = [{"session": name, "inputs": [2.0]} for name in "abcdef"]
    (askers,) = await stepped(running, *steps)
    assert askers.together == [0, 1, 2, 3]
    assert [isinstance(askers.told[i], Overloaded) for i in range(6)] == [False] * 4 + [True] * 2
    again = await running.context.sessions.find("f", "default")
    assert again.idle


async def test_who_has_left_is_not_begun(running: Running) -> None:
    await opened(running, "abcd")
    turn, askers = Turn(running.context), Askers(running)
    for number, name in enumerate("abcd"):
        session = await running.context.sessions.find(name, "default")
        turn.add(askers, number, session, StepOf(session=name, inputs=[2.0]), None)
    askers.gone.add(1)
    await running.until(lambda: len(askers.told) == 3)
    assert askers.together == [0, 2, 3]
    assert (await running.context.sessions.find("b", "default")).seq == 1
