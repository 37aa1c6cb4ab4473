"""What each setting of `configs/market1501_cpu.yaml` is worth: a run without it beside one with it, at the same time.

    python -m benchmarks.recipe_ablation market1501:ROOT --minutes 5 --out runs/recipe
    python -m benchmarks.recipe_ablation market1501:ROOT --only parts,decay --jobs 3 --out runs/recipe

One core a run, `--jobs` runs at a time, one of them the base, so that all have the same wall time in the same hour.
Crops of 96×48 (but for `sizes`), from scratch, a fifth of the train identities held out and scored. Rows that already
stand in `OUT/results.jsonl` are not run again. Compare a row with the base beside it; how far the base moves is chance.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click

from benchmarks.losses_market import read
from benchmarks.measure import Benchmark

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "market1501_cpu.yaml"
BASE = (
    "model.height=96", "model.width=48", "schedule.sizes=[]", "augment.pad=4", "sampler.crops_per_id=2",
    "eval.split=validation", "eval.fraction=0.2", "eval.every=1000", "save_minutes=0",
)  # fmt: skip
VARIANTS = {
    "seed": ("the same, another seed", ("seed=1",)),
    "k4": ("K = 4", ("sampler.crops_per_id=4",)),
    "k3": ("K = 3", ("sampler.crops_per_id=3", "sampler.batch_size=63")),
    "random": ("no triplet, random batches", ("loss.triplet_weight=0", "sampler.kind=random", "loss.schedules={}")),
    "late": ("triplet from the first step", ("loss.schedules={}",)),
    "weight": ("triplet weight 2", ("loss.schedules={triplet_weight: [[0.35, 0], [0.36, 2]]}",)),
    "margin": ("margin 0.3 for the soft one", ("loss.margin=0.3",)),
    "parts": ("no stripes", ("model.num_stripes=0",)),
    "smoothing": ("no label smoothing", ("loss.label_smoothing=0",)),
    "decay": ("weight decay 5e-4", ("optim.weight_decay=5e-4",)),
    "rate": ("rate 0.05", ("optim.lr=0.05",)),
    "adamw": ("AdamW 2e-3, decay 0.1", ("optim.name=adamw", "optim.lr=2e-3", "optim.weight_decay=0.1")),
    "batch32": ("batches of 32, rate 0.07", ("sampler.batch_size=32", "optim.lr=0.07")),
    "erase": ("no erasing", ("augment.erase=0",)),
    "ema": ("moving average 0.99", ("optim.ema=0.99",)),
    "sizes": ("128×64 all the way", ("model.height=128", "model.width=64", "augment.pad=5")),
}  # fmt: skip


def start(settings: list[str], out: Path) -> subprocess.Popen[bytes]:
    """A run in a separate process on one core."""
    command = [sys.executable, str(ROOT / "tools" / "train.py"), "--config", str(CONFIG), *settings, "--out", str(out)]
    with open(out.with_suffix(".log"), "wb") as log:
        return subprocess.Popen(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=log, stderr=subprocess.STDOUT
        )


def scores(out: Path) -> dict[str, float]:
    """What the run scored at its end."""
    last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    (split,) = [value for value in last.values() if isinstance(value, dict)]
    return {"mAP": split["mAP"], "rank1": split["rank1"], "steps": last["step"]}


def table(rows: dict[str, dict]) -> str:
    lines = ["| setting | mAP / rank-1 | base beside it | difference |", "|---|---|---|---|"]
    for name, row in rows.items():
        own, base = row["own"], row["base"]
        both = (f"{100 * one['mAP']:.1f} / {100 * one['rank1']:.1f}" for one in (own, base))
        lines.append(f"| {VARIANTS[name][0]} | {' | '.join(both)} | {100 * (own['mAP'] - base['mAP']):+.1f} |")
    return "\n".join(lines)


@click.command(cls=Benchmark, help=__doc__.splitlines()[0])
@click.argument("data")
@click.option("--minutes", default=5.0, show_default=True, help="Wall time of each run.")
@click.option("--only", default=",".join(VARIANTS), help="Names, with commas.")
@click.option("--jobs", default=2, type=click.IntRange(2), show_default=True, help="Runs at a time; a core for each.")
@click.option("--device", default="cpu", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(data: str, minutes: float, only: str, jobs: int, device: str, out: Path) -> None:
    """Train without each setting next to a base run and compare their scores."""
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    names = [name for name in only.split(",") if name not in read(out)]
    shared = [f"data.train={data}", *BASE, f"schedule.minutes={minutes}", f"device={device}"]
    for at in range(0, len(names), jobs - 1):
        group = names[at : at + jobs - 1]
        base = out / f"{group[0]}-base"
        runs = {base: shared} | {out / name: [*shared, *VARIANTS[name][1]] for name in group}
        started = [start(settings, folder) for folder, settings in runs.items()]
        codes = [process.wait() for process in started]
        if any(codes):
            raise click.ClickException(f"A run beside {base} failed: see the logs in {out}.")
        with open(results, "a", encoding="utf-8") as lines:
            for name in group:
                row = {"name": name, "minutes": minutes, "base": scores(base), "own": scores(out / name)}
                lines.write(json.dumps(row) + "\n")
        click.echo(table(read(out)))


if __name__ == "__main__":
    main()
