"""A curriculum keeps batch-hard from collapsing: a small run, made data, every draw from a seed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from reid.config import LossConfig
from reid.losses import CollapseWatch, Objective

IDS, K, SIGNAL, DISTRACTION, STEPS = 24, 4, 6, 58, 500
EASY_TO_HARD = {"hardness": [[0, 0], [0.5, 0], [0.8, 1]]}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(schedules: dict[str, list[list[float]]]) -> tuple[dict[str, float], list[str]]:
    """Batch-hard alone, margin 0.3: few numbers of a crop tell who it is, and many, louder, tell nothing.

    An untrained network mixes both, so that hard pairs are hopeless and shrinking all features pays; one that has
    learned to look at the few can have hard pairs and part them. Returns the last step's numbers, the watch's words.
    """
    generator = torch.Generator().manual_seed(0)
    people = 0.5 * torch.randn(IDS, SIGNAL, generator=generator)
    network = nn.Sequential(nn.Linear(SIGNAL + DISTRACTION, 16), nn.ReLU(), nn.Linear(16, 8))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    objective, watch = Objective(LossConfig(softmax_weight=0, schedules=schedules)), CollapseWatch(0.3)
    labels, spoken = torch.arange(IDS).repeat_interleave(K), []
    seen: dict[str, Tensor] = {}
    for step in range(STEPS):
        signal = people.repeat_interleave(K, dim=0) + 0.05 * torch.randn(IDS * K, SIGNAL, generator=generator)
        noise = 1.5 * torch.randn(IDS * K, DISTRACTION, generator=generator)
        objective.set_progress(step / STEPS)
        loss, seen = objective(network(torch.cat([signal, noise], dim=1)), None, labels)
        network.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= 0.5 * parameter.grad
        if step % 3 == 0:
            words = watch.observe(*(seen[name].item() for name in ("triplet", "positive", "negative")))
            spoken += [words] if words else []
    return {name: value.item() for name, value in seen.items()}, spoken


@pytest.mark.slow
def test_batch_hard_from_the_start_collapses() -> None:
    last, spoken = run({})
    assert last["triplet"] == pytest.approx(0.3, rel=0.01)
    assert last["negative"] < 0.01
    assert len(spoken) == 1


@pytest.mark.slow
def test_hardness_rising_from_easy_to_hard_does_not_collapse() -> None:
    """The last fifth of the run is batch-hard in full, as all of the other."""
    last, spoken = run(EASY_TO_HARD)
    assert last["hardness"] == 1
    assert last["negative"] > 3 * last["positive"] > 0.1
    assert last["triplet"] < 0.295
    assert spoken == []
