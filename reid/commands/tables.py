"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def make_table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None, caption: str | None = None
) -> Table:
    """Return a rich table; the first column is left-aligned and may wrap, the others are right-aligned."""
    from rich.box import SIMPLE
    from rich.table import Table

    left = {"title_justify": "left", "caption_justify": "left"}
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), title=title, caption=caption, **left)  # type: ignore[arg-type]
    table.add_column(headings[0], overflow="fold", min_width=7)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
