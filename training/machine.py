"""What a measurement of time was taken on."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path


def cpu_model() -> str:
    """Name of the processor, as the system gives it."""
    return next(_lines("model name"), platform.processor())


def int8_instructions() -> str:
    """What the processor multiplies bytes with, the fastest of `AMX`, `VNNI` and `no VNNI`."""
    flags = next(_lines("flags"), "").split()
    if "amx_int8" in flags:
        return "AMX"
    return "VNNI" if any("vnni" in flag for flag in flags) else "no VNNI"


def _lines(key: str) -> Iterator[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == key:
            yield value.strip()
