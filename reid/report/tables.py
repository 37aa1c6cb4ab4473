"""Results as a table for the terminal, with the protocol in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.table import Table

from reid.core.errors import ReidError
from reid.evaluation import RankingResult


@dataclass(frozen=True)
class Scored:
    """One row of a results table: what was scored on what, and how it went."""

    data_set: str
    model: str
    result: RankingResult
    reranked: bool = False


def describe_protocol(result: RankingResult) -> str:
    """The rules the scores were made by, and what became of the queries, in a few sentences."""
    rules = result.protocol
    used = f"{result.n_valid:,} of {rules['queries']:,} queries used"
    if result.dropped:
        used += " (dropped: " + ", ".join(f"{count:,} {reason}" for reason, count in result.dropped.items()) + ")"
    gallery = f"gallery of {rules['gallery']:,}"
    if rules["junk"]:
        gallery += f" ({rules['junk']:,} junk items left out)"
    return (
        f"Ranked by {rules['metric']}; ties in {rules['ties']}. Average precision: {rules['average precision']}. "
        f"Cross-camera rule: {rules['cross-camera']}. {used}, {gallery}."
    )


def results_table(rows: Sequence[Scored]) -> Table:
    """A rich table of scores in percent, with each protocol that occurs spelled out beneath.

    Raises:
        ReidError: no rows.
    """
    if not rows:
        raise ReidError("No results to make a table of.")
    by_protocol: dict[str, list[int]] = {}
    for number, row in enumerate(rows, 1):
        by_protocol.setdefault(describe_protocol(row.result), []).append(number)
    several = len(by_protocol) > 1
    caption = "\n".join(
        (f"Row{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}: " if several else "") + words
        for words, numbers in by_protocol.items()
    )
    table = Table(box=SIMPLE, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    if several:
        table.add_column("#", justify="right")
    table.add_column("data set", overflow="fold", min_width=8)
    table.add_column("model", overflow="fold", min_width=8)
    table.add_column("re-ranked", no_wrap=True)
    for name in ("mAP", "mINP", "R1", "R5", "R10"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(rows, 1):
        result = row.result
        scores = (result.mAP, result.mINP, result.rank(1), result.rank(5), result.rank(10))
        table.add_row(
            *([str(number)] if several else []),
            row.data_set,
            row.model,
            "yes" if row.reranked else "no",
            *(f"{100 * score:.2f}" for score in scores),
        )
    return table
