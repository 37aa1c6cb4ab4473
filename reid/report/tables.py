"""Results as a table for the terminal, with a description of the protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from reid.core.console import make_table
from reid.core.errors import DataError
from reid.evaluation import RankingResult


@dataclass(frozen=True)
class Scored:
    """One row of a results table: data set, model and result."""

    data_set: str
    model: str
    result: RankingResult
    reranked: bool = False


def describe_protocol(result: RankingResult) -> str:
    """Describe the protocol of a result, and the number of used and dropped queries, in a few sentences."""
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
    """Return a rich table of scores in percent, with a description of each protocol below it.

    Data set names are folded. Model names longer than 18 characters are shortened in the middle.

    Raises:
        DataError: there are no rows.
    """
    if not rows:
        raise DataError("There are no results. Pass at least one row.")
    by_protocol: dict[str, list[int]] = {}
    for number, row in enumerate(rows, 1):
        by_protocol.setdefault(describe_protocol(row.result), []).append(number)
    several = len(by_protocol) > 1
    caption = "\n".join(
        (f"Row{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}: " if several else "") + text
        for text, numbers in by_protocol.items()
    )
    headings, cells = ["data set", "model", "re-ranked", "mAP", "mINP", "R1", "R5", "R10"], []
    for number, row in enumerate(rows, 1):
        result = row.result
        scores = (result.mAP, result.mINP, result.rank(1), result.rank(5), result.rank(10))
        names = (*([str(number)] if several else []), row.data_set, shorten_name(row.model))
        cells.append((*names, "yes" if row.reranked else "no", *(f"{100 * score:.2f}" for score in scores)))
    return make_table([*(["#"] if several else []), *headings], cells, text=headings[:2], caption=caption)


def shorten_name(name: str, most: int = 18) -> str:
    """Replace the middle of a long name by an ellipsis.

    Example:
        >>> shorten_name("light_osnet-market1501-256x128-epoch60", 20)
        'light_osne…8-epoch60'
    """
    kept = most - 1
    return name if len(name) <= most else f"{name[: (kept + 1) // 2]}…{name[len(name) - kept // 2 :]}"
