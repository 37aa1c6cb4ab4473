"""What the people of the made world look like and how they walk: one `Person` a seeded draw."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

Colour = tuple[float, float, float]
"""Blue, green, red, each 0..255: the order OpenCV draws in."""

# Clothes are dark, grey, blue or beige more often than bright, so that many people share a palette.
PALETTE: dict[str, tuple[Colour, float]] = {
    "black": ((34, 32, 32), 5.0),
    "charcoal": ((66, 62, 60), 3.0),
    "grey": ((128, 126, 124), 2.5),
    "silver": ((186, 184, 182), 1.8),
    "white": ((232, 232, 230), 3.5),
    "navy": ((82, 46, 34), 3.0),
    "blue": ((164, 92, 44), 2.0),
    "denim": ((132, 98, 72), 2.5),
    "sky": ((214, 178, 136), 1.2),
    "beige": ((162, 190, 208), 1.5),
    "khaki": ((98, 132, 150), 1.5),
    "brown": ((50, 72, 104), 1.3),
    "olive": ((52, 86, 84), 1.0),
    "green": ((72, 122, 52), 0.9),
    "teal": ((122, 120, 34), 0.6),
    "red": ((48, 40, 178), 1.4),
    "burgundy": ((52, 30, 92), 0.9),
    "pink": ((172, 146, 218), 1.0),
    "orange": ((46, 118, 220), 0.6),
    "yellow": ((74, 192, 222), 0.6),
    "purple": ((128, 58, 96), 0.8),
}
LOWER_PALETTE = ("black", "charcoal", "grey", "navy", "denim", "blue", "beige", "khaki", "brown", "olive", "white")
SHOE_PALETTE = ("black", "charcoal", "white", "white", "brown", "grey", "red", "navy", "beige")
BAG_PALETTE = ("black", "black", "charcoal", "navy", "red", "brown", "beige", "green", "blue", "pink", "grey", "yellow")
SKIN: tuple[Colour, ...] = (
    (176, 200, 232),
    (146, 176, 220),
    (118, 152, 204),
    (84, 118, 172),
    (54, 80, 124),
    (38, 54, 86),
)
HAIR: tuple[Colour, ...] = (
    (26, 24, 24),
    (26, 26, 30),
    (34, 44, 58),
    (44, 66, 96),
    (92, 142, 178),
    (130, 132, 134),
    (40, 62, 140),
)
HAIR_WEIGHTS = (5.0, 4.0, 3.0, 2.0, 1.2, 1.2, 0.5)

UPPERS = ("tshirt", "shirt", "jacket", "open_jacket", "hoodie", "coat", "vest", "dress")
UPPER_WEIGHTS = (5.0, 2.5, 2.0, 2.5, 1.5, 1.5, 0.6, 1.4)
TEXTURES = ("plain", "stripes", "pinstripes", "checks", "print", "blocks", "flowers", "raglan", "band")
TEXTURE_WEIGHTS = (5.0, 1.4, 0.7, 1.2, 2.6, 1.2, 1.0, 1.2, 1.0)
LOWERS = ("trousers", "slim", "wide", "shorts", "skirt")
LOWER_WEIGHTS = (4.0, 2.5, 1.0, 2.5, 1.3)
HAIR_STYLES = ("bald", "short", "bob", "long", "ponytail", "bun")
HAIR_STYLE_WEIGHTS = (0.7, 5.0, 1.2, 1.6, 1.3, 0.6)
HATS = ("none", "cap", "beanie", "sunhat")
HAT_WEIGHTS = (7.0, 1.2, 0.8, 0.5)
BAGS = ("none", "backpack", "shoulder", "hand")
BAG_WEIGHTS = (4.0, 3.0, 1.8, 1.2)


@dataclass(frozen=True)
class Person:
    """One identity: everything about a body, its clothes and its walk that stays the same from camera to camera.

    Lengths are metres, angles radians, colours BGR 0..255, `girth`, `shoulders`, `hips` factors around 1.
    `texture_seed` fixes the print, the flowers and the folds of the cloth.
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


def _pick(rng: np.random.Generator, names: tuple[str, ...], weights: tuple[float, ...]) -> str:
    shares = np.asarray(weights)
    return names[int(rng.choice(len(names), p=shares / shares.sum()))]


def _jitter(rng: np.random.Generator, colour: Colour, spread: float = 9.0) -> Colour:
    """A shade of a colour: brightness and each channel moved a little."""
    moved = np.asarray(colour) * rng.uniform(0.85, 1.15) + rng.normal(0, spread, 3)
    b, g, r = np.clip(moved, 14, 244)
    return float(b), float(g), float(r)


def _cloth(rng: np.random.Generator, names: tuple[str, ...] | None = None) -> Colour:
    if names is None:
        weights = np.array([weight for _, weight in PALETTE.values()])
        name = list(PALETTE)[int(rng.choice(len(PALETTE), p=weights / weights.sum()))]
    else:
        name = names[int(rng.integers(len(names)))]
    return _jitter(rng, PALETTE[name][0])


def _contrasting(rng: np.random.Generator, base: Colour) -> Colour:
    """A second cloth colour that a camera can tell from the first."""
    for _ in range(20):
        colour = _cloth(rng)
        if float(np.abs(np.subtract(colour, base)).sum()) > 150:
            return colour
    return (232.0, 232.0, 230.0) if sum(base) < 380 else (34.0, 32.0, 32.0)


