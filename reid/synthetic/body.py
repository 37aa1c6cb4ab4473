"""A pedestrian as a mesh on a skeleton: tubes of coloured quads, posed by a gait phase.

Body coordinates are in metres: x to the person's right, y forward, z up; the origin is on the ground below the pelvis.
Every vertex belongs to one bone. A pose is one matrix and one shift per bone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from reid.synthetic.people import APPEARANCE, Colour, Person

Floats = NDArray[np.float64]
Columns = Sequence[Floats | float]

PELVIS, CHEST, HEAD, R_ARM, L_ARM, R_FOREARM, L_FOREARM = range(7)
R_THIGH, L_THIGH, R_SHIN, L_SHIN, R_FOOT, L_FOOT, SKIRT = range(7, 14)
N_BONES = 14

# Joints of a standing body, as fractions of the body height.
HIP_Z, KNEE, SHIN, ANKLE_Z = 0.500, 0.232, 0.228, 0.040
WAIST_Z, SHOULDER_Z, UPPER_ARM = 0.600, 0.805, 0.160
HIP_X, SHOULDER_X, NECK_Z = 0.050, 0.112, 0.850

FINE, COARSE = 24, 10
"""Segments around a torso, and around a limb."""

_PROFILES: dict[str, Floats] = {name: np.array(rows) for name, rows in APPEARANCE["profiles"].items()}

# Extra radius of loose clothes, and the height of their hem, as fractions of the body height.
_LOOSE_TORSO = {"jacket": 0.009, "open_jacket": 0.009, "coat": 0.012, "hoodie": 0.009, "shirt": 0.004}
_LOOSE_ARM = {"jacket": 0.006, "open_jacket": 0.006, "coat": 0.007, "hoodie": 0.006}
_HEMS = {"tshirt": 0.505, "shirt": 0.490, "jacket": 0.520, "open_jacket": 0.500, "hoodie": 0.510, "vest": 0.52}


@dataclass(frozen=True, eq=False)
class Mesh:
    """Mesh of a person with `V` vertices and `Q` quads.

    Attributes:
        vertices: `[V, 3]` metres, in the coordinates of the vertex's bone.
        bones: `[V]` int, bone of each vertex, ascending.
        starts: 15 indices; the vertices of bone `b` are `starts[b]` to `starts[b + 1]`.
        quads: `[Q, 4]` int, vertex indices, ordered so that the normal points outward.
        colours: `[Q, 3]` BGR 0..255, before lighting.
    """

    vertices: Floats
    bones: NDArray[np.int64]
    starts: list[int]
    quads: NDArray[np.int64]
    colours: Floats


class _MeshBuilder:
    """Collects tubes; all lengths are given as fractions of the body height."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.parts: list[tuple[Floats, NDArray[np.int64], NDArray[np.int64], Floats]] = []
        self.count = 0

    def tube(
        self,
        centres: Columns,
        radii: Columns,
        bones: NDArray[np.int64] | int,
        colours: Floats,
        *,
        axes: tuple[int, int] = (0, 1),
        power: float = 2.0,
        closed: bool = True,
    ) -> None:
        """Add a tube of `R` rings with `S` segments.

        Args:
            centres: x, y, z of the rings, each `[R]` or a scalar.
            radii: the two half axes of the rings, each `[R]` or a scalar.
            bones: bone of each ring, `[R]` or a scalar.
            colours: `[R - 1, S, 3]` BGR.
            axes: body axes of ring angle 0 and of a quarter turn.
            power: exponent of the cross-section (a superellipse); above 2 it becomes square.
            closed: close both ends with a shrunken ring.
        """
        segments = colours.shape[1]
        points = np.stack(np.broadcast_arrays(*centres), axis=1) * self.height
        half_axes = np.broadcast_to(np.stack(np.broadcast_arrays(*radii), axis=-1) * self.height, (len(points), 2))
        bones = np.broadcast_to(bones, len(points))
        if closed:
            points = np.concatenate([points[:1], points, points[-1:]])
            half_axes = np.concatenate([half_axes[:1] * 0.02, half_axes, half_axes[-1:] * 0.02])
            bones = np.concatenate([bones[:1], bones, bones[-1:]])
            colours = np.concatenate([colours[:1], colours, colours[-1:]])
        angle = 2 * math.pi * np.arange(segments) / segments
        cos, sin = np.cos(angle), np.sin(angle)
        cos = np.sign(cos) * np.abs(cos) ** (2 / power)
        sin = np.sign(sin) * np.abs(sin) ** (2 / power)
        rings = np.repeat(points[:, None, :], segments, axis=1).astype(float)
        rings[:, :, axes[0]] += half_axes[:, :1] * cos
        rings[:, :, axes[1]] += half_axes[:, 1:] * sin
        ring, segment = np.meshgrid(np.arange(len(points) - 1), np.arange(segments), indexing="ij")
        here, after = ring * segments + segment, ring * segments + (segment + 1) % segments
        quads = np.stack([here, after, after + segments, here + segments], axis=-1).reshape(-1, 4)
        u, v = np.eye(3)[axes[0]], np.eye(3)[axes[1]]
        if float(np.cross(u, v) @ (points[-1] - points[0])) < 0:
            quads = quads[:, ::-1]
        columns = (rings.reshape(-1, 3), np.repeat(bones, segments), quads + self.count, colours.reshape(-1, 3))
        self.parts.append(columns)
        self.count += len(points) * segments

    def mesh(self) -> Mesh:
        """Return everything that was added, with the vertices sorted by bone."""
        vertices, bones, quads, colours = (np.concatenate(column) for column in zip(*self.parts, strict=True))
        order = np.argsort(bones, kind="stable")
        new_index = np.empty_like(order)
        new_index[order] = np.arange(len(order))
        starts = np.searchsorted(bones[order], np.arange(N_BONES + 1)).tolist()
        return Mesh(vertices[order], bones[order].astype(np.int64), starts, new_index[quads], colours)


