"""People as the cameras of a synthetic world render them, for comparison with their true boxes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from reid.synthetic.rendering import Studio
from reid.synthetic.trajectories import placed_at
from reid.synthetic.world import TEST, World


def rendered_people(world: World) -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
    """Yield true box `[4]` and changed pixels `[H, W]` of up to four people of each camera, without their shadows."""
    for c, camera in enumerate(world.cameras):
        studio = Studio(camera, world.people, [])
        for sighting in [s for s in world.sightings[TEST][c] if (s.inside > 0.999).any()][:4]:
            t = int(np.flatnonzero(sighting.inside > 0.999)[0])
            (placed,) = placed_at([sighting], world.people, float(sighting.times[t]))
            whole = (0.0, 0.0, float(camera.size[0]), float(camera.size[1]))
            empty = studio.draw([], whole, camera.size).astype(int)
            studio._draw_shadow = lambda *_: None  # type: ignore[method-assign]
            changed = np.abs(studio.draw([placed], whole, camera.size).astype(int) - empty).sum(-1) > 12
            yield sighting.boxes[t], changed