def draw_person(rng: np.random.Generator) -> Person:
    """Draw a person; all of the draw comes from `rng`."""
    feminine = bool(rng.random() < 0.5)
    height = float(np.clip(rng.normal(1.64 if feminine else 1.76, 0.075), 1.42, 1.98))
    upper = _pick(
        rng, UPPERS, tuple(w * (feminine or n != "dress") for n, w in zip(UPPERS, UPPER_WEIGHTS, strict=True))
    )
    lower = _pick(
        rng, LOWERS, tuple(w * (feminine or n != "skirt") for n, w in zip(LOWERS, LOWER_WEIGHTS, strict=True))
    )
    long_haired = tuple(
        w * ((0.35 if feminine else 1.3) if n in ("bald", "short") else (1.8 if feminine else 0.12))
        for n, w in zip(HAIR_STYLES, HAIR_STYLE_WEIGHTS, strict=True)
    )
    upper_colour = _cloth(rng)
    return Person(
        height=height,
        girth=float(np.clip(rng.normal(1.0, 0.13), 0.78, 1.4)),
        shoulders=float(np.clip(rng.normal(0.96 if feminine else 1.07, 0.05), 0.82, 1.22)),
        hips=float(np.clip(rng.normal(1.06 if feminine else 0.97, 0.05), 0.85, 1.25)),
        belly=float(np.clip(rng.normal(0.1, 0.3), 0.0, 0.9)),
        skin=_jitter(rng, SKIN[int(rng.choice(len(SKIN), p=(0.2, 0.28, 0.22, 0.12, 0.1, 0.08)))], 5),
        hair_style=_pick(rng, HAIR_STYLES, long_haired),
        hair=_jitter(rng, HAIR[int(rng.choice(len(HAIR), p=np.array(HAIR_WEIGHTS) / sum(HAIR_WEIGHTS)))], 4),
        beard=bool(not feminine and rng.random() < 0.25),
        glasses=bool(rng.random() < 0.2),
        hat=_pick(rng, HATS, HAT_WEIGHTS),
        hat_colour=_cloth(rng),
        upper=upper,
        upper_colour=upper_colour,
        inner_colour=_contrasting(rng, upper_colour),
        texture=_pick(rng, TEXTURES, TEXTURE_WEIGHTS),
        texture_colour=_contrasting(rng, upper_colour),
        texture_scale=float(rng.uniform(0.7, 1.5)),
        texture_seed=int(rng.integers(2**31)),
        lower=lower,
        lower_colour=_cloth(rng, LOWER_PALETTE) if rng.random() < 0.85 else _cloth(rng),
        side_stripe=bool(rng.random() < 0.12),
        shoes=_cloth(rng, SHOE_PALETTE),
        socks=_cloth(rng, ("white", "black", "grey")),
        bag=_pick(rng, BAGS, BAG_WEIGHTS),
        bag_colour=_cloth(rng, BAG_PALETTE),
        bag_side=int(rng.choice((-1, 1))),
        stride=float(np.clip(rng.normal(0.44, 0.05), 0.3, 0.58)),
        arm_swing=float(np.clip(rng.normal(0.38, 0.14), 0.08, 0.75)),
        elbow=float(np.clip(rng.normal(0.3, 0.14), 0.05, 0.8)),
        holds_phone=bool(rng.random() < 0.12),
        lean=float(np.clip(rng.normal(0.03, 0.035), -0.05, 0.14)),
        speed=float(np.clip(rng.normal(1.3, 0.16), 0.85, 1.8)),
    )


# What may tell a look-alike from the person copied: each entry is one thing that a witness would name.
TELLS: dict[str, tuple[str, ...]] = {
    "bag": ("bag", "bag_colour", "bag_side"),
    "hair": ("hair_style", "hair"),
    "hat": ("hat", "hat_colour"),
    "texture": ("texture", "texture_colour", "texture_seed", "texture_scale", "inner_colour"),
    "lower": ("lower", "lower_colour", "side_stripe"),
    "shoes": ("shoes", "socks", "skin"),
}
INSTEAD = {"bag": ("none", "backpack"), "hat": ("none", "cap"), "texture": ("stripes", "checks")}
GAIT = ("height", "girth", "shoulders", "hips", "stride", "arm_swing", "elbow", "lean", "speed")


def look_alike(rng: np.random.Generator, person: Person) -> Person:
    """Another person in the same clothes: two of `TELLS` are redrawn, and body and gait move a little."""
    other = draw_person(rng)
    for name in rng.permutation(list(TELLS))[:2]:
        fields = TELLS[str(name)]
        changed: dict[str, Any] = {field: getattr(other, field) for field in fields}
        if name in INSTEAD and changed[str(name)] == getattr(person, str(name)):
            first, second = INSTEAD[str(name)]
            changed[str(name)] = second if changed[str(name)] == first else first
        person = replace(person, **changed)
    mixed: dict[str, Any] = {field: 0.5 * (getattr(person, field) + getattr(other, field)) for field in GAIT}
    return replace(person, **mixed)


def draw_people(seed: int, n: int, *, lookalikes: float = 0.0, group: int = 0) -> list[Person]:
    """`n` people of one group; a share `lookalikes` (0..1) of them copies an earlier one of the same group.

    Person `i` depends on `seed`, `group` and the people before him only.
    """
    people: list[Person] = []
    for i in range(n):
        rng = np.random.default_rng((seed, 1, group, i))
        if people and rng.random() < lookalikes:
            people.append(look_alike(rng, people[int(rng.integers(len(people)))]))
        else:
            people.append(draw_person(rng))
    return people
