"""What gradient caching costs and saves: `python -m benchmarks.gradient_cache [--device cuda]`.

One training step (light14 at 128×64, batch-hard and softmax, random crops) of 450 × 4 crops, plain and in chunks, each
in a process of its own: seconds of the processor's clock (the least of `--repeats`; of a GPU, wall time), and the
memory that the step took at its highest.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import click
import numpy as np
import torch

from benchmarks.measure import Benchmark
from reid.config import LossConfig
from reid.losses import Objective
from reid.models import build_model
from reid.training.gradient_cache import backward_in_chunks, seeded

K = 4


def measure(chunk: int, device: str, repeats: int, threads: int, ids: int) -> tuple[float, float]:
    """Seconds and MiB of a step of `ids` × 4 crops."""
    torch.set_num_threads(threads)
    place = torch.device(device)
    model = (
        build_model("light14", num_classes=751, height=128, width=64)
        .to(place, memory_format=torch.channels_last)
        .train()
    )
    objective = Objective(LossConfig(margin=None))
    labels = torch.arange(ids, device=place).repeat_interleave(K)
    crops = np.random.default_rng(0).integers(0, 256, (ids * K, 128, 64, 3), dtype=np.uint8)
    images = torch.from_numpy(crops).to(place)

    def forward(network, some):
        output = network(model.preprocessing(some))
        return [output.features, None, output.logits]

    def loss_of(outputs):
        return objective(outputs[0], outputs[2], labels)[0]

    def step(images):
        model.zero_grad()
        if chunk:
            backward_in_chunks(model, images, forward, loss_of, chunk, (0,))
        else:
            with seeded(place, 0):
                outputs = forward(model, images)
            loss_of(outputs).backward()
        if place.type == "cuda":
            torch.cuda.synchronize()

    backward_in_chunks(model, images[:16], forward, lambda outputs: outputs[0].sum(), 16, (0,))  # wakes the libraries
    before = high(place)
    clock = time.perf_counter if place.type == "cuda" else time.process_time
    seconds = []
    for _ in range(repeats):
        start = clock()
        step(images)
        seconds.append(clock() - start)
    return min(seconds), high(place) - before


def high(place: torch.device) -> float:
    """The most memory so far, in MiB."""
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@click.command(cls=Benchmark)
@click.option("--device", default="cpu")
@click.option("--repeats", default=2)
@click.option("--threads", default=2)
@click.option("--chunks", default="0,450,225,64")
@click.option("--ids", default=450, type=click.IntRange(4), help="Identities of a batch, 4 crops each.")
@click.option("--one", default=-1, hidden=True)
def main(device, repeats, threads, chunks, ids, one):
    """Compare time and memory of one training step, plain and in chunks."""
    if one >= 0:
        print(*measure(one, device, repeats, threads, ids))
        return
    print("| | seconds a step | of plain | memory of the step | of plain |\n|---|---|---|---|---|")
    first = None
    for chunk in map(int, chunks.split(",")):
        command = [sys.executable, "-m", "benchmarks.gradient_cache", "--device", device, "--repeats",
                   str(repeats), "--threads", str(threads), "--ids", str(ids), "--one", str(chunk)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds, memory = map(float, done.stdout.split())
        first = first or (seconds, memory)
        name = f"chunks of {chunk}" if chunk else f"the whole batch of {ids * K}"
        part = memory / max(first[1], 1e-9)
        print(f"| {name} | {seconds:.2f} | {seconds / first[0]:.2f} × | {memory:,.0f} MiB | {part:.1%} |", flush=True)


if __name__ == "__main__":
    main()
