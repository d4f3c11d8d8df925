from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from training import checkpoint
from training.config import NextWordRun
from training.data.columns import window
from training.trainer import ResumeError, Text, Trainer, fabric_for

Runs = Callable[..., NextWordRun]


def trainer(run: NextWordRun, text: Text, directory: Path) -> Trainer:
    return Trainer(run, text, directory, fabric_for(run))


def test_training_learns_what_follows_what(tiny: Runs, tiny_text: Text, tmp_path: Path) -> None:
    one = trainer(tiny(), tiny_text, tmp_path)
    untrained = one.validate()["valid/loss"]
    assert one.fit() < untrained - 0.7
    assert checkpoint.load(tmp_path / checkpoint.BEST)["valid_loss"] == one.progress.best_loss


def test_each_step_starts_from_the_state_the_last_one_left(
    tiny: Runs, tiny_text: Text, tmp_path: Path
) -> None:
    run = tiny(dropout=0.0, lr=0.0)
    one = trainer(run, tiny_text, tmp_path)
    for _ in range(3):
        one.step()
    tokens, _ = window(one.train_text, 0, 3 * run.training.bptt)
    _, expected = one.bare_model.features(tokens, one.bare_model.initial_state(8))
    torch.testing.assert_close(one.progress.state, tuple(part.detach() for part in expected))


def test_an_epoch_starts_from_a_fresh_state(tiny: Runs, tiny_text: Text, tmp_path: Path) -> None:
    one = trainer(tiny(dropout=0.0, lr=0.0), tiny_text, tmp_path)
    first = one.step()["train/loss"]
    for _ in range(one.windows - 1):
        one.step()
    assert one.step()["train/loss"] == first


def test_the_gradient_stays_in_its_window(tiny: Runs, tiny_text: Text, tmp_path: Path) -> None:
    one = trainer(tiny(), tiny_text, tmp_path)
    one.step()
    assert not any(part.requires_grad for part in one.progress.state)


def test_the_gradient_is_clipped(tiny: Runs, tiny_text: Text, tmp_path: Path) -> None:
    one = trainer(tiny(clip_norm=0.01, optimizer="sgd", lr=1.0), tiny_text, tmp_path)
    before = [parameter.detach().clone() for parameter in one.bare_model.parameters()]
    assert one.step()["train/gradient_norm"] > 0.01
    moved = [b - a.detach() for b, a in zip(before, one.bare_model.parameters(), strict=True)]
    rate = one.optimizer.param_groups[0]["lr"]
    norm = math.sqrt(sum(float(part.square().sum()) for part in moved))
    assert norm == pytest.approx(0.01 * rate, rel=1e-3)


def test_training_stops_early_and_keeps_the_best_weights(
    tiny: Runs, tiny_text: Text, tmp_path: Path
) -> None:
    run = tiny(optimizer="sgd", lr=0.0, patience=2, valid_every=3, epochs=50)
    one = trainer(run, tiny_text, tmp_path)
    one.fit()
    assert one.progress.step == 9
    assert checkpoint.load(tmp_path / checkpoint.BEST)["step"] == 3


@pytest.mark.parametrize("changes", [{"precision": "bf16-mixed"}, {"optimizer": "sgd", "lr": 4.0}])
def test_other_precision_and_optimizer_learn_too(
    tiny: Runs, tiny_text: Text, tmp_path: Path, changes: dict[str, Any]
) -> None:
    one = trainer(tiny(**changes), tiny_text, tmp_path)
    assert one.fit() < math.log(tiny_text.vocab_size) - 1.0
    assert all(parameter.dtype == torch.float32 for parameter in one.bare_model.parameters())


def test_a_checkpoint_of_another_model_is_refused(
    tiny: Runs, tiny_text: Text, tmp_path: Path
) -> None:
    trainer(tiny(epochs=1), tiny_text, tmp_path).fit()
    with pytest.raises(ResumeError, match=r"model_config was .*'hidden_size': 24"):
        trainer(tiny(epochs=1, hidden_size=32), tiny_text, tmp_path).fit()


def test_a_checkpoint_over_another_text_is_refused(
    tiny: Runs, tiny_text: Text, tmp_path: Path
) -> None:
    trainer(tiny(epochs=1), tiny_text, tmp_path).fit()
    other = msgspec.structs.replace(
        tiny_text, dataset=msgspec.structs.replace(tiny_text.dataset, sha256={"train.txt": "0"})
    )
    with pytest.raises(ResumeError, match="dataset was"):
        trainer(tiny(epochs=1), other, tmp_path).fit()


def test_a_finished_run_is_not_trained_again(tiny: Runs, tiny_text: Text, tmp_path: Path) -> None:
    loss = trainer(tiny(), tiny_text, tmp_path).fit()
    again = trainer(tiny(), tiny_text, tmp_path)
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
