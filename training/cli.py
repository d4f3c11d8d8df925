"""`seqtrain fit|evaluate|export CONFIG`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from training import checkpoint, vocabulary
from training.config import ConfigError, NextWordRun, load
from training.data import corpora
from training.data.download import DataError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 1 for an error that the message explains."""
    options = _parser().parse_args(arguments)
    try:
        run = load(options.config)
        options.command(run, options)
    except (ConfigError, DataError) as error:
        print(f"seqtrain: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="seqtrain", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, command in (("fit", fit),):
        sub = commands.add_parser(name, help=command.__doc__)
        sub.add_argument("config", type=Path)
        sub.add_argument("--runs", type=Path, default=Path("runs"), help="where runs live")
        sub.set_defaults(command=command)
    return parser


def fit(run: NextWordRun, options: argparse.Namespace) -> None:
    """Train, or go on training, and keep the best weights under --runs."""
    from training.trainer import Text, Trainer, fabric_for

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
    directory = options.runs / run.name / str(run.version)
    if fabric.is_global_zero:
        directory.mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(directory / checkpoint.VOCABULARY))
    trainer = Trainer(run, text, directory, fabric)
    print(f"valid loss {trainer.fit():.4f} nats per token")
