from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reid.config import load_config
from reid.models import build_model
from reid.models.checkpoints import load_checkpoint, load_model
from reid.training.ema import MovingAverage
from reid.training.trainer import train
from tests.training.runs import ALONE, same_state


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999], ids=["the weights themselves", "above the warm-up", "warming up"])
def test_the_moving_average_follows_its_formula_for_every_tensor(decay: float) -> None:
    model = build_model("light10", num_classes=3, height=32, width=16)
    average = MovingAverage(model, decay)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for n in range(25):
        d = min(decay, (1 + n) / (10 + n))
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if tensor.is_floating_point():
                    tensor.add_(torch.randn(tensor.shape, generator=generator))
                    expected[name] = d * expected[name] + (1 - d) * tensor
                else:
                    tensor.add_(1)
                    expected[name] = tensor.clone()
        average.update()
    assert average.updates == 25
    assert not any(parameter.requires_grad for parameter in average.model.parameters())
    for name, tensor in average.model.state_dict().items():
        assert torch.allclose(tensor, expected[name], atol=1e-5), name


@pytest.mark.slow
def test_the_moving_average_is_evaluated_and_saved(small: list[str], tmp_path: Path) -> None:
    scored = ["eval.split=validation", "eval.fraction=0.3", "eval.every=1"]
    train(load_config(None, [*small, "optim.ema=0.9", *scored]), tmp_path / "run", ALONE)
    last = load_checkpoint(tmp_path / "run/last.pt")
    assert last["progress"]["step"] > 0
    assert not same_state(last["model"], last["raw"])
    assert same_state(load_model(tmp_path / "run/last.pt").state_dict(), last["model"])
    assert load_checkpoint(tmp_path / "run/best.pt")["scores"] in last["progress"]["history"]
    train(load_config(None, [*small, *scored]), tmp_path / "plain", ALONE)
    without = load_checkpoint(tmp_path / "plain/last.pt")
    assert same_state(without["model"], last["raw"]), "averaging does not touch the training"
    assert "raw" not in without
