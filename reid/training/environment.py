"""What a run ran on."""

from __future__ import annotations

import platform
import shlex
import sys
from typing import Any

import numpy as np
import torch

from reid import __version__
from reid.training.distributed import Ranks


def environment(ranks: Ranks) -> dict[str, Any]:
    """Versions, hardware, command."""
    device = ranks.device
    return {
        "reid": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "processes": ranks.world_size,
        "command": shlex.join(sys.argv),
    }
