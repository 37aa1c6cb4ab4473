"""Data sets by the short text that commands and settings use: `LAYOUT:ROOT`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from reid.data.crops import Benchmark
from reid.data.layouts import LAYOUTS, load_benchmark
from reid.errors import ReidError, did_you_mean


def load_source(text: str) -> Benchmark:
    """Load `LAYOUT:ROOT`, e.g. `market1501:/data/Market-1501-v15.09.15`.

    Raises:
        ReidError: not of that form, unknown layout, or whatever the layout finds wrong with the folder.
    """
    layout, colon, root = text.partition(":")
    if not colon or not root:
        raise ReidError(
            f"{text!r} is not of the form LAYOUT:ROOT, e.g. market1501:/data/Market-1501-v15.09.15."
            f" Layouts: {', '.join(LAYOUTS)}."
        )
    if layout not in LAYOUTS:
        raise ReidError(f"Unknown layout {layout!r} in {text!r}.{did_you_mean(layout, LAYOUTS)}")
    return load_benchmark(layout, root)


def load_sources(texts: Sequence[str]) -> list[Benchmark]:
    """Load several; names that repeat are numbered so that a table can tell them apart."""
    benchmarks = [load_source(text) for text in texts]
    names = [benchmark.name for benchmark in benchmarks]
    return [
        replace(benchmark, name=f"{name}#{1 + names[:number].count(name)}") if names.count(name) > 1 else benchmark
        for number, (name, benchmark) in enumerate(zip(names, benchmarks, strict=True))
    ]
