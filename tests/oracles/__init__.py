"""Slow, obvious versions of what the package computes fast: loops, written from the definitions."""

from tests.oracles.data_and_models import *  # noqa: F403
from tests.oracles.evaluation import *  # noqa: F403
from tests.oracles.losses import *  # noqa: F403
from tests.oracles.tracks import *  # noqa: F403