def _angles(segments: int) -> Floats:
    """Return the middle of each segment in degrees: 0 right, 90 front, 180 left, 270 back."""
    return (np.arange(segments) + 0.5) * 360 / segments


def _off_front(segments: int, centre: float = 90.0) -> Floats:
    """Return each segment's absolute angle from `centre`, 0..180 degrees."""
    return np.abs((_angles(segments) - centre + 180) % 360 - 180)


def _fill(rows: int, segments: int, colour: Colour) -> Floats:
    return np.tile(np.asarray(colour, dtype=float), (rows, segments, 1))


def _folds(rng: np.random.Generator, colours: Floats, depth: float = 0.07) -> Floats:
    """Brighten and darken quads slightly, in smooth patches, like folds of cloth."""
    noise = rng.normal(0, 1, colours.shape[:2])
    noise = 0.5 * noise + 0.5 * np.roll(noise, 1, axis=1) + 0.4 * np.roll(noise, 1, axis=0)
    return np.clip(colours * (1 + depth * noise[..., None]), 4, 252)


def _pattern(person: Person, rows: Floats, columns: int, rng: np.random.Generator, *, sleeve: bool = False) -> Floats:
    """Return the colours `[R, columns, 3]` of the upper garment at heights `rows [R]` (fractions of body height)."""
    base, other = np.asarray(person.upper_colour), np.asarray(person.texture_colour)
    z = rows[:, None] * np.ones((1, columns))
    angle = np.tile(_angles(columns), (len(rows), 1))
    scale = person.texture_scale
    mask = np.zeros(z.shape, dtype=bool)
    if person.texture == "stripes":
        mask = np.floor(z / (0.030 * scale)) % 2 == 0
    elif person.texture == "pinstripes":
        mask = np.floor(angle / 15) % 3 == 0
    elif person.texture == "checks":
        mask = (np.floor(z / (0.034 * scale)) + np.floor(angle / (30 * round(scale)))) % 2 == 0
    elif person.texture == "blocks":
        mask = z < 0.66 + 0.05 * (scale - 1)
    elif person.texture == "flowers":
        mask = rng.random(z.shape) < 0.34
    elif person.texture == "raglan":
        mask = np.full(z.shape, sleeve)
    elif person.texture == "band" and not sleeve:
        mask = (z > 0.685) & (z < 0.685 + 0.05 * scale)
    elif person.texture == "print" and not sleeve:
        front = _off_front(columns)[None, :]
        picture = rng.random((len(rows), columns)) < 0.62
        mask = (front < 32 * scale) & (z > 0.655) & (z < 0.755) & picture
        if person.texture_seed % 3 == 0:
            mask |= (_off_front(columns, 270.0)[None, :] < 40) & (z > 0.70) & (z < 0.75)
    colours = np.where(mask[..., None], other, base)
    if person.texture == "flowers":
        third = np.asarray(person.inner_colour)
        colours = np.where((rng.random(z.shape) < 0.12)[..., None], third, colours)
    return colours.astype(float)


