"""Memory, open files, threads and temporary files of one process over many embed calls and streamed tracklets.

    python -m benchmarks.long_runs --calls 200 --tracklets 100000

Each call embeds 32 JPEG files with `embed_to_parquet` and the same images as arrays. `reopen` opens the model again for
each call. The tracklets of each minute are matched online with the last 300. The first tenth of the calls is
not counted: caches and thread pools fill.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import cv2
import numpy as np

from benchmarks.measure import Benchmark
from reid import Embedder
from reid.config import StreamSettings
from reid.embedding.export import export_bundle
from reid.embedding.stream import embed_to_parquet
from reid.models import build_model
from reid.models.checkpoints import save_checkpoint
from reid.mtmc import Tracklets
from reid.mtmc.online import OnlineMatcher

SIZE = (64, 32)
FORMS = ("torch", "onnx", "openvino")
PER_PUSH = 500
"""Tracklets of a minute, which are matched together."""


def resources(folder: Path) -> tuple[float, int, int, int]:
    """Return MiB of resident memory, and the numbers of open files, threads and files in a folder (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    files = sum(1 for path in folder.rglob("*") if path.is_file())
    return int(status["VmRSS"].split()[0]) / 1024, len(os.listdir("/proc/self/fd")), int(status["Threads"]), files


def measure(call: Callable[[], object], calls: int, folder: Path) -> list[tuple[float, int, int, int]]:
    """Return the resources after each call, without the first tenth."""
    seen = []
    for _ in range(calls):
        call()
        seen.append(resources(folder))
    return seen[calls // 10 :]


def embed_call(folder: Path, model: Path, reopen: bool) -> Callable[[], object]:
    """Return a function that embeds the images of a folder once."""
    paths = sorted((folder / "images").iterdir())
    arrays = np.zeros((32, 80, 40, 3), np.uint8)
    opened = Embedder(model, device="cpu", threads=2)

    def call() -> None:
        embedder = Embedder(model, device="cpu", threads=2) if reopen else opened
        embed_to_parquet(embedder, paths, folder / "out.parquet")
        embedder(arrays)

    return call


def stream(tracklets: int, people: int = 500) -> Iterator[Tracklets]:
    """Yield tracklets of people in 8 cameras, those of one minute at a time."""
    rng = np.random.default_rng(0)
    names = tuple(f"cam{number}" for number in range(8))
    faces = rng.normal(size=(people, 32))
    for start in range(0, tracklets, PER_PUSH):
        n = min(PER_PUSH, tracklets - start)
        person = rng.integers(0, people, n)
        features = faces[person] + 0.1 * rng.normal(size=(n, 32))
        frame = 25 * (start // PER_PUSH * 60 + rng.integers(0, 55, n)) + 1
        yield Tracklets.from_features(
            names,
            camera=rng.integers(0, len(names), n),
            track=start + np.arange(n),
            frame=frame,
            features=features.astype(np.float32),
        )


def push_call(stream_of_tracklets: Iterator[Tracklets], matcher: OnlineMatcher) -> Callable[[], object]:
    """Return a function that matches the next tracklets."""
    return lambda: matcher.push(next(stream_of_tracklets))


def prepare(folder: Path, forms: tuple[str, ...]) -> dict[str, Path]:
    """Write images and a model as a checkpoint and as bundles; return the models by name."""
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(32):
        cv2.imwrite(str(folder / f"images/{number}.jpg"), rng.integers(0, 256, (80, 40, 3), np.uint8))
    model = build_model("light10", height=SIZE[0], width=SIZE[1])
    save_checkpoint(folder / "model.pt", model)
    for form in forms:
        export_bundle(model, folder / f"{form}.bundle", to=form, model_id="light10")
    return {"torch": folder / "model.pt", **{form: folder / f"{form}.bundle" for form in forms}}


def describe(seen: list[tuple[float, int, int, int]]) -> str:
    """Return the first, last and largest values of each resource."""
    columns = zip(seen[0], seen[-1], zip(*seen, strict=True), strict=True)
    return ", ".join(f"{a:.0f} → {b:.0f} ({max(c):.0f})" for a, b, c in columns)


@click.command(cls=Benchmark)
@click.option("--calls", default=200, show_default=True, type=click.IntRange(0), help="Embed calls of each model.")
@click.option("--form", "forms", multiple=True, default=FORMS, type=click.Choice(FORMS), help="Model; repeatable.")
@click.option("--tracklets", default=100_000, show_default=True, type=click.IntRange(0), help="Streamed tracklets.")
def main(calls: int, forms: tuple[str, ...], tracklets: int) -> None:
    """Measure memory, open files, threads and temporary files over many embed calls and streamed tracklets."""
    print("model, call: first → last (largest) of RSS in MiB, open files, threads, files on disk")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before, tempfile.tempdir = tempfile.tempdir, name  # temporary files are counted, too
        if calls:
            models = prepare(folder, tuple(form for form in forms if form != "torch"))
            for form, reopen in itertools.product(forms, (False, True)):
                seen = measure(embed_call(folder, models[form], reopen), calls, folder)
                print(f"{form}, {'reopen' if reopen else 'one model'}: {describe(seen)}", flush=True)
        if tracklets:
            matcher = OnlineMatcher(stream=StreamSettings(max_tracklets=300))
            seen = measure(push_call(stream(tracklets), matcher), -(-tracklets // PER_PUSH), folder)
            print(
                f"{tracklets} tracklets online: {describe(seen)}; {len(matcher)} remembered, {matcher.last} identities"
            )
        tempfile.tempdir = before


if __name__ == "__main__":
    main()
