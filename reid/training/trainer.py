"""The training loop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reid.config import Config, load_config
from reid.core.console import console, progress_bar, warn
from reid.core.distributed import DistributedContext, pick_device
from reid.core.errors import ConfigError, DataError, ModelError, check_type
from reid.core.locks import exclusive
from reid.core.memory import keep_memory
from reid.core.reading import read_json
from reid.data.loader import Batch
from reid.data.pixels import TrainingData, load_training_data
from reid.data.samplers import HardIdentitySampler
from reid.losses import Objective
from reid.models import ReIDModel, build_model
from reid.models.checkpoints import load_checkpoint, restore, save_checkpoint
from reid.training import run_folder
from reid.training.ema import MovingAverage
from reid.training.epoch_loaders import EpochLoaders
from reid.training.gradient_cache import Outputs, backward_in_chunks, exchange, seeded
from reid.training.hard_identity_mining import mine_identities
from reid.training.hooks import Hook
from reid.training.parameter_groups import freeze, make_optimizer, set_rate
from reid.training.run_folder import BEST, DATA, LAST, Progress
from reid.training.run_log import RunLog
from reid.training.schedules import learning_rate_factor, momentum_at
from reid.training.signals import Interrupted, listen
from reid.training.sync_batchnorm import share_statistics
from reid.training.validation import autocast, score

__all__ = ["BEST", "LAST", "Interrupted", "Progress", "Trainer", "train"]


def train(
    config: Config | str | Path | None,
    out: str | Path,
    distributed: DistributedContext | None = None,
    *,
    overrides: Sequence[str] = (),
    resume: bool = False,
    repeats: str | Path | None = None,
    hooks: Sequence[Hook] = (),
) -> Progress:
    """Train a model and write a run folder.

    The folder contains `config.yaml` (all settings), `environment.json`, `data.json` (fingerprint of the data),
    `log.jsonl`, `tensorboard/`, `last.pt` (from which the run can be continued) and `best.pt` (best mean mAP over the
    evaluated splits; not with `eval.split=none`).

    Args:
        config: the settings, or a YAML file; None: the defaults. With `resume`, the settings saved in `out` are used.
        out: the run folder; it must be new or empty unless `resume`.
        distributed: this process among the training processes; None: a single process on `config.device`.
        overrides: `key.sub=value` settings that replace those of a YAML file or the defaults.
        resume: continue from `out/last.pt`, or from the start if the run ended before its first checkpoint.
        repeats: folder of a run that this run repeats; a warning is printed if the data differ.
        hooks: called during training; see `Hook`.

    Returns:
        The final progress, with the scores of all evaluations in `history`.

    Raises:
        ReidError: invalid settings, data or folder; a loss that is not finite or above `loss_limit`.
        Interrupted: SIGINT or SIGTERM was received; `last.pt` contains the last finished step.

    Example:
        >>> import tempfile
        >>> from reid.synthetic import synthesize
        >>> folder = tempfile.mkdtemp()
        >>> data = synthesize(f"{folder}/data", ids=12, cameras=2)
        >>> overrides = [
        ...     f"data.train=market1501:{data}", "data.store=files", "model.backbone=light10", "model.height=32",
        ...     "model.width=16", "sampler.batch_size=8", "sampler.crops_per_id=2", "schedule.epochs=1",
        ...     "eval.split=none", "device=cpu",
        ... ]
        >>> progress = train(None, f"{folder}/run", overrides=overrides)  # doctest: +ELLIPSIS
        light10 at 32×16: ...
        >>> progress.epoch
        1
    """
    if not isinstance(config, Config):
        config = load_config(config, overrides)
    elif overrides:
        raise ConfigError("overrides need a YAML file or the defaults. Set the attributes of the Config instead.")
    out = Path(out)
    trainer = Trainer(run_folder.run_settings(out) if resume else config, out, distributed, hooks=hooks)
    if repeats is not None and trainer.distributed.is_first and (Path(repeats) / DATA).is_file():
        changed = trainer.data.changed_since(read_json(Path(repeats) / DATA))
        if changed:
            warn(f"The data differ from those of the run in {repeats}, so the numbers will differ: {changed}")
    return trainer.resume() if resume and (out / LAST).exists() else trainer.fit(overwrite=resume)


class Trainer:
    """Train a model as described by a `Config`. Use `train` for the short way, and this class to inspect parts.

    Training can be stopped at any step and continued; the result is the same bit for bit (except with
    `schedule.minutes`).

    Args:
        config: all settings.
        out: run folder.
        distributed: this process among the training processes; None: a single process on `config.device`.
        data: crops and pixels; None: those that `config.data` names.
        hooks: called during training; see `Hook`.

    Attributes:
        model: the model that is trained.
        eval_model: the model that is evaluated and saved: the moving average of `model` if `optim.ema` is set.
        objective: the loss.
        optimizer: the optimiser.
        loader: the batches of the current epoch.
        progress: epoch, step, best score and history.

    Raises:
        ReidError: invalid settings or data.

    Example:
        >>> import tempfile
        >>> from reid.synthetic import synthesize
        >>> folder = tempfile.mkdtemp()
        >>> data = synthesize(f"{folder}/data", ids=12, cameras=2)
        >>> config = Config(data={"train": f"market1501:{data}", "store": "files"}, device="cpu")
        >>> config.model.backbone, config.model.height, config.model.width = "light10", 32, 16
        >>> config.sampler.batch_size, config.sampler.crops_per_id, config.eval.split = 8, 2, "none"
        >>> trainer = Trainer(config, f"{folder}/run")
        >>> sorted(trainer.train_step(next(trainer.batches())))[:2]
        ['accuracy', 'active']
    """

    def __init__(
        self,
        config: Config,
        out: str | Path,
        distributed: DistributedContext | None = None,
        data: TrainingData | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        check_type("config", config, Config, "Read a file with reid.config.load_config.")
        config.check_batches()
        distributed = distributed or DistributedContext(0, 1, pick_device(config.device))
        device = distributed.device
        self.config, self.out, self.distributed, self.hooks = config, Path(out), distributed, tuple(hooks)
        self.data = load_training_data(config) if data is None else data
        if config.keep_memory and device.type == "cpu":
            keep_memory()
        self.progress = Progress()
        crops = self.data.train.crops
        _, self.pid_of_label = crops.labels()
        num_classes = len(self.pid_of_label)
        if num_classes < 2:
            raise DataError("The train split has crops of one identity only. Add identities, or lower eval.fraction.")
        self.model: ReIDModel = build_model(
            config.model, num_classes=num_classes if config.loss.in_use("softmax") else 0, seed=config.seed
        ).to(device)
        self.objective = Objective(
            config.loss, dim=self.model.embedding_size, num_classes=num_classes, seed=config.seed
        ).to(device)
        if not (self.objective.uses_softmax or self.objective.uses_embeddings):
            self.model.neck.requires_grad_(False)  # it gets no gradient, and DDP waits for every gradient
        if config.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if config.sync_batchnorm and distributed.world_size > 1:
            share_statistics(self.model, device)
        self.average = MovingAverage(self.model, config.optim.ema) if config.optim.ema else None
        self.network: nn.Module = torch.compile(self.model) if config.compile else self.model  # type: ignore[assignment]
        if distributed.world_size > 1:
            devices = [device] if device.type == "cuda" else None
            freezes = any(group.freeze_epochs for group in config.optim.groups.values())
            self.network = DistributedDataParallel(self.network, device_ids=devices, find_unused_parameters=freezes)
        self.optimizer = make_optimizer(config.optim, self.model, self.objective.common_parameters())
        separate = [{"params": moving, "lr": rate} for rate, _, moving in self.objective.separate_parameters()]
        self.loss_optimizer = torch.optim.SGD(separate, lr=0.0) if separate else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16" and device.type == "cuda")
        self.epoch_loaders = EpochLoaders(config, distributed, self.data.train, self.model.preprocessing)
        self.loader = self.epoch_loaders.at(0.0)
        self.log = RunLog(self.out, config, distributed, crops.paths, lambda line: self._call("on_log", line))
        self._stateful = {name: getattr(self, name) for name in ("optimizer", "scaler", "objective", "log")}
        if self.average:
            self._stateful["raw"] = self.model
        self.neighbours: Tensor | None = None
        self._saved = self._began = time.monotonic()
        self._stop: bool | None = None

    @property
    def eval_model(self) -> ReIDModel:
        """The model that is evaluated and saved."""
        return self.average.model if self.average else self.model

    @property
    def steps(self) -> int:
        """Number of steps of the current epoch."""
        return -(-len(self.loader) // self.config.optim.accumulate)

    @property
    def crops_per_step(self) -> int:
        """Crops per step of the current epoch, summed over all processes."""
        return self.loader.batch_size * self.distributed.world_size * self.config.optim.accumulate

    def fit(self, *, overwrite: bool = False) -> Progress:
        """Start the run and train to the end.

        Args:
            overwrite: whether the run folder may contain files.

        Raises:
            ReidError: a used run folder; a loss that is not finite or above `loss_limit`.
            Interrupted: SIGINT or SIGTERM was received; `last.pt` contains the last finished step.
        """
        with self._exclusive():
            if self.distributed.is_first:
                run_folder.start_run(self.out, self.config, self.distributed, self.data, overwrite=overwrite)
                self._describe()
            return self._run()

    def resume(self) -> Progress:
        """Restore the run from its last checkpoint and train to the end.

        Raises:
            ReidError: no checkpoint, other data than those of the run, and as for `fit`.
            Interrupted: as for `fit`.
        """
        with self._exclusive():
            checkpoint = load_checkpoint(self.out / LAST)
            changed = self.data.changed_since(checkpoint["data"])
            if changed:
                raise DataError(
                    f"{self.out} was started on other data: {changed}. Restore the data set, or start a new run with "
                    f"model.weights={self.out / LAST}."
                )
            restore(self.eval_model, checkpoint, self.out / LAST)
            for name, part in self._stateful.items():
                part.load_state_dict(checkpoint[name])
            self.neighbours, self.progress = checkpoint["neighbours"], Progress(**checkpoint["progress"])
            if self.average:
                self.average.updates = self.progress.step - self.progress.skipped
            if self.distributed.is_first:
                run_folder.clean_up(self.out, self.progress.step)
                epoch, step = self.progress.epoch + 1, self.progress.step + 1
                console.print(f"Continuing {self.out} at epoch {epoch}, step {step}")
            return self._run()

    def stop(self, *, save: bool = True) -> None:
        """End training after the current step. Hooks call it in all processes at the same step.

        Args:
            save: whether to write `last.pt` first.
        """
        self._stop = save

    def batches(self) -> Iterator[list[Batch]]:
        """Yield the batches of each step of the current epoch."""
        batches = iter(self.loader)
        while True:
            with self._section("loader"):
                group = list(islice(batches, self.config.optim.accumulate))
            if not group:
                return
            yield group

    def train_step(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Make one optimiser step on batches, at the current learning rate.

        The device is not waited for, except with `on_nan=skip`.

        Returns:
            Losses and statistics as 0-d tensors on the device; empty if the step was skipped.
        """
        config = self.config
        skips = config.on_nan == "skip"
        buffers = [*self.model.buffers(), *self.objective.buffers()] if skips else []
        before = [buffer.clone() for buffer in buffers]
        with self._section("optimiser"):
            self.optimizer.zero_grad(set_to_none=True)
            self.objective.zero_grad(set_to_none=True)
        measured = []
        for number, batch in enumerate(batches):
            with exchange(self.network, number == len(batches) - 1):
                measured.append(self._backward(batch, number, len(batches)))
        metrics = {name: torch.stack([m[name].float() for m in measured]).mean() for name in measured[0]}
        with self._section("optimiser"):
            self._share_loss_gradients()
            if config.optim.clip_norm or skips:
                self.scaler.unscale_(self.optimizer)
                norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.optim.clip_norm or math.inf)
            if skips and not self._is_finite(metrics["loss"], norm):
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
        return metrics

    def _exclusive(self) -> AbstractContextManager[None]:
        return exclusive(self.out) if self.distributed.is_first else nullcontext()

    def _describe(self) -> None:
        config, counts, size = self.config, self.model.count(), self.model.preprocessing.size
        schedule = config.schedule
        length = f"{schedule.minutes:g} minutes" if schedule.minutes else f"{schedule.epochs} epochs"
        console.print(
            f"{config.model.backbone} at {size[0]}×{size[1]}: {counts.parameters / 1e6:.2f} M parameters, "
            f"{counts.flops / 1e9:.2f} G multiply-adds per crop\n"
            f"{len(self.data.train.crops):,} crops of {len(self.pid_of_label):,} identities, {length}, "
            f"{self.steps} steps of {self.crops_per_step} crops per epoch, on {self.distributed.world_size} × "
            f"{self.distributed.device} in {config.precision}\n"
            f"evaluated on: {', '.join(split.name for split in self.data.splits) or 'nothing'}\n"
            f"run folder: {self.out}"
        )
        if config.eval.split == "test":
            warn(
                "eval.split=test: the best checkpoint is chosen on the test split, which makes its score there "
                "optimistic. Report the last epoch, or use eval.split=validation."
            )
        pairs = config.loss.of_pairs()
        if config.sampler.kind == "random" and pairs:
            warn(
                f"sampler.kind=random with the loss {pairs[0]}: most crops have no positive in their batch. "
                "Use sampler.kind=identity, or remove that loss."
            )

    def _run(self) -> Progress:
        config, state = self.config, self.progress
        self._began = time.monotonic() - state.seconds
        epochs = config.schedule.epochs
        self.loader = self.epoch_loaders.at(state.fraction)
        with listen() as signals, progress_bar() as bar, self.log.tensorboard(state.step + 1):
            fraction = self._fraction()
            task = bar.add_task("training", total=epochs * self.steps, completed=int(fraction * epochs * self.steps))
            self._call("on_train_start")
            while fraction < 1:
                self._start_epoch(fraction)
                epoch_began, first, steps = time.monotonic(), state.batch, self.steps
                for batches in self.batches():
                    learning_rate = self._set_rates(fraction)
                    self._call("on_step_start", batches)
                    metrics = self.train_step(batches)
                    self.log.finish_line()
                    state.batch += 1
                    state.step += 1
                    if metrics:
                        self.log.meter.add(state.step, metrics, torch.cat([batch.index for batch in batches]))
                    fraction = self._fraction()
                    bar.update(task, completed=int(fraction * epochs * steps))
                    at_line = state.step % config.log_every == 0 or state.batch == steps or fraction >= 1
                    if at_line:
                        self.log.begin_line(state.step, learning_rate)
                    self._call("on_step_end", metrics)
                    if self._stop is not None:
                        return self._end(save=self._stop)
                    # processes must agree, which is too slow for every step
                    may_stop = at_line or self.distributed.world_size == 1
                    if may_stop and self.distributed.any(bool(signals)):
                        self._save()
                        raise Interrupted(signals[0] if signals else signal.SIGTERM, self.out / LAST)
                    if fraction >= 1:
                        break
                    by_steps = config.save_every > 0 and state.step % config.save_every == 0
                    by_time = 0 < 60 * config.save_minutes < time.monotonic() - self._saved
                    if state.batch < steps and (by_steps or by_time):
                        self._save()
                self.log.flush()
                rate = (state.batch - first) * self.crops_per_step / (time.monotonic() - epoch_began)
                self._end_epoch(rate, last=fraction >= 1)
                self._save()
        return self._end(save=False)

    def _end(self, *, save: bool) -> Progress:
        if save:
            self._save()
        self._call("on_train_end")
        return self.progress

    def _start_epoch(self, fraction: float) -> None:
        config, state = self.config, self.progress
        if state.batch == 0:
            state.fraction = fraction
            self.loader = self.epoch_loaders.at(fraction)
        self.log.epoch = state.epoch + 1
        sampler = self.loader.sampler
        if isinstance(sampler, HardIdentitySampler):
            if state.batch == 0 and state.epoch > 0 and state.epoch % config.sampler.mining_every == 0:
                nearest = mine_identities(self.model, self.data.train, self.distributed, config, state.epoch)
                self.neighbours = torch.from_numpy(nearest)
            if self.neighbours is not None:
                sampler.set_neighbours(self.neighbours)
        self.loader.set_epoch(state.epoch)
        self.loader.start_at(state.batch * config.optim.accumulate)
        self.network.train()
        freeze(self.model, self.optimizer, state.epoch)
        self._call("on_epoch_start")

    def _set_rates(self, fraction: float) -> float:
        """Set weights, learning rates and momentum of the next step; return the base learning rate."""
        schedule, optim, state = self.config.schedule, self.config.optim, self.progress
        self.objective.set_progress(fraction)
        epoch, step, steps = state.epoch, state.batch, self.steps
        if schedule.minutes:  # the clock decides; epochs only divide the time
            steps = 1_000_000
            epoch, step = divmod(int(fraction * schedule.epochs * steps), steps)
        learning_rate = optim.lr * learning_rate_factor(schedule, epoch, step, steps)
        set_rate(self.optimizer, learning_rate, momentum_at(schedule, optim.momentum, epoch, step, steps))
        return learning_rate

    def _fraction(self) -> float:
        """Return the fraction of training that is done: of the epochs, or of the time with `schedule.minutes`."""
        schedule, state = self.config.schedule, self.progress
        if not schedule.minutes:
            return (state.epoch + state.batch / self.steps) / schedule.epochs
        return self.distributed.first(min(1.0, (time.monotonic() - self._began) / (60 * schedule.minutes)))

    def _backward(self, batch: Batch, number: int, count: int) -> dict[str, Tensor]:
        """Add the gradient of one of `count` batches of a step; return its metrics."""
        device, config, state = self.distributed.device, self.config, self.progress
        gather = self.distributed.gather_with_gradient
        with self._section("copy"):
            labels = gather(batch.labels.to(device, non_blocking=True))
            camids = gather(batch.camids.to(device, non_blocking=True))
            images = batch.images.to(device, non_blocking=True)
        preprocess = self.model.preprocessing.model_copy(update={"size": (images.shape[1], images.shape[2])})
        metrics: dict[str, Tensor] = {}

        def forward(network: nn.Module, chunk: Tensor) -> Outputs:
            with self._section("preprocess"):
                prepared = preprocess(chunk)
            with self._section("forward"), autocast(device, config.precision):
                output = network(prepared)
            embeddings = output.embeddings if self.objective.uses_embeddings else None
            return [None if part is None else part.float() for part in (output.features, embeddings, output.logits)]

        def loss_of(outputs: Outputs) -> Tensor:
            with self._section("loss"):
                features, embeddings, logits = (None if part is None else gather(part) for part in outputs)
                loss, measured = self.objective(features, logits, labels, camids, embeddings)
                metrics.update(measured)
                return self.scaler.scale(loss if count == 1 else loss / count)

        seed = (config.seed, state.step, self.distributed.rank, number)
        if config.loss.chunk:
            self.loader.make_next()
            with self._section("backward"):
                backward_in_chunks(self.network, images, forward, loss_of, config.loss.chunk, seed)
            return metrics
        with seeded(device, *seed):
            outputs = forward(self.network, images)
        loss = loss_of(outputs)
        self.loader.make_next()
        with self._section("backward"):
            loss.backward()
        return metrics

    def _is_finite(self, loss: Tensor, norm: Tensor) -> bool:
        """Return whether a step may be made (`on_nan=skip`); count and report those that may not.

        Raises:
            ModelError: more than `max_skipped` steps were skipped.
        """
        config, state = self.config, self.progress
        loss_value, norm_value = torch.stack([loss, norm.float()]).tolist()
        if math.isfinite(norm_value) and loss_value <= config.loss_limit:
            return True
        state.skipped += 1
        values = f"loss {loss_value:g}, gradient norm {norm_value:g}"
        if state.skipped > config.max_skipped:
            raise ModelError(
                f"Step {state.step + 1} would be skipped ({values}), after max_skipped={config.max_skipped} others. "
                f"{run_folder.advice(self.out)}"
            )
        if self.distributed.is_first:
            warn(f"step {state.step + 1} skipped: {values}")
        return False

    def _share_loss_gradients(self) -> None:
        """Average the gradients of the losses' parameters over the processes.

        Those with a separate learning rate are divided by the weight of their loss in the sum.
        """
        for parameter in self.objective.parameters():
            if parameter.grad is not None:
                self.distributed.average(parameter.grad)
        for _, weight, parameters in self.objective.separate_parameters():
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(1 / weight if weight else 0.0)

    def _end_epoch(self, rate: float, *, last: bool) -> None:
        state, config = self.progress, self.config
        means = self.log.end_epoch()
        state.epoch, state.batch = state.epoch + 1, 0
        if self.distributed.is_first:
            shown = "  ".join(
                f"{name} {value:.1%}" if name in ("accuracy", "active") else f"{name} {value:.3f}"
                for name, value in means.items()
            )
            total = "" if config.schedule.minutes else f"/{config.schedule.epochs}"
            console.print(f"epoch {state.epoch}{total}  {rate:,.0f} crops/s  {shown}")
        if self.data.splits and (last or state.epoch % config.eval.every == 0):
            self._evaluate()
        self._call("on_epoch_end", means)

    def _evaluate(self) -> None:
        state, config = self.progress, self.config
        entry: dict[str, Any] = {"epoch": state.epoch, "step": state.step}
        for split in self.data.splits:
            result = score(self.eval_model, split, self.distributed, config)
            entry[split.name] = {"mAP": float(result.mAP), "mINP": float(result.mINP), "rank1": float(result.rank(1))}
            if self.distributed.is_first:
                console.print(f"  {split.name}: mAP {result.mAP:.2%}  rank-1 {result.rank(1):.2%}")
            self.log.scalars({"mAP": result.mAP, "rank1": result.rank(1)}, split.name, state.step)
        state.history.append(entry)
        self.log.write(entry)
        mean = float(np.mean([entry[split.name]["mAP"] for split in self.data.splits]))
        if mean > state.best:
            state.best = mean
            if self.distributed.is_first:
                settings = run_folder.shared_settings(config, self.data)
                save_checkpoint(self.out / BEST, self.eval_model, config=settings, scores=entry)
            self._call("on_checkpoint", self.out / BEST)

    def _save(self) -> None:
        self.log.flush()
        self.progress.seconds = time.monotonic() - self._began
        if self.distributed.is_first:
            save_checkpoint(
                self.out / LAST,
                self.eval_model,
                config=run_folder.shared_settings(self.config, self.data),
                neighbours=self.neighbours,
                progress=vars(self.progress),
                data=self.data.fingerprint(),
                **{name: part.state_dict() for name, part in self._stateful.items()},
            )
        self._saved = time.monotonic()
        self._call("on_checkpoint", self.out / LAST)

    def _call(self, event: str, *values: Any) -> None:
        for hook in self.hooks:
            getattr(hook, event)(self, *values)

    @contextmanager
    def _section(self, name: str) -> Iterator[None]:
        self._call("on_section_start", name)
        try:
            yield
        finally:
            self._call("on_section_end", name)
