"""Console output: one rich console that prints every text literally, progress bars, and warnings."""

from __future__ import annotations

import codecs
import io
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

Item = TypeVar("Item")

_ASCII = {"→": "->", "×": "x", "✓": "+", "✗": "x", "≠": "!=", "≥": ">=", "≤": "<=", "–": "-", "…": "...", "█": "#"}


def _replace(error: UnicodeError) -> tuple[str, int]:
    """Error handler for encoders: `→` becomes `->`, `é` becomes `\\xe9`, and so on."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    failed = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in failed), error.end


codecs.register_error("reid.replace", _replace)


def accept_all_characters() -> None:
    """Let stdout and stderr replace characters that their encoding lacks, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="reid.replace")


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        accept_all_characters()
        super().print(*objects, **options)


console = _Console(soft_wrap=True, highlight=False, markup=False, emoji=False)
"""Prints strings unchanged, brackets included. Pass `style=` or a `rich.text.Text` for colours."""


def progress_bar() -> Progress:
    """Return a progress display with counts and ETA. It draws nothing if the output is not a terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items, with a progress bar if the output is a terminal."""
    with progress_bar() as bar:
        yield from bar.track(items, total=total, description=description)


def warn(text: str) -> None:
    """Print a warning."""
    console.print(Text.assemble(("Warning:", "yellow"), f" {text}"))


def make_table(
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    text: Collection[str] = (),
    title: str | None = None,
    caption: str | None = None,
) -> Table:
    """Return a rich table. The columns in `text` (default: the first) are left-aligned and may wrap."""
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), title=title, caption=caption)
    table.title_justify = table.caption_justify = "left"
    for heading in headings:
        if heading in (text or headings[:1]):
            table.add_column(heading, overflow="fold", min_width=7)
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
