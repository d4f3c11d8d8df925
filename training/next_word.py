"""A trained next-word model as an export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from tokenizers import Tokenizer

from service.contract import (
    SCHEMA_VERSION,
    Batching,
    Dataset,
    Metric,
    ModelConfig,
    NextWord,
    Provenance,
    StateTensor,
    Tensor,
)
from training import checkpoint, vocabulary
from training.config import NextWordRun
from training.data.corpora import END_OF_LINE, Corpus
from training.export.bundle import Bundle, Case, Original
from training.export.onnx_graph import OPSET
from training.export.recurrent import step_graph
from training.export.runtime import Array, Arrays, LoadedGraph
from training.models.recurrent import RecurrentLanguageModel
from training.perplexity import perplexity

TOKENIZER_FILE = "tokenizer.json"
# Start and length of the golden inputs in the validation text, and the chunks they are also fed in.
_GOLDEN = ((0, 1, (1,)), (1000, 7, (1, 2, 4)), (50_000, 12, (5, 1, 6)), (200_000, 9, (9,)))


class ExportError(RuntimeError):
    """A run that cannot be exported; the message says why."""


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
    values, tokenizer = _load(run, directory)
    model = stored_model(run, values["weights"], tokenizer.get_vocab_size())
    valid = vocabulary.encode(tokenizer, corpus.valid).numpy()
    return Bundle(
        config=_config(run, command, model, values),
        model=step_graph(model, run.export.top_k, run.export.weights).SerializeToString(),
        original=original(model, run.export.top_k),
        sample=lambda length, seed: {"tokens": _excerpt(valid, seed * 997, length)},
        cases=tuple(
            Case({"tokens": _excerpt(valid, start, length)}, split)
            for start, length, split in _GOLDEN
        ),
        golden_outputs=("top_scores", "logsumexp"),
        files={TOKENIZER_FILE: tokenizer.to_str().encode()},
        measure=lambda graph: measure(graph, valid, corpus),
        card=_card(run, model, values),
    )


def measure(graph: LoadedGraph, valid: Array, corpus: Corpus) -> tuple[Metric, ...]:
    """Perplexity of the validation text, beside its floor."""
    floor = corpus.floor
    return (
        Metric(
            name="perplexity",
            split=f"{corpus.dataset.name} valid",
            value=perplexity(graph, valid),
            floor=floor.perplexity if floor else None,
            floor_name=floor.name if floor else "",
        ),
    )


def stored_model(
    run: NextWordRun, weights: dict[str, torch.Tensor], vocab_size: int
) -> RecurrentLanguageModel:
    """The model with its weights as the file stores them, computing in float32."""
    stored = getattr(torch, run.export.weights)
    model = RecurrentLanguageModel(run.model, vocab_size)
    model.load_state_dict({name: value.to(stored).float() for name, value in weights.items()})
    return model.eval()


def original(model: RecurrentLanguageModel, top_k: int) -> Original:
    """The torch model, one sequence at a time, with the outputs that can be compared number by number.

    `top_indices` is left out: words of equal score may change places.
    """

    def answer(inputs: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        tokens = torch.from_numpy(inputs["tokens"])[None]
        before = tuple(torch.from_numpy(state[name])[None] for name in model.state_names)
        with torch.inference_mode():
            scores, after = model.scores(tokens, before)
        outputs = {
            "logits": scores[0].numpy(),
            "top_scores": scores[0].topk(top_k).values.numpy(),
            "logsumexp": scores[0].logsumexp(dim=-1).numpy(),
        }
        named = zip(model.state_names, after, strict=True)
        return outputs, {name: part[0].numpy() for name, part in named}

    return answer


def _load(run: NextWordRun, directory: Path) -> tuple[dict[str, Any], Tokenizer]:
    try:
        values = checkpoint.load(directory / checkpoint.BEST)
    except OSError as error:
        raise ExportError(f"{error}; run `seqtrain fit` first") from None
    if values["model_config"] != msgspec.to_builtins(run.model):
        raise ExportError(f"{directory} holds a model of another shape: {values['model_config']}")
    return values, Tokenizer.from_file(str(directory / checkpoint.VOCABULARY))


def _excerpt(ids: Array, start: int, length: int) -> Array:
    place = start % max(1, len(ids) - length)
    return np.resize(ids[place : place + length], length)


def _config(
    run: NextWordRun, command: str, model: RecurrentLanguageModel, values: dict[str, Any]
) -> ModelConfig:
    vocab_size, top_k = model.vocab_size, run.export.top_k
    state_shape = (run.model.num_layers, run.model.hidden_size)
    return ModelConfig(
        schema_version=SCHEMA_VERSION,
        name=run.name,
        version=run.version,
        description=run.description,
        architecture=run.model.cell,
        task=NextWord(
            tokenizer=TOKENIZER_FILE,
            vocab_size=vocab_size,
            top_k=top_k,
            unknown_token=vocabulary.UNKNOWN,
            end_token=END_OF_LINE,
        ),
        streaming=True,
        inputs=(Tensor(name="tokens", dtype="int64"),),
        outputs=(
            Tensor(name="logits", dtype="float32", shape=(vocab_size,)),
            Tensor(name="top_scores", dtype="float32", shape=(top_k,)),
            Tensor(name="top_indices", dtype="int64", shape=(top_k,)),
            Tensor(name="logsumexp", dtype="float32"),
        ),
        state=tuple(
            StateTensor(input_name=name, output_name=f"{name}_out", shape=state_shape)
            for name in model.state_names
        ),
        batching=Batching(
            max_batch_size=run.export.max_batch_size,
            max_chunk_length=run.export.max_chunk_length,
            max_batch_tokens=run.export.max_batch_tokens,
        ),
        opset=OPSET,
        files={},
        tolerance=run.export.tolerance,
        provenance=Provenance(
            command=command,
            config=msgspec.to_builtins(run),
            seed=run.seed,
            git_commit=values["git_commit"],
            datasets=(msgspec.convert(values["dataset"], Dataset),),
            versions=values["versions"],
        ),
    )


def _card(run: NextWordRun, model: RecurrentLanguageModel, values: dict[str, Any]) -> str:
    shape = run.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    factors = "share their factors" if shape.tied else "are separate"
    return f"""Gives the probability of every word of a fixed vocabulary to come next, one word at a time, with
its memory ({", ".join(model.state_names)}) carried by the caller.

## Model

- `{shape.cell}`, {shape.num_layers} layers of {shape.hidden_size}, embedding of {shape.embedding_dim}
- vocabulary {model.vocab_size:,}, softmax clusters from {list(shape.cutoffs)} of width {list(shape.cutoff_dims)}
- embedding and softmax {factors}
- {parameters:,} parameters, stored in {run.export.weights}
- weights of step {values["step"]:,}, the best on the validation text

## Limits

English text in the manner of the training corpus: words between blanks, punctuation as words, numbers and
hyphens split with `@`; a word outside the vocabulary is `{vocabulary.UNKNOWN}`. It repeats what the corpus says, right
or wrong, and knows nothing else of the world. Text it writes is no source of facts.
"""
