"""The training loop: material in, checkpoints and a log out; may be stopped at any step and continued."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reid.config import Config, load_config, save_settings
from reid.core.atomic import write_json, write_text
from reid.core.console import console, progress_bar, warn
from reid.core.distributed import DistributedContext
from reid.core.errors import ReidError
from reid.data.loader import Batch
from reid.data.pixels import TrainingData, load_training_data
from reid.data.samplers import HardIdentitySampler
from reid.losses import CollapseWatch, Objective
from reid.models import ReIDModel, build_model
from reid.models.checkpoints import load_checkpoint, restore, save_checkpoint
from reid.training.ema import Average
from reid.training.environment import environment, keep_memory
from reid.training.epoch_loaders import Loaders
from reid.training.gradient_cache import Outputs, backward_in_chunks, seeded, without_exchange
from reid.training.hard_identity_mining import mine_identities
from reid.training.meter import Meter
from reid.training.parameter_groups import Freezer, make_optimizer, set_rate
from reid.training.schedules import learning_rate_factor, momentum_at
from reid.training.signals import Interrupted, listen
from reid.training.sync_batchnorm import share_statistics
from reid.training.validation import autocast, score

__all__ = ["BEST", "LAST", "LOG", "SETTINGS", "Interrupted", "Progress", "train"]

LAST, BEST, LOG, SETTINGS, DATA = "last.pt", "best.pt", "log.jsonl", "config.yaml", "data.json"


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint, so that a resumed run goes on as if never stopped."""

    epoch: int = 0
    batch: int = 0
    """Steps of `epoch` that are done."""
    step: int = 0
    share: float = 0.0
    """Of the run that was done when `epoch` began."""
    skipped: int = 0
    """Steps left out because something in them was not finite."""
    best: float = -1.0
    seconds: float = 0.0
    """Wall time spent training and scoring, over all sittings."""
    sums: dict[str, float] = field(default_factory=dict)
    """Of each logged term, over the epoch so far."""
    summed: int = 0
    """Steps in `sums`."""
    pending: list[dict[str, float]] = field(default_factory=list)
    """Terms of the steps since the last log line."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry an evaluation."""


def train(
    config: Config,
    out: str | Path,
    ranks: DistributedContext,
    *,
    resume: bool = False,
    repeats: str | Path | None = None,
) -> Progress:
    """Train as `config` says and leave a complete run folder in `out`.

    The folder holds `config.yaml` (every setting), `environment.json`, `data.json` (the fingerprint of what was
    trained on), `log.jsonl`, `tensorboard/`, `last.pt` (continues the run) and `best.pt` (best mean mAP over the
    scored splits; absent with `eval.split=none`).

    Args:
        config: the settings; with `resume`, those saved in `out` are used instead.
        out: the run folder; must be new or empty unless `resume`.
        ranks: this process among those training; batches are of `sampler.batch_size` crops over all together.
        resume: go on from `out/last.pt`, or from the start where the run ended before there was one.
        repeats: the folder of a run that this one repeats; a warning says so where the data are not the same.

    Raises:
        ReidError: anything wrong with settings, data or folder; a loss that is not finite or above `loss_limit`.
        Interrupted: SIGINT or SIGTERM came; `last.pt` stands at the last finished step.
    """
    out = Path(out)
    checkpoint = None
    if resume and (out / SETTINGS).is_file() and not (out / LAST).exists():
        config = load_config(out / SETTINGS)
    elif resume:
        checkpoint = load_checkpoint(out / LAST)
        config = Config.from_dict(checkpoint["config"])
    elif ranks.is_first and out.exists() and any(out.iterdir()):
        raise ReidError(f"{out} is not empty: continue that run with --resume {out}, or name another --out.")
    material = load_training_data(config)
    trainer = _Trainer(config, out, ranks, material)
    if repeats is not None and ranks.is_first and (Path(repeats) / DATA).is_file():
        changed = material.changed_since(json.loads((Path(repeats) / DATA).read_text("utf-8")))
        if changed:
            warn(f"other data than the run in {repeats} had, so the numbers will differ: {changed}")
    if checkpoint is not None:
        trainer.load(checkpoint)
    elif ranks.is_first:
        trainer.describe()
    return trainer.run()


