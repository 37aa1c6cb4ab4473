from __future__ import annotations

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from reid.config import load_config
from reid.core.errors import ReidError
from reid.training.epoch_loaders import EpochLoaders
from reid.training.meter import Meter
from reid.training.trainer import Trainer, train
from tests.training.runs import ALONE, Record, assert_same_run, log_of, make_trainer

WAITS = ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero")
"""Methods of a tensor that make the host wait for its device."""


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["optim.clip_norm=1", "optim.ema=0.9", "optim.accumulate=2"],
        ["optim.name=adamw", "precision=bf16"],
        ["schedule.sizes=[[0,24,12],[0.5,32,16]]", "loss.triplet_weight=0"],
    ],
    ids=["plain", "clipped-averaged-accumulated", "adamw-bf16", "small-softmax"],
)
def test_a_training_step_does_not_synchronise_with_the_device(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    trainer = make_trainer([*small, *extra], tmp_path / "run")
    trainer.network.train()
    batches = next(trainer.batches())
    trainer.train_step(batches)  # initialisation may wait

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the step reads a value from the device")

    with monkeypatch.context() as patched:
        # distances between features take another way on the CPU, where counting costs nothing; this is the GPU's
        patched.setattr(torch, "get_float32_matmul_precision", lambda: "high")
        for name in WAITS:
            patched.setattr(torch.Tensor, name, forbidden)
        metrics = trainer.train_step(batches)
        trainer.log.meter.add(1, metrics, batches[0].index)
        trainer.log.meter.send()
    ((_, measured, _),) = trainer.log.meter.receive()
    assert np.isfinite(measured["loss"])


def test_a_log_line_is_written_one_step_late_with_the_means_of_its_own_steps(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[float] = []
    seen_at: list[tuple[int, int]] = []
    hook = Record(on_log=lambda _, line: seen_at.append((line["step"], len(losses))))
    trainer = make_trainer([*small, "schedule.epochs=1", "log_every=3"], tmp_path / "run", hook)
    step = Trainer.train_step

    def stepping(self, batches):
        metrics = step(self, batches)
        losses.append(float(metrics["loss"]))
        return metrics

    monkeypatch.setattr(Trainer, "train_step", stepping)
    trainer.fit()
    steps = len(losses)
    assert seen_at == [(at, min(at + 1, steps)) for at in [*range(3, steps, 3), steps]]
    first = 0
    for content in log_of(tmp_path / "run"):
        assert content["loss"] == pytest.approx(np.mean(losses[first : content["step"]]), rel=1e-6)
        first = content["step"]


def test_the_meter_returns_steps_in_the_order_they_were_added() -> None:
    meter = Meter()
    for step in range(1, 6):
        meter.add(step, {"loss": torch.tensor(step), "x": torch.tensor(-step, dtype=torch.float64)}, torch.arange(step))
        if step in (2, 3):
            meter.send()
    assert [step for step, _, _ in meter.receive()] == [1, 2, 3]
    meter.send()
    meter.send()
    rest = list(meter.receive())
    assert [(step, metrics, len(rows)) for step, metrics, rows in rest] == [
        (4, {"loss": 4.0, "x": -4.0}, 4), (5, {"loss": 5.0, "x": -5.0}, 5),
    ]  # fmt: skip
    assert list(meter.receive()) == []


def test_accumulated_batches_make_one_step_of_their_mean_gradient(small: list[str], tmp_path: Path) -> None:
    trainer = make_trainer([*small, "optim.accumulate=3", "optim.weight_decay=0"], tmp_path / "run")
    alone = deepcopy(trainer.model).train()
    trainer.network.train()
    batches = next(trainer.batches())
    assert len(batches) == 3
    losses = []
    for batch in batches:
        output = alone(alone.preprocessing(batch.images))
        loss, _ = trainer.objective(output.features, output.logits, batch.labels, batch.camids)
        (loss / 3).backward()
        losses.append(float(loss.detach()))
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.5
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    terms = trainer.train_step(batches)
    assert float(terms["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    for name, parameter in trainer.model.named_parameters():
        gradient = alone.get_parameter(name).grad
        expected = before[name] if gradient is None else before[name] - 0.5 * gradient
        assert torch.allclose(parameter, expected, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize(("accumulate", "steps"), [(1, 8), (3, 3), (8, 1), (100, 1)])
def test_the_last_step_of_an_epoch_uses_the_remaining_batches(
    small: list[str], tmp_path: Path, accumulate: int, steps: int
) -> None:
    trainer = make_trainer([*small, f"optim.accumulate={accumulate}", "schedule.epochs=1"], tmp_path / "run")
    assert len(trainer.loader) == 8
    assert trainer.fit().step == trainer.steps == steps


@pytest.mark.slow
def test_crop_and_batch_sizes_follow_their_stages(small: list[str], tmp_path: Path) -> None:
    stages = ["schedule.sizes=[[0,16,8],[0.5,32,16]]", "schedule.batch_sizes=[[0,8],[0.75,16]]", "schedule.epochs=4"]
    seen: dict[int, set[tuple[int, ...]]] = {}

    def look(trainer, batches) -> None:
        for batch in batches:
            seen.setdefault(trainer.progress.epoch, set()).add(tuple(batch.images.shape[:3]))

    settings = [*small, *stages, "eval.split=validation", "eval.fraction=0.3"]
    trainer = make_trainer(settings, tmp_path / "run", Record(on_step_start=look))
    progress = trainer.fit()
    assert seen == {0: {(8, 16, 8)}, 1: {(8, 16, 8)}, 2: {(8, 32, 16)}, 3: {(16, 32, 16)}}
    assert trainer.model.preprocessing.size == (32, 16), "scored at the full size"
    small_steps, large_steps = len(trainer.epoch_loaders.at(0)), len(trainer.epoch_loaders.at(0.8))
    assert progress.step == 3 * small_steps + large_steps
    assert small_steps > large_steps


def test_the_order_of_crops_does_not_depend_on_the_crop_size(small: list[str], tmp_path: Path) -> None:
    plain = make_trainer(small, tmp_path / "a").loader
    staged = make_trainer([*small, "schedule.sizes=[[0,16,8]]"], tmp_path / "b").loader
    for one, other in zip(plain, staged, strict=True):
        assert torch.equal(one.index, other.index)
        assert other.images.shape[1:3] == (16, 8)
    assert (plain.augment.settings.pad, staged.augment.settings.pad) == (2, 1)


def test_small_crops_are_normalised_and_not_resized_back(small: list[str], tmp_path: Path) -> None:
    trainer = make_trainer([*small, "schedule.sizes=[[0,24,12]]"], tmp_path / "run")
    shapes = []
    trainer.model.register_forward_pre_hook(lambda module, given: shapes.append(tuple(given[0].shape)))
    batch = next(iter(trainer.loader))
    trainer.train_step([batch])
    assert shapes == [(16, 3, 24, 12)]


def test_an_invalid_batch_size_of_a_later_stage_is_refused_before_training(small: list[str], tmp_path: Path) -> None:
    config = load_config(None, [*small, "schedule.batch_sizes=[[0,16],[0.5,18]]", "sampler.crops_per_id=4"])
    with pytest.raises(ReidError, match="18 is not a multiple"):
        train(config, tmp_path / "run", ALONE)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("world_size", "extra"),
    [
        (2, ["sampler.batch_size=2"]),
        (1, ["sampler.batch_size=3", "loss.chunk=2"]),
        (2, ["schedule.batch_sizes=[[0,16],[0.5,6]]", "loss.chunk=2"]),
    ],
    ids=["one crop per process", "last chunk of one crop", "last chunk of a later stage"],
)
def test_batches_that_pass_one_crop_at_a_time_are_refused(
    small: list[str], tmp_path: Path, world_size: int, extra: list[str]
) -> None:
    trainer = make_trainer(small, tmp_path / "run")
    settings = [*small, "loss.triplet_weight=0", "sampler.crops_per_id=1", *extra]
    ranks = replace(ALONE, world_size=world_size)
    with pytest.raises(ReidError, match="passes one crop at a time"):
        EpochLoaders(load_config(None, settings), ranks, trainer.data.train, trainer.model.preprocessing)
    if world_size == 2 and "chunk" not in str(extra):  # with shared statistics one crop per process is enough
        config = load_config(None, [*settings, "sync_batchnorm=true"])
        EpochLoaders(config, ranks, trainer.data.train, trainer.model.preprocessing)


def test_a_train_split_of_one_identity_is_refused(small: list[str], tmp_path: Path, tiny_market: Path) -> None:
    (tmp_path / "one/bounding_box_train").mkdir(parents=True)
    for path in (tiny_market / "bounding_box_train").glob("0001_*"):
        shutil.copy(path, tmp_path / "one/bounding_box_train")
    for name in ("query", "bounding_box_test"):
        shutil.copytree(tiny_market / name, tmp_path / "one" / name)
    only = [f"data.train=market1501:{tmp_path / 'one'}", "loss.triplet_weight=0", "sampler.kind=random"]
    with pytest.raises(ReidError, match="crops of one identity only"):
        make_trainer([*small, *only, "sampler.batch_size=2"], tmp_path / "run")


def test_weights_of_a_compiled_network_keep_their_names(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = []

    class Compiled(torch.nn.Module):
        def __init__(self, model: torch.nn.Module) -> None:
            super().__init__()
            self._orig_mod = model
            wrapped.append(model)

        def forward(self, images: torch.Tensor):
            return self._orig_mod(images)

    monkeypatch.setattr(torch, "compile", Compiled)
    one = ["schedule.epochs=1"]
    train(load_config(None, [*small, *one, "compile=true"]), tmp_path / "compiled", ALONE)
    assert len(wrapped) == 1
    monkeypatch.undo()
    train(load_config(None, [*small, *one]), tmp_path / "plain", ALONE)
    assert log_of(tmp_path / "compiled") == log_of(tmp_path / "plain")


@pytest.mark.slow
def test_the_order_of_crops_does_not_depend_on_workers_or_store(small: list[str], tmp_path: Path) -> None:
    for workers in (1, 3):
        settings = [*small, "data.store=files", f"data.workers={workers}", "schedule.epochs=1"]
        train(load_config(None, settings), tmp_path / str(workers), ALONE)
    one, three = (log_of(tmp_path / str(workers)) for workers in (1, 3))
    assert one == three


@pytest.mark.slow
def test_two_runs_with_one_seed_are_identical_and_another_seed_differs(small: list[str], tmp_path: Path) -> None:
    settings = [*small, "schedule.epochs=1"]
    for name in ("a", "b"):
        train(load_config(None, settings), tmp_path / name, ALONE)
    assert_same_run(tmp_path / "a", tmp_path / "b")
    train(load_config(None, [*settings, "seed=1"]), tmp_path / "c", ALONE)
    assert log_of(tmp_path / "a") != log_of(tmp_path / "c")


def test_batches_for_a_gpu_are_in_page_locked_memory(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(small, tmp_path / "run")
    assert not trainer.loader.options.pin
    trainer.epoch_loaders.distributed = replace(ALONE, device=torch.device("cuda"))
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self.shape) or self)
    loader = trainer.epoch_loaders.at(0.0)
    loader.options = replace(loader.options, prefetch=0)
    batch = next(iter(loader))
    assert pinned == [batch.images.shape, batch.labels.shape, batch.pids.shape, batch.camids.shape]


def test_zero_residual_starts_residual_blocks_as_the_identity(small: list[str], tmp_path: Path) -> None:
    model = make_trainer([*small, "model.zero_residual=true"], tmp_path / "run").model.eval()
    blocks = [module for module in model.backbone.modules() if type(module).__name__ == "BasicBlock"]
    assert len(blocks) == 4
    for block in blocks:
        given = torch.rand(2, block.conv1.in_channels, 8, 4)
        expected = given if block.downsample is None else block.downsample(given)
        assert torch.equal(block(given), expected.relu())


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["model.backbone=osnet_x0_25"], "no ResNet blocks"),
        (["model.backbone=resnet18", "model.weights=imagenet"], "would change"),
    ],
)
def test_zero_residual_needs_residual_blocks_and_no_initial_weights(
    small: list[str], tmp_path: Path, extra: list[str], words: str
) -> None:
    with pytest.raises(ReidError, match=words):
        make_trainer(
            [*small, "model.zero_residual=true", "model.height=64", "model.width=32", *extra], tmp_path / "run"
        )


def test_each_batch_has_equal_parts_of_each_source(small: list[str], tmp_path: Path, tiny_market: Path) -> None:
    both = [*small, f"data.train=[market1501:{tiny_market},market1501:{tiny_market}]", "sampler.balance=source"]
    trainer = make_trainer(both, tmp_path / "run")
    sources = trainer.data.train.crops.sources
    assert all(np.bincount(sources[batch.index]).tolist() == [8, 8] for batch in trainer.loader)
    with pytest.raises(ReidError, match="2 sources"):
        make_trainer([*both, "sampler.batch_size=9", "sampler.crops_per_id=3"], tmp_path / "run")
    with pytest.raises(ReidError, match="hard_identity does not support"):
        make_trainer([*both, "sampler.kind=hard_identity"], tmp_path / "run")
