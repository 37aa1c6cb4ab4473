"""Our BoT recipe beside BoT's own code: the same weights, the same batches, the same steps, on a CPU.

python -m benchmarks.bot_parity --bot PATH/reid-strong-baseline --market PATH/Market-1501-v15.09.15

Ours is the trainer itself with configs/market1501_bot.yaml; theirs is their network, losses, optimiser and schedule,
imported from PATH, with their configs/softmax_triplet.yml. Batches are the trainer's own (P × K real crops, flipped,
padded, cropped, erased), as uint8 arrays that both get. An "epoch" is five steps, so that the warm-up moves in between.
Their code runs a second time with its network in channels_last memory: the same arithmetic in another order of sums,
which shows how far rounding alone carries two runs apart. With --double both run in float64 (ours: the trainer's model,
objective and optimiser, as its step itself rounds to float32), where that is next to nothing.

With --embeddings FILE.npz their `eval_func` scores that file's features beside ours.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import torch
import yaml
from torch import Tensor, nn

from benchmarks.measure import Benchmark
from reid.config import ScheduleConfig, load_config
from reid.data.loader import Batch
from reid.evaluation import evaluate, evaluate_distances
from reid.training.parameter_groups import set_rate
from reid.training.schedules import learning_rate_factor
from reid.training.trainer import Trainer

CONFIG = Path(__file__).parents[2] / "configs/market1501_bot.yaml"
STEPS_AN_EPOCH = 5

Row = dict[str, float]
Weights = dict[str, Tensor]
Step = tuple[Row, Weights]
"""Losses and learning rate of a step, and the weights after it (which the next step changes)."""


def their_code(folder: Path) -> SimpleNamespace:
    """Their modules, without the packages' own imports of a data pipeline; and their settings."""
    for package in ("modeling", "layers", "solver", "data", "data.datasets"):
        module = types.ModuleType(package)
        module.__path__ = [str(folder.joinpath(*package.split(".")))]  # type: ignore[attr-defined]
        sys.modules[package] = module
    settings = yaml.safe_load((folder / "configs/softmax_triplet.yml").read_text("utf-8"))
    return SimpleNamespace(
        baseline=importlib.import_module("modeling.baseline"),
        losses=importlib.import_module("layers.triplet_loss"),
        optimizer=importlib.import_module("solver.build"),
        schedule=importlib.import_module("solver.lr_scheduler"),
        evaluation=importlib.import_module("data.datasets.eval_reid"),
        settings=SimpleNamespace(SOLVER=SimpleNamespace(**settings["SOLVER"])),
    )


def our_name(name: str) -> str:
    """The name in our model of a tensor in theirs."""
    return name.replace("base.", "backbone.", 1).replace("bottleneck.", "neck.", 1)


def run_theirs(
    code: SimpleNamespace, network: nn.Module, batches: list[Batch], images: Callable[[Tensor], Tensor]
) -> Iterator[Step]:
    """Train as their `tools/train.py` and `engine/trainer.py` do, without ignite around it."""
    solver = code.settings.SOLVER
    optimizer = code.optimizer.make_optimizer(code.settings, network)
    schedule = code.schedule.WarmupMultiStepLR(
        optimizer, solver.STEPS, solver.GAMMA, solver.WARMUP_FACTOR, solver.WARMUP_ITERS, solver.WARMUP_METHOD
    )
    triplet = code.losses.TripletLoss(0.3)  # SOLVER.MARGIN, of their defaults
    softmax = code.losses.CrossEntropyLabelSmooth(network.classifier.out_features, use_gpu=False)
    for step, batch in enumerate(batches):
        if step % STEPS_AN_EPOCH == 0:
            schedule.step()
        network.train()
        optimizer.zero_grad()
        score, feature = network(images(batch.images))
        torch.set_default_dtype(score.dtype)  # the type of their smoothed targets
        parts = triplet(feature, batch.labels)[0], softmax(score, batch.labels)
        torch.set_default_dtype(torch.float32)
        loss = parts[1] + parts[0]
        loss.backward()
        optimizer.step()
        row = {"lr": optimizer.param_groups[0]["lr"], "triplet": parts[0].item(), "softmax": parts[1].item()}
        yield row | {"sum": loss.item()}, {our_name(k): v.detach() for k, v in network.state_dict().items()}


