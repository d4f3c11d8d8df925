"""One loop for every task: forward, backward, clip, step; checkpoint, resume to the bit, several processes.

What a task brings is a `Learner`: a model, batches as a function of the step number, and its measure of quality. So a
checkpoint needs only the step, the weights, the optimizer, the state carried between batches and the random generator.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from service.contract import Dataset
from training import checkpoint, logs
from training.config import TrainedRun, TrainingConfig
from training.models.encoder import State
from training.report import Report
from training.schedule import lr_at


class ResumeError(RuntimeError):
    """A checkpoint that this run cannot go on from."""


class DivergedError(RuntimeError):
    """A run whose gradient is no longer finite; its checkpoints are from before."""


@dataclasses.dataclass(frozen=True)
class Share:
    """Which part of every batch a process takes: the `rank`-th of `count`."""

    rank: int = 0
    count: int = 1


class Learner(Protocol):
    """What a task brings to training.

    Attributes:
        model: Called with the tensors of a batch and the state before it; gives the loss, a mean over the rows of the
            batch so that processes can be averaged, and the state after.
        shape: What the weights fit: a checkpoint with another is not gone on from.
        datasets: What is learnt from.
        files: Further files of the run, by name, such as a tokenizer.
        steps_per_epoch: Batches of one pass over the data.
        criterion: Name of the scalar of `validate` that says which weights are the best.
        maximise: Whether a larger one is better.
        floor: What to hold it against, for people.
    """

    model: nn.Module
    shape: Mapping[str, Any]
    datasets: tuple[Dataset, ...]
    files: Mapping[str, bytes]
    steps_per_epoch: int
    criterion: str
    maximise: bool
    floor: str

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """This process's share of the batch of a step, counted from 0; the same for the same step."""

    def fresh_state(self, step: int) -> State | None:
        """The state before a step that does not go on from the one before; None for one that does."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Measure a model in evaluation mode on the validation data, all of it in every process.

        Not every measure is the mean of those of parts.
        """


@dataclasses.dataclass
class Progress:
    """Everything of a run that changes besides weights and optimizer.

    Attributes:
        step: Steps taken.
        state: State of this process's rows after the last step.
        best: Best value of the criterion so far.
        misses: Validations since then.
        processor_seconds: Processor time of this process so far, over all its threads.
    """

    step: int
    state: State
    best: float
    misses: int = 0
    processor_seconds: float = 0.0


def fabric_for(training: TrainingConfig, processes: int = 1) -> Fabric:
    """Device, precision and processes of a run; under torchrun the processes are already there."""
    if training.threads:
        torch.set_num_threads(training.threads)
    strategy = "ddp" if processes > 1 else "auto"
    return Fabric(
        accelerator="auto", devices=processes, strategy=strategy, precision=training.precision
    )


def share_of(fabric: Fabric) -> Share:
    """The share of this process."""
    return Share(fabric.global_rank, fabric.world_size)


