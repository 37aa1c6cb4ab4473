from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reid.config import OptimConfig, load_config
from reid.core.errors import ReidError
from reid.models import build_model
from reid.training.parameter_groups import freeze, make_optimizer, pattern_of, set_rate
from reid.training.trainer import train
from tests.training.runs import ALONE, make_trainer


@pytest.mark.parametrize(
    ("name", "patterns", "fits"),
    [
        ("backbone.3.conv1.weight", ["backbone"], "backbone"),  # a beginning
        ("backbone.3.conv1.weight", ["back"], None),  # not a whole part of the name
        ("backbone.3.conv1.weight", ["backbone.[12]", "backbone.[3-9]"], "backbone.[3-9]"),  # a class
        ("backbone.3.conv1.weight", ["*.weight", "backbone"], "*.weight"),  # the first that fits
        ("backbone.3.conv1.weight", ["backbone.3.conv1.weight"], "backbone.3.conv1.weight"),  # the whole name
        ("neck.weight", ["backbone"], None),
    ],
)
def test_a_pattern_matches_the_beginning_of_a_name(name: str, patterns: list[str], fits: str | None) -> None:
    assert pattern_of(name, patterns) == fits


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("decay_norms", [True, False])
def test_every_trained_parameter_is_in_one_group_with_its_rate_and_decay(kind: str, decay_norms: bool) -> None:
    model = build_model("light10", num_classes=3, height=32, width=16)
    loss_weight = torch.nn.Parameter(torch.ones(3, 2))
    groups = {
        "backbone.0": {"lr": 0.5},
        "backbone": {"lr": 0.1, "weight_decay": 0.3},
        "classifier": {"weight_decay": 0},
    }
    settings = OptimConfig(name=kind, lr=2.0, weight_decay=0.01, decay_norms=decay_norms, groups=groups)
    optimizer = make_optimizer(settings, model, [loss_weight])
    set_rate(optimizer, lr=4.0, momentum=0.7)
    found = {}
    for group in optimizer.param_groups:
        assert group["momentum" if kind == "sgd" else "betas"] == (0.7 if kind == "sgd" else (0.7, 0.999))
        assert group["fused"]
        for parameter in group["params"]:
            assert id(parameter) not in found
            found[id(parameter)] = (group["lr"], group["weight_decay"])
    for name, parameter in [*model.named_parameters(), ("", loss_weight)]:
        if not parameter.requires_grad:
            assert id(parameter) not in found
            continue
        lr, decay = 4.0, 0.01
        if name.startswith("backbone.0."):
            lr = 2.0
        elif name.startswith("backbone."):
            lr, decay = 0.4, 0.3
        elif name.startswith("classifier."):
            decay = 0.0
        if parameter.ndim == 1 and not decay_norms:
            decay = 0.0
        assert found[id(parameter)] == pytest.approx((lr, decay)), name


def test_a_pattern_without_any_parameter_is_an_error() -> None:
    with pytest.raises(ReidError, match="'head' matches no parameter"):
        make_optimizer(OptimConfig(groups={"head": {"lr": 0.1}}), build_model("light10", height=32, width=16))


def test_nesterov_needs_momentum() -> None:
    model = build_model("light10", height=32, width=16)
    assert make_optimizer(OptimConfig(name="sgd", nesterov=True), model).defaults["nesterov"]
    with pytest.raises(ReidError, match="momentum"):
        make_optimizer(OptimConfig(name="sgd", nesterov=True, momentum=0.0), model)


@pytest.mark.slow
def test_frozen_parameters_do_not_change_until_their_epoch(small: list[str], tmp_path: Path) -> None:
    frozen = ["optim.groups={backbone.0: {freeze_epochs: 2}, backbone: {freeze_epochs: 1}}", "schedule.epochs=1"]
    trainer = make_trainer([*small, *frozen], tmp_path / "one")
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    trainer.fit()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith("backbone.") or name == "neck.bias", name
    trainer = make_trainer([*small, *frozen, "schedule.epochs=2"], tmp_path / "two")
    trainer.fit()
    for name, tensor in trainer.model.state_dict().items():
        still = name.startswith("backbone.0.") or name == "neck.bias"
        assert torch.equal(tensor, before[name]) == still, name


def test_no_graph_is_kept_for_frozen_layers(small: list[str], tmp_path: Path) -> None:
    trainer = make_trainer([*small, "optim.groups={backbone: {freeze_epochs: 1}}"], tmp_path / "run")
    trainer.network.train()
    freeze(trainer.model, trainer.optimizer, 0)
    images = torch.zeros(4, 3, 32, 16)
    assert trainer.model(images).features.grad_fn is None
    freeze(trainer.model, trainer.optimizer, 1)
    assert trainer.model(images).features.grad_fn is not None
    assert all(module.training for module in trainer.model.modules())


@pytest.mark.slow
def test_a_group_with_learning_rate_0_does_not_change(small: list[str], tmp_path: Path) -> None:
    train(load_config(None, [*small, "optim.groups={classifier: {lr: 0}}", "schedule.epochs=1"]), tmp_path / "a", ALONE)
    trainer = make_trainer(small, tmp_path / "b")
    now = torch.load(tmp_path / "a/last.pt", weights_only=True)["model"]
    assert torch.equal(now["classifier.weight"], trainer.model.state_dict()["classifier.weight"])
    assert not torch.equal(now["backbone.0.weight"], trainer.model.state_dict()["backbone.0.weight"])
