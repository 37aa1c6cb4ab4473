"""What each loss is worth: variants of one recipe trained from scratch for the same wall time, then scored.

    python -m benchmarks.losses_market ROOT --minutes 20 --out runs/losses
    python -m benchmarks.losses_market ROOT --minutes 3 --device cuda --jobs 4 --threads 3 --out runs/losses
    python -m benchmarks.losses_market ROOT --only soft,circle --out runs/losses
    python -m benchmarks.losses_market --table --out runs/losses

ROOT is Market-1501. All variants share `RECIPE`: light14 at 128×64 from scratch, batches of 16×4, softmax beside the
metric loss, no schedule but the learning rate's. Variants that already stand in `OUT/results.jsonl` are not run again,
so a call that was cut off goes on. With `--jobs N`, N runs share the machine, and the time of each is less worth:
compare rows of one call only.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.measure import Benchmark

RECIPE = (
    "augment.pad=5", "augment.erase=0.3", "model.backbone=light14", "model.height=128", "model.width=64",
    "loss.margin=null", "optim.name=sgd", "optim.lr=0.05", "optim.weight_decay=1e-3", "schedule.epochs=22",
    "schedule.kind=cosine", "schedule.warmup_epochs=2", "schedule.per=step", "eval.split=none",
)  # fmt: skip
NO_TRIPLET = "loss.triplet_weight=0"
HARD = "loss.margin=0.3"
COSINE = {"distance": "cosine", "margin": 0.5, "power": 1}


@dataclass(frozen=True)
class Variant:
    description: str
    settings: tuple[str, ...] = ()


def instead(name: str, **options: object) -> tuple[str, ...]:
    """Another loss in the triplet's place."""
    return (NO_TRIPLET, *beside(name, **options))


def beside(name: str, **options: object) -> tuple[str, ...]:
    return (f"loss.extra={json.dumps({name: {'weight': 1.0} | options})}",)


VARIANTS = {
    "soft": Variant("batch-hard, soft margin, + softmax (default of the recipe)"),
    "seed1": Variant("the same, seed 1", ("seed=1",)),
    "seed2": Variant("the same, seed 2", ("seed=2",)),
    "softmax": Variant("softmax only", (NO_TRIPLET, "sampler.kind=random")),
    "hard": Variant("batch-hard, margin 0.3", (HARD,)),
    "margin1": Variant("batch-hard, margin 1.0", ("loss.margin=1.0",)),
    "cosine": Variant("batch-hard, cosine distance, margin 0.3", (HARD, "loss.distance=cosine")),
    "squared": Variant(
        "batch-hard, squared Euclidean, soft margin, weight 0.05",
        ("loss.distance=squared_euclidean", "loss.triplet_weight=0.05"),
    ),
    "manhattan": Variant(
        "batch-hard, Manhattan, soft margin, weight 0.05", ("loss.distance=manhattan", "loss.triplet_weight=0.05")
    ),
    "all": Variant("batch-all, margin 0.3, mean over active", (HARD, "loss.mining=batch_all")),
    "semi": Variant("semi-hard, margin 0.3", (HARD, "loss.mining=semi_hard")),
    "easy": Variant("easy positive, soft margin", ("loss.mining=easy_positive",)),
    "weighted": Variant("weighted (AGW), soft margin", ("loss.mining=weighted",)),
    "distance": Variant("distance-weighted, margin 0.3", (HARD, "loss.mining=distance_weighted")),
    "random": Variant("random triplets, soft margin", ("loss.mining=random",)),
    "camera": Variant("batch-hard, camera-aware, soft margin", ("loss.camera_aware=true",)),
    "curriculum": Variant(
        "curriculum: random to batch-hard over the first half, soft margin",
        ("loss.schedules={hardness: [[0, 0], [0.5, 1]]}",),
    ),
    "curriculum_margin": Variant(
        "curriculum: the same with margin 0 to 0.3",
        (HARD, "loss.schedules={hardness: [[0, 0], [0.5, 1]], margin: [[0, 0], [0.5, 0.3]]}"),
    ),
    "anti": Variant(
        "anti-curriculum: batch-hard to random over the second half",
        ("loss.schedules={hardness: [[0.5, 1], [1, 0]]}",),
    ),
    "hard_alone": Variant("batch-hard, margin 0.3, no softmax", (HARD, "loss.softmax_weight=0")),
    "curriculum_alone": Variant(
        "curriculum, margin 0.3, no softmax",
        (HARD, "loss.softmax_weight=0", "loss.schedules={hardness: [[0, 0], [0.5, 1]]}"),
    ),
    "hard_identity": Variant("batch-hard, batches of look-alikes (4 × 4)", ("sampler.kind=hard_identity",)),
    "lookalikes15": Variant(
        "batch-hard, batches of look-alikes (1 × 16)", ("sampler.kind=hard_identity", "sampler.lookalikes=15")
    ),
    "batch256": Variant("batch-hard, batch 64×4, rate 0.1", ("sampler.batch_size=256", "optim.lr=0.1")),
    "batch1800": Variant(
        "batch-hard, batch 450×4 in chunks of 225, rate 0.2",
        ("sampler.batch_size=1800", "loss.chunk=225", "optim.lr=0.2"),
    ),
    "center": Variant("+ center loss 5e-4", beside("center", weight=5e-4)),
    "quadruplet": Variant("quadruplet, margin 0.3, in the triplet's place", instead("quadruplet")),
    "contrastive": Variant("contrastive, cosine, margin 0.5, in the triplet's place", instead("contrastive", **COSINE)),
    "xbm": Variant(
        "the same with a memory of 2,048 (XBM)",
        instead("contrastive", **COSINE, memory=2048, warmup=500),
    ),
    "circle": Variant("circle, γ 64, weight 0.1, in the triplet's place", instead("circle", weight=0.1, gamma=64)),
    "supcon": Variant("supervised contrastive, τ 0.1, in the triplet's place", instead("supcon")),
    "multi_similarity": Variant("multi-similarity (pml), in the triplet's place", instead("multi_similarity")),
    "proxy_anchor": Variant("proxy-anchor (pml), in the triplet's place", instead("proxy_anchor")),
    "arcface": Variant(
        "ArcFace, s 30, m 0.3, in the place of softmax and triplet",
        ("loss.softmax_weight=0", *instead("arcface")),
    ),
    "arcface_triplet": Variant(
        "ArcFace, s 30, m 0.3, in the place of softmax", ("loss.softmax_weight=0", *beside("arcface"))
    ),
}


