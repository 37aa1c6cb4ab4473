"""The part of a gallery that a search covers: cameras and times."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Scope:
    """Which rows are searched.

    Attributes:
        cameras: names; None for all. An unknown camera is in no list.
        after, before: milliseconds since 1970. A tracklet is in the scope if it was seen between them; one of unknown
            time is not.
    """

    cameras: Collection[str] | None = None
    after: int | None = None
    before: int | None = None

    @property
    def is_all(self) -> bool:
        """Whether every row is in the scope."""
        return self.cameras is None and self.after is None and self.before is None