def _torso(build: _MeshBuilder, person: Person, rng: np.random.Generator) -> None:
    g = person.girth
    scales = {"hips": person.hips, "girth": g**0.3, "shoulders": person.shoulders, "none": 1.0}
    profile = np.array(
        [
            (at, width * scales[scale], depth + deeper * person.belly, shift + further * person.belly)
            for at, width, scale, depth, deeper, shift, further in APPEARANCE["torso"]
        ]
    )
    z = np.linspace(0.455, 0.858, 26)
    wide, deep, forward = (np.interp(z, profile[:, 0], column) for column in profile.T[1:])
    loose = _LOOSE_TORSO.get(person.upper, 0.002)
    rows = (z[1:] + z[:-1]) / 2
    front, back = _off_front(FINE)[None, :], _off_front(FINE, 270.0)[None, :]
    height = rows[:, None]
    cloth = _pattern(person, rows, FINE, rng)
    inner = np.asarray(person.inner_colour)
    if person.upper == "open_jacket":
        opening = _off_front(FINE, 90 + 12 * person.bag_side)[None, :] < 34
        cloth[opening & (height < 0.80)] = inner
    elif person.upper in ("jacket", "coat"):
        lining = inner if person.texture_seed % 2 else np.asarray(person.upper_colour) * 0.5
        cloth[(front < 8) & (height < 0.82)] = lining
        cloth[(height > 0.805) & (height < 0.84) & (front < 60)] *= 0.8
    elif person.upper in ("shirt", "hoodie"):
        cloth[(front < 8) & (height < 0.80)] *= 0.82
        if person.upper == "shirt":
            cloth[height[:, 0] > 0.835] = np.asarray(person.upper_colour) * 1.08
    hem = _HEMS.get(person.upper, 0.0)
    if person.upper in ("tshirt", "shirt") and person.texture_seed % 4 == 0:
        hem = 0.585
        cloth[(height[:, 0] > 0.575) & (height[:, 0] < 0.6)] = (30, 34, 42)
    below = height[:, 0] < hem
    cloth[below] = np.asarray(person.lower_colour)
    neckline = {"tshirt": 0.832, "vest": 0.80, "dress": 0.815, "shirt": 0.838}.get(person.upper, 0.85)
    cloth[(height > neckline) & (front < 70)] = np.asarray(person.skin) * 0.95
    cloth[(height > 0.846) & (back < 180)] = np.asarray(person.skin) * 0.92
    cloth = _folds(rng, cloth)
    strap = np.asarray(person.bag_colour) * 0.8
    if person.bag == "backpack":
        straps = np.abs(front - 52) < 9
        cloth[straps & (height > 0.66) & (height < 0.835)] = strap
    elif person.bag == "shoulder":
        across = 0.105 * person.shoulders * np.cos(np.deg2rad(_angles(FINE)))[None, :] * -person.bag_side
        line = 0.70 + across * 1.15
        cloth[(np.abs(height - line) < 0.014) & (height > 0.52)] = strap
    bones = np.where(z < WAIST_Z, PELVIS, CHEST)
    build.tube((0, forward, z), (wide * g**0.75 + loose, deep * g**0.75 + loose), bones, cloth, power=2.3)


