"""`reid models`: the networks there are, how large, and how fast here."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from reid.models import ReIDModel


@click.command("models")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--size", nargs=2, type=click.IntRange(1), default=(256, 128), show_default=True, metavar="H W")
@click.option("--measure", is_flag=True, help="Time each of them here, too: crops/s of embedding alone.")
@click.option("--device", default="auto", show_default=True, help="Of --measure: auto, cpu, cuda, cuda:1 or mps.")
@click.option("--threads", type=click.IntRange(1), help="Of --measure on a CPU.  [default: torch's own]")
def command(names: tuple[str, ...], size: tuple[int, int], measure: bool, device: str, threads: int | None) -> None:
    """List the networks, or those NAMEd (timm:NAME too): dimensions, parameters, multiply-adds, size of the weights.

    Counts are for one crop, up to the pooled feature. --measure embeds batches of 16 uint8 crops of that size, in
    float32, and tells the median of as many as fit in a second, at least three; it is no better than the machine is
    quiet.
    """
    import torch
    from rich.table import Table

    from reid.core.console import console, track
    from reid.core.distributed import pick_device
    from reid.models import BACKBONES, build_model

    if threads:
        torch.set_num_threads(threads)
    place = pick_device(device)
    table = Table(box=None)
    table.add_column("network", no_wrap=True)
    for heading in ("D", "parameters, M", "multiply-adds, G", "MB", *([f"crops/s, {place}"] if measure else [])):
        table.add_column(heading, justify="right")
    for name in track(names or tuple(BACKBONES), "Measuring" if measure else "Counting"):
        # timm's networks are asked for their output's shape with numbers; the others need none to be counted
        with torch.device("cpu" if measure or name.startswith("timm:") else "meta"):
            model = build_model(name, neck="none", height=size[0], width=size[1])
        counts = model.count()
        megabytes = sum(t.numel() * t.element_size() for t in model.state_dict().values()) / 1e6
        row = [name, str(model.embedding_size), f"{counts.parameters / 1e6:.2f}", f"{counts.flops / 1e9:.3f}"]
        row.append(f"{megabytes:.1f}")
        if measure:
            row.append(f"{_crops_per_second(model.to(place).to(memory_format=torch.channels_last)):.0f}")
        table.add_row(*row)
    console.print(table)
    console.print(f"for one crop of {size[0]}×{size[1]}; weights in float32")
    if measure and place.type == "cpu":
        console.print(f"batches of 16 on {torch.get_num_threads()} threads, torch {torch.__version__}, float32")


def _crops_per_second(model: ReIDModel, batch: int = 16) -> float:
    """Of `ReIDModel.embed`, preprocessing included; the result is waited for."""
    import torch

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
