"""constraints.txt names every package an installation brings, at the version that is installed and tested here."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent


def pinned() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pins}


def installed(extras: set[str]) -> dict[str, Version]:
    """What `pip install '.[extras]'` brings, directly or not."""
    found: dict[str, Version] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [("seqserve", frozenset(extras))]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        package = distribution(name)
        found[canonicalize_name(name)] = Version(Version(package.version).public)
        for line in package.requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in {"", *wanted}):
                waiting.append((requirement.name, frozenset(requirement.extras)))
    del found["seqserve"]
    return found


def runtime() -> str:
    """The extra this environment was installed with; they exclude each other."""
    try:
        distribution("onnxruntime-gpu")
    except PackageNotFoundError:
        return "cpu"
    return "gpu"


def test_every_installed_package_is_pinned_at_its_version() -> None:
    found, pins = installed({runtime(), "training", "dev"}), pinned()
    assert found == {name: pins.get(name) for name in found}


def test_serving_brings_neither_torch_nor_anything_of_training() -> None:
    forbidden = {"torch", "lightning", "matplotlib", "tensorboard"}
    if runtime() == "cpu":
        forbidden.add("onnx")
    assert forbidden.isdisjoint(installed({runtime()}))