class _Trainer:
    def __init__(self, config: Config, out: Path, ranks: DistributedContext, material: TrainingData) -> None:
        self.config, self.out, self.ranks, self.material = config, out, ranks, material
        if config.keep_memory and ranks.device.type == "cpu":
            keep_memory()
        self.fingerprint = material.fingerprint()
        self.progress = Progress()
        crops = material.train.crops
        labels, self.pid_of_label = crops.labels()
        self.model = _make_model(config, len(self.pid_of_label)).to(ranks.device)
        self.objective = _make_objective(config, self.model, len(self.pid_of_label)).to(ranks.device)
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if config.sync_batchnorm and ranks.world_size > 1:
            share_statistics(self.model, ranks.device)
        self.freezer = Freezer(config.optim, self.model)
        self.average = Average(self.model, config.optim.ema) if config.optim.ema else None
        self.network: nn.Module = torch.compile(self.model) if config.compile else self.model  # type: ignore[assignment]
        if ranks.world_size > 1:
            devices = [ranks.device] if ranks.device.type == "cuda" else None
            freezes = bool(self.freezer.until)
            self.network = DistributedDataParallel(self.network, device_ids=devices, find_unused_parameters=freezes)
        self.optimizer, self.rates = make_optimizer(config.optim, self.model, self.objective.common_parameters())
        own = [{"params": moving, "lr": rate} for rate, _, moving in self.objective.separate_parameters()]
        self.loss_optimizer = torch.optim.SGD(own, lr=0.0) if own else None
        self.scaler = torch.amp.GradScaler(
            ranks.device.type, enabled=config.precision == "fp16" and ranks.device.type == "cuda"
        )
        self.loaders = Loaders(config, ranks, material.train, labels, self.model.preprocessing)
        self.loader = self.loaders.at(0.0)
        self.watch = CollapseWatch(config.loss.margin)
        self.meter = Meter()
        self.line_due: dict[str, Any] | None = None
        self.board: Any = None
        self.lookalikes: np.ndarray | None = None
        self.saved = time.monotonic()
        self.clock: Callable[[str], AbstractContextManager[object]] = lambda part: nullcontext()

    @property
    def scored(self) -> ReIDModel:
        """The model that is scored and saved: the averaged one, if there is one."""
        return self.average.model if self.average else self.model

    @property
    def steps(self) -> int:
        """Steps of this epoch."""
        return -(-len(self.loader) // self.config.optim.accumulate)

    @property
    def crops_a_step(self) -> int:
        """Crops of a step of this epoch, over all processes."""
        return self.loader.batch_size * self.ranks.world_size * self.config.optim.accumulate

    def describe(self) -> None:
        """Start the run folder, and print what is about to happen."""
        config, counts, crops = self.config, self.model.count(), self.material.train.crops
        save_settings(config, self.out / SETTINGS)
        write_json(self.out / "environment.json", environment(self.ranks))
        write_json(self.out / DATA, self.fingerprint)
        write_text(self.out / LOG, "")
        size = self.model.preprocessing.size
        minutes, epochs = config.schedule.minutes, config.schedule.epochs
        length = f"{minutes:g} minutes of epochs" if minutes else f"{epochs} epochs"
        console.print(
            f"{config.model.backbone} at {size[0]}×{size[1]}: {counts.parameters / 1e6:.2f} M parameters, "
            f"{counts.flops / 1e9:.2f} G multiply-adds a crop\n"
            f"{len(crops):,} crops of {len(self.pid_of_label):,} identities, {length} of "
            f"{self.steps} steps of {self.crops_a_step}, on {self.ranks.world_size} × "
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
        """Train to the end, or until asked to stop."""
        self.began = time.monotonic() - self.progress.seconds
        epochs, state = self.config.schedule.epochs, self.progress
        self.loader = self.loaders.at(state.share)
        with listen() as asked, progress_bar() as bar, self._tensorboard() as self.board:
            share = self._share()
            task = bar.add_task("training", total=epochs * self.steps, completed=int(share * epochs * self.steps))
            while share < 1:
                if state.batch == 0:
                    state.share = share
                    self.loader = self.loaders.at(share)
                self._find_lookalikes()
                self.loader.set_epoch(state.epoch)
                self.loader.start_at(state.batch * self.config.optim.accumulate)
                self.network.train()
                self.freezer.apply(state.epoch)
                epoch_began, first, steps = time.monotonic(), state.batch, self.steps
                for batches in self.grouped():
                    self.objective.set_progress(share)
                    when = self._when(share)
                    factor = learning_rate_factor(self.config.schedule, *when)
                    momentum = momentum_at(self.config.schedule, self.config.optim.momentum, *when)
                    set_rate(self.optimizer, self.rates, self.config.optim.lr * factor, momentum)
                    terms = self._step(batches)
                    self._finish_line()
                    state.batch += 1
                    state.step += 1
                    if terms:
                        self.meter.add(state.step, terms, torch.cat([batch.index for batch in batches]))
                    share = self._share()
                    bar.update(task, completed=int(share * epochs * steps))
                    at_log = state.step % self.config.log_every == 0 or state.batch == steps or share >= 1
                    if at_log:
                        self._begin_line(factor)
                    may_stop = at_log or self.ranks.world_size == 1  # ranks must agree, which is no work for each step
                    if may_stop and self.ranks.any(bool(asked)):
                        self._save_last()
                        raise Interrupted(asked[0] if asked else signal.SIGTERM, self.out / LAST)
                    if share >= 1:
                        break
                    if state.batch < steps and self._save_is_due():
                        self._save_last()
                self._flush()
                rate = (state.batch - first) * self.crops_a_step / (time.monotonic() - epoch_began)
                self._end_epoch(rate, last=share >= 1)
                self._save_last()
        return state

    def grouped(self) -> Iterator[list[Batch]]:
        """The batches of each step of the epoch."""
        batches = iter(self.loader)
        while True:
            with self.clock("loader"):
                group = list(islice(batches, self.config.optim.accumulate))
            if not group:
                return
            yield group

    def _step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """One update. Nothing here waits for the device, but for `on_nan=skip`. Returns the terms to log, on it;
        none of a step that was left out."""
        config = self.config
        skips = config.on_nan == "skip"
        buffers = [*self.model.buffers(), *self.objective.buffers()] if skips else []
        before = [buffer.clone() for buffer in buffers]
        with self.clock("optimiser"):
            self.optimizer.zero_grad(set_to_none=True)
            self.objective.zero_grad(set_to_none=True)
        seen = []
        for number, batch in enumerate(batches):
            with without_exchange(self.network) if number < len(batches) - 1 else nullcontext():
                seen.append(self._backward(batch, number, len(batches)))
        terms = {name: torch.stack([measured[name].float() for measured in seen]).mean() for name in seen[0]}
        with self.clock("optimiser"):
            self._share_loss_gradients()
            if config.optim.clip_norm or skips:
                self.scaler.unscale_(self.optimizer)
                norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_norm or math.inf)
            if skips and not self._is_sound(terms["loss"], norm):
                for buffer, old in zip(buffers, before, strict=True):
                    buffer.copy_(old)
                self.scaler.update()
                return {}
            if self.loss_optimizer is not None:
                self.scaler.step(self.loss_optimizer)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.average:
                self.average.update()
        return terms

    def _backward(self, batch: Batch, number: int, of: int) -> dict[str, Tensor]:
        """Add the gradient of the `number`-th of the step's batches, over how many there are. Returns its terms."""
        device, config, state = self.ranks.device, self.config, self.progress
        gather = self.ranks.gather_with_gradient
        with self.clock("copy"):
            labels = gather(batch.labels.to(device, non_blocking=True))
            camids = gather(batch.camids.to(device, non_blocking=True))
            images = batch.images.to(device, non_blocking=True)
        preprocess = self.model.preprocessing.model_copy(update={"size": (images.shape[1], images.shape[2])})
        terms: dict[str, Tensor] = {}

        def forward(network: nn.Module, some: Tensor) -> Outputs:
            with self.clock("preprocess"):
                images = preprocess(some)
            with self.clock("forward"), autocast(device, config.precision):
                output = network(images)
            after = output.embeddings if self.objective.uses_embeddings else None
            return [None if part is None else part.float() for part in (output.features, after, output.logits)]

        def loss_of(outputs: Outputs) -> Tensor:
            with self.clock("loss"):
                features, embeddings, logits = (None if part is None else gather(part) for part in outputs)
                loss, seen = self.objective(features, logits, labels, camids, embeddings)
                terms.update(seen)
                return self.scaler.scale(loss if of == 1 else loss / of)

        seed = (config.seed, state.step, self.ranks.rank, number)
        if config.loss.chunk:
            self.loader.make_next()
            with self.clock("backward"):
                backward_in_chunks(self.network, images, forward, loss_of, config.loss.chunk, seed)
            return terms
        with seeded(device, *seed):
            outputs = forward(self.network, images)
        loss = loss_of(outputs)
        self.loader.make_next()
        with self.clock("backward"):
            loss.backward()
        return terms

    def _is_sound(self, loss: Tensor, norm: Tensor) -> bool:
        """Whether a step may be made (`on_nan=skip`); counts and tells those that may not. Waits for the device.

        Raises:
            ReidError: more than `max_skipped` were not.
        """
        config, state = self.config, self.progress
        value, size = torch.stack([loss, norm.float()]).tolist()
        if math.isfinite(size) and value <= config.loss_limit:
            return True
        state.skipped += 1
        words = f"loss {value:g}, gradient norm {size:g}"
        if state.skipped > config.max_skipped:
            raise ReidError(
                f"Step {state.step + 1} would be left out too ({words}), after max_skipped={config.max_skipped} "
                f"others. {self._what_to_do()}"
            )
        if self.ranks.is_first:
            warn(f"step {state.step + 1} left out: {words}")
        return False

    def _what_to_do(self) -> str:
        last = self.out / LAST
        where = f"The last good checkpoint is {last}" if last.exists() else "No checkpoint had been written yet"
        return f"{where}. Lower optim.lr, lengthen schedule.warmup_epochs, set optim.clip_norm, or use precision=fp32."

    def _find_lookalikes(self) -> None:
        """Embed the train set where an epoch asks for it, and give its sampler the look-alikes that are known."""
        sampler, config, state = self.loader.sampler, self.config, self.progress
        if not isinstance(sampler, HardIdentitySampler):
            return
        if state.batch == 0 and state.epoch > 0 and state.epoch % config.sampler.mining_every == 0:
            self.lookalikes = mine_identities(self.model, self.material.train, self.ranks, config, state.epoch)
        sampler.set_neighbours(self.lookalikes)

    def _share(self) -> float:
        """The share of training done, 0..1: of its epochs, or of its time where `schedule.minutes` limits that."""
        schedule, state = self.config.schedule, self.progress
        if not schedule.minutes:
            return (state.epoch + state.batch / self.steps) / schedule.epochs
        return self.ranks.first(min(1.0, (time.monotonic() - self.began) / (60 * schedule.minutes)))

    def _when(self, share: float) -> tuple[int, int, int]:
        """Epoch, step, and steps an epoch, for schedules; by the clock, `share` of all epochs is where they stand."""
        schedule, state = self.config.schedule, self.progress
        if not schedule.minutes:
            return state.epoch, state.batch, self.steps
        fine = 1_000_000
        return *divmod(int(share * schedule.epochs * fine), fine), fine

    def _share_loss_gradients(self) -> None:
        """Average the gradients of the losses' own weights over the ranks; those with a rate of their own ignore the
        loss's weight in the sum."""
        for parameter in self.objective.parameters():
            if parameter.grad is not None:
                self.ranks.average(parameter.grad)
        for _, weight, moving in self.objective.separate_parameters():
            for parameter in moving:
                if parameter.grad is not None:
                    parameter.grad.mul_(1 / weight if weight else 0.0)

    def _take_in(self) -> None:
        """Add the terms that arrived from the device to the sums.

        Raises:
            ReidError: a loss that is not finite, or above `loss_limit`.
        """
        state = self.progress
        for step, terms, rows in self.meter.receive():
            if not terms["loss"] <= self.config.loss_limit:
                files = [str(self.material.train.crops.paths[row]) for row in rows.tolist()]
                raise ReidError(
                    f"The loss of step {step} (epoch {state.epoch + 1}) is {terms['loss']:g}: not finite, or above "
                    f"loss_limit={self.config.loss_limit:g}. {self._what_to_do()} The step's crops: {', '.join(files)}"
                )
            state.pending.append(terms)
            state.summed += 1
            for name, value in terms.items():
                state.sums[name] = state.sums.get(name, 0.0) + value

    def _begin_line(self, factor: float) -> None:
        """Send the terms of the steps since the last line to the host; `_finish_line` writes them, a step later."""
        self.meter.send()
        state = self.progress
        self.line_due = {"step": state.step, "epoch": state.epoch + 1, "lr": self.config.optim.lr * factor}

    def _finish_line(self) -> None:
        if self.line_due is None:
            return
        self._take_in()
        state, line, self.line_due = self.progress, self.line_due, None
        if not state.pending:  # all steps since the last line were left out
            return
        means = {name: sum(terms[name] for terms in state.pending) / len(state.pending) for name in state.pending[0]}
        state.pending.clear()
        self._line({**line, **means})
        if self.board is not None:
            for name, value in means.items():
                self.board.add_scalar(f"train/{name}", value, line["step"])
            self.board.add_scalar("train/lr", line["lr"], line["step"])
        if self.objective.uses_triplet:
            self.watch.margin = means.get("margin", self.config.loss.margin)
            words = self.watch.observe(means["triplet"], means["positive"], means["negative"])
            if words and self.ranks.is_first:
                warn(words)

    def _flush(self) -> None:
        """Bring everything that is on its way to the host."""
        self._finish_line()
        self.meter.send()
        self._take_in()

    def _end_epoch(self, rate: float, *, last: bool) -> None:
        state, config = self.progress, self.config
        means = {name: value / state.summed for name, value in state.sums.items()}
        state.epoch, state.batch, state.sums, state.summed = state.epoch + 1, 0, {}, 0
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
                self.scored,
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
            if self.board is not None:
                self.board.add_scalar(f"{split.name}/mAP", result.mAP, state.step)
                self.board.add_scalar(f"{split.name}/rank1", result.rank(1), state.step)
        state.history.append(entry)
        self._line(entry)
        mean = total / len(self.material.splits)
        if mean > state.best:
            state.best = mean
            if self.ranks.is_first:
                save_checkpoint(self.out / BEST, self.scored, config=config.as_dict(), scores=entry)

    def _line(self, content: dict[str, Any]) -> None:
        if self.ranks.is_first:
            with open(self.out / LOG, "a", encoding="utf-8") as log:
                log.write(json.dumps(content) + "\n")

    def _save_is_due(self) -> bool:
        config = self.config
        by_steps = config.save_every > 0 and self.progress.step % config.save_every == 0
        return by_steps or 0 < 60 * config.save_minutes < time.monotonic() - self.saved

    def _save_last(self) -> None:
        self._flush()
        self.progress.seconds = time.monotonic() - self.began
        if self.ranks.is_first:
            raw = {"raw": self.model.state_dict(), "updates": self.average.updates} if self.average else {}
            save_checkpoint(
                self.out / LAST,
                self.scored,
                config=self.config.as_dict(),
                optimizer=self.optimizer.state_dict(),
                scaler=self.scaler.state_dict(),
                objective=self.objective.state_dict(),
                watch=self.watch.state(),
                lookalikes=None if self.lookalikes is None else torch.from_numpy(self.lookalikes),
                progress=vars(self.progress).copy(),
                pids=self.pid_of_label.tolist(),
                data=self.fingerprint,
                **raw,
            )
        self.saved = time.monotonic()

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Take up a run where its checkpoint stands.

        Raises:
            ReidError: the data are not those that the run was started on.
        """
        changed = self.material.changed_since(checkpoint["data"])
        if changed:
            raise ReidError(
                f"{self.out} was started on other data: {changed}. Restore the data set, or start a new run with "
                f"model.weights={self.out / LAST}."
            )
        restore(self.scored, checkpoint, self.out / LAST)
        if self.average:
            restore(self.model, {**checkpoint, "model": checkpoint["raw"]}, self.out / LAST)
            self.average.updates = checkpoint["updates"]
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.scaler.load_state_dict(checkpoint["scaler"])
        if "objective" in checkpoint:  # one of the first release has none
            self.objective.load_state_dict(checkpoint["objective"])
            self.watch.load(checkpoint["watch"])
        known = checkpoint.get("lookalikes")
        self.lookalikes = None if known is None else known.numpy()
        self.progress = Progress(**checkpoint["progress"])
        if self.ranks.is_first:
            for left_over in self.out.glob(".*.part*"):  # of a process that was killed while it wrote
                left_over.unlink()
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
    return build_model(config.model, num_classes=num_classes if config.loss.in_use("softmax") else 0, seed=config.seed)


def _make_objective(config: Config, model: ReIDModel, num_classes: int) -> Objective:
    objective = Objective(config.loss, dim=model.embedding_size, num_classes=num_classes, seed=config.seed)
    if not (objective.uses_softmax or objective.uses_embeddings):
        model.neck.requires_grad_(False)  # nothing behind it is learned from, and DDP waits for every gradient
    return objective
