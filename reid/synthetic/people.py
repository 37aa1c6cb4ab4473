"""Appearance and gait of the synthetic pedestrians, drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Literal

import numpy as np
import yaml

Colour = tuple[float, float, float]
"""Blue, green, red, each 0..255 (OpenCV's order)."""

APPEARANCE: dict[str, Any] = yaml.safe_load(
    resources.files("reid.synthetic").joinpath("appearance.yaml").read_text("utf-8")
)
_CLOTH: dict[str, dict[str, Any]] = APPEARANCE["cloth"]
CLOTH_COLOURS: list[Colour] = [entry["bgr"] for entry in _CLOTH.values()]

_NAMES = ("uppers", "textures", "lowers", "hair_styles", "hats", "bags")
CHOICES: dict[str, dict[str, float]] = {name: APPEARANCE[name] for name in _NAMES}
"""Garments, hair styles and bags with their relative frequencies."""


@dataclass(frozen=True)
class Person:
    """One identity: body, clothes and gait, the same in every camera.

    Lengths are in metres, angles in radians, colours in BGR 0..255; `girth`, `shoulders` and `hips` are factors
    around 1. `texture_seed` determines the print, the flowers and the folds of the cloth.
    """

    height: float
    girth: float
    shoulders: float
    hips: float
    belly: float
    skin: Colour
    hair_style: str
    hair: Colour
    beard: bool
    glasses: bool
    hat: str
    hat_colour: Colour
    upper: str
    upper_colour: Colour
    inner_colour: Colour
    texture: str
    texture_colour: Colour
    texture_scale: float
    texture_seed: int
    lower: str
    lower_colour: Colour
    side_stripe: bool
    shoes: Colour
    socks: Colour
    bag: str
    bag_colour: Colour
    bag_side: int
    stride: float
    arm_swing: float
    elbow: float
    holds_phone: bool
    lean: float
    speed: float


def _weighted(rng: np.random.Generator, weights: Iterable[float]) -> int:
    """Draw an index with the given relative frequencies."""
    fractions = np.asarray(list(weights))
    return int(rng.choice(len(fractions), p=fractions / fractions.sum()))


def _pick(rng: np.random.Generator, weights: Mapping[str, float]) -> str:
    return list(weights)[_weighted(rng, weights.values())]


def _body_colour(rng: np.random.Generator, part: Literal["skin", "hair"], spread: float) -> Colour:
    entries = APPEARANCE[part]
    return _jitter(rng, entries[_weighted(rng, (entry["weight"] for entry in entries))]["bgr"], spread)


def _truncated(rng: np.random.Generator, mean: float, spread: float, low: float, high: float) -> float:
    """Draw from a normal distribution, clipped to a range."""
    return float(np.clip(rng.normal(mean, spread), low, high))


def _jitter(rng: np.random.Generator, colour: Colour, spread: float = 9.0) -> Colour:
    """Vary a colour slightly in brightness and in each channel."""
    moved = np.asarray(colour) * rng.uniform(0.85, 1.15) + rng.normal(0, spread, 3)
    b, g, r = np.clip(moved, 14, 244)
    return float(b), float(g), float(r)


def _cloth(rng: np.random.Generator, garment: str | None = None) -> Colour:
    """Draw a cloth colour: any, or one that `garment` ("lower", "shoe", "bag", "sock") comes in."""
    if garment is None:
        return _jitter(rng, CLOTH_COLOURS[_weighted(rng, (entry["weight"] for entry in _CLOTH.values()))])
    names = APPEARANCE[f"{garment}_colours"]
    return _jitter(rng, _CLOTH[names[int(rng.integers(len(names)))]]["bgr"])


def _contrasting(rng: np.random.Generator, base: Colour) -> Colour:
    """Draw a cloth colour that is visibly different from `base`."""
    for _ in range(20):
        colour = _cloth(rng)
        if float(np.abs(np.subtract(colour, base)).sum()) > 150:
            return colour
    return (232.0, 232.0, 230.0) if sum(base) < 380 else (34.0, 32.0, 32.0)


def draw_person(rng: np.random.Generator) -> Person:
    """Draw a person; `rng` is the only source of randomness."""
    feminine = bool(rng.random() < 0.5)
    height = _truncated(rng, 1.64 if feminine else 1.76, 0.075, 1.42, 1.98)
    upper = _pick(rng, {name: weight * (feminine or name != "dress") for name, weight in CHOICES["uppers"].items()})
    lower = _pick(rng, {name: weight * (feminine or name != "skirt") for name, weight in CHOICES["lowers"].items()})
    short, long = (0.35, 1.8) if feminine else (1.3, 0.12)
    hair_styles = {
        name: w * (short if name in ("bald", "short") else long) for name, w in CHOICES["hair_styles"].items()
    }
    upper_colour = _cloth(rng)
    return Person(
        height=height,
        girth=_truncated(rng, 1.0, 0.13, 0.78, 1.4),
        shoulders=_truncated(rng, 0.96 if feminine else 1.07, 0.05, 0.82, 1.22),
        hips=_truncated(rng, 1.06 if feminine else 0.97, 0.05, 0.85, 1.25),
        belly=_truncated(rng, 0.1, 0.3, 0.0, 0.9),
        skin=_body_colour(rng, "skin", 5),
        hair_style=_pick(rng, hair_styles),
        hair=_body_colour(rng, "hair", 4),
        beard=bool(not feminine and rng.random() < 0.25),
        glasses=bool(rng.random() < 0.2),
        hat=_pick(rng, CHOICES["hats"]),
        hat_colour=_cloth(rng),
        upper=upper,
        upper_colour=upper_colour,
        inner_colour=_contrasting(rng, upper_colour),
        texture=_pick(rng, CHOICES["textures"]),
        texture_colour=_contrasting(rng, upper_colour),
        texture_scale=float(rng.uniform(0.7, 1.5)),
        texture_seed=int(rng.integers(2**31)),
        lower=lower,
        lower_colour=_cloth(rng, "lower") if rng.random() < 0.85 else _cloth(rng),
        side_stripe=bool(rng.random() < 0.12),
        shoes=_cloth(rng, "shoe"),
        socks=_cloth(rng, "sock"),
        bag=_pick(rng, CHOICES["bags"]),
        bag_colour=_cloth(rng, "bag"),
        bag_side=int(rng.choice((-1, 1))),
        stride=_truncated(rng, 0.44, 0.05, 0.3, 0.58),
        arm_swing=_truncated(rng, 0.38, 0.14, 0.08, 0.75),
        elbow=_truncated(rng, 0.3, 0.14, 0.05, 0.8),
        holds_phone=bool(rng.random() < 0.12),
        lean=_truncated(rng, 0.03, 0.035, -0.05, 0.14),
        speed=_truncated(rng, 1.3, 0.16, 0.85, 1.8),
    )


DISTINCTIVE_FEATURES: dict[str, tuple[str, ...]] = {
    "bag": ("bag", "bag_colour", "bag_side"),
    "hair": ("hair_style", "hair"),
    "hat": ("hat", "hat_colour"),
    "texture": ("texture", "texture_colour", "texture_seed", "texture_scale", "inner_colour"),
    "lower": ("lower", "lower_colour", "side_stripe"),
    "shoes": ("shoes", "socks", "skin"),
}
"""Features that may distinguish a look-alike from the person it copies, with the fields of `Person` of each."""

_ALTERNATIVES = {"bag": ("none", "backpack"), "hat": ("none", "cap"), "texture": ("stripes", "checks")}
_GAIT = ("height", "girth", "shoulders", "hips", "stride", "arm_swing", "elbow", "lean", "speed")


def draw_look_alike(rng: np.random.Generator, person: Person) -> Person:
    """Draw a person in the same clothes: two of `DISTINCTIVE_FEATURES` differ; body and gait differ slightly."""
    other = draw_person(rng)
    for drawn in rng.permutation(list(DISTINCTIVE_FEATURES))[:2]:
        name = str(drawn)
        changed: dict[str, Any] = {field: getattr(other, field) for field in DISTINCTIVE_FEATURES[name]}
        if name in _ALTERNATIVES and changed[name] == getattr(person, name):
            first, second = _ALTERNATIVES[name]
            changed[name] = second if changed[name] == first else first
        person = replace(person, **changed)
    mixed: dict[str, Any] = {field: 0.5 * (getattr(person, field) + getattr(other, field)) for field in _GAIT}
    return replace(person, **mixed)


def draw_people(seed: int, n: int, *, lookalikes: float = 0.0, group: int = 0) -> list[Person]:
    """Draw `n` people of one group; a fraction `lookalikes` (0..1) of them copies an earlier one of the group.

    Person `i` depends only on `seed`, `group` and the people before it.
    """
    people: list[Person] = []
    for i in range(n):
        rng = np.random.default_rng((seed, 1, group, i))
        if people and rng.random() < lookalikes:
            people.append(draw_look_alike(rng, people[int(rng.integers(len(people)))]))
        else:
            people.append(draw_person(rng))
    return people
