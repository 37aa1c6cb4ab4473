"""The training loop: material in, checkpoints and a log out; may be stopped at any step and continued."""

from __future__ import annotations

import json
import math
import platform
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reid.config import Config, as_dict, from_dict, save_config
from reid.console import console, progress_bar, warn
from reid.data.augment import Augment
from reid.data.loader import Batch, TrainLoader
from reid.data.samplers import IdentitySampler, RandomSampler, ids_per_batch
from reid.errors import ReidError
from reid.losses import CollapseWatch, Objective
from reid.losses.objective import in_use
from reid.models import ReIDModel, build_model
from reid.training.checkpoints import load_checkpoint, restore, save_checkpoint
from reid.training.distributed import Ranks
from reid.training.gradient_cache import Outputs, backward_in_chunks, seeded
from reid.training.inference import autocast, score
from reid.training.material import Material, gather_material
from reid.training.schedules import learning_rate_factor
from reid.wholefile import write_json, write_text

LAST, BEST, LOG = "last.pt", "best.pt", "log.jsonl"


class Interrupted(ReidError):
    """The run was asked to stop and left a checkpoint; `signal` says by what."""

    def __init__(self, signal_number: int, checkpoint: Path) -> None:
        name = signal.Signals(signal_number).name
        super().__init__(f"Stopped by {name}; to go on: reid train --resume {checkpoint.parent}")
        self.signal = signal_number


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint, so that a resumed run goes on as if never stopped."""

    epoch: int = 0
    batch: int = 0
    """Batches of `epoch` that are done."""
    step: int = 0
    best: float = -1.0
    seconds: float = 0.0
    """Wall time spent training and scoring, over all sittings."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of each logged term, over the epoch so far."""
    pending: list[dict[str, float]] = field(default_factory=list)
    """Terms of the steps since the last log line."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry an evaluation."""


def train(config: Config, out: str | Path, ranks: Ranks, *, resume: bool = False) -> Progress:
    """Train as `config` says and leave a complete run folder in `out`.

    The folder holds `config.yaml` (every setting), `environment.json`, `data.json` (the fingerprint of what was
    trained on), `log.jsonl`, `tensorboard/`, `last.pt` (continues the run) and `best.pt` (best mean mAP over the
    scored splits; absent with `eval.split=none`).

    Args:
        config: the settings; with `resume`, those saved in `out` are used instead.
        out: the run folder; must be new or empty unless `resume`.
        ranks: this process among those training; batches are of `sampler.batch_size` crops over all together.
        resume: go on from `out/last.pt`.

    Raises:
        ReidError: anything wrong with settings, data or folder; a loss that is not finite.
        Interrupted: SIGINT or SIGTERM came; `last.pt` stands at the last finished step.
    """
    out = Path(out)
    checkpoint = None
    if resume:
        checkpoint = load_checkpoint(out / LAST)
        config = from_dict(checkpoint["config"])
    elif ranks.is_first and out.exists() and any(out.iterdir()):
        raise ReidError(f"{out} is not empty: continue that run with --resume {out}, or name another --out.")
    trainer = _Trainer(config, out, ranks, gather_material(config))
    if checkpoint is not None:
        trainer.load(checkpoint)
    elif ranks.is_first:
        trainer.describe()
    return trainer.run()


