"""Features of crops, and the table that carries them."""

from __future__ import annotations

from reid.embedding.table import Embeddings

__all__ = ["Embeddings"]
