"""The ground plane of one camera from the heights of the people in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from reid.data.tracks import Floats

PERSON_HEIGHT = 1.7
"""Metres, of a person whose box has the mean height."""

MIN_BOXES = 40
"""Boxes that are needed."""

_MAX_BOXES = 500
_HEIGHT_ERROR = 0.08  # of a box, as a fraction of its height
_FOCAL_SPREAD = 0.3  # standard deviation of log(focal length / longer side of the frame)
_ROLL_SPREAD = 0.05  # radians
_PRIOR_BOXES = 0.01  # weight of the priors, as a fraction of the boxes


def estimate_ground_plane(boxes: Floats, size: tuple[int, int]) -> Floats | None:
    """Homography `[3, 3]` from the image to the ground in metres, from the boxes of people who stand or walk.

    The camera is a pinhole in the middle of the frame with focal length, tilt, height and roll. They are fitted so that
    a person of `PERSON_HEIGHT` who stands at the foot point of each box is as tall as the box (Levenberg–Marquardt,
    soft L1). The focal length is poorly known from heights, so it is drawn to the longer side of the frame. The camera
    is at x = y = 0 of its ground plane and looks along y. Distances are too large or small by as much as people are
    shorter or taller than 1.7 m.

    Args:
        boxes: `[N, 4]` x, y, width, height of boxes that show people from head to foot. 500 of them are used.
        size: Width and height of the frame.

    Returns:
        None with fewer than `MIN_BOXES` boxes, or if nothing fits.

    Example:
        >>> feet = np.stack(np.meshgrid(np.linspace(100, 500, 8), np.linspace(260, 460, 8)), axis=-1).reshape(-1, 2)
        >>> height = 0.6 * (feet[:, 1] - 100)  # Heights grow with the distance from a horizon at y = 100.
        >>> boxes = np.column_stack([feet[:, 0] - 20, feet[:, 1] - height, np.full(64, 40), height])
        >>> estimate_ground_plane(boxes, (640, 480)).shape
        (3, 3)
    """
    if len(boxes) < MIN_BOXES:
        return None
    if len(boxes) > _MAX_BOXES:
        boxes = boxes[np.random.default_rng(0).choice(len(boxes), _MAX_BOXES, replace=False)]
    x, top, width, height = boxes.T
    feet = np.column_stack([x + width / 2, top + height, np.ones(len(boxes))])
    focal, prior = float(max(size)), np.sqrt(_PRIOR_BOXES * len(boxes))

    def residuals(camera: Floats) -> Floats:
        points = feet @ np.linalg.inv(_to_image(camera, size)).T
        depth = np.where(np.abs(points[:, 2]) < 1e-9, 1e-9, points[:, 2])
        places = points[:, :2] / depth[:, None]
        heads = np.column_stack([places, np.full(len(places), PERSON_HEIGHT), np.ones(len(places))])
        projected = heads @ _projection(camera, size).T
        missed = (projected[:, 1] / np.maximum(projected[:, 2], 0.1) - top) / height
        wrong = np.where(places[:, 1] > 0, missed, 2.0) / _HEIGHT_ERROR
        priors = [(camera[0] - np.log(focal)) / _FOCAL_SPREAD, camera[3] / _ROLL_SPREAD]
        return np.concatenate([np.nan_to_num(wrong, nan=25.0, posinf=25.0, neginf=-25.0), prior * np.array(priors)])

    starts = [[np.log(focal), tilt, np.log(metres), 0.0] for tilt in (0.1, 0.3, 0.6, 1.0) for metres in (3.0, 6.0)]
    fits = [least_squares(residuals, start, loss="soft_l1", max_nfev=60) for start in starts]
    best = min(fits, key=lambda fit: float(fit.cost))
    matrix = np.linalg.inv(_to_image(best.x, size))
    if not np.isfinite(matrix).all() or best.cost / len(boxes) > 2:
        return None
    return np.asarray(matrix / np.abs(matrix).max())


def _projection(camera: NDArray[np.float64], size: tuple[int, int]) -> Floats:
    """Projection `[3, 4]` from x, y, z in metres to the image of a camera (log focal, tilt, log height, roll)."""
    focal, tilt, height, roll = np.exp(camera[0]), camera[1], np.exp(camera[2]), camera[3]
    s, c = np.sin(tilt), np.cos(tilt)
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    rotation = turn @ np.array([[1, 0, 0], [0, -s, -c], [0, c, -s]])
    lens = np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])
    return np.asarray(lens @ rotation @ np.column_stack([np.eye(3), [0, 0, -height]]))


def _to_image(camera: NDArray[np.float64], size: tuple[int, int]) -> Floats:
    """Homography `[3, 3]` from the ground to the image."""
    return _projection(camera, size)[:, [0, 1, 3]]
