from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract import CONFIG_FILE, ContractError, Ner, Tensor, decode_config, encode
from service.errors import Invalid
from service.tasks.ner import NerTask
from service.tasks.protocol import Parameters
from tests import models
from tests.models import TAGS, tokenizer
from tests.service.tasks.together import compare


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tagger(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def task(directory: Path) -> NerTask:
    config = decode_config((directory / CONFIG_FILE).read_bytes())
    assert isinstance(config.task, Ner)
    return NerTask(config, config.task, {"tokenizer.json": tokenizer(models.TAGGED)})


def test_words_and_characters_of_a_text(task: NerTask) -> None:
    arrays = task.piece("Ann  saw\nPARIS.", "$")
    assert arrays["words"].tolist() == [1, 3, 4, 0]
    assert arrays["characters"].tolist() == [[2, 3, 3, 0], [1, 1, 1, 0], [1, 2, 1, 1], [1, 0, 0, 0]]


def test_an_accent_may_be_a_character_of_its_own(task: NerTask) -> None:
    apart, one = task.piece("Pe\u0301 saw", "$"), task.piece("P\u00e9 saw", "$")
    assert apart["characters"].tolist() == one["characters"].tolist()
    (found,) = task.answers(["Pe\u0301 saw"], sure("B-PER", "O"), Parameters())
    assert (found[0]["word"], found[0]["end"]) == ("Pe\u0301", 3)


def test_a_whole_text_is_one_input_with_outputs_of_every_word(task: NerTask) -> None:
    chunk = task.whole("Ann saw Paris", "$")
    assert (chunk.ends.tolist(), chunk.keep.tolist()) == ([2], [0, 1, 2])


@pytest.mark.parametrize(
    ("value", "said"),
    [("", "no words"), (" \n\t", "no words"), (3, "a text is due"), (["Ann"], "a text is due")],
)
def test_what_is_no_text_is_refused_by_its_place(task: NerTask, value: Any, said: str) -> None:
    for read in (task.piece, task.whole):
        with pytest.raises(Invalid, match=said) as caught:
            read(value, "$.inputs[1]")
        assert caught.value.extra["path"] == "$.inputs[1]"


def test_candidates_are_not_to_be_had(task: NerTask) -> None:
    task.check(Parameters())
    with pytest.raises(Invalid, match="not chosen from"):
        task.check(Parameters(top_k=2))


def sure(*tags: str) -> dict[str, np.ndarray]:
    return {"scores": np.eye(len(TAGS), dtype=np.float32)[[TAGS.index(tag) for tag in tags]]}


def test_answers_in_the_shape_of_hugging_face(task: NerTask) -> None:
    scores = sure("B-PER", "I-PER", "O", "B-LOC", "O")
    assert task.answers(["\tAnn  Lee saw Paris."], scores, Parameters()) == [
        [
            {"entity_group": "PER", "score": 1.0, "word": "Ann  Lee", "start": 1, "end": 9},
            {"entity_group": "LOC", "score": 1.0, "word": "Paris", "start": 14, "end": 19},
        ]
    ]


def test_places_are_those_of_each_input_and_an_entity_may_go_on(task: NerTask) -> None:
    first, second = task.answers(
        ["saw Ann", " Lee saw"], sure("O", "B-PER", "I-PER", "O"), Parameters()
    )
    assert [(each["word"], each["start"]) for each in first] == [("Ann", 4)]
    assert "continues" not in first[0]
    assert [(each["word"], each["start"], each["continues"]) for each in second] == [
        ("Lee", 1, True)
    ]


@given(st.lists(st.text(), min_size=1, max_size=3), st.integers(0, 1000))
def test_places_are_right_in_any_text(task: NerTask, texts: list[str], seed: int) -> None:
    texts = [text + "x" for text in texts]
    count = sum(len(task.piece(text, "$")["words"]) for text in texts)
    scores = np.random.default_rng(seed).dirichlet(np.full(len(TAGS), 0.2), count)
    for text, found in zip(
        texts, task.answers(texts, {"scores": scores}, Parameters()), strict=True
    ):
        for entity in found:
            assert text[entity["start"] : entity["end"]] == entity["word"]
            assert 0 <= entity["score"] <= 1
            assert entity["word"] == entity["word"].strip() != ""
            assert not entity.get("continues") or text[: entity["start"]].strip() == ""
        ranges = [(entity["start"], entity["end"]) for entity in found]
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(ranges))
        msgspec.json.encode(found)


