"""Whose turn it is on a core that the event loop and the models share: the models'. Linux only; else nothing is done.

A thread that wakes up interrupts one that computes, to be served soon. The event loop wakes up for every request, and
a request that comes while a model runs has to wait for the end of the run in any case. Under `SCHED_BATCH` it goes on
where a core is free, and else at the end of the time slice of who is running, a few milliseconds at most; so it reads
many requests at once, and the model keeps its caches.
"""

from __future__ import annotations

import sys

if sys.platform == "linux":
    import os

    def give_way() -> None:
        """Do not interrupt others: the calling thread, and those that it starts from now on."""
        _change(os.SCHED_OTHER, os.SCHED_BATCH)

    def take_over() -> None:
        """Be like any other thread again, started by whichever."""
        _change(os.SCHED_BATCH, os.SCHED_OTHER)

    def _change(before: int, after: int) -> None:
        # Any other policy is the operator's choice. A sandbox may forbid it all.
        try:
            if os.sched_getscheduler(0) == before:
                os.sched_setscheduler(0, after, os.sched_param(0))
        except OSError:
            return

else:

    def give_way() -> None:
        """There is no such thing here."""

    def take_over() -> None:
        """There is no such thing here."""
