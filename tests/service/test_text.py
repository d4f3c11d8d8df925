from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.text import join, known_form, plain_words, separator, surface, words

JOINTS = frozenset({"@-@", "@,@", "@.@"})


def split(text: str, known: frozenset[str] = JOINTS) -> list[str]:
    return words(text, known.__contains__)


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("The cat sat.", "The cat sat ."),
        ("Well, no!", "Well , no !"),
        ("3-4", "3 @-@ 4"),
        ("1,000.5 km", "1 @,@ 000 @.@ 5 km"),
        ("well-known", "well @-@ known"),
        ("it's John's, isn't it?", "it 's John 's , isn 't it ?"),
        ("the dogs' bones", "the dogs ' bones"),
        ("(a) [b]", "( a ) [ b ]"),
        ('"so"', '" so "'),
        ("3 - 4", "3 - 4"),
        ("end.\nNext", "end . Next"),
        ("a <unk> b", "a <unk> b"),
        ("3 @-@ 4 @,@ 5", "3 @-@ 4 @,@ 5"),
        ("Änd éè", "Änd éè"),
        ("", ""),
        (" \t\n", ""),
    ],
)
def test_text_is_split_as_the_corpus_is(text: str, due: str) -> None:
    assert split(text) == due.split()


def test_a_known_piece_stays_whole() -> None:
    assert split("U.S. 3.5", frozenset({"U.S."})) == ["U.S.", "3", "@.@", "5"]


@pytest.mark.parametrize(
    ("tokens", "due"),
    [
        ("The cat sat .", "The cat sat."),
        ("3 @-@ 4 , 1 @,@ 000", "3-4, 1,000"),
        ("it 's ( here ) !", "it's (here)!"),
        ("a : b ; c ?", "a: b; c?"),
        ("", ""),
    ],
)
def test_words_are_joined_as_people_write(tokens: str, due: str) -> None:
    assert join(tokens.split()) == due


def test_nothing_stands_before_the_first_word() -> None:
    assert separator(None, "the") == ""
    assert separator("the", "cat") == " "


def test_a_joint_is_written_without_its_marks() -> None:
    assert [surface(word) for word in ("@-@", "@,@", "@", "@@", "@ab@", "cat")] == [
        "-",
        ",",
        "@",
        "@@",
        "@ab@",
        "cat",
    ]


plain = st.lists(
    st.sampled_from(["the", "cat", "3", "40", "@-@", "@,@", "@.@", ",", ".", "!", "(", ")", "'s"])
)


@given(plain)
def test_text_in_the_form_of_the_corpus_stays_as_it_is(tokens: list[str]) -> None:
    assert split(" ".join(tokens)) == tokens


@given(st.text(max_size=60))
def test_any_text_is_split_without_losing_a_letter(text: str) -> None:
    def letters(value: str) -> str:
        return "".join(c for c in value if c.isalpha())

    found = split(text)
    if "@" not in text:
        assert letters("".join(found)) == letters(text)
    assert all(word and not any(c.isspace() for c in word) for word in found)


@pytest.mark.parametrize("text", ["'" * 200_000, "1," * 100_000, "a-" * 100_000, "." * 200_000])
def test_hostile_text_takes_no_longer_than_it_is(text: str) -> None:
    started = time.process_time()
    split(text)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("I DON'T like it, it's bad!", "i do n't like it , it 's bad !"),
        ("can’t stop", "ca n't stop"),
        ("sooooo goood!!!!!", "sooo goood !!!"),
        ("10000 points, 10/10", "10000 points , 10 / 10"),
        ("nice :) <3 :D", "nice :) <3 :d"),
        ("a:day <35 http://x.org", "a : day < 35 http : // x . org"),
        ("[NAME] is well-made", "[name] is well - made"),
        ("do n't `` x ''", "do n't `` x ''"),
        ("Größe 日本 😩😩", "größe 日本 😩😩"),
        (" \n\t", ""),
        ("CAFE\u0301 Vie\u0323\u0302t", "caf\u00e9 vi\u1ec7t"),
    ],
)
def test_plain_words(written: str, read: str) -> None:
    assert plain_words(written) == read.split()


@given(st.text(max_size=60))
def test_plain_words_split_again_are_the_same(written: str) -> None:
    words = plain_words(written)
    assert plain_words(" ".join(words)) == words


def test_any_number_of_accents_takes_little_time() -> None:
    start = time.process_time()
    plain_words("e" + "\u0301\u0316" * 100_000)
    assert time.process_time() - start < 5


def test_a_known_form_is_the_word_or_its_longest_known_beginning() -> None:
    ids = {"disappoint": 1, "disappointing": 2, "dis": 3, "good": 4}
    assert known_form("good", ids) == 4
    assert known_form("disappointingly", ids) == 2
    assert known_form("disappointed", ids) == 1
    # Too short to tell, less than half of the word, or no word at all.
    assert known_form("disk", ids) is None
    assert known_form("goodnessgracious", ids) is None
    assert known_form("good-", ids) is None
    assert known_form("disappoint" * 1000, ids) is None
