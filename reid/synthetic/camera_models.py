"""Synthetic cameras: position, field of view, scene, and degradation of the image.

Each camera has local coordinates in metres: it is at (0, 0, height) and looks along +y, down by `tilt`; x points to
the right, z up from the ground. `position` and `azimuth` place these coordinates on the common ground plane.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from reid.synthetic.body import turn_z
from reid.synthetic.people import APPEARANCE, CLOTH_COLOURS, Colour

Floats = NDArray[np.float64]
Image = NDArray[Any]
"""`[H, W, 3]` uint8, blue, green, red."""

SIZES = ((960, 540), (800, 600), (704, 576), (960, 540), (640, 480), (1024, 576))
GROUNDS: dict[str, Colour] = APPEARANCE["grounds"]
BACKS: dict[str, Colour] = APPEARANCE["backs"]


@dataclass(frozen=True, eq=False)
class Camera:
    """One camera, drawn from the seed.

    Attributes:
        number: from 1.
        size: frame width and height, pixels.
        focal: focal length, pixels.
        height: metres above ground.
        tilt: downward, radians.
        roll: radians.
        near: least depth (y, metres) at which people walk.
        far: largest depth.
        walking_direction: main direction in which people walk, radians; 0: across the view, π/2: along it.
        position: x, y on the common ground plane, metres.
        azimuth: direction of view on the common ground plane, radians.
        light: `[3]` unit vector towards the sun in the camera's local coordinates.
        sun: fraction of the light that comes from the sun, 0..1.
        matrix: `[3, 4]` colour matrix on BGR, with offset.
        gamma: exponent of the response curve.
        blur: lens blur, σ in pixels of the frame.
        motion: motion blur, pixels.
        noise: σ of the sensor noise, 0..255.
        detail: resolving power: fraction of the frame's pixels that the sensor resolves.
        quality: JPEG quality of the video stream, 1..100.
        exposure: σ of the slow relative change of exposure.
        offset: time of frame 1, seconds on the common clock.
        ground: key of `GROUNDS`.
        back: key of `BACKS`: what closes the scene.
        seed: seed of the scene.
        distortion: radial coefficient k1 of the lens (OpenCV's); below 0: barrel, above 0: pincushion.
    """

    number: int
    size: tuple[int, int]
    focal: float
    height: float
    tilt: float
    roll: float
    near: float
    far: float
    walking_direction: float
    position: tuple[float, float]
    azimuth: float
    light: Floats
    sun: float
    matrix: Floats
    gamma: float
    blur: float
    motion: float
    noise: float
    detail: float
    quality: int
    exposure: float
    offset: float
    ground: str
    back: str
    seed: tuple[int, ...]
    distortion: float = 0.0

    @property
    def name(self) -> str:
        """`cam01` …"""
        return f"cam{self.number:02d}"

    def rotation(self) -> Floats:
        """Return the rotation `[3, 3]` from local coordinates to lens coordinates (x right, y down, z forward)."""
        s, c = math.sin(self.tilt), math.cos(self.tilt)
        return turn_z(self.roll) @ np.array([[1, 0, 0], [0, -s, -c], [0, c, -s]])

    def project(self, points: Floats) -> Floats:
        """Map points `[..., 3]` in metres to `[..., 3]`: x and y in pixels of the frame, depth in metres."""
        lens = (points - np.array([0, 0, self.height])) @ self.rotation().T
        depth = np.maximum(lens[..., 2:], 0.1)
        centre = np.array([self.size[0] / 2, self.size[1] / 2])
        return np.concatenate([self.distort(self.focal * lens[..., :2] / depth) + centre, depth], axis=-1)

    def distort(self, pixels: Floats) -> Floats:
        """Apply the lens distortion to `[..., 2]` pixels from the centre: times 1 + k1 · r², r = pixels / focal ≤ 1."""
        r2 = (pixels**2).sum(axis=-1, keepdims=True) / self.focal**2
        return pixels * (1 + self.distortion * np.minimum(r2, 1))

    def to_local(self, points: Floats) -> Floats:
        """Map points `[N, 2]` of the common ground plane to the camera's x, y."""
        s, c = math.sin(self.azimuth), math.cos(self.azimuth)
        return (points - np.array(self.position)) @ np.array([[s, c], [-c, s]])

    def homography(self) -> Floats:
        """Return the matrix `[3, 3]` from undistorted pixels (x, y, 1) to the common ground plane in metres."""
        s, c = math.sin(self.azimuth), math.cos(self.azimuth)
        x, y = self.position
        to_common = np.array([[s, c, x], [-c, s, y], [0, 0, 1]])
        lens = self.rotation() @ np.array([[1, 0, 0], [0, 1, 0], [0, 0, -self.height]])
        to_frame = np.array([[self.focal, 0, self.size[0] / 2], [0, self.focal, self.size[1] / 2], [0, 0, 1]]) @ lens
        matrix = to_common @ np.linalg.inv(to_frame)
        return matrix / matrix[2, 2]

    def half_width(self, depth: float) -> float:
        """Return half the width of the view, in metres, at ground depth `depth`."""
        return 0.5 * self.size[0] / self.focal * math.hypot(depth, self.height * 0.6)


def aim(camera: Camera, near: float, far: float, field: float) -> Camera:
    """Return the camera with a view of `field` radians, tilted so that the ground from `near` to `far` metres fits."""
    tilt = math.atan2(camera.height - 0.9, 0.45 * near + 0.55 * far)
    focal = 0.5 * camera.size[0] / math.tan(field / 2)
    focal = min(focal, 0.46 * camera.size[1] / math.tan(math.atan2(camera.height, near) - tilt))
    return replace(camera, near=float(near), far=float(far), tilt=tilt, focal=float(focal))


def _levels(rng: np.random.Generator, low: float, high: float, n: int) -> Floats:
    """Return `n` values spread evenly over a range, in random order, so that all cameras differ."""
    values = np.linspace(low, high, n) + rng.uniform(-0.1, 0.1, n) * (high - low) / n
    return rng.permutation(values)


def draw_cameras(seed: int, n: int, *, colour: float = 1.0, degrade: float = 1.0) -> list[Camera]:
    """Draw `n` cameras. `colour` scales how much their colours differ; `degrade` scales blur, noise and compression."""
    rng = np.random.default_rng((seed, 3))
    gains = np.stack([_levels(rng, -0.32, 0.32, n), _levels(rng, -0.10, 0.10, n), _levels(rng, -0.30, 0.30, n)], axis=1)
    contrast = 1 + colour * _levels(rng, -0.32, 0.16, n)
    haze = colour * _levels(rng, -8, 40, n)
    saturation = 1 + colour * _levels(rng, -0.62, 0.25, n)
    gamma = np.exp(colour * _levels(rng, -0.32, 0.36, n))
    height, far = _levels(rng, 2.6, 6.2, n), _levels(rng, 11.0, 20.0, n)
    field = np.deg2rad(_levels(rng, 34, 56, n))
    columns = {
        "height": height,
        "far": far,
        "gamma": gamma,
        "walking_direction": _levels(rng, -0.45 * math.pi, 0.55 * math.pi, n),
        "blur": np.maximum(degrade * _levels(rng, 0.0, 1.3, n), 0),
        "noise": degrade * _levels(rng, 2.0, 9.0, n),
        "motion": np.maximum(degrade * _levels(rng, -3.0, 4.5, n), 0),
    }
    quality = np.clip(_levels(rng, 22 + 40 * (1 - min(degrade, 1.0)), 85, n), 10, 95)
    columns["detail"] = np.clip(1 - degrade * _levels(rng, 0.0, 0.45, n), 0.3, 1.0)
    sun_side, sun_height = _levels(rng, -math.pi, math.pi, n), _levels(rng, 0.5, 1.3, n)
    columns["sun"], radius = _levels(rng, 0.05, 0.62, n), 8.0 + 2.0 * n
    cameras = []
    for i in range(n):
        size = SIZES[i % len(SIZES)]
        near = 4.5 + 0.28 * (far[i] - 8.0) + 0.5 * height[i]
        grey = np.tile(np.array([0.114, 0.587, 0.299]), (3, 1))
        mixed = saturation[i] * np.eye(3) + (1 - saturation[i]) * grey
        matrix = contrast[i] * np.diag(np.exp(colour * gains[i])) @ mixed
        tint = haze[i] + 110 * (1 - contrast[i]) * 0.5 + colour * rng.normal(0, 5, 3)
        side, up, around = sun_side[i], sun_height[i], i * 2 * math.pi / n
        roll, off_x, off_y = rng.normal(0, (0.02, 2, 2)).tolist()
        cameras.append(
            Camera(
                number=i + 1,
                size=size,
                focal=0.0,
                tilt=0.0,
                roll=roll,
                near=float(near),
                position=(radius * math.cos(around) + off_x, radius * math.sin(around) + off_y),
                azimuth=float(rng.uniform(-math.pi, math.pi)),
                light=np.array([math.cos(side) * math.cos(up), math.sin(side) * math.cos(up), math.sin(up)]),
                matrix=np.concatenate([matrix, tint[:, None]], axis=1),
                quality=int(quality[i]),
                exposure=0.06 * min(colour, 1.5),
                offset=float(np.round(rng.uniform(0, 4), 2)),
                ground=list(GROUNDS)[i % len(GROUNDS)],
                back=list(BACKS)[(i + seed) % len(BACKS)],
                seed=(seed, 4, i),
                **{name: float(values[i]) for name, values in columns.items()},
            )
        )
    return [aim(camera, camera.near, camera.far, float(field[i])) for i, camera in enumerate(cameras)]


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: int) -> NDArray[Any]:
    """Return smooth noise around 0 with spots of about `cell` pixels."""
    small = rng.normal(0, 1, (shape[0] // cell + 2, shape[1] // cell + 2)).astype(np.float32)
    return cv2.resize(small, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def _cloth_colour(rng: np.random.Generator) -> Floats:
    return np.array(CLOTH_COLOURS[int(rng.integers(len(CLOTH_COLOURS)))])


def _as_image(values: NDArray[Any]) -> Image:
    return np.clip(values, 0, 255).astype(np.uint8)


def _ground_texture(camera: Camera, rng: np.random.Generator, side: int) -> Image:
    """Draw the ground seen from above, 48 m in `side` pixels."""
    base = np.array(GROUNDS[camera.ground], dtype=float)
    metre = side / 48
    texture = np.tile(base, (side, side, 1))
    texture *= 1 + 0.05 * _noise(rng, (side, side), 60)[..., None] + 0.06 * _noise(rng, (side, side), 3)[..., None]
    image = _as_image(texture)
    if camera.ground in ("tiles", "bricks", "hall", "concrete"):
        step = {"tiles": 0.6, "bricks": 0.35, "hall": 1.2, "concrete": 2.4}[camera.ground] * metre
        count = int(side / step) + 1
        spread = 3 if camera.ground == "concrete" else 7
        shade: NDArray[Any] = rng.normal(0, spread, (count, count, 1)).astype(np.float32)
        shade = cv2.resize(shade, (int(count * step), int(count * step)), interpolation=cv2.INTER_NEAREST)[:side, :side]
        image = _as_image(image + shade[..., None])
        joints = (np.arange(count) * step).astype(int)
        image[:, joints[joints < side]] = image[joints[joints < side]] = np.rint(base * 0.72)
    if camera.ground == "asphalt":
        for x in (side * 0.3 + np.arange(12) * 1.1 * metre).astype(int):
            image[int(0.28 * side) : int(0.36 * side) + 1, x : x + int(0.5 * metre) + 1] = (206, 208, 206)
        cv2.line(image, (0, int(0.47 * side)), (side, int(0.47 * side)), (196, 200, 204), 4)
    if camera.ground == "grass":
        path = np.array([[0, 0.2], [1, 0.26], [1, 0.42], [0, 0.36]]) * side
        cv2.fillPoly(image, [path.astype(np.int32)], (140, 152, 160))
        speckle = rng.normal(0, 9, image.shape[:2]).astype(np.float32)
        image = _as_image(image + speckle[..., None])
    return image


def _wall_texture(camera: Camera, rng: np.random.Generator, width: int, height: int) -> Image:
    """Draw what closes the scene at the back, 60 m × 12 m in `width` × `height` pixels."""
    metre = width / 60
    base = np.array(BACKS[camera.back], dtype=float) * rng.uniform(0.8, 1.15)
    smooth, fine = _noise(rng, (height, width), 40)[..., None], rng.normal(0, 1, (height, width, 1))
    image = _as_image(base * (1 + 0.05 * smooth + 0.03 * fine))

    def box(x: float, y: float, w: float, h: float, colour: tuple[float, ...]) -> None:
        """Draw a rectangle; x, y in metres from the left and from the ground."""
        corner = (int(x * metre), int(height - (y + h) * metre))
        cv2.rectangle(image, corner, (int((x + w) * metre), int(height - y * metre)), colour, -1)

    if camera.back in ("facade", "brickwork"):
        if camera.back == "brickwork":
            for row in range(0, height, max(3, int(0.3 * metre))):
                cv2.line(image, (0, row), (width, row), tuple(base * 0.8), 1)
        step = rng.uniform(2.4, 3.6)
        for k in range(int(60 / step)):
            for floor in range(4):
                dark = rng.uniform(0.25, 0.6)
                box(k * step + 0.5, 1.0 + 3 * floor, step * 0.5, 1.5, tuple(np.array([90, 84, 76]) * dark * 2))
                box(k * step + 0.5 + step * 0.24, 1.0 + 3 * floor, 0.07, 1.5, tuple(base * 1.1))
            if rng.random() < 0.2:
                box(k * step + 0.4, 0, 1.1, 2.3, tuple(_cloth_colour(rng) * 0.7))
    elif camera.back == "hedge":
        leaves = _noise(rng, (height, width), 5) + 0.7 * _noise(rng, (height, width), 14)
        image = _as_image(image * (1 + 0.28 * leaves[..., None]))
        for _ in range(14):
            box(rng.uniform(0, 60), 0, rng.uniform(0.2, 0.4), 6, (44, 58, 70))
    elif camera.back == "shops":
        x = 0.0
        while x < 60:
            w = rng.uniform(3, 6)
            colour = _cloth_colour(rng)
            box(x + 0.15, 3.0, w - 0.3, 0.9, tuple(colour * 0.9 + 10))
            box(x + 0.25, 0.4, w - 0.5, 2.4, tuple(rng.uniform(30, 90, 3)))
            for _ in range(6):
                colour = _cloth_colour(rng) * 0.8
                left, low, wide = rng.uniform((0.4, 0.5, 0.2), (w - 0.9, 2.0, 0.7))
                box(x + left, low, wide, 0.6, tuple(colour))
            x += w
    elif camera.back == "railing":
        leaves = _noise(rng, (height, width), 30)
        image = _as_image(image + 26 * leaves[..., None])
        for k in range(0, 600, 2):
            box(k * 0.1, 0, 0.05, 1.2, (70, 70, 72))
        box(0, 1.15, 60, 0.08, (60, 60, 62))
    else:
        step = rng.uniform(1.5, 2.5)
        for k in range(int(60 / step)):
            box(k * step, 0, 0.06, 12, tuple(base * 0.7))
            if rng.random() < 0.35:
                poster = _cloth_colour(rng)
                box(k * step + 0.3, 0.9, step * 0.55, 1.5, tuple(poster * 0.9))
                box(k * step + 0.4, 1.3, step * 0.35, 0.4, tuple(255 - poster * 0.8))
    return image


def _warp(camera: Camera, texture: Image, corners: Floats, scene: Image) -> None:
    """Map a texture onto a quadrilateral; `corners [4, 3]` in metres, clockwise from the upper left."""
    seen = camera.project(corners)[:, :2].astype(np.float32)
    rows, columns = texture.shape[:2]
    flat = np.array([[0, 0], [columns, 0], [columns, rows], [0, rows]], dtype=np.float32)
    matrix = cv2.getPerspectiveTransform(flat, seen)
    warped = cv2.warpPerspective(texture, matrix, camera.size, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_CONSTANT)
    mask = np.zeros(scene.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, np.clip(seen, -9e3, 9e3).astype(np.int32), 255)
    scene[mask > 0] = warped[mask > 0]


def _clutter(camera: Camera, rng: np.random.Generator, scene: Image) -> None:
    """Draw cars, bins and bicycles behind the pedestrians."""
    for _ in range(9):
        depth = camera.far + rng.uniform(0.8, 4.0)
        x = rng.uniform(-1, 1) * camera.half_width(depth) * 1.1
        kind = rng.integers(3)
        width, height = ((4.2, 1.4), (0.6, 1.0), (1.6, 0.9))[kind]
        corners = np.array([[x, depth, height], [x + width, depth, height], [x + width, depth, 0], [x, depth, 0]])
        (left, top), _, (right, bottom), _ = camera.project(corners)[:, :2].astype(int)
        colour = tuple(_cloth_colour(rng) * 0.85)
        h = bottom - top
        if kind == 0:
            cv2.rectangle(scene, (left, top + h // 2), (right, bottom - h // 8), colour, -1)
            roof, window = top, top + h // 2
            cabin = np.array([[left + h // 2, window], [left + h, roof], [right - h, roof], [right - h // 3, window]])
            cv2.fillConvexPoly(scene, cabin.astype(np.int32), (64, 60, 56))
            for wheel in (left + h // 2, right - h // 2):
                cv2.circle(scene, (int(wheel), int(bottom - h // 6)), max(2, int(h // 5)), (30, 30, 30), -1)
        elif kind == 1:
            cv2.rectangle(scene, (left, top), (right, bottom), colour, -1)
        else:
            radius = max(2, int(h * 0.38))
            for wheel in (left + radius, right - radius):
                cv2.circle(scene, (int(wheel), int(bottom - radius)), radius, (50, 50, 50), 1)
            cv2.line(scene, (left + radius, bottom - radius), (right - radius, top), colour, 2)


def scene_background(camera: Camera) -> Image:
    """Draw the empty scene, `[H, W, 3]` BGR, before the camera changes its colours."""
    rng = np.random.default_rng((*camera.seed, 0))
    lens, camera = camera, replace(camera, distortion=0.0)
    width, height = camera.size
    scene = np.linspace((226, 214, 200), (206, 204, 202), height)[:, None, :].repeat(width, axis=1).astype(np.uint8)
    back = camera.far + 5.0
    wall = _wall_texture(camera, rng, 1800, 360)
    corners = np.array([[-30, back, 12], [30, back, 12], [30, back, 0], [-30, back, 0]], dtype=float)
    _warp(camera, wall, corners, scene)
    ground = _ground_texture(camera, rng, 1440)
    corners = np.array([[-24, back, 0], [24, back, 0], [24, 1.2, 0], [-24, 1.2, 0]], dtype=float)
    _warp(camera, ground, corners, scene)
    _clutter(camera, rng, scene)
    light = 1 + 0.10 * _noise(rng, (height, width), 160)
    if camera.sun > 0.25:
        edge = _noise(rng, (height, width), 120)
        light = light * np.where(edge > 0.35, 1 - 0.5 * camera.sun, 1.0)
    lit = _as_image(scene * cv2.GaussianBlur(light.astype(np.float32), (0, 0), 2)[..., None])
    return _distorted(lens, cv2.GaussianBlur(lit, (0, 0), 0.7))


def _distorted(camera: Camera, image: Image) -> Image:
    """Apply the camera's lens distortion to a frame without it."""
    if not camera.distortion:
        return image
    width, height = camera.size
    matrix = np.array([[camera.focal, 0, width / 2], [0, camera.focal, height / 2], [0, 0, 1]])
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float64)
    coefficients = np.array([camera.distortion, 0, 0, 0])
    source = cv2.undistortPoints(pixels.reshape(-1, 1, 2), matrix, coefficients, P=matrix)
    x, y = source.reshape(height, width, 2).astype(np.float32).transpose(2, 0, 1)
    return cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@dataclass(frozen=True, eq=False)
class Occluder:
    """An object among the pedestrians that hides people behind it.

    Attributes:
        depth: ground depth, metres.
        box: x, y, w, h in pixels of the frame.
        picture: `[h, w, 3]` BGR.
        alpha: `[h, w]` 0..255.
    """

    depth: float
    box: tuple[int, int, int, int]
    picture: Image
    alpha: Image


def scene_occluders(camera: Camera, n: int) -> list[Occluder]:
    """Draw `n` poles, bollards, bushes, parked cars and railings within the area where people walk."""
    rng = np.random.default_rng((*camera.seed, 1))
    found = []
    for i in range(n):
        depth = camera.near + (camera.far - camera.near) * rng.uniform(-0.1, 0.75)
        x = camera.half_width(depth) * (-0.75 + 1.5 * (i + rng.uniform(0.2, 0.8)) / n)
        kind = list(APPEARANCE["occluders"])[int(rng.integers(5))]
        width, tall = APPEARANCE["occluders"][kind]
        ends = camera.project(np.array([[x - width / 2, depth, tall], [x + width / 2, depth, 0.0]]))[:, :2]
        left, top = (int(v) for v in ends[0])
        w, h = max(3, int(ends[1, 0]) - left), max(4, int(ends[1, 1]) - top)
        picture = np.zeros((h, w, 3), np.uint8)
        alpha = np.zeros((h, w), np.uint8)
        colour = _cloth_colour(rng)
        if kind in ("pole", "bollard"):
            across = np.sin(np.linspace(0.15, math.pi - 0.2, w))[None, :, None]
            picture[:] = (np.array([128, 130, 128]) * (0.45 + 0.55 * across)).astype(np.uint8)
            if kind == "bollard":
                picture[h // 6 : h // 3] = (60, 60, 190)
            alpha[:] = 255
        elif kind == "bush":
            radii = (max(1, int(w * 0.46)), max(1, int(h * 0.52)))
            cv2.ellipse(alpha, (w // 2, int(h * 0.62)), radii, 0, 0, 360, 255, -1)
            leaves = _noise(rng, (h, w), 4) + 0.5 * _noise(rng, (h, w), 9)
            alpha[(leaves < -1.1)] = 0
            picture[:] = _as_image(np.array([48, 96, 66]) * (1 + 0.3 * leaves[..., None]))
            picture[int(h * 0.82) :] = (104, 112, 124)
            alpha[int(h * 0.82) :, int(w * 0.1) : int(w * 0.9)] = 255
        elif kind == "car":
            cv2.rectangle(alpha, (0, int(h * 0.45)), (w, int(h * 0.9)), 255, -1)
            roof = np.array([[w * 0.14, h * 0.45], [w * 0.28, 0], [w * 0.74, 0], [w * 0.9, h * 0.45]]).astype(np.int32)
            cv2.fillConvexPoly(alpha, roof, 255)
            picture[:] = (colour * 0.9).astype(np.uint8)
            glass = np.array([[w * 0.2, h * 0.42], [w * 0.31, h * 0.07], [w * 0.71, h * 0.07], [w * 0.83, h * 0.42]])
            cv2.fillConvexPoly(picture, glass.astype(np.int32), (66, 62, 58))
            for wheel in (0.2, 0.8):
                cv2.circle(picture, (int(w * wheel), int(h * 0.85)), max(1, int(h * 0.15)), (28, 28, 28), -1)
                cv2.circle(alpha, (int(w * wheel), int(h * 0.85)), max(1, int(h * 0.15)), 255, -1)
        else:
            picture[:] = (84, 86, 88)
            alpha[: max(1, h // 12)] = 255
            alpha[h // 2 : h // 2 + max(1, h // 14)] = 255
            for k in range(9):
                at = int((w - 2) * k / 8)
                alpha[:, at : at + max(1, w // 60)] = 255
        found.append(Occluder(float(depth), (left, top, w, h), picture, alpha))
    return found


@lru_cache(maxsize=8)
def _grain(shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return sensor noise of σ 1, `[*shape, 3]`, from which each image takes a window."""
    return np.random.default_rng(shape).standard_normal((*shape, 3), dtype=np.float32)


def apply_sensor(camera: Camera, image: Image, rng: np.random.Generator, gain: float = 1.0) -> Image:
    """Apply the camera's colours, response curve and noise to an image `[H, W, 3]` BGR uint8."""
    coloured = cv2.transform(image, (camera.matrix * gain).astype(np.float32))
    response = np.clip(255 * (np.arange(256) / 255) ** camera.gamma, 0, 255)
    seen = cv2.LUT(coloured, response.astype(np.uint8))
    if camera.noise > 0.3:
        rows, columns = seen.shape[:2]
        field = _grain((camera.size[1] + 128, camera.size[0] + 128))
        y, x = int(rng.integers(field.shape[0] - rows + 1)), int(rng.integers(field.shape[1] - columns + 1))
        seen = cv2.scaleAdd(field[y : y + rows, x : x + columns], camera.noise, seen.astype(np.float32))
        seen = np.clip(seen, 0, 255).astype(np.uint8)
    return seen


def blur_image(camera: Camera, image: Image, pixels: float = 1.0) -> Image:
    """Apply lens and motion blur; `pixels` is the number of pixels of `image` per pixel of the frame."""
    if camera.blur * pixels > 0.25:
        image = cv2.GaussianBlur(image, (0, 0), camera.blur * pixels)
    length = round(camera.motion * pixels)
    if length > 1:
        image = cv2.blur(image, (length, 1))
    return image
