"""Layouts of data sets on disk. Each is one module with a function `read(root, **options)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from reid.core.errors import ConfigError, did_you_mean
from reid.data.crops import Benchmark
from reid.data.layouts import cuhk03, dukemtmc, folders, market1501, msmt17, table

LAYOUTS: dict[str, Callable[..., Benchmark]] = {
    "market1501": market1501.read,
    "dukemtmc": dukemtmc.read,
    "msmt17": msmt17.read,
    "cuhk03": cuhk03.read,
    "folders": folders.read,
    "table": table.read,
}


def load_benchmark(data: str, root: str | Path | None = None, **options: Any) -> Benchmark:
    """Read a data set: train, query and gallery as columns. No image is opened.

    Args:
        data: `LAYOUT:ROOT` or `LAYOUT:ROOT?key=value&...`, such as `cuhk03:/data/cuhk03?variant=detected`; or only the
            name of a layout, with `root`. Layouts: market1501, dukemtmc, msmt17, cuhk03, folders, table.
        root: folder of the data set (for "table", the file or its folder).
        options: of the layout: `variant` (cuhk03), `combine` (msmt17), `fraction`, `seed`, `cross_camera` (folders,
            table).

    Raises:
        ConfigError: unknown layout or option, or a text of another form.
        DataError: wrong root, empty split, unreadable row.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> root = Path(tempfile.mkdtemp())
        >>> for person in ("anna", "ben", "carl"):
        ...     (root / person).mkdir()
        ...     for name in ("cam1.jpg", "cam2.jpg"):
        ...         (root / person / name).touch()
        >>> benchmark = load_benchmark(f"folders:{root}?fraction=0.3")
        >>> len(benchmark.train), len(benchmark.query), len(benchmark.gallery)
        (4, 1, 1)
    """
    layout = data
    if root is None:
        layout, colon, rest = data.partition(":")
        root, _, query = rest.partition("?")
        if not colon or not root:
            raise ConfigError(
                f"{data!r} is not of the form LAYOUT:ROOT or LAYOUT:ROOT?key=value. Use for example "
                f"market1501:/data/Market-1501-v15.09.15. Layouts: {', '.join(LAYOUTS)}."
            )
        options = {**_parse_options(query.split("&") if query else []), **options}
    if layout not in LAYOUTS:
        raise ConfigError(f"There is no layout {layout!r}.{did_you_mean(layout, LAYOUTS)}")
    read = LAYOUTS[layout]
    parameters = inspect.signature(read).parameters
    known = [name for name in parameters if name != "root"]
    for name, value in options.items():
        if name not in known:
            hint = did_you_mean(name, known) if known else " It has no options."
            raise ConfigError(f"The layout {layout} has no option {name!r}.{hint}")
        default = parameters[name].default
        types = {int: (int,), float: (int, float), str: (str,)}.get(type(default), (bool,))
        if type(value) not in types:
            example = True if default is None else default
            raise ConfigError(f"The option {name!r} of the layout {layout} is {value!r}. Use a value like {example!r}.")
    return read(root, **options)


def load_benchmarks(data: Sequence[str | Benchmark]) -> list[Benchmark]:
    """Read several data sets, each `LAYOUT:ROOT?key=value` or a `Benchmark`. Names that occur twice are numbered.

    Raises:
        ReidError: as `load_benchmark`.
    """
    benchmarks = [one if isinstance(one, Benchmark) else load_benchmark(one) for one in data]
    names = [benchmark.name for benchmark in benchmarks]
    return [
        replace(benchmark, name=f"{name}#{1 + names[:number].count(name)}") if names.count(name) > 1 else benchmark
        for number, (name, benchmark) in enumerate(zip(names, benchmarks, strict=True))
    ]


def _parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """Parse `["variant=detected", "fraction=0.3"]`; the values are YAML."""
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not of the form key=value, such as variant=detected.")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"The value of {text!r} cannot be read: {error}") from error
    return options
