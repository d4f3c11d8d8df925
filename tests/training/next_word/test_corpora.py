from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from training.data.download import DataError
from training.next_word.config import DataConfig
from training.next_word.corpora import cut, load, words


def test_every_line_ends_in_eos_also_an_empty_one() -> None:
    assert words("a b\n\n c\n") == ["a", "b", "<eos>", "<eos>", "c", "<eos>"]


def test_only_a_newline_ends_a_line() -> None:
    assert words("a\u2028b\x85c\n") == ["a", "b", "c", "<eos>"]


def test_a_copy_in_the_data_directory_is_read_and_recorded(tmp_path: Path) -> None:
    (tmp_path / "wikitext-2").mkdir()
    for split in ("train", "valid"):
        (tmp_path / "wikitext-2" / f"{split}.txt").write_text(f"{split} text\n")
    corpus = load(DataConfig(), {"SEQSERVE_DATA": str(tmp_path)})
    assert (corpus.train, corpus.valid) == (["train", "text", "<eos>"], ["valid", "text", "<eos>"])
    assert corpus.dataset.sha256["valid.txt"] == hashlib.sha256(b"valid text\n").hexdigest()


def test_a_text_of_characters_has_all_of_them(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / split).write_text(f" {split}\n\nb\n")
    config = DataConfig(
        name="files",
        level="character",
        train=str(tmp_path / "train"),
        valid=str(tmp_path / "valid"),
    )
    corpus = load(config, {})
    assert corpus.level == "character"
    assert corpus.train == [" ", "t", "r", "a", "i", "n", "\n", "\n", "b", "\n"]
    assert "".join(corpus.valid) == " valid\n\nb\n"


def test_tiny_shakespeare_is_cut_at_80_and_90_percent_of_the_characters() -> None:
    parts = cut(bytes(i % 251 for i in range(1_115_394)))
    assert (len(parts["train"]), len(parts["valid"])) == (892_315, 111_539)
    assert parts["valid"][0] == 892_315 % 251


def test_a_missing_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"wikitext-2, split train: .*No such file"):
        load(DataConfig(), {"SEQSERVE_DATA": str(tmp_path)})


def test_a_text_that_is_no_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train").write_bytes(b"caf\xe9\n")
    path = str(tmp_path / "train")
    with pytest.raises(DataError, match="files: 'utf-8' codec can't decode byte 0xe9"):
        load(DataConfig(name="files", train=path, valid=path), {})


def test_an_unknown_corpus_is_named_with_the_known_ones() -> None:
    with pytest.raises(DataError, match="unknown corpus penn; known are wikitext-2"):
        load(DataConfig(name="penn"), {})


@pytest.mark.skipif(
    not Path(os.environ.get("SEQSERVE_DATA", "/absent"), "wikitext-2").exists(),
    reason="needs SEQSERVE_DATA with wikitext-2",
)
def test_wikitext_2_has_its_published_size() -> None:
    corpus = load(DataConfig())
    assert (len(corpus.train), len(corpus.valid)) == (2_088_628, 217_646)
    assert len(set(corpus.train)) == 33_278


@pytest.mark.skipif(
    not Path(os.environ.get("SEQSERVE_DATA", "/absent"), "tinyshakespeare").exists(),
    reason="needs SEQSERVE_DATA with tinyshakespeare",
)
def test_tiny_shakespeare_has_65_characters() -> None:
    corpus = load(DataConfig(name="tinyshakespeare", level="character"))
    assert (len(corpus.train), len(corpus.valid)) == (892_315, 111_539)
    assert len(set(corpus.train)) == 65
    assert set(corpus.valid) <= set(corpus.train)
