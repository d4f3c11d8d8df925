"""A trained sentiment model as an export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from service.contract import Metric, ModelConfig, Sentiment
from service.contract import Tensor as TensorSpec
from training.export.bundle import Bundle, Case, Original
from training.export.runtime import Array, Arrays, LoadedGraph
from training.export.weights import Trained, as_stored, load_best, model_config, read_file
from training.models.encoder import named
from training.sentiment import quality, vocabulary
from training.sentiment.config import SentimentRun
from training.sentiment.data import Data
from training.sentiment.graph import step_graph
from training.sentiment.learner import TOKENIZER_FILE, shape, thresholds_of
from training.sentiment.model import SentimentModel

# Texts of the validation part that are golden, shortened to so many words.
_GOLDEN = ((0, 1), (1, 7), (2, 12), (3, 9))


def bundle(run: SentimentRun, command: str, directory: Path, data: Data) -> Bundle:
    """The best weights of a run as an export.

    Args:
        run: Its configuration.
        command: What makes it again.
        directory: Where the run lives.
        data: Its texts, for golden inputs, thresholds and quality.

    Raises:
        ExportError: There are no weights, or they are of another model.
    """
    trained = load_best(directory, shape(run))
    content = read_file(directory, TOKENIZER_FILE)
    ids = Tokenizer.from_str(content.decode()).get_vocab()
    model = SentimentModel(
        run.model, run.encoder, len(ids), len(data.labels), exclusive=data.exclusive
    )
    model.load_state_dict(as_stored(trained.weights, run.export, ("embedding.weight",)))
    model.eval()
    valid = vocabulary.encode(ids, next(iter(data.valid.values())).words)
    text = np.concatenate(valid)
    held = vocabulary.encode(ids, data.held.words)
    thresholds = thresholds_of(model, held, data)
    spec = Sentiment(
        tokenizer=TOKENIZER_FILE,
        vocab_size=len(ids),
        unknown_token=vocabulary.UNKNOWN,
        labels=data.labels,
        exclusive=data.exclusive,
        thresholds=() if thresholds is None else tuple(thresholds.round(4).tolist()),
    )
    return Bundle(
        config=_config(run, command, model, trained, spec),
        model=step_graph(model, run.export.weights, run.export.tables).SerializeToString(),
        original=original(model),
        sample=lambda length, seed: {"tokens": _excerpt(text, seed * 997, length)},
        cases=tuple(_case(valid, number, length) for number, length in _GOLDEN),
        golden_outputs=("scores",),
        files={TOKENIZER_FILE: content},
        measure=lambda graph: measure(graph, data, content),
        card=_card(run, model, trained, spec),
    )


def measure(graph: LoadedGraph, data: Data, tokenizer: bytes) -> tuple[Metric, ...]:
    """Quality of an exported model on every validation part, with the thresholds of its config."""
    ids = Tokenizer.from_str(tokenizer.decode()).get_vocab()
    task = graph.config.task
    assert isinstance(task, Sentiment)
    thresholds = np.array(task.thresholds) if task.thresholds else None
    found: list[Metric] = []
    for name, texts in data.valid.items():
        inputs = [{"tokens": tokens} for tokens in vocabulary.encode(ids, texts.words)]
        scores = np.stack([each[-1] for each in graph.whole(inputs, "scores")])
        limits = None if name in data.single else thresholds
        found += quality.metrics(name, data.labels, scores, texts.targets > 0, limits)
    return tuple(found)


def original(model: SentimentModel) -> Original:
    """The torch model, one text at a time."""

    def answer(inputs: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        tokens = torch.from_numpy(inputs["tokens"])[None]
        before = tuple(torch.from_numpy(state[spec.name])[None] for spec in model.states)
        with torch.inference_mode():
            scores, after = model.scores(tokens, torch.tensor([tokens.shape[1]]), before)
        last = {name: part[0].numpy() for name, part in named(model.states, after).items()}
        return {"scores": scores[0].numpy()}, last

    return answer


def _case(texts: Sequence[vocabulary.Ids], number: int, length: int) -> Case:
    """A golden text, and the same in three chunks, or in one if it is of one word."""
    tokens = np.resize(texts[number % len(texts)], length)
    split = (length // 2, 1, length - length // 2 - 1) if length > 2 else (length,)
    return Case({"tokens": tokens}, split)


def _excerpt(ids: Array, start: int, length: int) -> Array:
    place = start % max(1, len(ids) - length)
    return np.resize(ids[place : place + length], length)


def _config(
    run: SentimentRun, command: str, model: SentimentModel, trained: Trained, spec: Sentiment
) -> ModelConfig:
    return model_config(
        run,
        trained,
        command,
        task=spec,
        inputs=(TensorSpec(name="tokens", dtype="int64"),),
        outputs=(TensorSpec(name="scores", dtype="float32", shape=(len(spec.labels),)),),
        states=model.states,
        streaming=not model.whole,
    )


def _card(run: SentimentRun, model: SentimentModel, trained: Trained, spec: Sentiment) -> str:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    when = "of a whole text" if model.whole else "of a text after each of its words"
    if spec.exclusive:
        scores = "One label holds; the scores of a text add up to one."
    else:
        said = ", ".join(
            f"{label} {threshold:.3f}"
            for label, threshold in zip(spec.labels, spec.thresholds, strict=True)
        )
        scores = (
            "Each label holds or not for itself, and a text may have several or none: the score is the probability\n"
            "that a reader would give the label. To say yes or no to each, compare with the threshold that gives the\n"
            f"best F1 on texts kept apart for it: {said}."
        )
    tables = f", the embedding in {run.export.tables}" if run.export.tables else ""
    return f"""Gives the probability of {", ".join(spec.labels)} {when}.

{scores}

## Model

- {run.encoder.in_words}, embedding of {run.model.embedding_dim}, {run.model.pooling} pooling over the words
- vocabulary {model.vocab_size:,}; an unknown word is read as its longest known beginning that is at least half of it,
  or else as `{spec.unknown_token}`
- {parameters:,} parameters, stored in {run.export.weights}{tables}
- weights of step {trained.step:,}, the best on the validation texts

## Limits

Short English texts in the manner of the training texts. It counts words and some of their order: a strong word
may outweigh the `not` before it, and irony, long arguments and what the words refer to are beyond it. Labels are what
a few readers of single sentences said, and carry their habits and those of the sites the texts come from. It is not
for judging people.
"""
