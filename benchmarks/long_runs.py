"""Memory, file descriptors, threads and temporary files over many embed calls in one process.

    python -m benchmarks.long_runs --calls 200

Each call embeds 32 JPEG files with `embed_to_parquet` and the same images as arrays. `reopen` opens the model again for
each call. The first tenth of the calls is not counted: caches and thread pools fill.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import cv2
import numpy as np

from reid import Embedder
from reid.embedding.export import export_bundle
from reid.embedding.stream import embed_to_parquet
from reid.models import build_model
from reid.models.checkpoints import save_checkpoint

SIZE = (64, 32)


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


@click.command()
@click.option("--calls", default=200, show_default=True, type=click.IntRange(10), help="Embed calls of each model.")
@click.option(
    "--form", "forms", multiple=True, default=["onnx", "openvino"], show_default=True, help="Exported form; repeatable."
)
def main(calls: int, forms: tuple[str, ...]) -> None:
    """Measure memory, open files, threads and temporary files over many embed calls."""
    print("model, call: first → last (largest) of RSS in MiB, open files, threads, files on disk")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tempfile.tempdir = name
        for model, path in prepare(folder, forms).items():
            for reopen in (False, True):
                seen = measure(embed_call(folder, path, reopen), calls, folder)
                columns = [
                    f"{a:.0f} → {b:.0f} ({max(c):.0f})"
                    for a, b, c in zip(seen[0], seen[-1], zip(*seen, strict=True), strict=True)
                ]
                print(f"{model}, {'reopen' if reopen else 'one model'}: {', '.join(columns)}", flush=True)


if __name__ == "__main__":
    main()