def _tail(build: _MeshBuilder, person: Person, rng: np.random.Generator) -> None:
    """Add the part of a coat, dress or skirt that covers the legs."""
    if person.upper in ("coat", "dress"):
        low = 0.36 - 0.08 * (person.texture_scale - 1) - (0.04 if person.upper == "dress" else 0.0)
        z = np.linspace(low, 0.53, 10)
        cloth = _pattern(person, (z[1:] + z[:-1]) / 2, FINE, rng)
        if person.upper == "coat":
            cloth[:, _off_front(FINE) < 8] *= 0.5
    elif person.lower == "skirt":
        z = np.linspace(0.30 if person.side_stripe else 0.36, 0.53, 8)
        cloth = _fill(len(z) - 1, FINE, person.lower_colour)
    else:
        return
    flare, girth = np.linspace(1.12, 1.0, len(z)), person.girth**0.75
    radii = (0.102 * person.hips * girth * flare + 0.008, 0.076 * girth * flare + 0.008)
    build.tube((0, -0.004, z), radii, SKIRT, _folds(rng, cloth, 0.1))


def _arm(build: _MeshBuilder, person: Person, side: int, rng: np.random.Generator) -> None:
    upper, fore = (R_ARM, R_FOREARM) if side > 0 else (L_ARM, L_FOREARM)
    along, thick = _PROFILES["arm"]
    is_fore = along < -UPPER_ARM
    sleeve = {"tshirt": -0.085, "dress": -0.05, "vest": 0.02}.get(person.upper, -0.315)
    rows = (along[1:] + along[:-1]) / 2
    clothed = rows > sleeve
    loose = _LOOSE_ARM.get(person.upper, 0.002)
    thick = thick * person.girth**0.5 + loose * (along > sleeve)
    cloth = _pattern(person, rows + SHOULDER_Z, COARSE, rng, sleeve=True)
    cloth = _folds(rng, cloth, 0.06)
    cloth[~clothed] = np.asarray(person.skin)
    cloth[rows < -0.32] = np.asarray(person.skin) * 0.97
    radii = (thick * np.where(along < -0.32, 0.6, 1.0), thick)
    build.tube((0, 0, np.where(is_fore, along + UPPER_ARM, along)), radii, np.where(is_fore, fore, upper), cloth)


def _leg(build: _MeshBuilder, person: Person, side: int, rng: np.random.Generator) -> None:
    thigh, shin, foot = (R_THIGH, R_SHIN, R_FOOT) if side > 0 else (L_THIGH, L_SHIN, L_FOOT)
    along, skin_thick = _PROFILES["leg"]
    bare = person.upper == "dress" or person.lower == "skirt"
    hem = 0.1 if bare else -0.20 if person.lower == "shorts" else -0.445
    loose = {"trousers": 0.007, "slim": 0.002, "wide": 0.017, "shorts": 0.009, "skirt": 0.0}[person.lower]
    rows = (along[1:] + along[:-1]) / 2
    taper = np.interp(along, [-0.46, -0.2, 0.0], [1.6 if person.lower in ("trousers", "wide") else 1.0, 1.0, 0.4])
    thick = skin_thick * person.girth**0.6 * person.hips**0.5 + loose * taper * (along > hem)
    cloth = _fill(len(rows), COARSE, person.lower_colour)
    if person.side_stripe and not bare:
        outside = _off_front(COARSE, 0.0 if side > 0 else 180.0) < 20
        cloth[:, outside] = np.asarray(person.texture_colour)
    cloth = _folds(rng, cloth, 0.08)
    stockings = bare and person.texture_seed % 3 == 0
    cloth[rows < hem] = (38, 36, 36) if stockings else np.asarray(person.skin) * 0.97
    if not stockings:
        cloth[rows < (-0.40 if person.lower == "shorts" else -0.445)] = np.asarray(person.socks)
    is_shin = along < -KNEE
    local = np.where(is_shin, along + KNEE, along)
    build.tube((0, 0, local), (thick, thick * 1.06), np.where(is_shin, shin, thigh), cloth)
    y, z, wide, high = _PROFILES["shoe"]
    sole = _fill(len(y) - 1, COARSE, person.shoes)
    sole[:, _off_front(COARSE, 270.0) < 50] *= 0.6
    build.tube((0, y, z), (wide, high), foot, sole, axes=(0, 2))


