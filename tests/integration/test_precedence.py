from __future__ import annotations

import os

from tests.integration.planner import Probe
from tests.integration.process import Service


def test_the_event_loop_gives_way_and_models_do_not(service: Service, probe: Probe) -> None:
    probe.step()
    loop = service.process.pid
    policies = {
        int(thread): os.sched_getscheduler(int(thread))
        for thread in os.listdir(f"/proc/{loop}/task")
    }
    assert policies.pop(loop) == os.SCHED_BATCH
    # One for each of its models.
    assert list(policies.values()).count(os.SCHED_OTHER) >= 4
