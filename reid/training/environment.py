"""What a run runs on."""

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


def environment(ranks: DistributedContext) -> dict[str, Any]:
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


def keep_memory() -> None:
    """Let this process keep the memory that it frees, until it ends, where its C library is glibc; else do nothing.

    By default glibc asks the system for each block above some megabytes and gives it back when it is freed, so that
    the activations of every training step are pages that the kernel must first clear.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or none to open
        library = ctypes.CDLL(None)
        if hasattr(library, "gnu_get_libc_version"):
            library.mallopt(mmap_max, 0)
            library.mallopt(trim_threshold, -1)