def run_ours(trainer: Trainer, batches: list[Batch], *, double: bool = False) -> Iterator[Step]:
    """The trainer's own steps; in float64, to which its step would not keep, its parts called one by one."""
    schedule, rate, model = trainer.config.schedule, trainer.config.optim.lr, trainer.model
    trainer.network.train()
    if double:
        model.double()
    for step, batch in enumerate(batches):
        lr = rate * learning_rate_factor(schedule, step // STEPS_AN_EPOCH)
        set_rate(trainer.optimizer, lr, trainer.config.optim.momentum)
        if double:
            trainer.optimizer.zero_grad(set_to_none=True)
            features, embeddings, logits = model(normalised(batch.images).double())
            loss, terms = trainer.objective(features, logits, batch.labels, batch.camids, embeddings)
            loss.backward()
            trainer.optimizer.step()
        else:
            terms = trainer.train_step([batch])
        row = {"lr": lr} | {key: float(terms[key]) for key in ("triplet", "softmax")} | {"sum": float(terms["loss"])}
        yield row, {k: v.detach() for k, v in model.state_dict().items()}


def distance(some: Weights, other: Weights, start: Weights) -> tuple[float, float]:
    """Of two runs' trained weights: ‖a − b‖ / ‖b‖, and ‖a − b‖ over how far b has come from the start."""
    names = [k for k, v in other.items() if v.is_floating_point() and "running_" not in k]
    apart = sum(float((some[k].double() - other[k].double()).square().sum()) for k in names) ** 0.5
    size = sum(float(other[k].double().square().sum()) for k in names) ** 0.5
    moved = sum(float((other[k].double() - start[k].double()).square().sum()) for k in names) ** 0.5
    return apart / size, apart / moved


def our_trainer(market: Path, ids: int, size: tuple[int, int], *overrides: str) -> Trainer:
    """The trainer of our BoT config, on batches of `ids` × 4 crops."""
    given = [
        f"data.train=[market1501:{market}]", "data.store=files", "model.weights=none", "device=cpu",
        f"sampler.batch_size={4 * ids}", f"model.height={size[0]}", f"model.width={size[1]}",
    ]  # fmt: skip
    config = load_config(CONFIG, [*given, *overrides])
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, folder)
    trainer.loader.set_epoch(0)
    return trainer


