"""Our BoT recipe next to the code of its authors (REID_BOT); `benchmarks.bot_parity` does the same on real crops."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import bot_parity as parity
from reid.config import load_config
from reid.evaluation import evaluate_distances
from reid.training.schedules import learning_rate_factor


@pytest.fixture
def code() -> Iterator[SimpleNamespace]:
    folder = os.environ.get("REID_BOT")
    if not folder:
        pytest.skip("REID_BOT does not name the folder of reid-strong-baseline")
    before = set(sys.modules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # written for an older torch
        yield parity.their_code(Path(folder))
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("modeling", "layers", "solver", "data"):
            del sys.modules[name]


def test_losses_rates_and_weights_equal_those_of_bots_code(code: SimpleNamespace, tiny_market: Path) -> None:
    trainer = parity.our_trainer(tiny_market, 4, (128, 64))
    batches = list(islice(trainer.loader, 2))
    theirs = parity.their_network(code, len(trainer.pid_of_label))
    start = {parity.our_name(k): v.clone() for k, v in theirs.state_dict().items()}
    trainer.model.load_state_dict(start)
    both = zip(
        parity.run_theirs(code, theirs, batches, parity.normalised), parity.run_ours(trainer, batches), strict=True
    )
    (first, there), (ours, here) = next(both)
    assert ours == pytest.approx(first, rel=1e-4)
    # Adam's first step is the learning rate in the sign of each gradient, rounding's where the true one is near zero
    assert parity.distance(here, there, start)[0] < 1e-3
    running = [k for k in here if "running_" in k]
    assert max(float((here[k] - there[k]).abs().max()) for k in running) < 1e-4
    (second, _), (then, _) = next(both)
    assert then == pytest.approx(second, rel=2e-2)


def test_in_float64_both_trainings_stay_equal(code: SimpleNamespace, tiny_market: Path) -> None:
    trainer = parity.our_trainer(tiny_market, 2, (64, 32))
    batches = list(islice(trainer.loader, 3))
    theirs = parity.their_network(code, len(trainer.pid_of_label)).double()
    start = {parity.our_name(k): v.clone() for k, v in theirs.state_dict().items()}
    trainer.model.load_state_dict(start)
    runs = (
        parity.run_theirs(code, theirs, batches, lambda pixels: parity.normalised(pixels).double()),
        parity.run_ours(trainer, batches, double=True),
    )
    for (there, weights), (here, own) in zip(*runs, strict=True):
        assert here == pytest.approx(there, rel=1e-6)
        assert parity.distance(own, weights, start)[1] < 1e-3


def test_the_learning_rate_of_every_epoch_equals_that_of_bots_code(code: SimpleNamespace) -> None:
    solver, settings = code.settings.SOLVER, load_config(parity.CONFIG)
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], solver.BASE_LR)
    schedule = code.schedule.WarmupMultiStepLR(
        optimizer, solver.STEPS, solver.GAMMA, solver.WARMUP_FACTOR, solver.WARMUP_ITERS, solver.WARMUP_METHOD
    )
    assert settings.schedule.epochs == solver.MAX_EPOCHS
    for epoch in range(solver.MAX_EPOCHS):
        schedule.step()
        ours = settings.optim.lr * learning_rate_factor(settings.schedule, epoch)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_scores_of_the_same_distances_equal_those_of_bots_code(code: SimpleNamespace) -> None:
    rng = np.random.default_rng(0)
    queries, gallery = 40, 300
    distances = rng.random((queries, gallery)).astype(np.float32)
    pids, cameras = (tuple(rng.integers(0, n, size) for size in (queries, gallery)) for n in (12, 4))
    pids[0][:3] = 99  # nobody to be found
    cmc, mean = code.evaluation.eval_func(distances, *pids, *cameras)
    found = evaluate_distances(distances, *pids, *cameras)
    assert found.mAP == pytest.approx(mean, rel=1e-6)
    np.testing.assert_allclose(found.cmc, cmc, rtol=1e-6)
