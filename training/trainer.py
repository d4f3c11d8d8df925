"""Truncated backpropagation through time over one long text, resumable to the bit.

The text is cut into columns; a step reads the next window of every column, with the state that the last window
left behind, and sends the gradient back through this window only. The place in the text is a function of the step
number, so a checkpoint needs only the step, the weights, the optimizer, the state and the random generator.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import msgspec
import torch
from lightning.fabric import Fabric
from torch import Tensor

from service.contract import Dataset
from training import checkpoint
from training.config import NextWordRun
from training.data.columns import columns, share, window, window_count
from training.models.recurrent import RecurrentLanguageModel, State
from training.report import Report
from training.schedule import lr_at


class ResumeError(RuntimeError):
    """A checkpoint that this run cannot go on from."""


class Text(msgspec.Struct, frozen=True, kw_only=True):
    """A corpus as the trainer takes it.

    Attributes:
        train: Token ids (N,) int64 to learn from.
        valid: Token ids (N,) int64 to measure on.
        vocab_size: V.
        dataset: Where they come from.
        floor: What to hold the perplexity on `valid` against, for people.
    """

    train: Tensor
    valid: Tensor
    vocab_size: int
    dataset: Dataset
    floor: str = ""


@dataclasses.dataclass
class Progress:
    """Everything of a run that changes besides weights and optimizer.

    Attributes:
        step: Steps taken.
        state: State of this process's columns after the last step.
        best_loss: Smallest validation loss so far, nats per token.
        misses: Validations since then.
    """

    step: int
    state: State
    best_loss: float = math.inf
    misses: int = 0


def fabric_for(run: NextWordRun, processes: int = 1) -> Fabric:
    """Device, precision and processes of a run; under torchrun the processes are already there."""
    if run.training.threads:
        torch.set_num_threads(run.training.threads)
    strategy = "ddp" if processes > 1 else "auto"
    return Fabric(
        accelerator="auto", devices=processes, strategy=strategy, precision=run.training.precision
    )


class Trainer:
    """One run: a model, an optimizer, a text, and the directory that the run lives in."""

    def __init__(self, run: NextWordRun, text: Text, directory: Path, fabric: Fabric) -> None:
        self.run = run
        self.training = run.training
        self.fabric = fabric
        self.directory = directory
        self.origin = {
            "model_config": msgspec.to_builtins(run.model),
            "dataset": msgspec.to_builtins(text.dataset),
            "seed": run.seed,
            "git_commit": checkpoint.git_commit(),
            "versions": checkpoint.library_versions(),
        }
        torch.manual_seed(run.seed)
        self.bare_model = RecurrentLanguageModel(run.model, text.vocab_size)
        self.model, self.optimizer = fabric.setup(self.bare_model, _optimizer(run, self.bare_model))
        self.floor = text.floor
        self.train_text = self._columns(text.train)
        self.valid_text = self._columns(text.valid)
        self.windows = window_count(self.train_text, self.training.bptt)
        self.total_steps = self.windows * self.training.epochs
        self.progress = Progress(step=0, state=self._fresh_state())
        # The processes share the weights but must not drop the same features.
        torch.manual_seed(run.seed + fabric.global_rank)

    def fit(self) -> float:
        """Train to the end or until validation stops improving; go on from a checkpoint if there is one.

        Returns:
            Smallest validation loss, nats per token.

        Raises:
            ResumeError: The checkpoint in the directory belongs to another run.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if (self.directory / checkpoint.LAST).exists():
            self.restore()
        report = Report(
            self.directory,
            steps=(self.total_steps, self.progress.step),
            log_every=self.training.log_every,
            floor=self.floor,
            silent=not self.fabric.is_global_zero,
        )
        while not self.finished:
            scalars = self.step()
            if self._due(self.training.valid_every):
                scalars |= self.validate()
            saved = self._due(self.training.checkpoint_every) or self.finished
            if saved:
                self.save()
            report.step(self.progress.step, scalars, saved=saved)
        report.close()
        return self.progress.best_loss

    @property
    def finished(self) -> bool:
        """Whether all steps are taken, or validation has not improved for too long."""
        progress = self.progress
        return progress.step >= self.total_steps or progress.misses >= self.training.patience

    def step(self) -> dict[str, float]:
        """Learn from the next window of the text.

        Returns:
            Scalars of this step.
        """
        progress, training = self.progress, self.training
        lr = lr_at(progress.step, self.total_steps, training)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        place = progress.step % self.windows
        state = progress.state if place else self._fresh_state()
        self.optimizer.zero_grad()
        loss, state = self.model(*window(self.train_text, place, training.bptt), state)
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=training.clip_norm, error_if_nonfinite=True
        )
        assert norm is not None
        self.optimizer.step()
        progress.state = tuple(part.detach() for part in state)
        progress.step += 1
        return {
            "train/loss": self._mean(loss),
            "train/gradient_norm": float(norm),
            "train/lr": lr,
        }

    def validate(self) -> dict[str, float]:
        """Measure the validation text, state carried along each column, and keep the weights if they are the best."""
        progress = self.progress
        loss = self._validation_loss()
        progress.misses += 1
        if loss < progress.best_loss:
            progress.best_loss, progress.misses = loss, 0
            if self.fabric.is_global_zero:
                checkpoint.save(self._snapshot(), self.directory / checkpoint.BEST)
        return {"valid/loss": loss, "valid/perplexity": math.exp(loss)}

    def save(self) -> None:
        """Write the checkpoint: the state of every process's columns, and every process's random generator."""
        state = tuple(self._gathered(part) for part in self.progress.state)
        random_states = self._gathered(_random_state(self.fabric.device).unsqueeze(0))
        if self.fabric.is_global_zero:
            values = self._snapshot() | {
                "optimizer": self.optimizer.state_dict(),
                "state": state,
                "random_states": random_states,
                "best_loss": self.progress.best_loss,
                "misses": self.progress.misses,
            }
            checkpoint.save(values, self.directory / checkpoint.LAST)
        self.fabric.barrier()

    def restore(self) -> None:
        """Go on from the checkpoint as if nothing had happened.

        Raises:
            ResumeError: It belongs to another model, corpus or number of processes.
        """
        values = checkpoint.load(self.directory / checkpoint.LAST)
        for key in ("model_config", "dataset", "seed"):
            if values[key] != self.origin[key]:
                raise ResumeError(
                    f"{self.directory}: {key} was {values[key]}, is {self.origin[key]}; "
                    "use another directory"
                )
        if len(values["random_states"]) != self.fabric.world_size:
            raise ResumeError(
                f"{self.directory}: the run had {len(values['random_states'])} processes"
            )
        self.bare_model.load_state_dict(values["weights"])
        self.optimizer.load_state_dict(values["optimizer"])
        rank, world_size = self.fabric.global_rank, self.fabric.world_size
        self.progress = Progress(
            step=values["step"],
            state=tuple(
                self.fabric.to_device(share(part, rank, world_size)) for part in values["state"]
            ),
            best_loss=values["best_loss"],
            misses=values["misses"],
        )
        _set_random_state(self.fabric.device, values["random_states"][rank])

    def _validation_loss(self) -> float:
        self.model.eval()
        state, total, count = self._fresh_state(), 0.0, 0
        with torch.no_grad():
            for i in range(window_count(self.valid_text, self.training.bptt)):
                tokens, targets = window(self.valid_text, i, self.training.bptt)
                loss, state = self.model(tokens, targets, state)
                total, count = total + float(loss) * targets.numel(), count + targets.numel()
        self.model.train()
        return self._mean(torch.tensor(total / count, dtype=torch.float64))

    def _snapshot(self) -> dict[str, Any]:
        return {
            "weights": self.bare_model.state_dict(),
            "step": self.progress.step,
            "valid_loss": self.progress.best_loss,
            **self.origin,
        }

    def _columns(self, ids: Tensor) -> Tensor:
        text = columns(ids, self.training.batch_size)
        part = share(text, self.fabric.global_rank, self.fabric.world_size)
        return self.fabric.to_device(part)

    def _fresh_state(self) -> State:
        return self.bare_model.initial_state(self.training.batch_size // self.fabric.world_size)

    def _gathered(self, part: Tensor) -> Tensor:
        """The rows of every process, in the order of the processes."""
        gathered = self.fabric.all_gather(self.fabric.to_device(part))
        assert isinstance(gathered, Tensor)
        return gathered.reshape(-1, *part.shape[1:])

    def _mean(self, value: Tensor) -> float:
        """Mean over the processes."""
        mean = self.fabric.all_reduce(value.detach(), reduce_op="mean")
        assert isinstance(mean, Tensor)
        return mean.item()

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0 or self.progress.step == self.total_steps


def _random_state(device: torch.device) -> Tensor:
    """State of the generator that dropout draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def _optimizer(run: NextWordRun, model: torch.nn.Module) -> torch.optim.Optimizer:
    training = run.training
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=training.lr, weight_decay=training.weight_decay
        )
    return torch.optim.AdamW(
        model.parameters(), lr=training.lr, weight_decay=training.weight_decay, fused=True
    )
