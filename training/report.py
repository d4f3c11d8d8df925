"""What people see of a run: a progress bar, lines for a log, and scalars for TensorBoard."""

from __future__ import annotations

from pathlib import Path

from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from tqdm import tqdm


class Report:
    """Reports of one process; only the first of several has something to say.

    Args:
        directory: Where TensorBoard's file goes.
        steps: Steps of the whole run, and steps taken already.
        log_every: Steps between scalars; validations are always written.
        criterion: Scalar that says how good the model is.
        floor: What to hold it against.
        silent: Whether to report nothing.
    """

    def __init__(
        self,
        directory: Path,
        *,
        steps: tuple[int, int],
        log_every: int,
        criterion: str,
        floor: str,
        silent: bool,
    ) -> None:
        self._log_every = log_every
        self._criterion = criterion
        self._floor = floor
        self._silent = silent
        self._scalars = TensorBoardLogger(directory, name="", version="")
        total, done = steps
        # None: a bar on a terminal only; a file gets the lines.
        self._bar = tqdm(total=total, initial=done, disable=True if silent else None)

    def step(self, step: int, scalars: dict[str, float], *, saved: bool) -> None:
        """A step was taken, with these figures, and perhaps a checkpoint written."""
        if self._silent:
            return
        self._bar.update()
        self._bar.set_postfix(
            {name: f"{value:.4g}" for name, value in scalars.items()}, refresh=False
        )
        value = scalars.get(self._criterion)
        if value is not None:
            self._line(step, f"{self._criterion} {value:.5g}, floor {self._floor}")
        if value is not None or not step % self._log_every:
            self._scalars.log_metrics(scalars, step)
        if saved:
            self._line(step, "checkpoint written")

    def close(self) -> None:
        """Nothing more is to come."""
        self._bar.close()
        self._scalars.finalize("success")

    def _line(self, step: int, message: str) -> None:
        self._bar.write(f"step {step}: {message}")
