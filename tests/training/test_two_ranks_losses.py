"""Two processes with half of the batch each: the loss and the gradients of one process with all of it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reid.core.distributed import DistributedContext
from tests.training.two_ranks import CASES, run

pytestmark = pytest.mark.slow


REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    """What each of two processes found, over gloo."""
    out = tmp_path_factory.mktemp("ranks") / "found"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.two_ranks", str(out)],
            env=common | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in running:
        words = process.communicate(timeout=300)[1]
        assert process.returncode == 0, words[-3000:]
    return [torch.load(f"{out}.{rank}", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_losses_of_two_processes_equal_those_of_one(both, case: str) -> None:
    whole = run(case, DistributedContext(0, 1, torch.device("cpu")))
    assert float(whole["1 loss"]) > 0
    for found in both:
        assert found[case].keys() == whole.keys()
        for name, expected in whole.items():
            torch.testing.assert_close(found[case][name], expected, rtol=1e-6, atol=1e-7, msg=f"{name} differs")
