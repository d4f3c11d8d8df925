"""`seqtrain fit|export|evaluate CONFIG`: train, write the model, measure what was written."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from service.contract import CONFIG_FILE, MODEL_FILE, ContractError, decode_config, digest
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
    )
    fabric = fabric_for(run, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    fabric.launch()
    directory = _directory(run, options.runs)
    if fabric.is_global_zero:
        directory.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(directory / checkpoint.VOCABULARY))
    loss = Trainer(run, text, directory, fabric).fit()
    if fabric.is_global_zero:
        _say(f"best validation loss {loss:.4f} nats per token, weights in {directory}")


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
    for metric in decode_config((target / CONFIG_FILE).read_bytes()).provenance.metrics:
        _say(f"{metric.name} on {metric.split}: {metric.value:.4g}, floor {package.floor(metric)}")
    _say(f"wrote {target}")


def evaluate(run: Run, options: argparse.Namespace) -> None:
    """Measure the exported file again and print the floor beside the figure."""
    if not isinstance(run, NextWordRun):
        raise ConfigError(f"{run.name} is exact and measured when it is exported")
    directory = _directory(run, options.exported)
    try:
        config = decode_config((directory / CONFIG_FILE).read_bytes())
        model = (directory / MODEL_FILE).read_bytes()
        tokenizer = Tokenizer.from_file(str(directory / next_word.TOKENIZER_FILE))
    except OSError as error:
        raise ContractError(f"{error}; run `seqtrain export` first") from None
    if digest(model) != config.files[MODEL_FILE]:
        raise ContractError(f"SHA-256 of {directory / MODEL_FILE} is not the one in {CONFIG_FILE}")
    corpus = corpora.load(run.data)
    valid = vocabulary.encode(tokenizer, corpus.valid).numpy()
    metric = next_word.measure(LoadedGraph(model, config), valid, corpus)
    _say(f"{metric.name} on {metric.split}: {metric.value:.2f}, floor {package.floor(metric)}")


def _directory(run: Run, root: Path) -> Path:
    return root / run.name / str(run.version)


def _say(message: str) -> None:
    print(message)  # noqa: T201
