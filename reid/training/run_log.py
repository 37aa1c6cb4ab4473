"""Metrics of a run: means over steps, `log.jsonl`, TensorBoard, and the collapse warning."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from reid.config import Config
from reid.core.console import warn
from reid.core.distributed import DistributedContext
from reid.core.errors import ModelError
from reid.losses import CollapseWatch
from reid.training.meter import Meter
from reid.training.run_folder import LOG, advice


class RunLog:
    """Collects the metrics of steps without waiting for the device, and writes their means.

    Values are copied to the host when a line begins and are read one step later.

    Args:
        out: run folder.
        config: settings: `loss.margin`, `loss_limit`.
        distributed: only the first process writes.
        paths: path of each train crop, for the error about a loss that is not finite.
        on_line: called with each line before it is written.
    """

    def __init__(
        self,
        out: Path,
        config: Config,
        distributed: DistributedContext,
        paths: NDArray[Any],
        on_line: Callable[[dict[str, Any]], None],
    ) -> None:
        self.out, self.config, self.distributed, self.paths, self.on_line = out, config, distributed, paths, on_line
        self.meter = Meter()
        self.watch = CollapseWatch(config.loss.margin)
        self.epoch = 1
        self._sums: dict[str, float] = {}
        self._summed = 0
        self._pending: list[dict[str, float]] = []
        self._next_line: dict[str, Any] | None = None
        self._board: Any = None

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores."""
        state = {"sums": self._sums, "summed": self._summed, "pending": self._pending}
        return {**state, "watch": self.watch.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the result of `state_dict()`."""
        self._sums, self._summed, self._pending = state["sums"], state["summed"], state["pending"]
        self.watch.load(state["watch"])

    def tensorboard(self, first_step: int) -> AbstractContextManager[Any]:
        """Write to TensorBoard inside this context; entries from `first_step` on are replaced."""
        if self.distributed.is_first:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(self.out / "tensorboard", purge_step=first_step)
        return self._board or nullcontext()

    def begin_line(self, step: int, lr: float) -> None:
        """Start to copy the metrics since the last line; `finish_line` writes them, a step later."""
        self.meter.send()
        self._next_line = {"step": step, "epoch": self.epoch, "lr": lr}

    def finish_line(self) -> None:
        """Write the line that was begun, if any."""
        if self._next_line is None:
            return
        self._receive()
        line, self._next_line = self._next_line, None
        if not self._pending:  # all of its steps were skipped
            return
        means = {name: sum(m[name] for m in self._pending) / len(self._pending) for name in self._pending[0]}
        self._pending.clear()
        self.write({**line, **means})
        self.scalars({"lr": line["lr"], **means}, "train", line["step"])
        if "triplet" in means:
            self.watch.margin = means.get("margin", self.config.loss.margin)
            warning = self.watch.observe(means["triplet"], means["positive"], means["negative"])
            if warning and self.distributed.is_first:
                warn(warning)

    def flush(self) -> None:
        """Read all metrics that are still on the device."""
        self.finish_line()
        self.meter.send()
        self._receive()

    def end_epoch(self) -> dict[str, float]:
        """Return the means over the epoch and start the next one."""
        means = {name: value / self._summed for name, value in self._sums.items()}
        self._sums, self._summed = {}, 0
        return means

    def write(self, line: dict[str, Any]) -> None:
        """Append a line to the log."""
        self.on_line(line)
        if self.distributed.is_first:
            with open(self.out / LOG, "a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")

    def scalars(self, values: dict[str, float], group: str, step: int) -> None:
        """Add values to TensorBoard."""
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)

    def _receive(self) -> None:
        for step, metrics, rows in self.meter.receive():
            if not metrics["loss"] <= self.config.loss_limit:
                files = ", ".join(str(self.paths[row]) for row in rows.tolist())
                raise ModelError(
                    f"The loss of step {step} (epoch {self.epoch}) is {metrics['loss']:g}: not finite, or above "
                    f"loss_limit={self.config.loss_limit:g}. {advice(self.out)} The crops of that step: {files}"
                )
            self._pending.append(metrics)
            self._summed += 1
            for name, value in metrics.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
