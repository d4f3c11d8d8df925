"""`seqtrain fit|export|evaluate CONFIG`: train, write the model, measure what was written."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from service.contract import MODEL_FILE, ContractError
from training import checkpoint, next_word, vocabulary, weekend_planner
from training.config import ConfigError, NextWordRun, Run, load
from training.data import corpora
from training.data.download import DataError
from training.export import package
from training.export.parity import ParityError
from training.export.runtime import LoadedGraph
from training.trainer import ResumeError, Text, Trainer, fabric_for

_ERRORS = (ConfigError, ContractError, DataError, ParityError, ResumeError, next_word.ExportError)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 1 for an error that the message explains."""
    options = _parser().parse_args(arguments)
    try:
        options.command(load(options.config), options)
    except _ERRORS as error:
        print(f"seqtrain: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="seqtrain", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for command in (fit, export, evaluate):
        sub = commands.add_parser(command.__name__, help=command.__doc__)
        sub.add_argument("config", type=Path, help="TOML file, see training/configs/")
        sub.add_argument("--runs", type=Path, default=Path("runs"), help="where runs live")
        sub.add_argument("--exported", type=Path, default=Path("exported"), help="where models go")
        sub.set_defaults(command=command)
    return parser


def fit(run: Run, options: argparse.Namespace) -> None:
    """Train, or go on training, and keep the best weights under --runs."""
    if not isinstance(run, NextWordRun):
        raise ConfigError(f"{run.name} has nothing to train; use `seqtrain export`")
    corpus = corpora.load(run.data)
    tokenizer = vocabulary.build(corpus.train)
    text = Text(
        train=vocabulary.encode(tokenizer, corpus.train),
        valid=vocabulary.encode(tokenizer, corpus.valid),
        vocab_size=tokenizer.get_vocab_size(),
        dataset=corpus.dataset,
        floor=f"{corpus.floor.perplexity} ({corpus.floor.name})" if corpus.floor else "unknown",
    )
    fabric = fabric_for(run, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    fabric.launch()
    directory = _directory(run, options.runs)
    if fabric.is_global_zero:
        directory.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(directory / checkpoint.VOCABULARY))
    loss = Trainer(run, text, directory, fabric).fit()
    if fabric.is_global_zero:
        _say(
            f"best valid perplexity {math.exp(loss):.2f}, floor {text.floor}; weights in {directory}"
        )


def export(run: Run, options: argparse.Namespace) -> None:
    """Write the model to --exported once it equals the original, with its quality."""
    command = f"seqtrain export {options.config}"
    if isinstance(run, NextWordRun):
        command = f"seqtrain fit {options.config} && {command}"
        corpus = corpora.load(run.data)
        bundle = next_word.bundle(run, command, _directory(run, options.runs), corpus)
    else:
        bundle = weekend_planner.bundle(run, command)
    target = package.write(bundle, options.exported)
    for metric in package.read(target)[0].provenance.metrics:
        _say(package.sentence(metric))
    _say(f"wrote {target}")


def evaluate(run: Run, options: argparse.Namespace) -> None:
    """Measure the exported file again and print the floor beside each figure."""
    directory = _directory(run, options.exported)
    config, files = package.read(directory)
    graph = LoadedGraph(files[MODEL_FILE], config)
    if isinstance(run, NextWordRun):
        tokenizer = Tokenizer.from_str(files[next_word.TOKENIZER_FILE].decode())
        corpus = corpora.load(run.data)
        valid = vocabulary.encode(tokenizer, corpus.valid).numpy()
        metrics = next_word.measure(graph, valid, corpus)
    else:
        metrics = weekend_planner.measure(graph)
    for metric in metrics:
        _say(package.sentence(metric))


def _directory(run: Run, root: Path) -> Path:
    return root / run.name / str(run.version)


def _say(message: str) -> None:
    print(message)  # noqa: T201
