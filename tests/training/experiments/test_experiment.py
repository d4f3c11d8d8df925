from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest

from service.contract import digest
from tests.training.experiments.test_gradients import TINY
from training import pictures
from training.experiments import experiment
from training.experiments.catalogue import EXPERIMENTS
from training.experiments.experiment import ResultError

KEPT = Path(__file__).parents[3] / "docs" / "results"
# Four windows, since each has its own shade.
SMALL = msgspec.structs.replace(
    EXPERIMENTS["gradients"], settings=msgspec.structs.replace(TINY, windows=(2, 3, 4))
)


def test_a_run_leaves_numbers_that_can_be_read_and_their_picture(tmp_path: Path) -> None:
    path = experiment.run(SMALL, tmp_path / "new")
    result, settings, findings = experiment.read(SMALL, tmp_path / "new")
    assert (result.name, settings) == ("gradients", SMALL.settings)
    assert findings == SMALL.measure(SMALL.settings)
    drawn = experiment.picture_file(SMALL, tmp_path / "new")
    assert pictures.source(drawn) == digest(path.read_bytes())


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_numbers_that_are_kept_can_be_drawn(name: str, tmp_path: Path) -> None:
    numbers = experiment.numbers_file(EXPERIMENTS[name], KEPT)
    shutil.copy(numbers, tmp_path)
    drawn = experiment.picture(EXPERIMENTS[name], tmp_path)
    assert pictures.source(drawn) == digest(numbers.read_bytes())


def test_numbers_that_are_missing_or_of_another_version_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"gradients\.json.*run `seqtrain experiment gradients`"):
        experiment.read(SMALL, tmp_path)
    (tmp_path / "gradients.json").write_text('{"name": "gradients"}')
    with pytest.raises(ResultError, match=r"gradients\.json.*missing.*run `seqtrain experiment"):
        experiment.read(SMALL, tmp_path)
