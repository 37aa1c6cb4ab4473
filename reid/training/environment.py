"""Software and hardware of a run, and memory settings of the process."""

from __future__ import annotations

import contextlib
import ctypes
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


def keep_memory() -> None:
    """Make the C library keep freed memory for this process (glibc only; else nothing is done).

    By default glibc returns blocks above some megabytes to the system as soon as they are freed. The kernel then has to
    clear the pages of the activations again in every training step.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        library = ctypes.CDLL(None)
        if hasattr(library, "gnu_get_libc_version"):
            library.mallopt(mmap_max, 0)
            library.mallopt(trim_threshold, -1)
