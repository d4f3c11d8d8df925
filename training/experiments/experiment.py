"""What an experiment is: settings in, numbers out, and from the numbers alone a picture and a paragraph.

The numbers are kept as JSON beside the picture, with the settings and the machine they were measured on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import torch
from matplotlib.figure import Figure

from service.contract import digest
from training import pictures
from training.checkpoint import git_commit, library_versions
from training.config import Record
from training.machine import cpu_model

Settings = TypeVar("Settings", bound=Record)
Findings = TypeVar("Findings", bound=Record)


class ResultError(RuntimeError):
    """A result that is not there or that this version cannot read; the message says which and what to do."""


class Experiment(msgspec.Struct, Generic[Settings, Findings], frozen=True, kw_only=True):
    """One experiment.

    Attributes:
        name: Its name on the command line and of its files.
        title: Heading on the page of results.
        settings: Everything that it can be run with.
        findings: Record of its numbers.
        measure: Does the work; the same settings give the same numbers, but for times.
        draw: A picture of the numbers.
        describe: What the picture shows, in sentences that the numbers decide.
    """

    name: str
    title: str
    settings: Settings
    findings: type[Findings]
    measure: Callable[[Settings], Findings]
    draw: Callable[[Settings, Findings], Figure]
    describe: Callable[[Settings, Findings], str]


class Result(Record, frozen=True, kw_only=True):
    """An experiment's file.

    Attributes:
        name: Which experiment.
        settings: What it was run with.
        cpu: Model of the processor; one thread of it did the work.
        cpu_s: Processor time it took.
        git_commit: Source it was run from.
        versions: Of the libraries.
        findings: The numbers.
    """

    name: str
    settings: dict[str, Any]
    cpu: str
    cpu_s: float
    git_commit: str
    versions: dict[str, str]
    findings: dict[str, Any]


def run(experiment: Experiment[Any, Any], directory: Path) -> Path:
    """Measure an experiment and write its numbers and its picture.

    Returns:
        Path of the numbers.
    """
    torch.set_num_threads(1)
    started = time.process_time()
    findings = experiment.measure(experiment.settings)
    result = Result(
        name=experiment.name,
        settings=msgspec.to_builtins(experiment.settings),
        cpu=cpu_model(),
        cpu_s=round(time.process_time() - started, 1),
        git_commit=git_commit(),
        versions=library_versions(),
        findings=msgspec.to_builtins(findings),
    )
    directory.mkdir(parents=True, exist_ok=True)
    path = numbers_file(experiment, directory)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    picture(experiment, directory)
    return path


def picture(experiment: Experiment[Any, Any], directory: Path) -> Path:
    """Draw the numbers that are there; the file says which numbers it shows by their SHA-256."""
    _, settings, findings = read(experiment, directory)
    source = digest(numbers_file(experiment, directory).read_bytes())
    path = picture_file(experiment, directory)
    return pictures.save(experiment.draw(settings, findings), path, source)


def read(experiment: Experiment[Any, Any], directory: Path) -> tuple[Result, Any, Any]:
    """An experiment's file, its settings and its findings.

    Raises:
        ResultError: There is none, or it is of another version.
    """
    path = numbers_file(experiment, directory)
    again = f"run `seqtrain experiment {experiment.name}`"
    try:
        result = msgspec.json.decode(path.read_bytes(), type=Result)
        settings = msgspec.convert(result.settings, type(experiment.settings))
        findings = msgspec.convert(result.findings, experiment.findings, str_keys=True)
    except OSError as error:
        raise ResultError(f"{error}; {again}") from None
    except msgspec.MsgspecError as error:
        raise ResultError(f"{path}: {error}; {again}") from None
    return result, settings, findings


def numbers_file(experiment: Experiment[Any, Any], directory: Path) -> Path:
    """Where the numbers are kept."""
    return directory / f"{experiment.name}.json"


def picture_file(experiment: Experiment[Any, Any], directory: Path) -> Path:
    """Where the picture is kept."""
    return directory / f"{experiment.name}.png"
