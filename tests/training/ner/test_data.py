from __future__ import annotations

import os
from pathlib import Path

import pytest

from training.data.download import DataError
from training.ner.config import DataConfig
from training.ner.data import load, parse

PLAIN = "Ann\tB-PER\nis\tO\nhere \tO\n\n\nParis\tB-LOC\n\n"
OWN_FORM = (
    "# newdoc id = a\n# text = Ann is here\n1\tAnn\tB-PER\t-\tsomebody\n2\tis\tO\t-\t-\n3\there\tB-O\t-\t-\n\n"
    "# text = Paris\n1\tParis\tB-LOC\t-\tsomebody\n"
)


def test_sentences_and_their_tags() -> None:
    first, second = parse(PLAIN, {}, "made")
    assert first.words == ("Ann", "is", "here ")
    assert first.tags == ("B-PER", "O", "O")
    assert (second.words, second.tags) == (("Paris",), ("B-LOC",))


def test_the_form_of_universal_ner_is_read_too() -> None:
    first, second = parse(OWN_FORM, {}, "made")
    assert first.words == ("Ann", "is", "here")
    # B-O is a slip of its first revision.
    assert first.tags == ("B-PER", "O", "O")
    assert second.tags == ("B-LOC",)


def test_kinds_are_renamed_and_others_dropped() -> None:
    content = "A\tB-person\nB\tI-person\nC\tB-product\nD\tI-product\n"
    (sentence,) = parse(content, {"person": "PER"}, "made")
    assert sentence.tags == ("B-PER", "I-PER", "O", "O")


def test_a_hashtag_may_come_first() -> None:
    (sentence,) = parse("#Paris\tB-LOC\n#\tO\n", {}, "made")
    assert (sentence.words, sentence.tags) == (("#Paris", "#"), ("B-LOC", "O"))


@pytest.mark.parametrize(
    "line", ["Ann", "\tO", "Ann\tPER", "Ann\tB-", "Ann\tX-PER", "Ann\t", "Ann\tI-PER"]
)
def test_another_form_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(DataError, match="made, line 2"):
        parse(f"is\tO\n{line}\n", {}, "made")


def test_an_entity_that_nothing_begins_is_refused() -> None:
    for before in ("B-LOC", "I-LOC"):
        with pytest.raises(DataError, match=f"line 3: I-PER after {before}"):
            parse(f"New\tB-LOC\nYork\t{before}\nAnn\tI-PER\n", {}, "made")
    with pytest.raises(DataError, match="line 3: I-PER after O"):
        parse("Ann\tB-PER\n\nLee\tI-PER\n", {}, "made")


def files(directory: Path, **changes: str) -> DataConfig:
    for split in ("train", "valid"):
        (directory / f"{split}.conll").write_text(changes.get(split, PLAIN))
    return DataConfig(
        sources=("files",),
        train=str(directory / "train.conll"),
        valid=str(directory / "valid.conll"),
        licence="mine",
    )


def test_files_of_the_users_own(tmp_path: Path) -> None:
    data = load(files(tmp_path))
    assert [len(part) for part in data.train] == [2]
    assert (len(data.valid), data.split) == (2, "files valid")
    (dataset,) = data.datasets
    assert (dataset.name, dataset.licence) == ("files", "mine")
    assert set(dataset.sha256) == {"train.conll", "valid.conll"}


def test_a_file_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"valid\.conll holds no sentence"):
        load(files(tmp_path, valid="\n\n"))
    with pytest.raises(DataError, match="uner-ewt, split train"):
        load(DataConfig(sources=("uner-ewt",)), {"SEQSERVE_DATA": str(tmp_path)})


def test_sets_are_read_from_the_data_directory(tmp_path: Path) -> None:
    for name in ("uner-ewt", "wnut17"):
        (tmp_path / name).mkdir()
        for split in ("train", "valid"):
            kind = "PER" if name == "uner-ewt" else "person"
            (tmp_path / name / f"{split}.conll").write_text(f"Ann\tB-{kind}\n")
    config = DataConfig(sources=("uner-ewt", "wnut17"))
    data = load(config, {"SEQSERVE_DATA": str(tmp_path)})
    assert [part[0].tags for part in data.train] == [("B-PER",), ("B-PER",)]
    assert data.split == "uner-ewt valid"
    assert [dataset.name for dataset in data.datasets] == ["uner-ewt", "wnut17"]


@pytest.mark.skipif("SEQSERVE_DATA" not in os.environ, reason="needs SEQSERVE_DATA")
def test_sizes_of_the_real_sets() -> None:
    data = load(DataConfig(sources=("uner-ewt", "btc", "wnut17")))
    assert [len(part) for part in data.train] == [12_543, 6_338, 3_394]
    assert len(data.valid) == 2_001
    first = [tag for sentence in data.train[0] for tag in sentence.tags]
    assert [first.count(f"B-{kind}") for kind in ("PER", "LOC", "ORG")] == [2873, 2698, 1434]
