from __future__ import annotations

from training.ner.plain import lines_of


def test_joined_words_are_as_in_other_texts() -> None:
    text = "<eos> = Title = <eos> 1 @,@ 000 @.@ 5 km @-@ long <eos> <eos> a <eos>"
    assert lines_of(text.split(" ")) == [
        ["=", "Title", "="],
        ["1,000.5", "km", "-", "long"],
        ["a"],
    ]


def test_a_joint_at_an_end_of_a_line_joins_nothing() -> None:
    assert lines_of(["@,@", "a", "@.@", "<eos>", "b"]) == [["@,@", "a"], ["b"]]
