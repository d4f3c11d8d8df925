"""The measurement of states on the device runs to its end where there is no GPU, and finds what must hold anywhere."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from benchmarks import gpu, models
from benchmarks.bench import Bench

SIZES = gpu.Sizes(
    batches=(1, 4),
    capacities=(16, 64),
    sessions=(2,),
    steps=6,
    rounds=1,
    seconds=0.02,
    state_bytes=2**24,
)


@pytest.mark.timeout(300)
def test_it_measures_everything_and_writes_it_down(bench: Bench, tmp_path: Path) -> None:
    result = gpu.measure(bench, "cpu", SIZES, models.NAMES)
    gpu.save(result, tmp_path)
    assert msgspec.json.decode((tmp_path / "gpu-cpu.json").read_bytes())["device"] == "cpu"
    table = (tmp_path / "gpu-cpu.md").read_text()
    for name, found in result["measured"].items():
        assert f"## {name}" in table
        assert all(row["golden"] for row in found["parity"])
        assert found["parity"][0]["outputs"] == found["parity"][0]["states"] == 0
        assert max(row["outputs"] for row in found["parity"]) < 1e-4
        assert found["safety"]["proven_at_load"][:3] == [1, 2, 4]
        assert found["safety"]["differing_runs"] == 0
        assert found["safety"]["states_equal"]
        assert all(row["state_bytes_over_bus"] == 0 for row in found["residency"])
        assert all(row["steps_s"] > 0 for row in found["speed"])
        assert [row["slots"] for row in found["capacity"]] == [16, 64]
    assert all(row["steps_s"] > 0 for row in result["socket"])
