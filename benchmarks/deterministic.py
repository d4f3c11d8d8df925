"""`deterministic` mode: the same bits whoever shares the batch, and what that costs."""

from __future__ import annotations

import random
from collections import deque
from statistics import median
from typing import Any

import msgspec

from benchmarks import http, sessions
from benchmarks.bench import Bench
from benchmarks.models import GRU, LSTM
from benchmarks.raw import CLIENT_CORE, pinned
from benchmarks.server import Server
from benchmarks.sources import Player, players
from benchmarks.tape import TAPES, Model, WrongAnswer
from benchmarks.websocket import WebSocket

SESSIONS = 64
SETTING = {"SEQSERVE_DETERMINISTIC": "1"}
# Frames on their way, so that batches form of sessions of more than one frame.
_AHEAD = 2
# Steps that a session of each tape also takes all alone.
_ALONE = 100


class _Reply(msgspec.Struct):
    seq: int
    results: msgspec.Raw


class _Frame(msgspec.Struct):
    id: int
    replies: list[_Reply]


_decode = msgspec.msgpack.Decoder(_Frame).decode


def measure(bench: Bench) -> dict[str, Any]:
    """Speed in turns with the fast mode, then bits."""
    with bench.service() as fast, bench.service(SETTING) as same:
        speeds = []
        for name in (LSTM, GRU):
            model = bench.model(name)
            turns = [
                [http.steps(bench, each, model, SESSIONS) for each in (fast, same)]
                for _ in range(bench.rounds)
            ]
            speeds.append(
                {
                    "model": name,
                    "fast_steps_s": median(a["steps_s"] for a, _ in turns),
                    "steps_s": median(b["steps_s"] for _, b in turns),
                    "ratio": median(b["steps_s"] / a["steps_s"] for a, b in turns),
                    "cpu_ratio": median(a["server_cpu_us"] / b["server_cpu_us"] for a, b in turns),
                }
            )
        steps = round(bench.scaled(100_000, 1000))
        bits = [differing(same, bench.model(name), steps) for name in (LSTM, GRU)]
        # That the comparison can see anything at all.
        control = differing(fast, bench.model(LSTM), steps // 10)
    return {"speed": speeds, "bits": bits, "control": control}


def differing(server: Server, model: Model, steps: int) -> dict[str, Any]:
    """Answers that are not, bit for bit, those of another session with the same inputs and other batch mates."""
    choose = random.Random(1)
    known: dict[tuple[int, int], bytes] = {}
    compared = wrong = 0
    with (
        pinned(CLIENT_CORE),
        sessions.opened(server, model.name, SESSIONS + TAPES) as ids,
        WebSocket(server.port, sessions.STREAM) as socket,
    ):
        found = players(model, ids)
        groups: dict[int, list[Player]] = {}

        def send(number: int, group: list[Player]) -> None:
            groups[number] = group
            steps = [
                {"session": p.session, "inputs": [p.tape.inputs[p.at]], "seq": p.at + 1}
                for p in group
            ]
            socket.send(msgspec.msgpack.encode({"op": "step", "id": number, "steps": steps}))

        def receive() -> list[Player]:
            nonlocal compared, wrong
            answer = socket.receive()
            frame = _decode(answer)
            group = groups.pop(frame.id)
            for player, reply in zip(group, frame.replies, strict=True):
                if reply.seq != player.at + 1:
                    raise WrongAnswer(f"step {player.at + 1} was answered by {reply.seq}")
                key = (id(player.tape), player.at)
                bits = bytes(reply.results)
                compared += 1
                wrong += known.setdefault(key, bits) != bits
                player.at += 1
            return group

        # Each tape once, with nobody beside: what the others are held against first.
        for player in found[SESSIONS:]:
            for number in range(min(_ALONE, player.tape.length)):
                send(number, [player])
                receive()
        idle = deque(found[:SESSIONS])
        number = 0
        while compared < steps:
            while len(groups) < _AHEAD and idle:
                choose.shuffle(idle)
                count = choose.randint(1, len(idle))
                send(number := number + 1, [idle.popleft() for _ in range(count)])
            idle.extend(p for p in receive() if p.at < p.tape.length)
            if not idle and not groups:
                break
        while groups:
            receive()
    return {"model": model.name, "steps": compared, "differing": wrong}
