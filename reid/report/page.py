"""Self-contained HTML pages of text, tables and pictures, in a light and a dark version."""

from __future__ import annotations

import base64
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined

from reid.core.atomic import write_text


class Draw(Protocol):
    """A `plot_…` function with all arguments except the path and the theme."""

    def __call__(self, path: Path, *, dark: bool = False) -> Path:
        """Draw to `path`."""


@dataclass(frozen=True)
class Drawing:
    """A picture that is drawn when it is needed.

    Attributes:
        name: part of a file name, such as "worst".
        title: what the picture shows.
        caption: how to read it.
        draw: draws it to a path.
        photos: it contains photographs, so it is embedded as WebP; other pictures are embedded as SVG.
    """

    name: str
    title: str
    caption: str
    draw: Draw
    photos: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of text below column names; `numbers` aligns all columns but the first to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    numbers: bool = True


Block: TypeAlias = "str | Table | Drawing"


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs (strings), tables and drawings; level 2 sections are listed at the top of the page."""

    title: str
    blocks: Sequence[Block]
    level: int = 2


def write_page(path: str | Path, title: str, sections: Sequence[Section], *, lead: str = "") -> Path:
    """Write sections as one HTML page.

    The page loads nothing from elsewhere and runs no script; its content policy makes browsers refuse both. Page and
    pictures follow the reader's light or dark theme: each picture is embedded twice. All text is escaped, and absolute
    paths are shortened to file names.

    Raises:
        ReidError: a picture cannot be drawn, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> table = Table(["model", "mAP"], [["resnet50", "85.2"]])
        >>> write_page(f"{tempfile.mkdtemp()}/page.html", "Results", [Section("Scores", [table])]).name
        'page.html'
    """
    with tempfile.TemporaryDirectory() as folder:

        def embed(drawing: Drawing, dark: bool) -> str:
            kind, suffix = ("webp", "webp") if drawing.photos else ("svg+xml", "svg")
            picture = drawing.draw(Path(folder) / f"picture.{suffix}", dark=dark)
            return f"data:image/{kind};base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"

        write_text(path, render_template("page.html", title=title, lead=lead, sections=sections, embed=embed))
    return Path(path)


def render_template(name: str, **values: Any) -> str:
    """Fill in a template of this package; all values are escaped."""
    return _environment().get_template(name).render(values)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("reid.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(text=describe_value, flat=flatten, short=shorten_paths)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment


def shorten_paths(text: str) -> str:
    """Replace absolute paths by their last component, so that shared files do not contain local paths.

    Example:
        >>> shorten_paths("market1501:/data/Market-1501: /home/me/a.jpg is empty, see https://a.org/b")
        'market1501:Market-1501: a.jpg is empty, see https://a.org/b'
    """
    return re.sub(r"""(?<![^\s:='"(,\[])/(?:[^\s/:]+/)*([^\s/:,;]+)""", r"\1", text)


def shorten_all_paths(value: Any) -> Any:
    """Apply `shorten_paths` to all texts in nested dicts and lists."""
    if isinstance(value, Mapping):
        return {name: shorten_all_paths(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [shorten_all_paths(part) for part in value]
    return shorten_paths(value) if isinstance(value, str) else value


def describe_value(value: Any) -> str:
    """Return a setting or a number as text; absolute paths become file names."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(describe_value, value))
    return shorten_paths(str(value))


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the names and texts of nested settings; the names of groups are joined by " / "."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name} / ")
        else:
            yield f"{prefix}{name}", describe_value(value)
