"""Console output: one rich console, progress bars, and warnings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")

console = Console(soft_wrap=True, highlight=False)


def progress_bar() -> Progress:
    """Return a progress display with counts and ETA. It draws nothing if the output is not a terminal."""
    return Progress(
        TextColumn("{task.description}"),
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
    console.print(f"[yellow]Warning:[/yellow] {text}")
