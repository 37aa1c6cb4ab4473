"""How data sets lie on disk: one file a layout, each with a `read(root, **options)`; all of them are named here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from reid.core.errors import ReidError, did_you_mean
from reid.data.crops import Benchmark
from reid.data.layouts import cuhk03, dukemtmc, market1501, msmt17, table

LAYOUTS: dict[str, Callable[..., Benchmark]] = {
    "market1501": market1501.read,
    "dukemtmc": dukemtmc.read,
    "msmt17": msmt17.read,
    "cuhk03": cuhk03.read,
    "table": table.read,
}


def load_benchmark(layout: str, root: str | Path, **options: Any) -> Benchmark:
    """Read the data set at `root`, which lies there as `layout` says. No image is opened.

    Args:
        layout: a name in `LAYOUTS`.
        root: the data set's folder (for "table", the table's file or its folder).
        options: what the layout takes: `variant` (cuhk03), `combine` (msmt17), `fraction`, `seed`, `cross_camera`
            (table).

    Raises:
        ReidError: an unknown layout or option, a wrong root, an empty part, an unreadable row.
    """
    if layout not in LAYOUTS:
        raise ReidError(f"There is no layout {layout!r}.{did_you_mean(layout, LAYOUTS)}")
    read = LAYOUTS[layout]
    parameters = inspect.signature(read).parameters
    known = [name for name in parameters if name != "root"]
    for name in options:
        if name not in known:
            words = did_you_mean(name, known) if known else " It takes none."
            raise ReidError(f"The layout {layout} has no option {name!r}.{words}")
        default = parameters[name].default
        kinds = {int: (int,), float: (int, float), str: (str,)}.get(type(default), (bool,))
        if type(options[name]) not in kinds:
            raise ReidError(
                f"The option {name!r} of the layout {layout} is {options[name]!r}; give one like {default!r}."
            )
    return read(root, **options)


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """`["variant=detected", "fraction=0.3"]` as options for `load_benchmark`; the values are YAML.

    Raises:
        ReidError: a text without `=`, or a value that is not YAML.
    """
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ReidError(f"{text!r} is not of the form KEY=VALUE, such as variant=detected.")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ReidError(f"The value of {text!r} cannot be read: {error}") from error
    return options