def settings_of(root: str, name: str, minutes: float, device: str, out: Path, more: tuple[str, ...]) -> list[str]:
    return [
        *RECIPE,
        f"data.train=market1501:{root}",
        f"data.store_dir={out / 'store'}",
        f"schedule.minutes={minutes}",
        f"device={device}",
        *VARIANTS[name].settings,
        *more,
    ]


def run_one(settings: list[str], name: str, out: Path, threads: int) -> None:
    """Train and score one variant, and print its line of JSON as the last line."""
    import torch

    from reid.config import load_config
    from reid.core.distributed import init_distributed
    from reid.data.layouts import load_benchmarks
    from reid.data.pixels import open_test_split
    from reid.models.checkpoints import load_checkpoint, load_model
    from reid.training.trainer import LAST, train
    from reid.training.validation import score

    torch.set_num_threads(threads)
    config = load_config(None, settings)
    with init_distributed(config.device) as ranks:
        progress = train(config, out / name, ranks)
        (benchmark,) = load_benchmarks(config.data.train)
        split = open_test_split(config.data, benchmark, (config.model.height, config.model.width), [])
        model = load_model(out / name / LAST, ranks.device)
        scoring = config.model_copy(
            update={"precision": "fp32", "eval": config.eval.model_copy(update={"batch_size": 512, "flip": False})}
        )
        result = score(model, split, ranks, scoring)
    checkpoint = load_checkpoint(out / name / LAST)
    lines = [json.loads(line) for line in (out / name / "log.jsonl").read_text().splitlines()]
    row = {
        "name": name,
        "settings": list(VARIANTS[name].settings),
        "minutes": round(progress.seconds / 60, 2),
        "steps": progress.step,
        "epochs": round(progress.step * config.sampler.batch_size / len(benchmark.train), 1),
        "mAP": float(result.mAP),
        "mINP": float(result.mINP),
        "rank1": float(result.rank(1)),
        "collapsed": bool(checkpoint["log"]["watch"]["warned"]),
        "device": config.device,
        "torch": torch.__version__,
        "last": {key: value for key, value in lines[-1].items() if isinstance(value, float)},
    }
    print(json.dumps(row), flush=True)


