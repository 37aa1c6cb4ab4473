"""Layouts of data sets on disk. Each is one module with a function `read(root, **options)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError, validate_call

from reid.core.errors import ConfigError, check_choice, check_type
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
    check_type("data", data, str, "Use for example market1501:/data/Market-1501-v15.09.15.")
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
    check_choice("layout", layout, LAYOUTS)
    read = LAYOUTS[layout]
    for name in options:
        check_choice(f"option of the layout {layout}", name, set(read.__annotations__) - {"root", "return"})
    try:
        return validate_call(read)(root, **options)
    except ValidationError as error:
        problem = error.errors()[0]
        raise ConfigError(
            f"The option {problem['loc'][0]!r} of the layout {layout} is {problem['input']!r}. {problem['msg']}."
        ) from error


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
    """Parse `["variant=detected", "fraction=0.3"]`; the values remain text."""
    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not of the form key=value, such as variant=detected.")
        options[key] = value
    return options
