"""Check of a training run before it starts: data, settings, memory, disk space and output folder."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text
from torch import Tensor

from reid.config import Config
from reid.core.console import console
from reid.core.distributed import DistributedContext
from reid.core.errors import ConfigError
from reid.data.loader import Batch
from reid.data.pixels import load_training_data, packed_stores
from reid.training.hooks import Hook
from reid.training.run_folder import LAST, SETTINGS, is_used
from reid.training.trainer import Trainer
from reid.training.validation import autocast

STEPS = 3
"""Steps that are made; the last one is timed, because the first calls choose kernels and allocate memory."""


class FirstSteps(Hook):
    """Hook that makes a few steps and records whether they learn.

    Attributes:
        metrics: losses and statistics of each step that was not skipped.
        seconds: time of the last step.
    """

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []
        self.seconds = 0.0
        self._began = self._gradient = 0.0
        self._kinds_of_pairs = 0
        self._before: list[Tensor] = []

    def on_train_start(self, trainer: Trainer) -> None:
        """Keep the weights."""
        self._before = [parameter.detach().clone() for parameter in trainer.model.parameters()]

    def on_step_start(self, trainer: Trainer, batches: list[Batch]) -> None:
        """Count the kinds of pairs (equal, different identities) of the step's batches; start the clock."""
        for batch in batches:
            labels = trainer.distributed.gather_with_gradient(batch.labels.to(trainer.distributed.device))
            ids = len(labels.unique())
            self._kinds_of_pairs = max(self._kinds_of_pairs, (ids < len(labels)) + (ids > 1))
        self._began = time.perf_counter()

    def on_step_end(self, trainer: Trainer, metrics: dict[str, Tensor]) -> None:
        """Read the values, which waits for the device, and stop after the last step."""
        if metrics:
            self.metrics.append({name: float(value) for name, value in metrics.items()})
        self.seconds = time.perf_counter() - self._began
        gradients = [p.grad.abs().max() for p in trainer.model.parameters() if p.grad is not None and p.numel()]
        self._gradient = max([self._gradient, *map(float, gradients)])
        if trainer.progress.step == min(STEPS, trainer.steps):
            trainer.stop(save=False)

    def describe(self, trainer: Trainer) -> tuple[str, bool]:
        """Return what the steps show, and whether they can learn."""
        if not self.metrics:
            return "every step was skipped: loss or gradient not finite", False
        first, steps, pairs = self.metrics[0], f"in {len(self.metrics)} steps", trainer.config.loss.of_pairs()
        if pairs and self._kinds_of_pairs < 2:
            return f"no batch has both equal and different identities {steps}, which {pairs[0]} compares", False
        losses = [name for name in first if name in ("triplet", "softmax") or name.startswith("extra.")]
        zero = [name for name in losses if all(metrics[name] == 0 for metrics in self.metrics)]
        if zero:
            return f"the loss {zero[0]} is 0 {steps}: it has nothing to learn from these batches", False
        if self._gradient == 0:
            return f"all gradients are 0 {steps}: check loss and optim.groups", False
        if all(map(torch.equal, self._before, trainer.model.parameters())):
            return f"no weight changed {steps}: check optim.lr, optim.groups and schedule.warmup_start", False
        if len(self.metrics) > 1 and all(m["loss"] == first["loss"] for m in self.metrics):
            return f"the loss is {first['loss']:.3f} {steps} and does not change", False
        loss = self.metrics[-1]["loss"]
        return f"loss {loss:.3f}, {self.seconds:.2f} s per step of {trainer.crops_per_step} crops", loss == loss


