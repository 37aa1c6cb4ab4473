from __future__ import annotations

import re

import pytest
import torch
from click.testing import CliRunner

from reid.commands import main
from reid.models import BACKBONES, build_model


def rows(*arguments: str) -> dict[str, list[str]]:
    result = CliRunner().invoke(main, ["model", "list", *arguments])
    assert result.exit_code == 0, result.output
    return {words[0]: words[1:] for line in result.output.splitlines() if len(words := line.split()) in (5, 6)}


@pytest.mark.slow
def test_all_networks_are_listed_with_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: BACKBONES[name] for name in ("resnet18", "osnet_ain_x0_25", "light10")}
    monkeypatch.setattr("reid.pipelines.networks.BACKBONES", few)
    listed = rows()
    assert [name for name in listed if name in BACKBONES] == list(few)
    model = build_model("light10", neck="none")
    counts = model.count()
    sizes = [str(model.embedding_size), f"{counts.parameters / 1e6:.2f}", f"{counts.flops / 1e9:.3f}"]
    assert listed["light10"][:3] == sizes
    assert float(listed["light10"][3]) == pytest.approx(4 * counts.parameters / 1e6, rel=0.01)


@pytest.mark.slow
def test_named_networks_are_measured_at_the_given_size() -> None:
    listed = rows("light10", "--size", "64", "32", "--measure", "--device", "cpu")
    assert [name for name in listed if name in BACKBONES] == ["light10"]
    assert listed["light10"][2] == f"{build_model('light10', neck='none', height=64, width=32).count().flops / 1e9:.3f}"
    assert re.fullmatch(r"\d+", listed["light10"][4])


def test_unknown_network_suggests_a_similar_name() -> None:
    result = CliRunner().invoke(main, ["model", "list", "light11"])
    assert result.exit_code
    assert "Did you mean 'light1" in result.output


def test_threads_of_torch_are_restored() -> None:
    before = torch.get_num_threads()
    rows("light10", "--threads", str(before + 1))
    assert torch.get_num_threads() == before
