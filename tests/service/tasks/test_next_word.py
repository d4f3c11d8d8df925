from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from service.contract import CONFIG_FILE, ContractError, ModelConfig, NextWord, decode_config
from service.errors import Invalid
from service.tasks.next_word import NextWordTask
from service.tasks.protocol import Parameters
from tests.models import CHARACTERS, TOP_K, WORDS, reference_logits, reference_outputs, tokenizer

UNKNOWN, END, THE, CAT, SAT = range(5)


def config_of(directory: Path) -> ModelConfig:
    return decode_config((directory / CONFIG_FILE).read_bytes())


# Words to tensors.


def test_text_becomes_ids_and_unknown_words_the_unknown(task: NextWordTask) -> None:
    assert task.piece("the cat flew.", "$")["tokens"].tolist() == [THE, CAT, UNKNOWN, 8]
    assert task.piece("3-cat", "$")["tokens"].tolist() == [11, 10, CAT]
    assert task.piece("the", "$")["tokens"].dtype == np.int64


def test_an_id_is_itself(task: NextWordTask) -> None:
    assert task.piece(7, "$")["tokens"].tolist() == [7]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "no words"),
        (" \n\t", "no words"),
        (-1, r"token -1 is out of range; the vocabulary has 0 to 11"),
        (12, "out of range"),
        (10**30, "out of range"),
        (True, "text or a token id"),
        (1.0, "text or a token id"),
        (None, "text or a token id"),
        (["the"], "text or a token id"),
    ],
)
def test_anything_else_is_refused_with_its_path(
    task: NextWordTask, value: Any, message: str
) -> None:
    with pytest.raises(Invalid, match=message) as error:
        task.piece(value, "$.inputs[2]")
    assert error.value.extra == {"path": "$.inputs[2]"}


def test_a_whole_text_may_come_in_pieces_and_has_one_end(task: NextWordTask) -> None:
    for value in ("the cat sat", ["the", CAT, "sat"], ["the cat", 4]):
        chunk = task.whole(value, "$")
        assert chunk.arrays["tokens"].tolist() == [THE, CAT, SAT]
        assert chunk.ends.tolist() == [2]


@pytest.mark.parametrize(
    ("value", "path"), [([], "$.i"), (["the", None], "$.i[1]"), (["the", ""], "$.i[1]")]
)
def test_a_wrong_piece_of_a_whole_text_is_named(task: NextWordTask, value: Any, path: str) -> None:
    with pytest.raises(Invalid) as error:
        task.whole(value, "$.i")
    assert error.value.extra == {"path": path}


# Tensors to words.


def test_the_likeliest_words_come_with_their_probabilities(task: NextWordTask) -> None:
    logits = reference_logits([THE, CAT])
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    answers = task.answers((), reference_outputs(logits), Parameters(top_k=3))
    for answer, row in zip(answers, probabilities, strict=True):
        best = np.argsort(-row)[:3]
        assert [candidate.id for candidate in answer] == best.tolist()
        assert [candidate.token for candidate in answer] == [WORDS[i] for i in best]
        assert [candidate.score for candidate in answer] == pytest.approx(row[best])


def test_five_words_are_answered_unless_told_otherwise(task: NextWordTask) -> None:
    assert (
        len(task.whole_answer(None, reference_outputs(reference_logits([THE])), Parameters())) == 5
    )


@pytest.mark.parametrize("top_k", [0, -1, TOP_K + 1])
def test_the_graph_gives_only_so_many_candidates(task: NextWordTask, top_k: int) -> None:
    with pytest.raises(Invalid, match=f"top_k is 1 to {TOP_K}"):
        task.check(Parameters(top_k=top_k))
    task.check(Parameters(top_k=TOP_K))


# Characters.


def test_text_becomes_characters_with_blanks_and_line_ends(characters: NextWordTask) -> None:
    value = " the  cat.\n\n"
    tokens = characters.piece(value, "$")["tokens"].tolist()
    assert [CHARACTERS[i] for i in tokens] == list(value)
    assert characters.whole(["the", 1, "cat"], "$").arrays["tokens"].tolist() == [
        CHARACTERS.index(c) for c in "the cat"
    ]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "the text has no characters"),
        (
            "the c\u00e4t",
            r"character 5 of the text \(from 0\) is '\u00e4'; the model knows 12 others",
        ),
        ("\tcat", r"character 0 of the text \(from 0\) is '\\t'"),
        ("ca\ud800", r"character 2 of the text \(from 0\) is '\\ud800'"),
        (len(CHARACTERS), "token 12 is out of range"),
    ],
)
def test_an_unknown_character_is_refused_by_name(
    characters: NextWordTask, value: Any, message: str
) -> None:
    with pytest.raises(Invalid, match=message) as error:
        characters.piece(value, "$.inputs[0]")
    assert error.value.extra == {"path": "$.inputs[0]"}


def test_a_vocabulary_of_words_may_refuse_unknown_words_too(language: Path) -> None:
    config = config_of(language)
    assert isinstance(config.task, NextWord)
    spec = msgspec.structs.replace(config.task, unknown_token=None)
    task = NextWordTask(config, spec, tokenizer())
    assert task.piece("the cat", "$")["tokens"].tolist() == [THE, CAT]
    with pytest.raises(Invalid, match=r"word 1 of the text \(from 0\) is 'zebra'"):
        task.piece("the zebra", "$")


# A tokenizer that does not fit.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "tokenizer.json cannot be read"),
        (b"\xff\xfe", "tokenizer.json cannot be read"),
        (tokenizer().replace(b'"dog": 9', b'"dog": 90'), "12 words, the model 12"),
        (tokenizer().replace(b', "3": 11', b""), "11 words, the model 12"),
        (tokenizer().replace(b'"<eos>"', b'"<end>"'), "has no '<eos>'"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(
    language: Path, content: bytes, message: str
) -> None:
    config = config_of(language)
    assert isinstance(config.task, NextWord)
    with pytest.raises(ContractError, match=message):
        NextWordTask(config, config.task, content)


def test_a_character_is_one_character(language: Path) -> None:
    config = config_of(language)
    assert isinstance(config.task, NextWord)
    spec = msgspec.structs.replace(config.task, level="character")
    with pytest.raises(ContractError, match="has tokens of several characters"):
        NextWordTask(config, spec, tokenizer())


def test_a_task_may_name_its_own_special_words(language: Path) -> None:
    config = config_of(language)
    assert isinstance(config.task, NextWord)
    spec = msgspec.structs.replace(config.task, unknown_token="dog", end_token=".")
    task = NextWordTask(config, spec, tokenizer())
    assert task.piece("zebra", "$")["tokens"].tolist() == [9]