def changed(directory: Path, **changes: Any) -> dict[str, Any]:
    config = decode_config((directory / CONFIG_FILE).read_bytes())
    table: dict[str, Any] = json.loads(encode(config))
    task = {name: value for name, value in changes.items() if name in table["task"]}
    table["task"] |= task
    return table | {name: value for name, value in changes.items() if name not in task}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": ["B-PER", "I-PER", "B-LOC", "I-LOC", "O"]}, "no tags in IOB2"),
        ({"labels": ["O", "B-PER", "I-PER", "B-LOC", "X"]}, "no tags in IOB2"),
        ({"labels": ["O", "B-PER", "I-PER", "B-PER", "I-PER"]}, "no tags in IOB2"),
        ({"transitions": [[1.0] * 5] * 4}, "5 rows of 5"),
        ({"transitions": [[1.0] * 5] * 4 + [[1.0] * 4]}, "5 rows of 5"),
        ({"transitions": [[-1.0] * 5] * 5}, ">= 0"),
        ({"inputs": [{"name": "words", "dtype": "int64"}]}, "are due as int64"),
        ({"outputs": [{"name": "scores", "dtype": "float32", "shape": [4]}]}, "need an output"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    directory: Path, changes: dict[str, Any], said: str
) -> None:
    decode_config(json.dumps(changed(directory)).encode())
    with pytest.raises(ContractError, match=said):
        decode_config(json.dumps(changed(directory, **changes)).encode())


@pytest.mark.parametrize(
    ("words", "said"), [(("<unk>", "Ann"), "2 words"), (("a", "b", "c", "d", "e"), "no '<unk>'")]
)
def test_a_tokenizer_that_does_not_fit_is_refused(
    directory: Path, words: tuple[str, ...], said: str
) -> None:
    config = decode_config((directory / CONFIG_FILE).read_bytes())
    assert isinstance(config.task, Ner)
    assert config.inputs[1] == Tensor(name="characters", dtype="int64", shape=(4,))
    with pytest.raises(ContractError, match=said):
        NerTask(config, config.task, {"tokenizer.json": tokenizer(words)})


def test_words_of_lists_have_the_ids_behind_the_known_ones(directory: Path) -> None:
    config = decode_config((directory / CONFIG_FILE).read_bytes())
    assert isinstance(config.task, Ner)
    spec = msgspec.structs.replace(config.task, lists=("given.txt", "family.txt"))
    files = {
        "tokenizer.json": tokenizer(models.TAGGED),
        "given.txt": b"Ann\nZoe\n",
        "family.txt": "Zoe\nNovák\n".encode(),
    }
    arrays = NerTask(config, spec, files).piece("Ann Zoe zoe NOVÁK Bob", "$")
    size = len(models.TAGGED)
    assert arrays["words"].tolist() == [1, size, size, size + 1, 0]
    with pytest.raises(ContractError, match=r"given\.txt cannot be read"):
        NerTask(config, spec, files | {"given.txt": b"\xff"})


@given(
    values=st.lists(
        st.sampled_from(
            ["Ann", "PARIS", "saw", "Pe\u0301", "Ann saw", "Paris.", "", 3, None, "w" * 65]
        ),
        min_size=1,
    )
)
def test_words_are_taken_together_as_one_by_one(task: NerTask, values: list[Any]) -> None:
    compare(task, values)