def check_run(config: Config, out: Path, distributed: DistributedContext) -> None:
    """Load the data, make a few steps, evaluate a batch of each split, and print what the run needs.

    Images are read from their files and nothing is packed; header and end of every file are checked. No run folder is
    left. Memory is the peak of this process.

    Raises:
        ReidError: an error that the run would raise at its start or in its first step; steps that cannot learn (a loss
            that is 0, no pairs to compare, no gradient, no change); too little memory or disk space; an output folder
            that cannot be used.
    """
    missing = {path: size for path, size in packed_stores(config).items() if not (path / "index.parquet").is_file()}
    data = load_training_data(config.model_copy(update={"data": config.data.model_copy(update={"store": "files"})}))
    device, first_steps = distributed.device, FirstSteps()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder, "run"), distributed, data, hooks=[first_steps])
        trainer.fit()
    for split in data.splits:
        images = torch.from_numpy(split.query.store.read(range(min(len(split.query.crops), config.eval.batch_size))))
        with autocast(device, config.precision):
            trainer.eval_model.embed(images.to(device), flip=config.eval.flip)
    crops = data.train.crops
    used, available = _memory(device)
    rows = [
        ("data", f"{len(crops):,} train crops of {len(trainer.pid_of_label):,} identities, all readable", True),
        *(
            (split.name, f"{len(split.query.crops):,} queries, {len(split.gallery.crops):,} gallery crops", True)
            for split in data.splits
        ),
        ("first steps", *first_steps.describe(trainer)),
        ("memory", f"peak {used / 2**30:.2f} of {available / 2**30:.1f} GiB", used < 0.95 * available),
    ]
    if config.data.store == "packed":
        folder_of_store = next(iter(missing or packed_stores(config))).parent
        rows.append(("packed crops", *_disk_space(sum(missing.values()), folder_of_store)))
    rows += [
        ("checkpoints", *_disk_space(_checkpoint_bytes(trainer), out)),
        ("output", *_output(out)),
        ("length", _length(trainer, first_steps.seconds), True),
    ]
    if distributed.is_first:
        table = Table(box=None, show_header=False)
        for name, found, good in rows:
            table.add_row(Text("✓", "green") if good else Text("✗", "red"), name, found)
        console.print(table)
    bad = [name for name, _, good in rows if not good]
    if bad:
        raise ConfigError(f"The run would fail: see {', '.join(bad)} above.")


def _memory(device: torch.device) -> tuple[int, int]:
    """Return the peak of used bytes, and the available bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
    if sys.platform == "win32":
        return 0, 1
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return peak if sys.platform == "darwin" else 1024 * peak, available


def _disk_space(needed: int, folder: Path) -> tuple[str, bool]:
    """Return a description, and whether the disk of `folder` (which need not exist) has enough space."""
    folder = _existing(folder)
    free = shutil.disk_usage(folder).free
    return f"{needed / 1e9:.2f} GB needed, {free / 1e9:,.1f} GB free in {folder}", free > 1.05 * needed


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _checkpoint_bytes(trainer: Trainer) -> int:
    """Return the size of last.pt (twice, while it is replaced) and best.pt, with the state of the optimiser."""
    model = sum(tensor.nbytes for tensor in trainer.eval_model.state_dict().values())
    values = [value for state in trainer.optimizer.state.values() for value in state.values()]
    state = sum(value.nbytes for value in values if isinstance(value, Tensor))
    last = model + state + (model if trainer.average else 0)
    return 2 * last + 2 * model


def _output(out: Path) -> tuple[str, bool]:
    if is_used(out):
        is_run = (out / SETTINGS).is_file() or (out / LAST).is_file()
        return f"{out} contains a run: continue it with --resume {out}" if is_run else f"{out} is not empty", False
    place = _existing(out)
    writable = os.access(place, os.W_OK)
    return f"{out} will be created" if writable else f"{place} is not writable", writable


def _length(trainer: Trainer, seconds: float) -> str:
    schedule, accumulate = trainer.config.schedule, trainer.config.optim.accumulate
    if schedule.minutes:
        return f"{_duration(schedule.minutes)} (schedule.minutes)"
    steps = sum(
        -(-len(trainer.epoch_loaders.at(epoch / schedule.epochs)) // accumulate) for epoch in range(schedule.epochs)
    )
    return f"{steps:,} steps, about {_duration(steps * seconds / 60)} at this speed, without evaluation"


def _duration(minutes: float) -> str:
    return f"{minutes:.1f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
