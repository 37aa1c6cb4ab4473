"""Return freed memory to the system, for processes that run for days."""

from __future__ import annotations

import ctypes
import os
import sys

_TRIM_THRESHOLD, _ARENA_MAX = -1, -8  # parameters of mallopt, in malloc.h of glibc
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
    if not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in os.environ:
        return False
    try:
        library = ctypes.CDLL(None)
        _ = library.gnu_get_libc_version  # musl has no such function
        mallopt = library.mallopt
    except (OSError, AttributeError):
        return False
    limits = {"MALLOC_ARENA_MAX": (_ARENA_MAX, _ARENAS), "MALLOC_TRIM_THRESHOLD_": (_TRIM_THRESHOLD, _TOP_BYTES)}
    wanted = [limit for name, limit in limits.items() if name not in os.environ]
    return sum(mallopt(*limit) for limit in wanted) > 0
