"""Memory of centroids, against a loop over crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reid.core.errors import ConfigError, DataError
from reid.losses import CentroidMemory
from tests.oracles.losses import centroid_loop


@pytest.mark.parametrize("camera_aware", [False, True])
@pytest.mark.parametrize("negatives", [0, 3])
def test_the_loss_and_the_memory_equal_those_of_a_loop(camera_aware: bool, negatives: int) -> None:
    rng = np.random.default_rng(negatives)
    labels, cameras = np.concatenate([np.arange(5), rng.integers(0, 5, 35)]), rng.integers(-1, 3, 40)
    crops, weights = rng.normal(size=(40, 6)), rng.uniform(0.5, 1, 5)
    loss = CentroidMemory(6, 5, negatives=negatives, camera_aware=camera_aware).double()
    columns = (torch.from_numpy(column) for column in (crops, labels, cameras, weights))
    loss.start(*columns)
    unit = crops / np.linalg.norm(crops, axis=1, keepdims=True)
    used = cameras if camera_aware else np.zeros(40, int)
    keys = sorted(set(zip(labels.tolist(), used.tolist(), strict=True)))
    rows = [(*key, unit[(labels == key[0]) & (used == key[1])].sum(axis=0)) for key in keys]
    assert len(loss.memory) == len(keys)
    batch, pids, camids = rng.normal(size=(8, 6)), rng.integers(0, 5, 8), rng.integers(-1, 3, 8)
    x = torch.from_numpy(batch).requires_grad_()
    found = loss(x, torch.from_numpy(pids), torch.from_numpy(camids))
    assert found.item() == pytest.approx(centroid_loop(batch, pids, rows, weights, 0.07, negatives), rel=1e-5)
    found.backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    for (label, camera, before), after in zip(rows, loss.memory.numpy(), strict=True):
        hit = (pids == label) & ((camids == camera) | (not camera_aware))
        seen = (batch / np.linalg.norm(batch, axis=1, keepdims=True))[hit]
        moved = 0.2 * before / np.linalg.norm(before) + 0.8 * seen.mean(axis=0) if hit.any() else before
        assert after == pytest.approx(moved / np.linalg.norm(moved), abs=1e-5)


def test_rows_without_start_are_filled_by_their_first_crop_and_the_state_resumes() -> None:
    loss = CentroidMemory(2, 3)
    eye, pids = torch.eye(2), torch.tensor([0, 1])
    assert loss(eye, pids).item() == 0
    assert loss.filled.tolist() == [True, True, False]
    assert loss(eye, pids).item() == pytest.approx(np.log1p(np.exp(-1 / 0.07)))
    assert loss.eval()(torch.zeros(0, 2), pids[:0]).item() == 0
    started = CentroidMemory(2, 3, camera_aware=True)
    started.start(torch.eye(2).repeat(2, 1), torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 2, 2]))
    other = CentroidMemory(2, 3, camera_aware=True)
    other.load_state_dict(started.state_dict())
    assert other(eye, pids, pids).item() == started(eye, pids, pids).item()


def test_invalid_input() -> None:
    with pytest.raises(ConfigError, match="temperature"):
        CentroidMemory(2, 3, temperature=0)
    with pytest.raises(DataError, match="Call start"):
        CentroidMemory(2, 3, camera_aware=True)(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0, 0]))
    with pytest.raises(DataError, match="needs camids"):
        CentroidMemory(2, 3, camera_aware=True)(torch.eye(2), torch.tensor([0, 1]))
    assert torch.isnan(CentroidMemory(2, 3)(torch.full((1, 2), torch.nan), torch.tensor([0])))
