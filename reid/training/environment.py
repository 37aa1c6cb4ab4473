"""Software and hardware of a run."""

from __future__ import annotations

import platform
import shlex
import sys
from typing import Any

import numpy as np
import torch

from reid.core.distributed import DistributedContext
from reid.core.version import __version__


def environment(distributed: DistributedContext) -> dict[str, Any]:
    """Return versions, hardware and command line."""
    device = distributed.device
    return {
        "reid": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device} ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size,
        "command": shlex.join(sys.argv),
    }
