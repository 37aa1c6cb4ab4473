"""How the C library (glibc) keeps or returns freed memory."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # parameters of mallopt, in malloc.h of glibc
_ARENAS, _TOP_BYTES = 2, 65_536


def limit_heap() -> bool:
    """Let glibc use two heaps, and give memory that is free at the end of one back to the system.

    By default glibc has up to eight heaps a core, and each keeps what its threads have freed. Call it before threads
    are started: heaps that exist remain. `MALLOC_ARENA_MAX`, `MALLOC_TRIM_THRESHOLD_` and `GLIBC_TUNABLES` in the
    environment take precedence.

    Returns:
        Whether a limit was set; False where the C library is not glibc.

    Example:
        >>> limit_heap() in (True, False)
        True
    """
    mallopt = None if "GLIBC_TUNABLES" in os.environ else _mallopt()
    if mallopt is None:
        return False
    limits = {"MALLOC_ARENA_MAX": (_ARENA_MAX, _ARENAS), "MALLOC_TRIM_THRESHOLD_": (_TRIM_THRESHOLD, _TOP_BYTES)}
    wanted = [limit for name, limit in limits.items() if name not in os.environ]
    return sum(mallopt(*limit) for limit in wanted) > 0


def keep_memory() -> None:
    """Make the C library keep freed memory for this process (glibc only; else nothing is done).

    By default glibc returns freed blocks above some megabytes to the system immediately. The kernel then has to clear
    the pages of the activations again in every training step.
    """
    mallopt = _mallopt()
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)


def _mallopt() -> Any:
    """Return glibc's function; None with another C library."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        library = ctypes.CDLL(None)
        _ = library.gnu_get_libc_version  # musl has no such function
        return library.mallopt
    except (OSError, AttributeError):
        return None
