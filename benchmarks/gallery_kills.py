"""`kill -9` at random moments of gallery writes: is anything lost, partly there, or back again?

Each try copies a gallery of three sources, starts an operation in a new process, kills it at a random moment of the
work, looks at what a reader sees, lets the next write follow, and looks again, also at the bytes of all files.

- add: of a fourth source. A reader sees all of it or nothing.
- erase: of one source. A reader sees all of it or nothing, and nothing once the erasure is finished; added again, it
  stays out.
- expire: of one source. A reader never sees it, and its bytes are gone in the end.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.measure import Benchmark
from reid import Embeddings, Gallery
from reid.core.console import console, make_table
from reid.gallery import GallerySettings
from reid.gallery.erasure import count_in_files
from reid.gallery.times import from_ms

SOURCES = ("first", "second", "third")
CROPS = 3


def table(source: str, tracklets: int) -> Embeddings:
    """Return crops of tracklets; each source has other features."""
    rng = np.random.default_rng(sum(source.encode()))
    track = np.repeat(np.arange(tracklets), CROPS)
    features = rng.normal(size=(len(track), 128))
    return Embeddings(features, camids=track % 4, tracks=track, frames=np.arange(len(track)), meta={"model": "m"})


def counts(folder: Path) -> dict[str, int]:
    """Return the tracklets of each source that a search sees."""
    answer = Gallery.open(folder).search(np.ones(128), top=10**6)
    sources = [hit.source for hit in answer.hits]
    return {source: sources.count(source) for source in sorted(set(sources))}


def vectors(source: str, tracklets: int) -> list[bytes]:
    """Return the beginnings of the stored features of a source."""
    features = table(source, tracklets).features
    unit = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32).astype(np.float16)
    return [row[:16].tobytes() for row in unit]


def add(folder: Path, n: int) -> None:
    """Add the fourth source."""
    Gallery.open(folder).add(table("new", n), source="new")


def erase(folder: Path, n: int) -> None:
    """Erase the second source, if it is still there."""
    gallery = Gallery.open(folder)
    if found := gallery.find(source="second"):
        gallery.erase(found)


def expire(folder: Path, n: int) -> None:
    """Remove the source whose retention is over."""
    Gallery.open(folder).expire()


OPERATIONS: dict[str, Callable[[Path, int], None]] = {"add": add, "erase": erase, "expire": expire}


def build(folder: Path, name: str, n: int) -> None:
    """Make the gallery that an operation starts with."""
    gallery = Gallery.create(folder, GallerySettings(retention="1h" if name == "expire" else None))
    for source in SOURCES:
        soon = name == "expire" and source == "second"
        start = from_ms(round(1000 * time.time()) - (3_590_000 if soon else 0) - 40 * CROPS * n)
        gallery.add(table(source, n), source=source, start=start)


def import_before_forks() -> None:
    """Import what LanceDB needs, but not LanceDB, whose threads would not survive a fork."""
    code = "import lancedb, sys; print(' '.join(sys.modules))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    for name in names:
        if not name.startswith(("lancedb", "__")):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


def in_process(task: Callable[[], Any], out: Path, ready: int | None = None) -> int:
    """Run a task in a forked process, which imports LanceDB itself; its result is written to `out` as JSON."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        import lancedb  # noqa: F401

        if ready is not None:
            os.write(ready, b"x")
        out.write_text(json.dumps(task()))
        code = 0
    except BaseException:
        out.write_text(json.dumps({"error": traceback.format_exc()}))
    finally:
        os._exit(code)


def result_of(task: Callable[[], Any], out: Path) -> Any:
    """Run a task in a process of its own and return its result."""
    os.waitpid(in_process(task, out), 0)
    return json.loads(out.read_text())


def after(folder: Path, name: str, n: int) -> dict[str, Any]:
    """Describe what a reader sees, let the next write follow, and describe the gallery again."""
    seen = counts(folder)
    OPERATIONS[name](folder, n)
    gallery = Gallery.open(folder)
    gallery.add(table("last", n), source="last")
    gone = {"erase": "second", "expire": "second"}.get(name)
    left = count_in_files(folder, vectors(gone, n))[0] if gone else 0
    returned = gallery.add(table("second", n), source="second").tracklets if name == "erase" else 0
    return {"seen": seen, "counts": counts(folder), "left": left, "returned": returned, "problems": gallery.check()}


def measure(name: str, kills: int, n: int, work: Path, rng: np.random.Generator) -> tuple[str, ...]:
    """Kill one operation and count what is wrong."""
    base, out = work / "base", work / "result.json"
    result_of(lambda: build(base, name, n), out)
    if name == "expire":
        time.sleep(12)
    whole = work / "whole"
    shutil.copytree(base, whole)

    def timed() -> float:
        began = time.perf_counter()
        OPERATIONS[name](whole, n)
        return time.perf_counter() - began

    seconds = result_of(timed, out)
    done = lost = partial = returned = 0
    messages = []
    for number in range(kills):
        folder = work / f"try{number}"
        shutil.copytree(base, folder)
        read, write = os.pipe()
        child = in_process(lambda folder=folder: OPERATIONS[name](folder, n), out, write)
        os.read(read, 1)
        time.sleep(rng.uniform(0, 1.05 * seconds))
        os.kill(child, signal.SIGKILL)
        done += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != -signal.SIGKILL
        os.close(read)
        os.close(write)
        end = result_of(lambda folder=folder: after(folder, name, n), out)
        if "error" in end:
            messages.append(end["error"])
            lost += 1
            continue
        seen = end["seen"]
        kept = [source for source in SOURCES if name == "add" or source != "second"]
        lost += any(seen.get(source) != n or end["counts"].get(source) != n for source in kept)
        moving = {"add": "new", "erase": "second", "expire": "second"}[name]
        partial += seen.get(moving, 0) not in ((0,) if name == "expire" else (0, n))
        final = end["counts"].get(moving, 0)
        partial += final != (n if name == "add" else 0) or bool(end["problems"])
        returned += bool(end["left"] or end["returned"])
        shutil.rmtree(folder)
    for message in messages[:3]:
        console.print(message)
    return name, str(kills), str(done), str(lost), str(partial), str(returned), f"{seconds:.2f}"


@click.command(cls=Benchmark)
@click.argument("operations", nargs=-1)
@click.option("--kills", default=30, show_default=True)
@click.option("--tracklets", default=500, show_default=True, help="Tracklets of each source.")
def main(operations: tuple[str, ...], kills: int, tracklets: int) -> None:
    """Kill gallery OPERATIONS (add, erase, expire; default: all) and print what was lost."""
    import_before_forks()
    rng, rows = np.random.default_rng(0), []
    for name in operations or tuple(OPERATIONS):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(name, kills, tracklets, Path(folder), rng))
    headings = ("operation", "kills", "finished before", "lost", "partial", "returned", "seconds")
    console.print(make_table(headings, rows))
    if any(row[3:6] != ("0", "0", "0") for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
