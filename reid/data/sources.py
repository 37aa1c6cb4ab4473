"""Data sets by the short text that commands and settings use: `LAYOUT:ROOT`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from reid.core.errors import ReidError
from reid.data.crops import Benchmark
from reid.data.layouts import LAYOUTS, load_benchmark, parse_options


def load_source(text: str) -> Benchmark:
    """Load `LAYOUT:ROOT` or `LAYOUT:ROOT?option=value&…`, e.g. `cuhk03:/data/cuhk03?variant=detected`.

    Raises:
        ReidError: not of that form, unknown layout or option, or whatever the layout finds wrong with the folder.
    """
    layout, colon, rest = text.partition(":")
    root, _, query = rest.partition("?")
    if not colon or not root:
        raise ReidError(
            f"{text!r} is not of the form LAYOUT:ROOT or LAYOUT:ROOT?option=value, e.g. "
            f"market1501:/data/Market-1501-v15.09.15. Layouts: {', '.join(LAYOUTS)}."
        )
    return load_benchmark(layout, root, **parse_options(query.split("&") if query else []))


def load_benchmarks(texts: Sequence[str]) -> list[Benchmark]:
    """Load several; names that repeat are numbered so that a table can tell them apart."""
    benchmarks = [load_source(text) for text in texts]
    names = [benchmark.name for benchmark in benchmarks]
    return [
        replace(benchmark, name=f"{name}#{1 + names[:number].count(name)}") if names.count(name) > 1 else benchmark
        for number, (name, benchmark) in enumerate(zip(names, benchmarks, strict=True))
    ]