class _Trainer:
    def __init__(self, config: Config, out: Path, ranks: Ranks, material: Material) -> None:
        self.config, self.out, self.ranks, self.material = config, out, ranks, material
        self.fingerprint = material.fingerprint()
        self.progress = Progress()
        crops = material.train.crops
        labels, self.pid_of_label = crops.labels()
        self.model = _make_model(config, len(self.pid_of_label)).to(ranks.device)
        self.objective = _make_objective(config, self.model, len(self.pid_of_label)).to(ranks.device)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.network: nn.Module = self.model
        if ranks.world_size > 1:
            if config.sync_batchnorm:
                if ranks.device.type != "cuda":
                    raise ReidError("sync_batchnorm=true needs GPUs: torch has no such layer for the CPU.")
                self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
            devices = [ranks.device] if ranks.device.type == "cuda" else None
            self.network = DistributedDataParallel(self.model, device_ids=devices)
        self.optimizer = _make_optimizer(config, self.model, self.objective)
        own = [{"params": moving, "lr": rate} for rate, _, moving in self.objective.own_rates()]
        self.loss_optimizer = torch.optim.SGD(own, lr=0.0) if own else None
        self.scaler = torch.amp.GradScaler(
            ranks.device.type, enabled=config.precision == "fp16" and ranks.device.type == "cuda"
        )
        self.loader = self._make_loader(labels)
        self.watch = CollapseWatch(config.loss.margin)
        self.recent: list[dict[str, Tensor]] = []

    def _make_loader(self, labels: np.ndarray) -> TrainLoader:
        config, ranks, crops = self.config, self.ranks, self.material.train.crops
        if config.sampler.batch_size % ranks.world_size:
            raise ReidError(
                f"sampler.batch_size={config.sampler.batch_size} cannot be shared by {ranks.world_size} processes: "
                f"make it a multiple of {ranks.world_size}."
            )
        own = config.sampler.batch_size // ranks.world_size
        sampler: IdentitySampler | RandomSampler
        if config.sampler.kind == "identity":
            k = config.sampler.crops_per_id
            sampler = IdentitySampler(
                crops.pids, crops.camids, ids_per_batch(own, k), k, config.seed, ranks.rank, ranks.world_size
            )
        else:
            sampler = RandomSampler(len(crops), own, config.seed, ranks.rank, ranks.world_size)
        look = config.augment
        red, green, blue = (round(255 * value) for value in self.model.preprocessing.mean)
        augment = Augment(
            self.model.preprocessing.size,
            flip=look.flip,
            pad=look.pad,
            erase=look.erase,
            erase_area=(look.erase_area[0], look.erase_area[1]),
            erase_ratio=look.erase_ratio,
            fill=(red, green, blue),
            brightness=look.brightness,
            contrast=look.contrast,
            saturation=look.saturation,
        )
        store = self.material.train.store
        return TrainLoader(store, labels, crops, sampler, augment, seed=config.seed, rank=ranks.rank)

    def describe(self) -> None:
        """Start the run folder, and print what is about to happen."""
        config, counts, crops = self.config, self.model.count(), self.material.train.crops
        save_config(config, self.out / "config.yaml")
        write_json(self.out / "environment.json", environment(self.ranks))
        write_json(self.out / "data.json", self.fingerprint)
        write_text(self.out / LOG, "")
        size = self.model.preprocessing.size
        minutes, epochs = config.schedule.minutes, config.schedule.epochs
        length = f"{minutes:g} minutes of epochs" if minutes else f"{epochs} epochs"
        console.print(
            f"{config.model.backbone} at {size[0]}×{size[1]}: {counts.parameters / 1e6:.2f} M parameters, "
            f"{counts.flops / 1e9:.2f} G multiply-adds a crop\n"
            f"{len(crops):,} crops of {len(self.pid_of_label):,} identities, {length} of "
            f"{len(self.loader)} steps of {config.sampler.batch_size}, on {self.ranks.world_size} × "
            f"{self.ranks.device} in {config.precision}\n"
            f"scored on: {', '.join(split.name for split in self.material.splits) or 'nothing'}\n"
            f"run folder: {self.out}"
        )
        if config.eval.split == "test":
            warn(
                "eval.split=test: the best checkpoint is chosen on the test split, which makes its score there "
                "optimistic. Quote the last epoch, or use eval.split=validation."
            )
        if config.sampler.kind == "random" and self.objective.uses_triplet:
            warn(
                "sampler.kind=random with a triplet term: most crops meet no other of their identity in a batch. "
                "Use sampler.kind=identity, or loss.triplet_weight=0."
            )

    def run(self) -> Progress:
        self.began = time.monotonic() - self.progress.seconds
        epochs, steps = self.config.schedule.epochs, len(self.loader)
        with _listen() as asked, progress_bar() as bar, self._tensorboard() as board:
            task = bar.add_task("training", total=epochs * steps, completed=self.progress.step)
            share = self._share()
            while share < 1:
                state = self.progress
                epoch_began = time.monotonic()
                first = state.batch
                self.loader.set_epoch(state.epoch)
                self.loader.start_at(first)
                self.network.train()
                for batch in self.loader:
                    self.objective.set_progress(share)
                    factor = self._factor(share, steps)
                    terms = self._step(batch, factor)
                    state.batch += 1
                    state.step += 1
                    self.recent.append(terms)
                    share = self._share()
                    bar.update(task, completed=share * epochs * steps)
                    at_log = state.step % self.config.log_every == 0 or state.batch == steps or share >= 1
                    if at_log:
                        self._log(factor, board)
                    may_stop = at_log or self.ranks.world_size == 1  # ranks must agree, which is no work for each step
                    if may_stop and self.ranks.any(bool(asked)):
                        state.seconds = time.monotonic() - self.began
                        self._save_last()
                        raise Interrupted(asked[0] if asked else signal.SIGTERM, self.out / LAST)
                    if share >= 1:
                        break
                rate = (state.batch - first) * self.config.sampler.batch_size / (time.monotonic() - epoch_began)
                self._end_epoch(rate, board, last=share >= 1)
                state.seconds = time.monotonic() - self.began
                self._save_last()
        return self.progress

    def _step(self, batch: Batch, factor: float) -> dict[str, Tensor]:
        """One update; nothing here waits for the device. Returns the terms to log, still on it."""
        device, config, state = self.ranks.device, self.config, self.progress
        for group in self.optimizer.param_groups:
            group["lr"] = config.optim.lr * factor
        gather = self.ranks.gather_with_gradient
        labels = gather(batch.labels.to(device, non_blocking=True))
        camids = gather(batch.camids.to(device, non_blocking=True))
        images = batch.images.to(device, non_blocking=True)
        terms: dict[str, Tensor] = {}

        def forward(network: nn.Module, some: Tensor) -> Outputs:
            images = self.model.preprocess(some)
            with autocast(device, config.precision):
                output = network(images)
            after = output.embeddings if self.objective.uses_embeddings else None
            return [None if part is None else part.float() for part in (output.features, after, output.logits)]

        def loss_of(outputs: Outputs) -> Tensor:
            features, embeddings, logits = (None if part is None else gather(part) for part in outputs)
            loss, seen = self.objective(features, logits, labels, camids, embeddings)
            terms.update(seen)
            return self.scaler.scale(loss)

        self.optimizer.zero_grad(set_to_none=True)
        self.objective.zero_grad(set_to_none=True)
        seed = (config.seed, state.step, self.ranks.rank)
        if config.loss.chunk:
            backward_in_chunks(self.network, images, forward, loss_of, config.loss.chunk, seed)
        else:
            with seeded(device, *seed):
                outputs = forward(self.network, images)
            loss_of(outputs).backward()
        self._step_losses()
        if config.optim.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return terms

    def _share(self) -> float:
        """The share of training done, 0..1: of its epochs, or of its time where `schedule.minutes` limits that."""
        schedule, state = self.config.schedule, self.progress
        if not schedule.minutes:
            return (state.epoch + state.batch / len(self.loader)) / schedule.epochs
        return self.ranks.first(min(1.0, (time.monotonic() - self.began) / (60 * schedule.minutes)))

    def _factor(self, share: float, steps: int) -> float:
        """The learning rate's factor now; by the clock, `share` of all epochs is where the schedule stands."""
        schedule, state = self.config.schedule, self.progress
        if not schedule.minutes:
            return learning_rate_factor(schedule, state.epoch, state.batch, steps)
        fine = 1_000_000
        epoch, step = divmod(int(share * schedule.epochs * fine), fine)
        return learning_rate_factor(schedule, epoch, step, fine)

    def _step_losses(self) -> None:
        """Average the gradients of the losses' own weights over the ranks, and move those with their own rate."""
        for parameter in self.objective.parameters():
            if parameter.grad is not None:
                self.ranks.average(parameter.grad)
        if self.loss_optimizer is None:
            return
        for _, weight, moving in self.objective.own_rates():
            for parameter in moving:
                if parameter.grad is not None:
                    parameter.grad.mul_(1 / weight if weight else 0.0)
        self.scaler.step(self.loss_optimizer)

    def _flush(self) -> None:
        """Bring the terms of the steps since the last call to the host, in one copy.

        Raises:
            ReidError: a loss that is not finite.
        """
        if not self.recent:
            return
        names = list(self.recent[0])
        rows = torch.stack([torch.stack([terms[name].float() for name in names]) for terms in self.recent]).tolist()
        self.recent.clear()
        state = self.progress
        for number, row in enumerate(rows, start=state.step - len(rows) + 1):
            terms = dict(zip(names, row, strict=True))
            if not math.isfinite(terms["loss"]):
                raise ReidError(
                    f"The loss of step {number} (epoch {state.epoch + 1}) is {terms['loss']}. The last good checkpoint "
                    f"is {self.out / LAST}, if an epoch was finished. Lower optim.lr, lengthen schedule.warmup_epochs, "
                    "set optim.clip_norm, or use precision=fp32."
                )
            state.pending.append(terms)
            for name, value in terms.items():
                state.sums[name] = state.sums.get(name, 0.0) + value

    def _log(self, factor: float, board: Any) -> None:
        self._flush()
        state = self.progress
        means = {name: sum(terms[name] for terms in state.pending) / len(state.pending) for name in state.pending[0]}
        state.pending.clear()
        self._line({"step": state.step, "epoch": state.epoch + 1, "lr": self.config.optim.lr * factor, **means})
        if board is not None:
            for name, value in means.items():
                board.add_scalar(f"train/{name}", value, state.step)
            board.add_scalar("train/lr", self.config.optim.lr * factor, state.step)
        if self.objective.uses_triplet:
            self.watch.margin = means.get("margin", self.config.loss.margin)
            words = self.watch.observe(means["triplet"], means["positive"], means["negative"])
            if words and self.ranks.is_first:
                warn(words)

    def _end_epoch(self, rate: float, board: Any, *, last: bool) -> None:
        state, config = self.progress, self.config
        means = {name: value / state.batch for name, value in state.sums.items()}
        state.epoch, state.batch, state.sums = state.epoch + 1, 0, {}
        if self.ranks.is_first:
            shown = {
                name: f"{value:.1%}" if name in ("accuracy", "active") else f"{value:.3f}"
                for name, value in means.items()
            }
            of = "" if config.schedule.minutes else f"/{config.schedule.epochs}"
            console.print(
                f"epoch {state.epoch}{of}  {rate:,.0f} crops/s  "
                + "  ".join(f"{name} {value}" for name, value in shown.items())
            )
        if not self.material.splits or (state.epoch % config.eval.every and not last):
            return
        entry: dict[str, Any] = {"epoch": state.epoch, "step": state.step}
        total = 0.0
        for split in self.material.splits:
            result = score(
                self.model,
                split,
                self.ranks,
                batch_size=config.eval.batch_size,
                flip=config.eval.flip,
                precision=config.precision,
            )
            total += result.mAP
            entry[split.name] = {"mAP": float(result.mAP), "mINP": float(result.mINP), "rank1": float(result.rank(1))}
            if self.ranks.is_first:
                console.print(f"  {split.name}: mAP {result.mAP:.2%}  rank-1 {result.rank(1):.2%}")
            if board is not None:
                board.add_scalar(f"{split.name}/mAP", result.mAP, state.step)
                board.add_scalar(f"{split.name}/rank1", result.rank(1), state.step)
        state.history.append(entry)
        self._line(entry)
        mean = total / len(self.material.splits)
        if mean > state.best:
            state.best = mean
            if self.ranks.is_first:
                save_checkpoint(self.out / BEST, self.model, config=as_dict(config), scores=entry)

    def _line(self, content: dict[str, Any]) -> None:
        if self.ranks.is_first:
            with open(self.out / LOG, "a", encoding="utf-8") as log:
                log.write(json.dumps(content) + "\n")

    def _save_last(self) -> None:
        self._flush()
        if self.ranks.is_first:
            save_checkpoint(
                self.out / LAST,
                self.model,
                config=as_dict(self.config),
                optimizer=self.optimizer.state_dict(),
                scaler=self.scaler.state_dict(),
                objective=self.objective.state_dict(),
                watch=self.watch.state(),
                progress=vars(self.progress).copy(),
                pids=self.pid_of_label.tolist(),
                data=self.fingerprint,
            )

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take up a run where its checkpoint stands.

        Raises:
            ReidError: the data are not those that the run was started on.
        """
        now, then = self.fingerprint, checkpoint["data"]
        changed = [name for name in now if now[name] != then.get(name)]
        if changed:
            name = changed[0]
            raise ReidError(
                f"{self.out} was started on other data: {name} was {then.get(name)}, and is now {now[name]}. "
                "Restore the data set, or start a new run with model.weights="
                f"{self.out / LAST}."
            )
        restore(self.model, checkpoint, self.out / LAST)
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        self.objective.load_state_dict(checkpoint.get("objective", {}))
        if "watch" in checkpoint:  # a checkpoint of the first release has none
            self.watch.load(checkpoint["watch"])
        self.progress = Progress(**checkpoint["progress"])
        if self.ranks.is_first:
            path = self.out / LOG
            lines = path.read_text("utf-8").splitlines() if path.exists() else []
            kept = [line for line in lines if _logged_step(line) <= self.progress.step]
            write_text(path, "".join(f"{line}\n" for line in kept))
            console.print(f"continuing {self.out} at epoch {self.progress.epoch + 1}, step {self.progress.step + 1}")

    @contextmanager
    def _tensorboard(self) -> Iterator[Any]:
        if not self.ranks.is_first:
            yield None
            return
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(self.out / "tensorboard", purge_step=self.progress.step + 1) as board:
            yield board


def _logged_step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _make_model(config: Config, num_classes: int) -> ReIDModel:
    settings, loss = config.model, config.loss
    softmax = in_use("softmax_weight", loss.softmax_weight, loss.schedules)
    return build_model(
        settings.backbone,
        num_classes=num_classes if softmax else 0,
        pooling=settings.pooling,
        neck=settings.neck,
        embedding_dim=settings.embedding_dim,
        weights=settings.weights,
        last_stride=settings.last_stride,
        size=(settings.height, settings.width),
        seed=config.seed,
    )


def _make_objective(config: Config, model: ReIDModel, num_classes: int) -> Objective:
    settings = config.loss
    objective = Objective(
        settings.triplet_weight,
        settings.softmax_weight,
        settings.label_smoothing,
        settings.margin,
        settings.mining,
        settings.distance,
        settings.reduction,
        settings.camera_aware,
        settings.hardness,
        settings.extra,
        settings.schedules,
        dim=model.embedding_size,
        num_classes=num_classes,
        seed=config.seed,
    )
    if not (objective.uses_softmax or objective.uses_embeddings):
        model.neck.requires_grad_(False)  # nothing behind it is learned from, and DDP waits for every gradient
    return objective


def _make_optimizer(config: Config, model: nn.Module, objective: Objective) -> torch.optim.Optimizer:
    settings = config.optim
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    moving += objective.common_parameters()
    groups: list[dict[str, Any]] = [{"params": moving}]
    if not settings.decay_norms:
        groups = [
            {"params": [parameter for parameter in moving if parameter.ndim > 1]},
            {"params": [parameter for parameter in moving if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(groups, settings.lr, weight_decay=settings.weight_decay, foreach=True)


@contextmanager
def _listen() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying; a second SIGINT interrupts at once."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)
        console.print(f"{signal.Signals(number).name}: stopping after this step, with a checkpoint")

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are its business
        yield asked
        return
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environment(ranks: Ranks) -> dict[str, Any]:
    """What a run ran on: versions, hardware, command."""
    device = ranks.device
    return {
        "reid": version("reid"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "processes": ranks.world_size,
        "command": shlex.join(sys.argv),
    }