def _head(build: _MeshBuilder, person: Person, rng: np.random.Generator) -> None:
    segments = 20
    polar = np.linspace(0.06, 0.97, 14) * math.pi
    z = 0.927 - 0.070 * np.cos(polar)
    wide = np.sin(polar) ** 0.8
    jaw = np.where(z < 0.915, 0.88, 1.0)
    covered = z > 0.925
    thick = 0.007 if person.hat != "none" else 0.004 if person.hair_style != "bald" else 0.0
    radii: Columns = (0.044 * wide * jaw + thick * covered, 0.054 * wide * jaw + thick * covered)
    rows = (z[1:] + z[:-1]) / 2
    skin, hair = np.asarray(person.skin), np.asarray(person.hair)
    colours = _fill(len(rows), segments, person.skin)
    front = _off_front(segments)[None, :]
    height = rows[:, None]
    if person.hair_style != "bald":
        nape = 0.885 if person.hair_style in ("short", "ponytail", "bun") else 0.87
        colours[((front > 78) & (height > nape)) | (height > 0.968)] = hair
    else:
        colours[(front > 95) & (height > 0.90) & (height < 0.945)] = 0.6 * skin + 0.4 * hair
    eyes = (np.abs(front - 27) < 12) & (np.abs(height - 0.938) < 0.007)
    colours[eyes & (front < 60)] = skin * 0.42
    colours[(front < 22) & (np.abs(height - 0.893) < 0.006)] = skin * np.array([0.72, 0.66, 0.88])
    if person.beard:
        colours[(front < 80) & (height < 0.902)] = 0.35 * skin + 0.65 * hair
    if person.glasses:
        colours[(front < 50) & (np.abs(height - 0.938) < 0.011)] = (28, 26, 26)
    hat = np.asarray(person.hat_colour)
    if person.hat in ("cap", "sunhat"):
        colours[rows > 0.952] = hat
    elif person.hat == "beanie":
        colours[rows > 0.945] = hat
        colours[(rows > 0.945) & (rows < 0.958)] = hat * 0.8
    colours = _folds(rng, colours, 0.03)
    build.tube((0, np.where(z < 0.9, 0.004, 0.006), z - NECK_Z), radii, HEAD, colours)
    y, z = _PROFILES["neck"]
    build.tube((0, y, z), (0.029, 0.029), HEAD, _fill(2, COARSE, person.skin) * 0.85, closed=False)
    _hair(build, person, rng)
    _hat(build, person)
    if person.upper == "hoodie":
        y, z, *radii = _PROFILES["hood"]
        build.tube((0, y, z), radii, CHEST, _folds(rng, _fill(3, COARSE, person.upper_colour) * 0.92))


