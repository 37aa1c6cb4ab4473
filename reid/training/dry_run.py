"""Before a long run: everything it needs, checked in seconds, and where its steps' time goes."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.table import Table

from reid.config import Config
from reid.core.console import console
from reid.core.distributed import DistributedContext
from reid.core.errors import ReidError
from reid.data.pixels import load_training_data, packed_stores
from reid.training.profiling import StepClock, outside_network, shares
from reid.training.trainer import LAST, SETTINGS, _Trainer
from reid.training.validation import autocast

WARM_UP = 3
"""Steps that are not counted: first calls choose kernels and ask for memory."""


def check_run(config: Config, out: Path, ranks: DistributedContext) -> None:
    """Load the data, make a step and score a batch of each split, and print what the run would need, in a table.

    Images are read from their files and nothing is packed; every file's header and end are checked. No run folder is
    left. Memory is the peak of this process with one step's activations.

    Raises:
        ReidError: what the run itself would raise at its start or in its first step; too little disk; an output folder
            that cannot be used.
    """
    rows: list[tuple[str, str, bool]] = []
    missing = {path: size for path, size in packed_stores(config).items() if not (path / "index.parquet").is_file()}
    material = load_training_data(config.model_copy(update={"data": config.data.model_copy(update={"store": "files"})}))
    crops = material.train.crops
    rows.append(
        ("data", f"{len(crops):,} train crops of {len(set(crops.pids.tolist())):,} identities, all readable", True)
    )
    rows += [
        (split.name, f"{len(split.query.crops):,} queries, {len(split.gallery.crops):,} gallery crops", True)
        for split in material.splits
    ]
    trainer = _Trainer(config, out, ranks, material)
    trainer.network.train()
    batches = trainer.grouped()
    seconds = []
    for _ in range(min(WARM_UP, trainer.steps)):
        step = next(batches)
        began = time.perf_counter()
        loss = float(trainer._step(step).get("loss", torch.tensor(float("nan"))))
        seconds.append(time.perf_counter() - began)
    rows.append(
        ("first steps", f"loss {loss:.3f}, {seconds[-1]:.2f} s a step of {trainer.crops_a_step} crops", loss == loss)
    )
    for split in material.splits:
        images = torch.from_numpy(split.query.store.read(range(min(len(split.query.crops), config.eval.batch_size))))
        with autocast(ranks.device, config.precision):
            trainer.scored.embed(images.to(ranks.device), flip=config.eval.flip)
    used, there = _memory(ranks.device)
    rows.append(("memory", f"{used / 2**30:.2f} of {there / 2**30:.1f} GiB at its peak", used < 0.95 * there))
    if config.data.store == "packed":
        folder = next(iter(missing or packed_stores(config))).parent
        rows.append(("packed crops", *_room(sum(missing.values()), folder)))
    rows.append(("checkpoints", *_room(_checkpoint_bytes(trainer), out)))
    rows.append(("output", *_output(out)))
    total = sum(
        -(-len(trainer.loaders.at(epoch / config.schedule.epochs)) // config.optim.accumulate)
        for epoch in range(config.schedule.epochs)
    )
    minutes = config.schedule.minutes or total * seconds[-1] / 60
    words = f"{total:,} steps, about {_duration(minutes)} and the scoring, at the pace of these steps"
    rows.append(
        ("length", words if not config.schedule.minutes else f"{_duration(minutes)}, as schedule.minutes says", True)
    )
    if ranks.is_first:
        table = Table(box=None, show_header=False)
        for name, found, good in rows:
            table.add_row("[green]✓[/green]" if good else "[red]✗[/red]", name, found)
        console.print(table)
    bad = [name for name, _, good in rows if not good]
    if bad:
        raise ReidError(f"The run would not go well: see {', '.join(bad)} above.")


def profile_run(config: Config, ranks: DistributedContext, steps: int) -> dict[str, float]:
    """Train `steps` steps (after a few that are not counted) as the run would, and print where their time goes.

    No run folder is left. On a GPU every part is waited for, so a step takes longer than in a run.

    Returns:
        The share of each part, `other` included.

    Raises:
        ReidError: as training does; fewer steps in the whole run.
    """
    clock = StepClock(ranks.device)

    class Enough(Exception):
        pass

    class Counted(_Trainer):
        counted = -WARM_UP

        def grouped(self):  # type: ignore[no-untyped-def]
            for group in super().grouped():
                if self.counted == 0:
                    clock.reset()
                    self.first = time.perf_counter()
                if self.counted == steps:
                    self.whole = time.perf_counter() - self.first  # before the log and the loader's thread are closed
                    raise Enough
                self.counted += 1
                yield group

    with tempfile.TemporaryDirectory() as folder:
        quiet = config.model_copy(update={"save_every": 0, "save_minutes": 0.0})
        trainer = Counted(quiet, Path(folder), ranks, load_training_data(config))
        trainer.clock = clock
        try:
            trainer.run()
        except Enough:
            pass
        else:
            raise ReidError(f"The whole run has fewer than {steps} + {WARM_UP} steps: ask for fewer.")
    whole = trainer.whole
    parts = shares(clock.seconds, whole)
    if ranks.is_first:
        table = Table(box=None)
        for name in ("", "ms a step", "share"):
            table.add_column(name, justify="left" if not name else "right")
        for part, share in parts.items():
            table.add_row(part, f"{1000 * share * whole / steps:,.1f}", f"{share:.1%}")
        table.add_row("all", f"{1000 * whole / steps:,.1f}", "")
        console.print(table)
        console.print(
            f"{steps * trainer.crops_a_step / whole:,.1f} crops/s; outside forward, backward and optimiser: "
            f"{outside_network(parts):.1%}"
        )
    return parts


def _memory(device: torch.device) -> tuple[int, int]:
    """Bytes used at the peak so far, and bytes there are."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    if sys.platform == "win32":
        return 0, 1
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak, there


def _room(needed: int, folder: Path) -> tuple[str, bool]:
    """Whether the disk of `folder` (which need not be there yet) has so many bytes left."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    return f"{needed / 1e9:.2f} GB more, {free / 1e9:,.1f} GB free in {folder}", free > 1.05 * needed


def _checkpoint_bytes(trainer: _Trainer) -> int:
    """Of last.pt (twice while it is replaced) and best.pt, with the optimiser's state as it is after a step."""
    model = sum(tensor.nbytes for tensor in trainer.scored.state_dict().values())
    state = sum(
        value.nbytes
        for entry in trainer.optimizer.state_dict()["state"].values()
        for value in entry.values()
        if isinstance(value, torch.Tensor)
    )
    last = model + state + (model if trainer.average else 0)
    return 2 * last + 2 * model


def _output(out: Path) -> tuple[str, bool]:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        goes_on = (out / SETTINGS).is_file() or (out / LAST).is_file()
        words = f"{out} holds a run: --resume {out} goes on with it" if goes_on else f"{out} is not empty"
        return words, False
    place = out
    while not place.exists():
        place = place.parent
    writable = os.access(place, os.W_OK)
    return f"{out} will be made" if writable else f"{place} cannot be written to", writable


def _duration(minutes: float) -> str:
    return f"{minutes:.1f} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
