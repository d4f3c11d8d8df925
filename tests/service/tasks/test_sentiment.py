from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from service.contract import CONFIG_FILE, ContractError, Sentiment, Tensor, decode_config, encode
from service.errors import Invalid
from service.tasks.protocol import Parameters
from service.tasks.sentiment import SentimentTask
from tests.service.tasks.together import compare

WORDS = ("<unk>", "this", "movie", "is", "not", "disappointing", "n't", "!")
IDS = {word: i for i, word in enumerate(WORDS)}
TOKENIZER = Tokenizer(WordLevel(IDS, unk_token="<unk>")).to_str().encode()
LABELS = ("positive", "negative", "neutral")


def config(accumulator: Path, **changes: Any) -> bytes:
    """config.json of a model with three labels."""
    spec = Sentiment(**({"vocab_size": len(WORDS), "labels": LABELS, "exclusive": True} | changes))
    base = decode_config((accumulator / CONFIG_FILE).read_bytes())
    return encode(
        msgspec.structs.replace(
            base,
            task=spec,
            inputs=(Tensor(name="tokens", dtype="int64"),),
            outputs=(Tensor(name="scores", dtype="float32", shape=(3,)),),
        )
    )


def task_of(accumulator: Path, tokenizer: bytes = TOKENIZER, **changes: Any) -> SentimentTask:
    read = decode_config(config(accumulator, **changes))
    assert isinstance(read.task, Sentiment)
    return SentimentTask(read, read.task, tokenizer)


@pytest.fixture
def task(accumulator: Path) -> SentimentTask:
    return task_of(accumulator)


def ids(task: SentimentTask, text: str) -> list[int]:
    array = task.piece(text, "$")["tokens"]
    assert array.dtype == np.int64
    return [int(i) for i in array]


def test_words_become_ids_whatever_their_spelling(task: SentimentTask) -> None:
    expected = [IDS[w] for w in ("this", "movie", "is", "n't", "disappointing", "!")]
    assert ids(task, "THIS movie isn't disappointing!") == expected
    assert ids(task, "  this\nMovie is n’t   Disappointing ! ") == expected


def test_an_unknown_word_is_read_as_its_longest_known_beginning_or_as_unknown(
    task: SentimentTask,
) -> None:
    assert ids(task, "disappointingly zebra") == [IDS["disappointing"], IDS["<unk>"]]


def test_a_whole_text_is_one_chunk_answered_at_its_end(task: SentimentTask) -> None:
    chunk = task.whole("this movie is not disappointing", "$")
    assert chunk.arrays["tokens"].shape == (5,)
    assert chunk.ends.tolist() == [4]


@pytest.mark.parametrize("text", ["", "  \n\t "])
def test_a_text_without_words_is_refused_by_its_place(task: SentimentTask, text: str) -> None:
    for read in (task.piece, task.whole):
        with pytest.raises(Invalid, match="no words") as error:
            read(text, "$.inputs[3]")
        assert error.value.extra == {"path": "$.inputs[3]"}


@pytest.mark.parametrize("value", [None, 7, 1.5, True, ["this"], {"text": "this"}, b"this"])
def test_only_a_text_is_taken(task: SentimentTask, value: Any) -> None:
    with pytest.raises(Invalid, match="a text is due here"):
        task.piece(value, "$")


def test_answers_are_all_labels_the_likeliest_first(task: SentimentTask) -> None:
    scores = np.array([[0.2, 0.7, 0.1], [0.25, 0.25, 0.5]], np.float32)
    first, second = task.answers((), {"scores": scores}, Parameters())
    assert [a["label"] for a in first] == ["negative", "positive", "neutral"]
    assert [a["score"] for a in first] == pytest.approx([0.7, 0.2, 0.1])
    # Labels of equal score keep the order of the model.
    assert [a["label"] for a in second] == ["neutral", "positive", "negative"]
    assert task.whole_answer(None, {"scores": scores}, Parameters()) == first


def test_top_k_leaves_the_best(task: SentimentTask) -> None:
    scores = np.array([[0.2, 0.7, 0.1]], np.float32)
    (answer,) = task.answers((), {"scores": scores}, Parameters(top_k=2))
    assert [a["label"] for a in answer] == ["negative", "positive"]
    for top_k in (0, 4):
        with pytest.raises(Invalid, match="top_k is 1 to 3"):
            task.check(Parameters(top_k=top_k))


def test_a_tokenizer_that_does_not_fit_is_refused(accumulator: Path) -> None:
    with pytest.raises(ContractError, match="has 8 words, the model 9"):
        task_of(accumulator, vocab_size=9)
    with pytest.raises(ContractError, match="cannot be read"):
        task_of(accumulator, tokenizer=b"{}")
    with pytest.raises(ContractError, match="has no '<none>'"):
        task_of(accumulator, unknown_token="<none>")


def test_the_config_is_checked_against_the_graph(accumulator: Path) -> None:
    with pytest.raises(ContractError, match=r"output scores of shape \(2,\)"):
        task_of(accumulator, labels=("positive", "negative"))
    with pytest.raises(ContractError, match="0 thresholds do not fit 3 labels"):
        task_of(accumulator, exclusive=False)
    with pytest.raises(ContractError, match="3 thresholds do not fit 3 labels"):
        task_of(accumulator, thresholds=(0.5, 0.5, 0.5))
    document = json.loads(config(accumulator, exclusive=False, thresholds=(0.4, 0.2, 0.3)))
    assert decode_config(json.dumps(document).encode()).task.thresholds == (0.4, 0.2, 0.3)


@given(
    values=st.lists(
        st.sampled_from([*WORDS, "MOVIE", "isn't", "", "x", "sooooo", "disappointingly", 3, None]),
        min_size=1,
    )
)
def test_words_are_taken_together_as_one_by_one(accumulator: Path, values: list[Any]) -> None:
    compare(task_of(accumulator), values)
