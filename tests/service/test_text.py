from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.text import join, separator, surface, words

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
