"""Files of a run: written whole or not at all, so that a kill at any moment leaves the last good one."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_SOURCE = ("training", "service")

LAST = "last.pt"
BEST = "best.pt"


def save(values: dict[str, Any], path: Path) -> None:
    """Replace a checkpoint in one step; the old one stays readable until then.

    What a kill leaves half written, the next call writes over.
    """
    new = path.with_suffix(".tmp")
    with new.open("wb") as file:
        torch.save(values, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; it holds tensors and plain values only, never code.

    Raises:
        OSError: There is none.
    """
    values: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return values


def library_versions() -> dict[str, str]:
    """What the numbers of a run depend on."""
    return {"python": platform.python_version()} | {
        name: version(name)
        for name in ("torch", "lightning", "onnx", "onnxruntime", "tokenizers", "numpy")
    }


def git_commit() -> str:
    """Commit of the source, marked if the tree differs from it; empty outside a repository."""
    # What words are, and what a config.json is, the service defines.
    directory = Path(__file__).parents[1]
    try:
        commit = _git(directory, "rev-parse", "HEAD")
        changed = _git(directory, "status", "--porcelain", "--untracked-files=no", "--", *_SOURCE)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+changes" if changed else "")


def _git(directory: Path, *arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments], cwd=directory, check=True, capture_output=True, text=True
    )
    return result.stdout.strip()