def _hair(build: _MeshBuilder, person: Person, rng: np.random.Generator) -> None:
    """Add hair that hangs or stands out from the head."""
    if person.hair_style in ("bob", "long"):
        low = 0.868 if person.hair_style == "bob" else 0.76 - 0.05 * (person.texture_scale - 1)
        z = np.linspace(low, 0.955, 7)
        width = np.interp(z, [low, 0.87, 0.93, 0.955], [0.036, 0.050, 0.050, 0.036])
        y = np.interp(z, [low, 0.85, 0.93], [-0.060 if low < 0.8 else -0.024, -0.034, -0.016])
        deep = np.interp(z, [low, 0.86, 0.95], [0.018 if low < 0.8 else 0.036, 0.034, 0.042])
        cloth = _folds(rng, _fill(6, COARSE + 4, person.hair), 0.12)
        build.tube((0, y, z - NECK_Z), (width, deep), HEAD, cloth)
    elif person.hair_style == "ponytail":
        y, z, thick = _PROFILES["ponytail"]
        build.tube((0, y, z - NECK_Z), (thick, thick), HEAD, _folds(rng, _fill(4, COARSE, person.hair), 0.1))
    elif person.hair_style == "bun" and person.hat == "none":
        polar = np.linspace(0.1, 0.9, 5) * math.pi
        thick, z = 0.027 * np.sin(polar), 0.985 - 0.026 * np.cos(polar) - NECK_Z
        build.tube((0, -0.045, z), (thick, thick), HEAD, _folds(rng, _fill(4, COARSE, person.hair), 0.1))


def _hat(build: _MeshBuilder, person: Person) -> None:
    """Add the peak of a cap or the brim of a sun hat."""
    if person.hat == "cap":
        y, z, *radii = _PROFILES["cap"]
        build.tube((0, y, z - NECK_Z), radii, HEAD, _fill(2, COARSE, person.hat_colour) * 0.8, axes=(0, 2))
    elif person.hat == "sunhat":
        z, *radii = _PROFILES["sunhat"]
        build.tube((0, 0, z - NECK_Z), radii, HEAD, _fill(2, 16, person.hat_colour) * 0.9)


def _bag(build: _MeshBuilder, person: Person, rng: np.random.Generator) -> None:
    side = person.bag_side
    size = 0.85 + 0.3 * (person.texture_seed % 7) / 6
    if person.bag == "backpack":
        z = np.linspace(0.60, 0.60 + 0.205 * size, 8)
        wide, deep = _PROFILES["backpack"] * size
        y = -(0.064 * person.girth**0.75 + deep * 0.9)
        cloth = _fill(7, 16, person.bag_colour)
        pocket = _off_front(16, 270.0) < 40
        cloth[1:4, pocket] = np.asarray(person.bag_colour) * 0.72 + 18
        cloth[5, :] *= 0.75
        build.tube((0, y, z), (wide, deep), CHEST, _folds(rng, cloth), power=3.5)
    elif person.bag == "shoulder":
        z = np.linspace(0.455, 0.455 + 0.10 * size, 5)
        x = side * (0.112 * person.hips * person.girth**0.6 + 0.012)
        taper = np.array([0.9, 1, 1, 1, 0.9])
        cloth = _fill(4, 16, person.bag_colour)
        cloth[2] *= 0.78
        build.tube((x, -0.012, z), (0.026 * taper, 0.078 * size * taper), PELVIS, _folds(rng, cloth), power=4.0)
    elif person.bag == "hand":
        z = np.linspace(-0.32 - 0.12 * size, -0.225, 5)
        wide, deep = _PROFILES["handbag"] * size
        forearm, cloth = R_FOREARM if side > 0 else L_FOREARM, _folds(rng, _fill(4, 12, person.bag_colour))
        build.tube((side * 0.008, 0, z), (wide, deep), forearm, cloth, power=3.5)


