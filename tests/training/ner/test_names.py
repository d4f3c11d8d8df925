from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from training.data.download import DataError
from training.ner.names import from_lines, load, to_lines

SURNAMES = "language\tname\nCzech\tNovák\nMade\tAnn\nMade\tDe la Cruz\nChinese\tLi\n"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    for name in ("names", "names-by-language"):
        (tmp_path / name).mkdir()
    (tmp_path / "names" / "train.txt").write_text("ann\nzoe\n")
    (tmp_path / "names" / "valid.txt").write_text("zoe\nbob\n")
    (tmp_path / "names-by-language" / "train.tsv").write_text(SURNAMES)
    (tmp_path / "names-by-language" / "valid.tsv").write_text("language\tname\nIrish\to'Neal\n")
    return {"SEQSERVE_DATA": str(tmp_path)}


def test_names_have_a_capital_and_count_for_their_first_list(environ: dict[str, str]) -> None:
    given, surnames = load(("names", "names-by-language"), environ)
    assert given.members == ("Ann", "Zoe", "Bob")
    # Ann is known already; two letters and several words are left out.
    assert surnames.members == ("Novák", "O'Neal")
    assert given.dataset.sha256["train.txt"] == hashlib.sha256(b"ann\nzoe\n").hexdigest()
    assert given.dataset.licence.startswith("MIT")


def test_a_list_comes_back_from_its_file(environ: dict[str, str]) -> None:
    (surnames,) = load(("names-by-language",), environ)
    assert from_lines(to_lines(surnames.members)) == ["Novák", "Ann", "O'Neal"]


def test_a_list_that_is_not_there_is_named(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "names" / "valid.txt").unlink()
    with pytest.raises(DataError, match=r"names: .*valid\.txt"):
        load(("names",), environ)
    with pytest.raises(DataError, match="names: set SEQSERVE_DATA"):
        load(("names",), {})
