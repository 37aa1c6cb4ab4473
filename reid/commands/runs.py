"""`reid runs compare`: compare training runs."""

from __future__ import annotations

from pathlib import Path

import click

from reid.commands.options import PATH, Command, out_option
from reid.core.console import console, make_table, warn


@click.group("runs")
def cli() -> None:
    """Compare training runs."""


@cli.command("compare", cls=Command)
@click.argument("runs", nargs=-1, required=True, type=PATH, metavar="RUN...")
@out_option("Folder for the results.", default=Path("comparison"), show_default=True)
def compare_command(runs: tuple[Path, ...], out: Path) -> None:
    """Compare run folders: final scores, settings that differ, curves.

    Prints two tables and writes comparison.json (all numbers) and comparison.png (every logged quantity by step).
    Scores are the last ones logged during training, and those of `reid test` in RUN/test. Runs may be unfinished.
    """
    from reid.pipelines.compare import compare

    found = compare(runs, out)
    sets = list(dict.fromkeys(name for run in found.runs for name in run.scores))
    rows = []
    for run in found.runs:
        scores = [
            f"{run.scores[name]['mAP']:.2%} / {run.scores[name]['rank1']:.2%}" if name in run.scores else "–"
            for name in sets
        ]
        loss = f"{run.lines[-1]['loss']:.3f}" if run.lines else "–"
        rows.append((run.name, f"{run.steps:,}", "–" if run.minutes is None else f"{run.minutes:.1f}", loss, *scores))
    headings = ("run", "steps", "minutes", "loss", *(f"{name}\nmAP / rank-1" for name in sets))
    console.print(make_table(headings, rows))
    if found.differences:
        different = [(key, *map(str, values)) for key, values in found.differences.items()]
        console.print(make_table(("setting", *(run.name for run in found.runs)), different))
    elif len(runs) > 1:
        console.print("All settings are equal.")
    if not found.same_data:
        warn("These runs were trained on different rows (data.json differs): their scores may not be comparable.")
    console.print(f"written to {out}: comparison.png, comparison.json")
