"""A trained language model as an export."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from service.contract import Metric, ModelConfig, NextWord
from service.contract import Tensor as TensorSpec
from training.export.bundle import Bundle, Case, Original
from training.export.runtime import Array, Arrays, LoadedGraph
from training.export.weights import Trained, as_stored, load_best, model_config, read_file
from training.models.encoder import named
from training.next_word import vocabulary
from training.next_word.config import NextWordRun
from training.next_word.corpora import END_OF_LINE, Corpus
from training.next_word.graph import step_graph
from training.next_word.learner import TOKENIZER_FILE, shape
from training.next_word.model import LanguageModel
from training.next_word.perplexity import metric, nats_per_token

# Start and length of the golden inputs in the validation text, and the chunks they are also fed in.
_GOLDEN = ((0, 1, (1,)), (1000, 7, (1, 2, 4)), (50_000, 12, (5, 1, 6)), (200_000, 9, (9,)))

_LIMITS = {
    "word": f"""\
English text in the manner of the training corpus: words between blanks, punctuation as words, numbers and
hyphens split with `@`; a word outside the vocabulary is `{vocabulary.UNKNOWN}`. It repeats what the corpus says, right
or wrong, and knows nothing else of the world. Text it writes is no source of facts.""",
    "character": """\
Text in the manner of the training corpus and in its characters; any other character is refused. It has learnt
which letters follow each other and where lines end, hardly any grammar and no meaning.""",
}


def bundle(run: NextWordRun, command: str, directory: Path, corpus: Corpus) -> Bundle:
    """The best weights of a run as an export.

    Args:
        run: Its configuration.
        command: What makes it again.
        directory: Where the run lives.
        corpus: Its text, for golden inputs and perplexity.

    Raises:
        ExportError: There are no weights, or they are of another model.
    """
    trained = load_best(directory, shape(run))
    content = read_file(directory, TOKENIZER_FILE)
    tokenizer = Tokenizer.from_str(content.decode())
    model = LanguageModel(run.model, run.encoder, tokenizer.get_vocab_size())
    model.load_state_dict(as_stored(trained.weights, run.export))
    model.eval()
    valid = vocabulary.encode(tokenizer, corpus.valid).numpy()
    return Bundle(
        config=_config(run, command, model, trained),
        model=step_graph(model, _top_k(run, model), run.export.weights).SerializeToString(),
        original=original(model, _top_k(run, model)),
        sample=lambda length, seed: {"tokens": _excerpt(valid, seed * 997, length)},
        cases=tuple(
            Case({"tokens": _excerpt(valid, start, length)}, split)
            for start, length, split in _GOLDEN
        ),
        golden_outputs=("top_scores", "logsumexp"),
        files={TOKENIZER_FILE: content},
        measure=lambda graph: measure(graph, valid, corpus),
        card=_card(run, model, trained),
    )


def measure(graph: LoadedGraph, valid: Array, corpus: Corpus) -> tuple[Metric, ...]:
    """How well it predicts the validation text."""
    return (metric(corpus, nats_per_token(graph, valid)),)


def original(model: LanguageModel, top_k: int) -> Original:
    """The torch model, one sequence at a time, with the outputs that can be compared number by number.

    `top_indices` is left out: words of equal score may change places.
    """
    states = model.encoder.states

    def answer(inputs: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        tokens = torch.from_numpy(inputs["tokens"])[None]
        before = tuple(torch.from_numpy(state[spec.name])[None] for spec in states)
        with torch.inference_mode():
            scores, after = model.scores(tokens, before)
        outputs = {
            "logits": scores[0].numpy(),
            "top_scores": scores[0].topk(top_k).values.numpy(),
            "logsumexp": scores[0].logsumexp(dim=-1).numpy(),
        }
        return outputs, {name: part[0].numpy() for name, part in named(states, after).items()}

    return answer


def _top_k(run: NextWordRun, model: LanguageModel) -> int:
    """K of the graph: few characters may be all there are."""
    return min(run.export.top_k, model.vocab_size)


def _excerpt(ids: Array, start: int, length: int) -> Array:
    place = start % max(1, len(ids) - length)
    return np.resize(ids[place : place + length], length)


def _config(run: NextWordRun, command: str, model: LanguageModel, trained: Trained) -> ModelConfig:
    vocab_size, top_k = model.vocab_size, _top_k(run, model)
    of_words = run.data.level == "word"
    return model_config(
        run,
        trained,
        command,
        task=NextWord(
            tokenizer=TOKENIZER_FILE,
            vocab_size=vocab_size,
            top_k=top_k,
            level=run.data.level,
            unknown_token=vocabulary.UNKNOWN if of_words else None,
            end_token=END_OF_LINE if of_words else None,
        ),
        inputs=(TensorSpec(name="tokens", dtype="int64"),),
        outputs=(
            TensorSpec(name="logits", dtype="float32", shape=(vocab_size,)),
            TensorSpec(name="top_scores", dtype="float32", shape=(top_k,)),
            TensorSpec(name="top_indices", dtype="int64", shape=(top_k,)),
            TensorSpec(name="logsumexp", dtype="float32"),
        ),
        states=model.encoder.states,
    )


def _card(run: NextWordRun, model: LanguageModel, trained: Trained) -> str:
    config = run.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    factors = "share their factors" if config.tied else "are separate"
    memory = ", ".join(spec.name for spec in model.encoder.states)
    token = run.data.level
    clusters = (
        f"softmax clusters from {list(config.cutoffs)} of width {list(config.cutoff_dims)}"
        if config.cutoffs
        else "full softmax"
    )
    return f"""Gives the probability of every {token} of a fixed vocabulary to come next, one {token} at a time, with
its memory ({memory}) held by a session.

## Model

- {run.encoder.in_words}, embedding of {config.embedding_dim}
- vocabulary {model.vocab_size:,}, {clusters}
- embedding and softmax {factors}
- {parameters:,} parameters, stored in {run.export.weights}
- weights of step {trained.step:,}, the best on the validation text

## Limits

{_LIMITS[token]}
"""
