"""Renders part of a camera's frame: the scene, people and occluders back to front, then the camera's effects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from reid.synthetic.body import make_mesh, pose, turn_z
from reid.synthetic.camera_models import Camera, Image, Occluder, apply_sensor, blur_image, scene_background
from reid.synthetic.people import Person

Floats = NDArray[np.float64]
Box = tuple[float, float, float, float]
"""x, y, width, height in pixels of the frame."""
SUBPIXEL = 3
AMBIENT, HEMISPHERE = 0.56, 0.14


@dataclass(frozen=True)
class Placed:
    """A person at one moment in one camera's view: `x`, `y` in metres, `heading` and gait `phase` in radians.

    Heading 0 is away from the camera (+y), π/2 to the left (-x), π towards the camera.
    """

    person: int
    x: float
    y: float
    heading: float
    phase: float


def _pixel_window(canvas: Image, low: ArrayLike, high: ArrayLike) -> tuple[int, ...]:
    """Return the whole pixels x0, y0, x1, y1 of a canvas that contain the corners `low` and `high`."""
    first, last = np.maximum(np.floor(low), 0), np.minimum(np.ceil(high), canvas.shape[1::-1])
    return tuple(np.concatenate([first, last]).astype(int).tolist())


@dataclass(eq=False)
class Studio:
    """Renders one camera's scene; caches its background."""

    camera: Camera
    people: Sequence[Person]
    occluders: Sequence[Occluder]

    def __post_init__(self) -> None:
        self.background = scene_background(self.camera)
        self._rotation = self.camera.rotation()
        self._whole: Image | None = None

    def draw(self, placed: Sequence[Placed], region: Box, size: tuple[int, int]) -> Image:
        """Render a region (x, y, w, h pixels) at `size` (w, h) as `[h, w, 3]` BGR, without camera effects."""
        x, y, w, h = region
        zoom = np.array([size[0] / w, size[1] / h])
        matrix = np.array([[zoom[0], 0, -x * zoom[0]], [0, zoom[1], -y * zoom[1]]])
        if region == (0, 0, *self.camera.size):
            if self._whole is None or self._whole.shape[1::-1] != size:
                self._whole = cv2.resize(self.background, size)
            canvas = self._whole.copy()
        else:
            canvas = cv2.warpAffine(self.background, matrix, size, borderMode=cv2.BORDER_REPLICATE)
        things: list[tuple[float, Placed | Occluder]] = [(one.y, one) for one in placed]
        things += [(thing.depth, thing) for thing in self.occluders]
        for _, thing in sorted(things, key=lambda pair: -pair[0]):
            if isinstance(thing, Occluder):
                self._draw_occluder(canvas, thing, matrix)
            else:
                self._draw_shadow(canvas, thing, matrix)
                if self._reaches(thing, region):
                    self._draw_person(canvas, thing, matrix)
        return canvas

    def _reaches(self, one: Placed, region: Box) -> bool:
        """Return whether a person may be visible in a region of the frame."""
        height = self.people[one.person].height
        ends = self.camera.project(np.array([[one.x, one.y, 0.0], [one.x, one.y, height]]))
        tall = ends[0, 1] - ends[1, 1]
        margin = 0.45 * tall
        x, y, w, h = region
        in_columns = x - margin < ends[0, 0] < x + w + margin
        return bool(in_columns and ends[1, 1] - 0.1 * tall < y + h and ends[0, 1] + 0.15 * tall > y)

    def _draw_occluder(self, canvas: Image, thing: Occluder, matrix: Floats) -> None:
        x, y, w, h = thing.box
        left, top = matrix @ (x, y, 1)
        right, bottom = matrix @ (x + w, y + h, 1)
        x0, y0, x1, y1 = _pixel_window(canvas, (left, top), (right, bottom))
        if x0 >= x1 or y0 >= y1:
            return
        local = np.array([[matrix[0, 0], 0, left - x0], [0, matrix[1, 1], top - y0]])
        part = (x1 - x0, y1 - y0)
        picture = cv2.warpAffine(thing.picture, local, part, borderMode=cv2.BORDER_REPLICATE)
        alpha = cv2.warpAffine(thing.alpha, local, part)
        cv2.copyTo(picture, (alpha > 127).astype(np.uint8), canvas[y0:y1, x0:x1])

    def _draw_shadow(self, canvas: Image, one: Placed, matrix: Floats) -> None:
        """Darken the ground under the feet, and in the direction of the shadow if the sun shines."""
        camera = self.camera
        angle = np.linspace(0, 2 * math.pi, 12, endpoint=False)
        foot = np.stack([0.24 * np.cos(angle) + one.x, 0.24 * np.sin(angle) + one.y, 0 * angle], axis=1)
        shapes = [(foot, 0.72)]
        if camera.sun > 0.2:
            reach = min(1.3, 1.0 / max(camera.light[2], 0.3)) * -camera.light[:2]
            far = foot + np.array([*reach, 0.0])
            shapes.append((np.concatenate([foot, far]), 1 - 0.5 * camera.sun))
        for shape, keep in shapes:
            points = camera.project(shape)[:, :2] @ matrix[:, :2].T + matrix[:, 2]
            hull = cv2.convexHull(points.astype(np.float32))[:, 0]
            x0, y0, x1, y1 = _pixel_window(canvas, hull.min(0), np.ceil(hull.max(0)) + 1)
            if x0 >= x1 or y0 >= y1:
                continue
            part = canvas[y0:y1, x0:x1]
            mask = np.zeros(part.shape[:2], np.uint8)
            cv2.fillConvexPoly(mask, (hull - (x0, y0)).astype(np.int32), 1)
            cv2.copyTo(cv2.convertScaleAbs(part, alpha=keep), mask, part)

    def _draw_person(self, canvas: Image, one: Placed, matrix: Floats) -> None:
        mesh, camera = make_mesh(self.people[one.person]), self.camera
        bone_matrix, bone_shift = pose(self.people[one.person], one.phase)
        to_lens = self._rotation
        turn = to_lens @ turn_z(one.heading)
        origin = to_lens @ np.array([one.x, one.y, -camera.height])
        to_frame, moved = turn @ bone_matrix, bone_shift @ turn.T + origin
        points = np.empty_like(mesh.vertices)
        for bone, (first, last) in enumerate(pairwise(mesh.starts)):
            if first < last:
                points[first:last] = mesh.vertices[first:last] @ to_frame[bone].T + moved[bone]
        zoom = np.array([matrix[0, 0], matrix[1, 1]])
        shift = zoom * (camera.size[0] / 2, camera.size[1] / 2) + matrix[:, 2]
        pixels = camera.focal * points[:, :2] / np.maximum(points[:, 2:], 0.3)
        pixels = camera.distort(pixels) * zoom + shift
        flat = pixels[mesh.quads]
        first, second = flat[:, 2] - flat[:, 0], flat[:, 3] - flat[:, 1]
        half = np.array(canvas.shape[1::-1]) / 2
        within = (np.abs(flat[:, 0] - half) < half + 40).all(axis=1)
        seen = np.flatnonzero((first[:, 0] * second[:, 1] < first[:, 1] * second[:, 0]) & within)
        depth = points[:, 2]
        seen = seen[np.argsort(-(depth[mesh.quads[seen, 0]] + depth[mesh.quads[seen, 2]]), kind="stable")]
        corners = points[mesh.quads[seen]]
        (ax, ay, az), (bx, by, bz) = (corners[:, 2] - corners[:, 0]).T, (corners[:, 3] - corners[:, 1]).T
        normals = np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=1)
        normals /= np.maximum(np.sqrt(np.einsum("ij,ij->i", normals, normals)), 1e-12)[:, None]
        sun = np.maximum(normals @ (to_lens @ camera.light), 0)
        up = normals @ to_lens[:, 2]
        light = AMBIENT * (1 - 0.3 * camera.sun) + HEMISPHERE * up + 0.16 * -normals[:, 2]
        light = light + 0.85 * camera.sun * sun + 0.2 * (1 - camera.sun)
        colours = np.clip(mesh.colours[seen] * light[:, None], 0, 255).tolist()
        polygons = (flat[seen] * (1 << SUBPIXEL)).astype(np.int32)
        fill = cv2.fillConvexPoly
        for polygon, colour in zip(polygons, colours, strict=True):
            fill(canvas, polygon, colour, 8, SUBPIXEL)

    def crop(
        self, placed: Sequence[Placed], box: Box, rng: np.random.Generator, *, size: tuple[int, int], gain: float
    ) -> Image:
        """Render the crop `box` (x, y, w, h pixels of the frame) with camera effects, at `size` (w, h), BGR uint8.

        The crop is rendered at twice its size and reduced to the camera's resolution. There it is blurred, coloured,
        made noisy and compressed. Then it is scaled to `size`.
        """
        camera = self.camera
        drawn = self.draw(placed, box, (2 * size[0], 2 * size[1]))
        scale = camera.detail * min(1.0, 1.6 * size[1] / box[3])
        native = max(10, round(box[2] * scale)), max(20, round(box[3] * scale))
        native = min(native[0], 2 * size[0]), min(native[1], 2 * size[1])
        small = cv2.resize(drawn, native, interpolation=cv2.INTER_AREA)
        small = apply_sensor(camera, blur_image(camera, small, scale), rng, gain)
        _, stream = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, camera.quality])
        decoded = np.asarray(cv2.imdecode(stream, cv2.IMREAD_COLOR))
        shrink = native[1] > size[1]
        return cv2.resize(decoded, size, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)
