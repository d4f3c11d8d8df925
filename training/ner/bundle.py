"""A trained tagger as an export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from service.contract import Metric, ModelConfig, Ner
from service.contract import Tensor as TensorSpec
from service.entities import Chain, WordNumbers, entity_spans, places
from training.export.bundle import Bundle, Case, Original
from training.export.runtime import Array, Arrays, LoadedGraph
from training.export.weights import Trained, as_stored, load_best, model_config, read_file
from training.models.encoder import named
from training.ner import quality
from training.ner.config import NerRun
from training.ner.data import LABELS, Data, Sentence
from training.ner.graph import step_graph
from training.ner.learner import CHARACTERS_FILE, TOKENIZER_FILE, shape
from training.ner.model import Tagger
from training.ner.names import from_lines, list_file
from training.ner.words import RESERVED_CHARACTERS, UNKNOWN, numbers_of

# Start and length of the golden inputs in the validation text, and the chunks they are also fed in.
_GOLDEN = ((0, 1, (1,)), (300, 7, (1, 2, 4)), (2000, 12, (5, 1, 6)), (9000, 9, (9,)))

# Vectors of words; weights that are only looked up.
_TABLES = ("vectors.weight", "shared")

_STREAMING = """\
each word is read with
what stands before it only (a whole text is decoded from its end, as the words of one input in a session are). The floor
below has more to go by: the two words that follow"""


def bundle(run: NerRun, command: str, directory: Path, data: Data) -> Bundle:
    """The best weights of a run as an export.

    Args:
        run: Its configuration.
        command: What makes it again.
        directory: Where the run lives.
        data: Its sentences, for golden inputs and quality.

    Raises:
        ExportError: There are no weights, or they are of another model.
    """
    trained = load_best(directory, shape(run))
    tokenizer = read_file(directory, TOKENIZER_FILE)
    alphabet = read_file(directory, CHARACTERS_FILE).decode()
    lists = {list_file(name): read_file(directory, list_file(name)) for name in run.data.names}
    vocab_size = Tokenizer.from_str(tokenizer.decode()).get_vocab_size()
    alphabet_size = len(alphabet) + RESERVED_CHARACTERS
    model = Tagger(run.model, run.encoder, vocab_size, len(lists), alphabet_size, LABELS)
    model.load_state_dict(as_stored(trained.weights, run.export, _TABLES))
    model.eval()
    spec = Ner(
        labels=LABELS,
        transitions=tuple(tuple(row) for row in model.chain.factors().tolist()),
        tokenizer=TOKENIZER_FILE,
        vocab_size=vocab_size,
        unknown_token=UNKNOWN,
        lists=tuple(lists),
        characters=alphabet,
    )
    files = {TOKENIZER_FILE: tokenizer, **lists}
    numbers = _numbers(spec, files, run.model.characters)
    text = numbers([word for sentence in data.valid for word in sentence.words])
    return Bundle(
        config=_config(run, command, model, trained, spec),
        model=step_graph(model, run.export.weights, run.export.tables).SerializeToString(),
        original=original(model),
        sample=lambda length, seed: _excerpt(text, seed * 97, length),
        cases=tuple(Case(_excerpt(text, start, length), split) for start, length, split in _GOLDEN),
        golden_outputs=("scores",),
        files=files,
        measure=lambda graph: measure(graph, data, files),
        card=_card(run, model, trained),
    )


def original(model: Tagger) -> Original:
    """The torch model, one text at a time."""

    def answer(inputs: Arrays, state: Arrays) -> tuple[Arrays, Arrays]:
        words, characters = (
            torch.from_numpy(inputs[name])[None] for name in ("words", "characters")
        )
        before = tuple(torch.from_numpy(state[spec.name])[None] for spec in model.states)
        with torch.inference_mode():
            scores, after = model.scores(words, characters, before)
        last = {name: part[0].numpy() for name, part in named(model.states, after).items()}
        return {"scores": scores[0].numpy()}, last

    return answer


def measure(graph: LoadedGraph, data: Data, files: Mapping[str, bytes]) -> tuple[Metric, ...]:
    """Quality of an exported model on the validation sentences: by their own words, and as plain text.

    As plain text a sentence is its words with a blank between them, split again by the service, and an entity is a
    range of characters: what a client of the service gets.
    """
    task = graph.config.task
    assert isinstance(task, Ner)
    width = next(tensor.shape[0] for tensor in graph.config.inputs if tensor.shape)
    numbers = _numbers(task, files, width)
    chain = Chain(task.labels, task.transitions)
    scores = graph.whole([numbers(sentence.words) for sentence in data.valid], "scores")
    found = [[task.labels[tag] for tag in chain.tags(each)] for each in scores]
    by_words = quality.of_tags([s.tags for s in data.valid], found, data.split)
    texts = [" ".join(sentence.words) for sentence in data.valid]
    words = [places(text) for text in texts]
    split = [
        numbers([text[start:end] for start, end in each])
        for text, each in zip(texts, words, strict=True)
    ]
    ranges = [
        [(e.kind, each[e.first][0], each[e.end - 1][1]) for e in chain.entities(filtered)]
        for each, filtered in zip(words, graph.whole(split, "scores"), strict=True)
    ]
    due = map(_ranges, data.valid)
    return (*by_words, *quality.metrics(due, ranges, f"{data.split} as plain text"))


def _numbers(spec: Ner, files: Mapping[str, bytes], width: int) -> WordNumbers:
    tokenizer = Tokenizer.from_str(files[spec.tokenizer].decode())
    lists = [from_lines(files[name]) for name in spec.lists]
    return numbers_of(tokenizer, lists, spec.characters, width)


def _ranges(sentence: Sentence) -> list[tuple[str, int, int]]:
    """Entities of a sentence as ranges of characters of its words with a blank between them."""
    ends = np.cumsum([len(word) + 1 for word in sentence.words]) - 1
    return [
        (kind, int(ends[first]) - len(sentence.words[first]), int(ends[end - 1]))
        for kind, first, end in entity_spans(sentence.tags)
    ]


def _excerpt(text: Mapping[str, Array], start: int, length: int) -> Arrays:
    count = len(text["words"])
    place = np.arange(start, start + length) % count
    return {name: values[place] for name, values in text.items()}


def _config(run: NerRun, command: str, model: Tagger, trained: Trained, spec: Ner) -> ModelConfig:
    return model_config(
        run,
        trained,
        command,
        task=spec,
        inputs=(
            TensorSpec(name="words", dtype="int64"),
            TensorSpec(name="characters", dtype="int64", shape=(run.model.characters,)),
        ),
        outputs=(TensorSpec(name="scores", dtype="float32", shape=(len(spec.labels),)),),
        states=model.states,
        streaming=bool(model.states),
    )


def _rare(run: NerRun) -> str:
    others = "any other word is known by its characters"
    if not run.data.names:
        return others
    lists = " and ".join(f"`{list_file(name)}`" for name in run.data.names)
    return f"one vector for all other words of each list of names, {lists};\n  {others}"


def _card(run: NerRun, model: Tagger, trained: Trained) -> str:
    config = run.model
    known = model.vectors.num_embeddings - 1
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    reach = _STREAMING if model.states else "whole texts only"
    return f"""Finds persons (PER), places (LOC) and organisations (ORG) in English text; {reach}.

Its score of an entity is the probability that exactly these words are one of that kind.

## Model

- vectors of {config.embedding_dim} numbers for {known:,} words, from counts of their neighbours, not learnt further
- {_rare(run)}
- {config.filters} features of a convolution over the first and last characters of a word, {config.characters} in all
- {run.encoder.in_words}; a linear chain over tags in IOB2
- {learnt:,} learnt parameters, stored in {run.export.weights}; the vectors in {run.export.tables or run.export.weights}
- weights of step {trained.step:,}, the best on the validation sentences

## Limits

English of the web, mail and tweets, with capitals as people write them. Rare names, names in small letters or in a
text all in capitals, and organisations that are also places are often missed or mistaken. What it calls a person is a
name, not somebody: not for finding out about people.
"""
