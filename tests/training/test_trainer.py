from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from training import checkpoint
from training.next_word.columns import window
from training.next_word.config import NextWordRun
from training.next_word.learner import TextLearner
from training.trainer import DivergedError, ResumeError, Trainer, fabric_for

Runs = Callable[..., NextWordRun]
Learners = Callable[..., TextLearner]


@pytest.fixture
def trainer(learner: Learners, tmp_path: Path) -> Callable[[NextWordRun], Trainer]:
    """A run in the test's directory."""
    return lambda run: Trainer(run, learner(run), tmp_path, fabric_for(run.training))


def test_training_learns_what_follows_what(tiny: Runs, trainer: Any, tmp_path: Path) -> None:
    one = trainer(tiny())
    untrained = one.validate()["valid/perplexity"]
    assert one.fit() < untrained / 2
    assert checkpoint.load(tmp_path / checkpoint.BEST)["best"] == one.progress.best


def test_each_step_starts_from_the_state_the_last_one_left(
    tiny: Runs, trainer: Any, tmp_path: Path
) -> None:
    run = tiny(dropout=0.0, lr=0.0)
    one = trainer(run)
    for _ in range(3):
        one.step()
    tokens, _ = window(one.learner.train_text, 0, 3 * run.training.bptt)
    model = one.bare_model
    _, expected = model.features(tokens, model.encoder.initial_state(8))
    torch.testing.assert_close(one.progress.state, tuple(part.detach() for part in expected))


def test_an_epoch_starts_from_a_fresh_state(tiny: Runs, trainer: Any, tmp_path: Path) -> None:
    one = trainer(tiny(dropout=0.0, lr=0.0))
    first = one.step()["train/loss"]
    for _ in range(one.learner.steps_per_epoch - 1):
        one.step()
    assert one.step()["train/loss"] == first


def test_the_gradient_stays_in_its_window(tiny: Runs, trainer: Any, tmp_path: Path) -> None:
    one = trainer(tiny())
    one.step()
    assert not any(part.requires_grad for part in one.progress.state)


def test_the_gradient_is_clipped(tiny: Runs, trainer: Any, tmp_path: Path) -> None:
    one = trainer(tiny(clip_norm=0.01, optimizer="sgd", lr=1.0))
    before = [parameter.detach().clone() for parameter in one.bare_model.parameters()]
    assert one.step()["train/gradient_norm"] > 0.01
    moved = [b - a.detach() for b, a in zip(before, one.bare_model.parameters(), strict=True)]
    rate = one.optimizer.param_groups[0]["lr"]
    norm = math.sqrt(sum(float(part.square().sum()) for part in moved))
    assert norm == pytest.approx(0.01 * rate, rel=1e-3)


def test_training_stops_early_and_keeps_the_best_weights(
    tiny: Runs, trainer: Any, tmp_path: Path
) -> None:
    run = tiny(optimizer="sgd", lr=0.0, patience=2, valid_every=3, epochs=50)
    one = trainer(run)
    one.fit()
    assert one.progress.step == 9
    assert checkpoint.load(tmp_path / checkpoint.BEST)["step"] == 3


@pytest.mark.parametrize("changes", [{"precision": "bf16-mixed"}, {"optimizer": "sgd", "lr": 4.0}])
def test_other_precision_and_optimizer_learn_too(
    tiny: Runs, trainer: Any, changes: dict[str, Any]
) -> None:
    one = trainer(tiny(**changes))
    assert one.fit() < one.bare_model.vocab_size / math.e
    assert all(parameter.dtype == torch.float32 for parameter in one.bare_model.parameters())


def test_a_checkpoint_of_another_model_is_refused(tiny: Runs, trainer: Any, tmp_path: Path) -> None:
    trainer(tiny(epochs=1)).fit()
    with pytest.raises(ResumeError, match=r"shape was .*'hidden_size': 24"):
        trainer(tiny(epochs=1, hidden_size=32)).fit()


@pytest.mark.parametrize("changes", [{"batch_size": 2}, {"bptt": 5}])
def test_a_checkpoint_over_other_batches_is_refused(
    tiny: Runs, trainer: Any, changes: dict[str, Any]
) -> None:
    trainer(tiny(epochs=1)).fit()
    with pytest.raises(ResumeError, match="batch was"):
        trainer(tiny(epochs=1, **changes)).fit()


def test_a_run_that_diverges_says_so_and_keeps_its_weights(tiny: Runs, trainer: Any) -> None:
    one = trainer(tiny())
    first = next(iter(one.bare_model.parameters()))
    first.data[0] = math.nan
    before = [parameter.detach().clone() for parameter in one.bare_model.parameters()]
    with pytest.raises(DivergedError, match="step 0 is not finite"):
        one.step()
    for now, then in zip(one.bare_model.parameters(), before, strict=True):
        torch.testing.assert_close(now.detach(), then, rtol=0, atol=0, equal_nan=True)


def test_a_checkpoint_over_another_text_is_refused(
    tiny: Runs, trainer: Any, learner: Learners, tmp_path: Path
) -> None:
    run = tiny(epochs=1)
    trainer(run).fit()
    other = learner(run)
    (dataset,) = other.datasets
    other.datasets = (msgspec.structs.replace(dataset, sha256={"train.txt": "0"}),)
    with pytest.raises(ResumeError, match="datasets was"):
        Trainer(run, other, tmp_path, fabric_for(run.training)).fit()


def test_a_finished_run_is_not_trained_again(tiny: Runs, trainer: Any, tmp_path: Path) -> None:
    loss = trainer(tiny()).fit()
    again = trainer(tiny())
    weights = (tmp_path / checkpoint.LAST).read_bytes()
    assert again.fit() == loss
    assert (tmp_path / checkpoint.LAST).read_bytes() == weights


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "one.pt"
    checkpoint.save({"step": 1}, path)

    class Unwritable:
        def __reduce__(self) -> Any:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        checkpoint.save({"step": Unwritable()}, path)
    assert checkpoint.load(path) == {"step": 1}
    checkpoint.save({"step": 2}, path)
    assert [each.name for each in tmp_path.iterdir()] == ["one.pt"]
