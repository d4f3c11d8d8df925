from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from service import text
from training.data.download import DataError
from training.next_word import vocabulary

words = st.lists(st.sampled_from(["a", "b", "c", ",", "@-@", "<eos>"]), max_size=40)


@given(words)
def test_ids_fall_with_frequency(tokens: list[str]) -> None:
    tokens = [*tokens, "<unk>"]
    ids = vocabulary.build(tokens).get_vocab()
    counts = [tokens.count(word) for word in sorted(ids, key=ids.__getitem__)]
    assert counts == sorted(counts, reverse=True)
    assert sorted(ids.values()) == list(range(len(set(tokens))))


@given(words)
def test_encoding_is_undone_by_the_file(tokens: list[str]) -> None:
    tokenizer = vocabulary.build([*tokens, "<unk>"])
    again = Tokenizer.from_str(tokenizer.to_str())
    ids = vocabulary.encode(tokenizer, tokens).tolist()
    assert [again.id_to_token(i) for i in ids] == tokens
    assert again.encode(" ".join(tokens)).ids == ids


def test_an_unknown_word_is_unk(tmp_path: Path) -> None:
    tokenizer = vocabulary.build(["a", "a", "<unk>"])
    assert vocabulary.encode(tokenizer, ["zebra", "a"]).tolist() == [1, 0]


@given(st.text(alphabet="ab .\n\u00e4\u20ac\U0001f600", min_size=1))
def test_characters_survive_the_file(written: str) -> None:
    again = Tokenizer.from_str(vocabulary.build(list(written), "character").to_str())
    ids = vocabulary.encode(again, list(written)).tolist()
    assert [again.id_to_token(i) for i in ids] == list(written)
    assert again.encode(written).ids == ids
    assert again.decode(ids) == written


def test_a_character_that_was_not_learnt_is_refused() -> None:
    tokenizer = vocabulary.build(list("abc"), "character")
    with pytest.raises(DataError, match="'z' is in a text but not in the training text"):
        vocabulary.encode(tokenizer, list("abz"))


def test_a_text_without_unk_is_refused() -> None:
    with pytest.raises(DataError, match="no <unk>"):
        vocabulary.build(["a", "b"])


def test_the_service_splits_the_corpus_into_the_same_words() -> None:
    line = "The 1 @,@ 000 well @-@ known <unk> 's cost 2 @.@ 5 ."
    known = vocabulary.build(line.split()).get_vocab()
    assert text.words(line, known.__contains__) == line.split()