class Trainer:
    """One run: a learner, an optimizer, and the directory that the run lives in."""

    def __init__(self, run: TrainedRun, learner: Learner, directory: Path, fabric: Fabric) -> None:
        self.training = run.training
        self.learner = learner
        self.fabric = fabric
        self.directory = directory
        self.origin = {
            "shape": msgspec.to_builtins(learner.shape),
            "datasets": msgspec.to_builtins(learner.datasets),
            "seed": run.seed,
            "batch": [run.training.batch_size, run.training.bptt],
            "git_commit": checkpoint.git_commit(),
            "versions": checkpoint.library_versions(),
        }
        self.bare_model = learner.model
        optimizer = _optimizer(run.training, self.bare_model)
        self.model, self.optimizer = fabric.setup(self.bare_model, optimizer)
        self.total_steps = learner.steps_per_epoch * self.training.epochs
        worst = -math.inf if learner.maximise else math.inf
        self.progress = Progress(step=0, state=(), best=worst)
        # The processes share the weights but must not drop the same features.
        torch.manual_seed(run.seed + fabric.global_rank)

    def fit(self) -> float:
        """Train to the end or until validation stops improving; go on from a checkpoint if there is one.

        Returns:
            Best value of the criterion.

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
            criterion=self.learner.criterion,
            floor=self.learner.floor,
            silent=not self.fabric.is_global_zero,
        )
        began = time.process_time() - self.progress.processor_seconds
        while not self.finished:
            scalars = self.step()
            if self._due(self.training.valid_every):
                scalars |= self.validate()
            self.progress.processor_seconds = time.process_time() - began
            scalars[logs.PROCESSOR_MINUTES] = self.progress.processor_seconds / 60
            saved = self._due(self.training.checkpoint_every) or self.finished
            if saved:
                self.save()
            report.step(self.progress.step, scalars, saved=saved)
        report.close()
        return self.progress.best

    @property
    def finished(self) -> bool:
        """Whether all steps are taken, or validation has not improved for too long."""
        progress = self.progress
        return progress.step >= self.total_steps or progress.misses >= self.training.patience

    def step(self) -> dict[str, float]:
        """Learn from the next batch.

        Returns:
            Scalars of this step.

        Raises:
            DivergedError: The gradient is not finite; nothing was learnt from this batch.
        """
        progress, training = self.progress, self.training
        lr = lr_at(progress.step, self.total_steps, training)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch = self.fabric.to_device(self.learner.batch(progress.step))
        state = self.learner.fresh_state(progress.step)
        state = progress.state if state is None else self.fabric.to_device(state)
        self.optimizer.zero_grad()
        loss, state = self.model(*batch, state)
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(
            self.model, self.optimizer, max_norm=training.clip_norm, error_if_nonfinite=False
        )
        assert norm is not None
        if not norm.isfinite():
            raise DivergedError(
                f"{self.directory}: the gradient of step {progress.step} is not finite; a smaller lr may help"
            )
        self.optimizer.step()
        progress.state = tuple(part.detach() for part in state)
        progress.step += 1
        return {
            "train/loss": self._mean(float(loss.detach())),
            "train/gradient_norm": float(norm),
            "train/lr": lr,
        }

    def validate(self) -> dict[str, float]:
        """Measure, and keep the weights if they are the best."""
        self.model.eval()
        with torch.no_grad():
            scalars = self.learner.validate(self.model)
        self.model.train()
        scalars = {name: self._mean(value) for name, value in scalars.items()}
        progress, value = self.progress, scalars[self.learner.criterion]
        progress.misses += 1
        if value > progress.best if self.learner.maximise else value < progress.best:
            progress.best, progress.misses = value, 0
            if self.fabric.is_global_zero:
                checkpoint.save(self._snapshot(), self.directory / checkpoint.BEST)
        return scalars

    def save(self) -> None:
        """Write the checkpoint: the state of every process's rows, and every process's random generator."""
        state = tuple(self._gathered(part) for part in self.progress.state)
        random_states = self._gathered(_random_state(self.fabric.device).unsqueeze(0))
        if self.fabric.is_global_zero:
            values = self._snapshot() | {
                "optimizer": self.optimizer.state_dict(),
                "state": state,
                "random_states": random_states,
                "misses": self.progress.misses,
                "processor_seconds": self.progress.processor_seconds,
            }
            checkpoint.save(values, self.directory / checkpoint.LAST)
        self.fabric.barrier()

    def restore(self) -> None:
        """Go on from the checkpoint as if nothing had happened.

        Raises:
            ResumeError: It belongs to another model, other data, other batches or another number of processes.
        """
        values = checkpoint.load(self.directory / checkpoint.LAST)
        for key in ("shape", "datasets", "seed", "batch"):
            if values.get(key) != self.origin[key]:
                raise ResumeError(
                    f"{self.directory}: {key} was {values.get(key)}, is {self.origin[key]}; "
                    "use another directory"
                )
        rank, world_size = self.fabric.global_rank, self.fabric.world_size
        if len(values["random_states"]) != world_size:
            raise ResumeError(
                f"{self.directory}: the run had {len(values['random_states'])} processes"
            )
        self.bare_model.load_state_dict(values["weights"])
        self.optimizer.load_state_dict(values["optimizer"])
        self.progress = Progress(
            step=values["step"],
            state=tuple(
                self.fabric.to_device(part.chunk(world_size)[rank]) for part in values["state"]
            ),
            best=values["best"],
            misses=values["misses"],
            processor_seconds=values["processor_seconds"],
        )
        _set_random_state(self.fabric.device, values["random_states"][rank])

    def _snapshot(self) -> dict[str, Any]:
        return {
            "weights": self.bare_model.state_dict(),
            "step": self.progress.step,
            "best": self.progress.best,
            **self.origin,
        }

    def _gathered(self, part: Tensor) -> Tensor:
        """The rows of every process, in the order of the processes."""
        gathered = self.fabric.all_gather(self.fabric.to_device(part))
        assert isinstance(gathered, Tensor)
        return gathered.reshape(-1, *part.shape[1:])

    def _mean(self, value: float) -> float:
        """Mean over the processes."""
        mean = self.fabric.all_reduce(torch.tensor(value, dtype=torch.float64), reduce_op="mean")
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


def _optimizer(training: TrainingConfig, model: nn.Module) -> torch.optim.Optimizer:
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), lr=training.lr, weight_decay=training.weight_decay
        )
    return torch.optim.AdamW(
        model.parameters(), lr=training.lr, weight_decay=training.weight_decay, fused=True
    )