def pack(settings: list[str]) -> None:
    """Make the stores once, before runs that share them start together."""
    from reid.config import load_config
    from reid.data.layouts import load_benchmarks
    from reid.data.pixels import load_training_data, open_test_split

    config = load_config(None, settings)
    load_training_data(config)
    (benchmark,) = load_benchmarks(config.data.train)
    open_test_split(config.data, benchmark, (config.model.height, config.model.width), [])


def read(out: Path) -> dict[str, dict]:
    path = out / "results.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["name"]: row for row in rows}


def table(rows: dict[str, dict]) -> str:
    seeds = [rows[name]["mAP"] for name in ("soft", "seed1", "seed2") if name in rows]
    lines = ["| variant | epochs | mAP | rank-1 | settings over the recipe |", "|---|---|---|---|---|"]
    for name, variant in VARIANTS.items():
        if name in rows:
            row = rows[name]
            settings = " ".join(f"`{setting}`" for setting in row["settings"]) or "–"
            note = " (collapsed)" if row["collapsed"] else ""
            lines.append(
                f"| {variant.description}{note} | {row['epochs']:.0f} | {100 * row['mAP']:.2f} | "
                f"{100 * row['rank1']:.2f} | {settings} |"
            )
    if len(seeds) > 1:
        lines.append(f"\nmAP of the recipe over {len(seeds)} seeds: {100 * min(seeds):.2f} to {100 * max(seeds):.2f}.")
    return "\n".join(lines)


@click.command(cls=Benchmark)
@click.argument("root", required=False)
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--minutes", default=20.0, help="Wall time of each run.")
@click.option("--device", default="cpu")
@click.option("--jobs", default=1, help="Runs at once.")
@click.option("--threads", default=2, help="Threads of each run.")
@click.option("--only", default="", help=f"Comma-separated names: {', '.join(VARIANTS)}.")
@click.option("--set", "more", multiple=True, metavar="key.sub=value", help="Over every variant's settings.")
@click.option("--stop-after", default=0.0, help="Start no run that would not end within so many minutes; 0: all.")
@click.option("--table", "table_only", is_flag=True, help="Print the table of what is there, and stop.")
@click.option("--one", hidden=True)
def main(root, out, minutes, device, jobs, threads, only, more, stop_after, table_only, one):
    """Train and score the variants; lines of JSON in OUT/results.jsonl, a Markdown table at the end."""
    if one:
        run_one(settings_of(root, one, minutes, device, out, more), one, out, threads)
        return
    if not table_only:
        names = only.split(",") if only else list(VARIANTS)
        unknown = [name for name in names if name not in VARIANTS]
        if unknown or not root:
            raise click.UsageError(f"Unknown variants {unknown}." if unknown else "Name the folder of Market-1501.")
        out.mkdir(parents=True, exist_ok=True)
        run_all([name for name in names if name not in read(out)], root, out, minutes, device, jobs, threads, more,
                stop_after)  # fmt: skip
    print(table(read(out)))


def run_all(names, root, out, minutes, device, jobs, threads, more, stop_after):
    began = time.monotonic()
    if names:
        pack(settings_of(root, "soft", minutes, device, out, more))
    waiting: queue.Queue[str] = queue.Queue()
    for name in names:
        waiting.put(name)
    lock = threading.Lock()

    def work():
        while True:
            if stop_after and (time.monotonic() - began) / 60 + minutes > stop_after:
                return
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            folder = out / name
            if folder.exists():  # cut off
                folder.rename(out / f"{name}-cut-{time.time_ns()}")
            command = [
                sys.executable, "-m", "benchmarks.losses_market", root, "--out", str(out), "--minutes",
                str(minutes), "--device", device, "--threads", str(threads), "--one", name,
                *(part for setting in more for part in ("--set", setting)),
            ]  # fmt: skip
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=Path(__file__).parents[1], env=environment, check=False
            )
            (out / f"{name}.txt").write_text(done.stdout + done.stderr)
            last = (done.stdout.splitlines() or [""])[-1]
            with lock:
                if done.returncode or not last.startswith("{"):
                    print(f"{name} failed with {done.returncode}: {done.stderr[-800:]}", flush=True)
                    continue
                with open(out / "results.jsonl", "a") as results:
                    results.write(last + "\n")
                print(last, flush=True)

    workers = [threading.Thread(target=work) for _ in range(jobs)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
