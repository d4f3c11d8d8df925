"""Real processes: one killed and resumed, two that share a batch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training import checkpoint
from training.cli import main

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "PYTHONUNBUFFERED": "1",
}


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate()
    assert process.returncode == 0, output


def curve(directory: Path, scalar: str = "train/loss") -> dict[int, float]:
    """A scalar of every logged step; a step that was done again counts as it came out the last time."""
    losses: dict[int, float] = {}
    for file in sorted(directory.glob("events.*"), key=lambda path: path.stat().st_mtime_ns):
        events = EventAccumulator(str(file))
        events.Reload()
        losses |= {event.step: event.value for event in events.Scalars(scalar)}
    return losses


def weights(directory: Path) -> dict[str, Any]:
    return dict(checkpoint.load(directory / checkpoint.LAST)["weights"])


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tiny_toml: Path, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = start("-m", "training", "fit", tiny_toml, "--runs", broken)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 14: checkpoint written"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    resumed_at = checkpoint.load(broken / "tiny" / "1" / checkpoint.LAST)["step"]
    before = curve(broken / "tiny" / "1")
    for directory in (broken, whole):
        assert main(["fit", str(tiny_toml), "--runs", str(directory)]) == 0
    expected, found = curve(whole / "tiny" / "1"), curve(broken / "tiny" / "1")
    assert resumed_at >= 14
    assert max(found) == max(expected) > resumed_at
    assert set(range(resumed_at + 1, max(expected) + 1)) <= set(found)
    assert all(found[step] == expected[step] for step in found)
    assert all(before[step] == expected[step] for step in before)
    final = weights(whole / "tiny" / "1")
    for name, value in weights(broken / "tiny" / "1").items():
        assert torch.equal(value, final[name]), name


def test_two_processes_learn_the_same_as_one(tiny_toml: Path, tmp_path: Path) -> None:
    # Dropout is off because each process draws its own masks.
    tiny_toml.write_text(tiny_toml.read_text().replace("dropout = 0.1", "dropout = 0.0"))
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", 2)
    rendezvous = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0")
    fit = ("-m", "training", "fit", tiny_toml, "--runs")
    finish(start(*torchrun, *rendezvous, *fit, tmp_path / "two"))
    assert main(["fit", str(tiny_toml), "--runs", str(tmp_path / "one")]) == 0
    one, two = tmp_path / "one" / "tiny" / "1", tmp_path / "two" / "tiny" / "1"
    for scalar in ("train/loss", "valid/perplexity"):
        expected, found = curve(one, scalar), curve(two, scalar)
        assert found.keys() == expected.keys()
        torch.testing.assert_close(
            torch.tensor(list(found.values())),
            torch.tensor(list(expected.values())),
            atol=1e-4,
            rtol=1e-4,
        )
    assert checkpoint.load(two / checkpoint.LAST)["state"][0].shape[0] == 8