@lru_cache(maxsize=1024)
def make_mesh(person: Person) -> Mesh:
    """Build the mesh of a person; the same person always gives the same mesh."""
    rng = np.random.default_rng((person.texture_seed, 2))
    build = _MeshBuilder(person.height)
    _torso(build, person, rng)
    _tail(build, person, rng)
    for side in (1, -1):
        _arm(build, person, side, rng)
        _leg(build, person, side, rng)
    _head(build, person, rng)
    _bag(build, person, rng)
    return build.mesh()


def _turn_x(angle: float) -> Floats:
    """Return the rotation that swings a hanging limb forward by `angle` radians."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def turn_z(angle: float) -> Floats:
    """Return the rotation about the third axis by `angle` radians."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def pose(person: Person, phase: float) -> tuple[Floats, Floats]:
    """Return the bone matrices `[14, 3, 3]` and shifts `[14, 3]` at a gait phase (radians; 2π is two steps).

    The position of vertex `p` of bone `b` is `matrix[b] @ p + shift[b]`. The lower foot touches z = 0.
    """
    h = person.height
    matrices = np.tile(np.eye(3), (N_BONES, 1, 1))
    shifts = np.zeros((N_BONES, 3))
    legs, reach = [], []
    for side in (1, -1):
        swing = math.sin(phase) * side
        forward = max(0.0, math.cos(phase) * side)
        thigh = person.stride * swing + 0.06 + 0.22 * forward**2
        knee = 0.08 + 0.95 * forward**1.5
        legs.append((thigh, thigh - knee))
        reach.append(KNEE * math.cos(thigh) + SHIN * math.cos(thigh - knee) + ANKLE_Z)
    hip = max(reach) * h
    drop = hip - HIP_Z * h
    lean = _turn_x(-person.lean)
    chest = lean @ turn_z(0.09 * math.sin(phase))
    waist = np.array([0, 0, WAIST_Z * h])
    shifts[PELVIS] = (0, 0, drop)
    matrices[CHEST] = chest
    shifts[CHEST] = waist - chest @ waist + (0, 0, drop)
    matrices[HEAD] = lean
    shifts[HEAD] = chest @ np.array([0, 0, NECK_Z * h]) + shifts[CHEST]
    for i, side in enumerate((1, -1)):
        thigh, shin = legs[i]
        upper, lower = _turn_x(thigh), _turn_x(shin)
        knee_at = np.array([side * HIP_X * h * person.hips, 0, hip])
        matrices[R_THIGH + i], shifts[R_THIGH + i] = upper, knee_at
        knee_at = knee_at + upper @ np.array([0, 0, -KNEE * h])
        matrices[R_SHIN + i], shifts[R_SHIN + i] = lower, knee_at
        ankle = knee_at + lower @ np.array([0, 0, -SHIN * h])
        matrices[R_FOOT + i], shifts[R_FOOT + i] = _turn_x(0.55 * shin), ankle
        swing = -person.arm_swing * math.sin(phase) * side
        bend = person.elbow + 0.35 * max(0.0, swing)
        if person.holds_phone and side == -person.bag_side:
            swing, bend = 0.35, 1.75
        out = 0.10 + 0.07 * person.girth**2
        c, s = math.cos(out * side), math.sin(out * side)
        abduct = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
        arm = chest @ abduct @ _turn_x(swing)
        shoulder = np.array([side * SHOULDER_X * h * person.shoulders * person.girth**0.5, 0, SHOULDER_Z * h])
        matrices[R_ARM + i], shifts[R_ARM + i] = arm, chest @ shoulder + shifts[CHEST]
        matrices[R_FOREARM + i] = arm @ _turn_x(bend)
        shifts[R_FOREARM + i] = shifts[R_ARM + i] + arm @ np.array([0, 0, -UPPER_ARM * h])
    spread = 1 + 0.75 * abs(math.sin(legs[0][0] - legs[1][0]))
    matrices[SKIRT] = np.diag([1.0, spread, 1.0])
    shifts[SKIRT] = (0, 0, drop)
    return matrices, shifts
