"""The one error that users meet, and the suggestion of the nearest real name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ReidError(ValueError):
    """Something the user can mend. The message names the file, row or key, the value, and the mend."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'? Known: x, y."`, with the question only where a known name is near."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    question = f" Did you mean {near[0]!r}?" if near else ""
    return f"{question} Known: {', '.join(known)}."
