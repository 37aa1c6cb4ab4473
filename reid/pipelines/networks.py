"""Size and speed of networks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from reid.core.console import track
from reid.core.distributed import pick_device
from reid.models import BACKBONES, ReIDModel, build_model


@contextmanager
def use_device(device: str, threads: int | None) -> Iterator[tuple[torch.device, str]]:
    """Use `threads` of torch within the block; yield the device and a description of how speed is measured on it."""
    place, before = pick_device(device), torch.get_num_threads()
    torch.set_num_threads(threads or before)
    cpu = f" on {threads or before} threads" if place.type == "cpu" else ""
    try:
        yield place, f"batches of 16{cpu}, torch {torch.__version__}, float32"
    finally:
        torch.set_num_threads(before)


def build_networks(
    names: Sequence[str], size: tuple[int, int], device: torch.device | None = None
) -> Iterator[tuple[str, ReIDModel, float | None]]:
    """Build networks with random weights; yield name, model and crops per second of each (None if not measured).

    Args:
        names: backbones or `timm:NAME`; empty: all backbones.
        size: height and width of a crop.
        device: where to measure the speed; None: do not measure it.
    """
    for name in track(names or tuple(BACKBONES), "Counting" if device is None else "Measuring"):
        # timm's networks compute their output shape with numbers; the others can be counted without memory
        with torch.device("cpu" if device is not None or name.startswith("timm:") else "meta"):
            model = build_model(name, neck="none", height=size[0], width=size[1])
        speed = None
        if device is not None:
            speed = _crops_per_second(model.to(device).to(memory_format=torch.channels_last))
        yield name, model, speed


def _crops_per_second(model: ReIDModel, batch: int = 16) -> float:
    images = torch.randint(
        0, 256, (batch, *model.preprocessing.size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    model.embed(images)
    times: list[float] = []
    while len(times) < 3 or sum(times) < 1:
        start = time.perf_counter()
        model.embed(images).cpu()
        times.append(time.perf_counter() - start)
    return batch / statistics.median(times)