def their_network(code: SimpleNamespace, num_classes: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network: nn.Module = code.baseline.Baseline(num_classes, 1, "", "bnneck", "after", "resnet50", "none")
    return network


def normalised(pixels: Tensor) -> Tensor:
    """As torchvision's ToTensor and Normalize: uint8 [B, H, W, 3] → float32 [B, 3, H, W]."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (pixels.permute(0, 3, 1, 2).contiguous().float().div(255) - mean) / std


def compare_steps(code: SimpleNamespace, args: SimpleNamespace) -> None:
    trainer = our_trainer(args.market, args.ids, args.size, *args.override)
    batches = list(islice(trainer.loader, args.steps))
    theirs = their_network(code, len(trainer.pid_of_label))
    start = {our_name(k): v.clone() for k, v in theirs.state_dict().items()}
    trainer.model.load_state_dict(start)
    print(f"{trainer.config.model.backbone}, {len(batches)} batches of {4 * args.ids} crops of {args.size}")
    shift = (normalised(batches[0].images) - trainer.model.preprocessing(batches[0].images)).abs().max()
    print(f"largest difference of a preprocessed pixel: {shift:.1e}")

    dtype = torch.float64 if args.double else torch.float32
    runs = {
        "theirs": run_theirs(code, theirs.to(dtype), batches, lambda pixels: normalised(pixels).to(dtype)),
        "ours": run_ours(trainer, batches, double=args.double),
    }
    if not args.double:
        again = their_network(code, len(trainer.pid_of_label)).to(memory_format=torch.channels_last)
        runs["theirs, channels_last"] = run_theirs(
            code, again, batches, lambda pixels: normalised(pixels).contiguous(memory_format=torch.channels_last)
        )
    print("Theirs, and the others' differences relative to it")
    print("| step | run | lr | triplet | softmax | sum | weights / size | weights / way |\n" + "|---" * 8 + "|")
    for step, done in enumerate(zip(*runs.values(), strict=True), start=1):
        there, weights = done[0]
        parts = [f"{there['lr']:.4e}", *(f"{there[key]:.6f}" for key in ("triplet", "softmax", "sum"))]
        print(f"| {step} | theirs | {' | '.join(parts)} | | |")
        for name, (row, own) in list(zip(runs, done, strict=True))[1:]:
            parts = [f"{abs(row[key] - there[key]) / abs(there[key]):.1e}" for key in there]
            parts += [f"{value:.1e}" for value in distance(own, weights, start)]
            print(f"| {step} | {name} | {' | '.join(parts)} |", flush=True)


def compare_schedules(code: SimpleNamespace) -> None:
    solver, settings = code.settings.SOLVER, load_config(CONFIG)
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], solver.BASE_LR)
    schedule = code.schedule.WarmupMultiStepLR(
        optimizer, solver.STEPS, solver.GAMMA, solver.WARMUP_FACTOR, solver.WARMUP_ITERS, solver.WARMUP_METHOD
    )
    worst = 0.0
    ours: ScheduleConfig = settings.schedule
    for epoch in range(solver.MAX_EPOCHS):
        schedule.step()
        there, here = optimizer.param_groups[0]["lr"], settings.optim.lr * learning_rate_factor(ours, epoch)
        worst = max(worst, abs(here - there) / there)
    print(f"learning rates of {solver.MAX_EPOCHS} epochs (ours {ours.epochs}): largest relative difference {worst:.1e}")


def compare_evaluation(code: SimpleNamespace, path: Path) -> None:
    held = np.load(path)
    query, gallery = (
        nn.functional.normalize(torch.from_numpy(held[f"{part}_features"].astype(np.float32)))
        for part in ("query", "gallery")
    )
    labels = [held[f"{part}_{kind}"].astype(np.int64) for kind in ("pids", "camids") for part in ("query", "gallery")]
    distances = query.square().sum(1)[:, None] + gallery.square().sum(1)[None] - 2 * query @ gallery.T
    cmc, mean = code.evaluation.eval_func(distances.numpy(), *labels)
    found = evaluate(query.numpy(), gallery.numpy(), *labels)
    same = evaluate_distances(distances.numpy(), *labels)
    print(f"{path.name}, {len(query)} queries, {len(gallery)} gallery crops")
    ranks = [(f"rank-{k}", cmc[k - 1], same.rank(k), found.rank(k)) for k in (1, 5, 10)]
    for name, there, on_theirs, here in [("mAP", mean, same.mAP, found.mAP), *ranks]:
        print(
            f"  {name}: theirs {100 * there:.6f}, ours on their distances {100 * on_theirs:.6f}, ours {100 * here:.6f}"
        )


@click.command(cls=Benchmark)
@click.option(
    "--bot", required=True, type=click.Path(exists=True, path_type=Path), help="Source of reid-strong-baseline."
)
@click.option("--market", type=click.Path(exists=True, path_type=Path), help="Folder of Market-1501: compare steps.")
@click.option("--embeddings", type=click.Path(exists=True, path_type=Path), help="NPZ file: compare the evaluation.")
@click.option("--steps", default=20, show_default=True, type=click.IntRange(1))
@click.option("--ids", default=8, show_default=True, type=click.IntRange(1), help="Identities per batch, 4 crops each.")
@click.option("--size", type=(int, int), default=(128, 64), show_default=True, help="Height and width in pixels.")
@click.option("--double", is_flag=True, help="Run both in float64.")
@click.argument("override", nargs=-1, metavar="[KEY=VALUE...]")
def main(**options: Any) -> None:
    """Compare this project's BoT recipe with the authors' code, step by step on a CPU."""
    args = SimpleNamespace(**options)
    warnings.filterwarnings("ignore", message="(?s)Detected call of|.*This overload of addmm_")  # their older torch
    code = their_code(args.bot)
    compare_schedules(code)
    if args.market:
        compare_steps(code, args)
    if args.embeddings:
        compare_evaluation(code, args.embeddings)


if __name__ == "__main__":
    main()
