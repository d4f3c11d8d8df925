from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.sentiment.conftest import MANY, ONE, write_sets
from training.data.download import DataError
from training.sentiment import data
from training.sentiment.config import DataConfig


def environ(directory: Path) -> dict[str, str]:
    return {"SEQSERVE_DATA": str(directory)}


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Sets of a handful of texts."""
    write_sets(tmp_path, 3)
    (tmp_path / "goemotions-sentiment" / "train.tsv").write_text(
        "labels\ttext\nneutral\tIt's 5 o'clock.\nnegative,positive\tgood, bad\nambiguous\twhat\npositive\t \n"
    )
    return tmp_path


def test_several_labels_stand_side_by_side(few: Path) -> None:
    config = DataConfig(
        sources=("goemotions-sentiment",),
        labels=("positive", "negative", "neutral", "ambiguous"),
        exclusive=False,
        held=0.3,
    )
    read = data.load(config, environ(few))
    # The last text has no words; every third one is held back.
    assert read.train.words == (("it", "'s", "5", "o", "'", "clock", "."), ("good", ",", "bad"))
    assert read.train.targets.tolist() == [[0, 0, 1, 0], [1, 1, 0, 0]]
    assert (read.held.words, read.held.targets.tolist()) == ((("what",),), [[0, 0, 0, 1]])


def test_texts_with_other_or_several_labels_are_left_out(few: Path) -> None:
    config = DataConfig(
        sources=("goemotions-sentiment",), labels=("positive", "neutral"), exclusive=True
    )
    train = few / "goemotions-sentiment" / "valid.tsv"
    train.write_text("labels\ttext\nneutral,positive\tboth\nnegative\tbad\npositive\tgood\n")
    read = data.load(config, environ(few))
    assert read.valid["goemotions-sentiment"].words == (("good",),)
    assert read.valid["goemotions-sentiment"].targets.tolist() == [[1, 0]]


def test_sets_are_joined_and_phrases_are_texts_too(sets: Path) -> None:
    one, many = data.load(ONE, environ(sets)), data.load(MANY, environ(sets))
    assert ("lovely",) in one.train.words
    assert len(one.held) == 0
    assert (one.train.targets.sum(axis=1) == 1).all()
    assert list(many.valid) == ["goemotions-sentiment", "uci-sentences"]
    assert [d.name for d in many.datasets] == ["goemotions-sentiment", "uci-sentences"]
    assert set(one.datasets[0].sha256) == {"train.tsv", "valid.tsv", "train-phrases.tsv.gz"}
    assert len(many.held) == pytest.approx(0.1 * (len(many.train) + len(many.held)), abs=1)


def test_a_missing_file_a_bad_line_and_labels_that_nobody_has_are_named(few: Path) -> None:
    (few / "sst2" / "train-phrases.tsv.gz").unlink()
    with pytest.raises(DataError, match="phrases"):
        data.load(ONE, environ(few))
    path = few / "goemotions-sentiment" / "train.tsv"
    path.write_text("labels\ttext\nneutral\ta\tb\n")
    with pytest.raises(DataError, match=r"train\.tsv, line 2: 3 columns, not 2"):
        data.load(MANY, environ(few))
    path.write_text("text\tlabels\n")
    with pytest.raises(DataError, match="columns are"):
        data.load(MANY, environ(few))
    path.write_text("labels\ttext\nambiguous\twhat\n")
    config = DataConfig(
        sources=("goemotions-sentiment",), labels=("positive", "neutral"), exclusive=True
    )
    with pytest.raises(DataError, match="no text of goemotions-sentiment"):
        data.load(config, environ(few))


def test_what_cannot_be_downloaded_says_so(tmp_path: Path) -> None:
    config = DataConfig(sources=("uci-sentences",), labels=("positive", "negative"), exclusive=True)
    with pytest.raises(DataError, match="set SEQSERVE_DATA"):
        data.load(config, {"SEQSERVE_CACHE": str(tmp_path)})


def test_public_files_become_ours() -> None:
    public = b"Don't, 2\t2,3\ted7xyz1\nwhat? \t0\ted7xyz2\nno\t1\ted7xyz3\n"
    due = b"labels\ttext\nneutral,positive\tDon't, 2\nambiguous\twhat? \nnegative\tno\n"
    assert data.from_goemotions(public) == due
    assert data.from_sst(b"0 not good .\n1 good\n") == b"label\ttext\n0\tnot good .\n1\tgood\n"


@pytest.mark.parametrize(("exclusive", "held"), [(True, 0.1), (False, 0.0)])
def test_thresholds_need_held_texts_and_nothing_else_does(exclusive: bool, held: float) -> None:
    with pytest.raises(ValueError, match="held"):
        DataConfig(
            sources=("sst2",), labels=("positive", "negative"), exclusive=exclusive, held=held
        )


def test_targets_are_float32(sets: Path) -> None:
    assert data.load(ONE, environ(sets)).train.targets.dtype == np.float32
