"""The command line.

seqtrain fit|export|evaluate|floors CONFIG   train, write the model, measure what was written, and what to beat
seqtrain experiment NAME                     measure what the course claims
seqtrain results                             put all that was measured on one page
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from service.contract import MODEL_FILE, ContractError
from training import curves
from training import floors as kept_floors
from training import results as page
from training.config import ConfigError, TrainedRun
from training.data.download import DataError
from training.experiments import experiment as experiments
from training.experiments.catalogue import EXPERIMENTS
from training.experiments.experiment import ResultError
from training.export import package
from training.export.parity import ParityError
from training.export.runtime import LoadedGraph
from training.export.variants import VariantError
from training.export.weights import ExportError
from training.runs import Run, load
from training.tasks import task_of
from training.trainer import DivergedError, ResumeError, Share, Trainer, fabric_for, share_of

_ERRORS = (
    *(ConfigError, ContractError, DataError),
    *(DivergedError, ExportError, ParityError, ResultError, ResumeError, VariantError),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 1 for an error that the message explains."""
    options = _parser().parse_args(arguments)
    try:
        options.start(options)
    except _ERRORS as error:
        print(f"seqtrain: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="seqtrain", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for command in (fit, export, evaluate, floors):
        sub = commands.add_parser(command.__name__, help=command.__doc__)
        sub.add_argument("config", type=Path, help="TOML file, see training/configs/")
        sub.add_argument("--runs", type=Path, default=Path("runs"), help="where runs live")
        sub.add_argument("--exported", type=Path, default=Path("exported"), help="where models go")
        sub.set_defaults(start=functools.partial(_with_run, command))
    commands.choices["floors"].add_argument(
        "--to", type=Path, default=kept_floors.FILE, help="file that keeps the floors"
    )
    _add_results(commands)
    return parser


def _add_results(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    measure = commands.add_parser("experiment", help=experiment.__doc__)
    measure.add_argument("name", choices=tuple(EXPERIMENTS))
    measure.set_defaults(start=experiment)
    write = commands.add_parser("results", help=results.__doc__)
    write.add_argument("--exported", type=Path, default=Path("exported"), help="measured models")
    write.add_argument(
        "--unshipped", type=Path, help="where models are whose figures are to be shown, and no more"
    )
    write.set_defaults(start=results)
    for sub in (measure, write):
        sub.add_argument("--docs", type=Path, default=Path("docs"), help="where results go")


def _with_run(
    command: Callable[[Run, argparse.Namespace], None], options: argparse.Namespace
) -> None:
    command(load(options.config), options)


def fit(run: Run, options: argparse.Namespace) -> None:
    """Train, or go on training, and keep the best weights under --runs."""
    task = task_of(run)
    if not isinstance(run, TrainedRun):
        task.learner(run, Share())
        return
    fabric = fabric_for(run.training, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    fabric.launch()
    learner = task.learner(run, share_of(fabric))
    directory = _directory(run, options.runs)
    if fabric.is_global_zero:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in learner.files.items():
            (directory / name).write_bytes(content)
    best = Trainer(run, learner, directory, fabric).fit()
    if fabric.is_global_zero:
        _say(f"best {learner.criterion} {best:.5g}, floor {learner.floor}; weights in {directory}")


def export(run: Run, options: argparse.Namespace) -> None:
    """Write the model to --exported once it equals the original, with its quality."""
    command = f"seqtrain export {options.config}"
    if isinstance(run, TrainedRun):
        command = f"seqtrain fit {options.config} && {command}"
    bundle = task_of(run).bundle(run, command, _directory(run, options.runs))
    curve = curves.draw(_directory(run, options.runs))
    variants = run.export.variants if isinstance(run, TrainedRun) else ()
    bundle = msgspec.structs.replace(bundle, curve=curve, variants=variants)
    target = package.write(bundle, options.exported)
    for metric in package.read(target)[0].provenance.metrics:
        _say(package.sentence(metric))
    _say(f"wrote {target}")


def evaluate(run: Run, options: argparse.Namespace) -> None:
    """Measure the exported file again and print the floor beside each figure."""
    config, files = package.read(_directory(run, options.exported))
    graph = LoadedGraph(files[MODEL_FILE], config)
    measured = task_of(run).measure(run, graph, files)
    for metric in kept_floors.beside(measured, config.provenance.datasets):
        _say(package.sentence(metric))


def floors(run: Run, options: argparse.Namespace) -> None:
    """Compute what the model has to beat and keep it for the other commands."""
    found = task_of(run).floors(run)
    for metric in found.metrics:
        _say(f"{metric.name} on {metric.split}: {kept_floors.in_words(metric)}")
    kept_floors.save(found, options.to)
    _say(f"wrote {options.to}")


def experiment(options: argparse.Namespace) -> None:
    """Measure an experiment; its numbers and its picture go to results/ of the documentation."""
    measured = EXPERIMENTS[options.name]
    path = experiments.run(measured, options.docs / page.RESULTS)
    _, settings, findings = experiments.read(measured, path.parent)
    _say(measured.describe(settings, findings))
    _say(f"wrote {path}")


def results(options: argparse.Namespace) -> None:
    """Write results.md of the documentation from the exported models and the experiments, and draw their pictures."""
    if options.unshipped is not None:
        page.keep(options.unshipped, options.docs)
    for measured in EXPERIMENTS.values():
        experiments.picture(measured, options.docs / page.RESULTS)
    _say(f"wrote {page.write(options.exported, options.docs)}")


def _directory(run: Run, root: Path) -> Path:
    return root / run.name / str(run.version)


def _say(message: str) -> None:
    print(message)  # noqa: T201
