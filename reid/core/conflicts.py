"""Detect that PyPI's other project `reid` is installed in the same folder as this package."""

from __future__ import annotations

import contextlib
from pathlib import Path


def check_no_conflict(package: Path) -> None:
    """Refuse to import if the files of PyPI's project `reid` are mixed into the folder of this package.

    Args:
        package: the folder of this package.

    Raises:
        ImportError: a distribution called `reid` has installed files there.
    """
    for info in package.parent.glob("reid-[0-9]*.dist-info"):
        owned = "reid/"
        with contextlib.suppress(OSError):
            owned = (info / "RECORD").read_text("utf-8")
        if any(line.startswith("reid/") for line in owned.splitlines()):
            raise ImportError(
                f"The distributions `reid` ({info.name}) and `reid-toolkit` are both installed in {package.parent}, "
                "with mixed files. They cannot share an environment. Create a new one for reid-toolkit, or run "
                "`pip uninstall reid reid-toolkit` and then `pip install reid-toolkit`."
            )
