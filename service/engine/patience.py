"""How long a batch that could run now waits for more rows. Pure: time is passed in.

A model whose weights are read anew in every run takes little longer for many rows than for one. Sessions that send
the next step when the last is answered would all the same settle into two groups that take turns, each waiting while
the other runs. So what returns is learned: the share of the sessions answered last that come back, and how soon. With
`w` rows here and `n` expected within `d` seconds, a batch waits for them if one run for all is sooner over than two
that the wait is no part of: if d + T(w + n) < T(w) + T(n), where T(rows) is the time of a run as measured.
"""

from __future__ import annotations

from itertools import accumulate

_NEW = 0.2
"""Weight of a new measurement in a moving average."""

_GAIN = 1.05
"""How many times the time waiting takes running at once has to take, for waiting to pay."""

_LATE = 1.5
"""How much longer than usual those who return may take before they are given up."""

_TRY = 0.1
"""Share of a run that is waited at least, where waiting pays at all: to learn how soon they return."""

_FORGET = 0.01
"""How much of what was learned is forgotten each time it speaks against waiting."""

_LEAST_S = 50e-6
"""A wait below this is not worth the thread's sleep."""

_ONE = 0.5
"""Expected rows that count as one."""


class RunTimes:
    """Time of a run by its rows, as measured: a moving average at each power of two, straight lines between.

    Fewer rows never take longer than more. So one run that was held up, by whatever else the machine did, is not
    believed once more rows took less; else nobody would run so few again, and find out.
    """

    def __init__(self) -> None:
        self._found: dict[int, float] = {}
        # In rising order of rows; of each the least that it or a larger one took.
        self._times: list[tuple[int, float]] = []

    def add(self, rows: int, seconds: float) -> None:
        """Learn from a run."""
        size = _bucket(rows)
        known = self._found.get(size, seconds)
        self._found[size] = known + _NEW * (seconds - known)
        sizes = sorted(self._found, reverse=True)
        least = accumulate((self._found[size] for size in sizes), min)
        self._times = list(zip(sizes, least, strict=True))[::-1]

    def of(self, rows: float) -> float:
        """Expected seconds of a run; of more rows than were ever seen, those of the most."""
        below: tuple[int, float] | None = None
        for size, seconds in self._times:
            if size >= rows:
                if below is None:
                    return seconds
                share = (rows - below[0]) / (size - below[0])
                return below[1] + share * (seconds - below[1])
            below = size, seconds
        # A larger run was never seen. That its rows cost nothing is a hope, and trying is how to learn.
        return below[1] if below else 0.0


def _bucket(rows: int) -> int:
    """The nearest power of two at or above."""
    return 1 << (rows - 1).bit_length()


class Patience:
    """Decides how long to wait, for one engine.

    Args:
        max_rows: Most rows of a batch.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self.times = RunTimes()
        # Of those answered last: how many, when, whether the model had nothing else to do, how many came back, and
        # when the last of these did.
        self._told = 0
        self._told_at = 0.0
        self._awaited = False
        self._returned = 0
        self._returned_at = 0.0
        # What is usual. Hope comes first: all are expected back at once until waiting has shown otherwise.
        self._share = 1.0
        self._within_s = 0.0

    def told(self, rows: int, now: float, *, awaited: bool) -> None:
        """Rows are answered.

        Args:
            rows: How many.
            now: Monotonic time.
            awaited: Whether nothing runs meanwhile. How soon they return beside a run says little: on a machine that
                is full both take their time from each other.
        """
        if self._told:
            share = min(1.0, self._returned / self._told)
            self._share += _NEW * (share - self._share)
        self._told, self._told_at, self._awaited = rows, now, awaited
        self._returned = 0

    def returned(self, at: float, rows: int = 1) -> None:
        """Sessions that were answered last came back."""
        self._returned += rows
        self._returned_at = at

    @property
    def expected(self) -> int:
        """How many of those answered last are still due back, at least 1."""
        return max(1, round(self._share * self._told - self._returned))

    def ran(self, rows: int, seconds: float) -> None:
        """A batch ran, of one time step each."""
        self.times.add(rows, seconds)

    def begin(self, now: float) -> None:
        """The wait, if there was one, is over: a batch begins."""
        if self._awaited and self._told:
            # Of those who did not return in that time it is only known that they take longer.
            all_back = self._share * self._told - self._returned < _ONE
            taken = (self._returned_at if all_back else now) - self._told_at
            self._within_s += _NEW * (max(0.0, taken) - self._within_s)
        self._awaited = False

    def wait_s(self, waiting: int, now: float) -> float:
        """Seconds to wait for those still expected; 0 to run now.

        Args:
            waiting: Rows that could run now, at least 1.
            now: Monotonic time.
        """
        missing = self._share * self._told - self._returned
        if missing < _ONE or not self._awaited:
            return 0.0
        patience_s = max(_LATE * self._within_s, _TRY * self.times.of(waiting))
        left_s = self._told_at + patience_s - now
        return left_s if left_s >= _LEAST_S and self._pays(waiting, missing) else 0.0

    def answer_first(self, waiting: int, ended: int) -> bool:
        """Whether rows that ended are to be answered, and awaited, before those that wait run.

        Args:
            waiting: Rows that could run now, at least 1.
            ended: Rows that ended and are not answered yet.
        """
        pays = self._pays(waiting, self._share * ended)
        if not pays:
            # What was learned may have become wrong; so it is tried again, now and then.
            self._within_s *= 1 - _FORGET
            self._share += _FORGET * (1 - self._share)
        return pays

    def _pays(self, waiting: int, more: float) -> bool:
        more = min(more, self._max_rows - waiting)
        if more < _ONE:
            return False
        apart_s = self.times.of(waiting) + self.times.of(more)
        return apart_s > _GAIN * (self._within_s + self.times.of(waiting + more))
