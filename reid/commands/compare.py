"""`reid compare`: runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from reid.core.errors import ReidError

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST = ("loss", "triplet", "softmax", "accuracy", "active", "positive", "negative", "norm")
"""The order of the panels; what else was logged follows, the learning rate last."""


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option("--out", type=click.Path(path_type=Path), default=Path("comparison"), show_default=True, help="Folder.")
def command(runs: tuple[Path, ...], out: Path) -> None:
    """Compare run folders: final scores, settings that differ, and curves.

    Prints two tables and writes comparison.json (all numbers) and comparison.png (every logged quantity over steps).
    Scores are those logged while training, and those that `reid test` left in RUN/test. Runs may be unfinished.
    """
    from rich.table import Table

    from reid.core.atomic import write_json
    from reid.core.console import console, warn
    from reid.report.learning import plot_learning

    read = read_runs(runs)
    table = Table(box=None)
    table.add_column("run", overflow="fold")
    sets = list(dict.fromkeys(name for run in read for name in run.scores))
    for heading in ("steps", "minutes", "loss", *(f"{name}\nmAP / rank-1" for name in sets)):
        table.add_column(heading, justify="right")
    for run in read:
        cells = [
            f"{run.scores[name]['mAP']:.2%} / {run.scores[name]['rank1']:.2%}" if name in run.scores else "–"
            for name in sets
        ]
        loss = run.lines[-1]["loss"] if run.lines else None
        minutes = "–" if run.minutes is None else f"{run.minutes:.1f}"
        table.add_row(run.name, f"{run.steps:,}", minutes, "–" if loss is None else f"{loss:.3f}", *cells)
    console.print(table)
    different = differences(read)
    if different:
        settings = Table(box=None)
        for heading in ("setting", *(run.name for run in read)):
            settings.add_column(heading, overflow="fold")
        for key, values in different.items():
            settings.add_row(key, *(str(value) for value in values))
        console.print(settings)
    elif len(read) > 1:
        console.print("All settings are equal.")
    digests = {str(run.data.get("train", {}).get("sha256")) for run in read}
    if len(digests) > 1:
        warn("these runs were not trained on the same rows (data.json differs): their scores may not be comparable.")
    panels = {key: curves for key, curves in curves_of(read).items() if curves}
    plot_learning(out / "comparison.png", panels)
    content = {
        "runs": {
            run.name: {
                "folder": str(run.folder),
                "steps": run.steps,
                "minutes": run.minutes,
                "scores": run.scores,
                "history": run.history,
                "data": run.data,
                "environment": run.environment,
            }
            for run in read
        },
        "differences": {
            key: dict(zip((run.name for run in read), values, strict=True)) for key, values in different.items()
        },
        "curves": {
            key: {name: list(map(list, curve)) for name, curve in curves.items()} for key, curves in panels.items()
        },
    }
    write_json(out / "comparison.json", content)
    console.print(f"written to {out}: comparison.png, comparison.json")


@dataclass(frozen=True)
class Run:
    """What a run folder tells."""

    name: str
    folder: Path
    settings: dict[str, Any]
    """By dotted key."""
    lines: list[dict[str, Any]]
    """Of the log, those of training steps."""
    history: list[dict[str, Any]]
    """Those of evaluations."""
    scores: dict[str, dict[str, float]]
    """The last of each set: mAP and rank1, fractions."""
    steps: int
    minutes: float | None
    data: dict[str, Any]
    environment: dict[str, Any]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders; their names are the folders' own, or their paths where two are alike.

    Raises:
        ReidError: one that is not a run folder, or a file in it that is damaged.
    """
    alike = len({folder.resolve().name for folder in folders}) < len(folders)
    return [_read(folder, str(folder) if alike else folder.resolve().name) for folder in folders]


def _read(folder: Path, name: str) -> Run:
    import json

    import yaml

    from reid.models.checkpoints import load_checkpoint
    from reid.training.trainer import LAST, LOG, SETTINGS

    if not (folder / SETTINGS).is_file():
        raise ReidError(f"{folder} is not a run folder: there is no {SETTINGS} in it. `reid train` makes one.")

    def read_json(path: Path) -> dict[str, Any]:
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}

    try:
        settings = _flat(yaml.safe_load((folder / SETTINGS).read_text("utf-8")), "")
        text = (folder / LOG).read_text("utf-8") if (folder / LOG).is_file() else ""
        whole = text[: text.rfind("\n") + 1]  # a run that is being written may end in half a line
        content = [json.loads(line) for line in whole.splitlines()]
        data, environment = read_json(folder / "data.json"), read_json(folder / "environment.json")
        tested = read_json(folder / "test/metrics.json").get("sets", {})
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ReidError(f"The run folder {folder} cannot be read: {error}.") from error
    lines = [line for line in content if "loss" in line]
    history = [line for line in content if "loss" not in line]
    scores = {key: value for line in history for key, value in line.items() if isinstance(value, dict)}
    for key, found in tested.items():
        scores[f"{key} by reid test"] = {"mAP": found["plain"]["mAP"], "rank1": found["plain"]["rank-1"]}
    minutes = None
    if (folder / LAST).is_file():
        minutes = load_checkpoint(folder / LAST)["progress"]["seconds"] / 60
    steps = max((line["step"] for line in content), default=0)
    return Run(name, folder, settings, lines, history, scores, steps, minutes, data, environment)


def _flat(content: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        return {prefix.removesuffix("."): content}
    return {name: leaf for key, value in content.items() for name, leaf in _flat(value, f"{prefix}{key}.").items()}


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, with the value of each; None where a run does not have it."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def curves_of(runs: Sequence[Run]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Every logged quantity over steps, by run: scores first, then the terms of the loss, then the rest."""
    curves: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for run in runs:
        for line in run.history:
            for name, value in line.items():
                if isinstance(value, dict):
                    _add(curves, f"{name}: mAP", run.name, line["step"], value["mAP"])
    logged = dict.fromkeys(key for run in runs for line in run.lines for key in line)
    others = [key for key in logged if key not in (*FIRST, "step", "epoch", "lr")]
    for key in (*FIRST, *others, "lr"):
        for run in runs:
            for line in run.lines:
                if key in line:
                    _add(curves, key, run.name, line["step"], line[key])
    return curves


def _add(curves: dict[str, Any], quantity: str, run: str, step: float, value: float) -> None:
    steps, values = curves.setdefault(quantity, {}).setdefault(run, ([], []))
    steps.append(step)
    values.append(value)
