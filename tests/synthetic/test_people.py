"""Synthetic pedestrians: appearance, pose and look-alikes."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from reid.synthetic.body import make_mesh, pose
from reid.synthetic.camera_models import draw_cameras
from reid.synthetic.people import CHOICES, DISTINCTIVE_FEATURES, Person, draw_people
from reid.synthetic.rendering import Placed, Studio


@pytest.fixture(scope="module")
def people() -> list[Person]:
    return draw_people(0, 300, lookalikes=0.0)


@lru_cache(maxsize=1)
def neutral_studio() -> Studio:
    return Studio(draw_cameras(3, 2, colour=0, degrade=0)[0], [], [])


def drawn(person: Person, heading: float, phase: float = 0.8) -> np.ndarray:
    """Render a person alone with a camera that changes no colour, [256, 128, 3] int."""
    scene = neutral_studio()
    camera = scene.camera
    studio = copy.copy(scene)
    studio.people = [person]
    y = 0.5 * (camera.near + camera.far)
    (x, feet, _), (_, head, _) = camera.project(np.array([[0, y, 0], [0, y, 1.9]]))
    height = feet - head
    box = (float(x - height / 4), float(head), float(height / 2), float(height) * 1.05)
    return studio.draw([Placed(0, 0.0, y, heading, phase)], box, (128, 256)).astype(int)


def test_every_garment_hair_style_hat_and_bag_occurs(people: list[Person]) -> None:
    for name, choices in CHOICES.items():
        assert {getattr(person, name.removesuffix("s")) for person in people} == set(choices)
    assert max(p.height for p in people) - min(p.height for p in people) > 0.3


def test_a_person_does_not_depend_on_later_people() -> None:
    assert draw_people(7, 5, lookalikes=0.5) == draw_people(7, 40, lookalikes=0.5)[:5]
    assert draw_people(7, 5) != draw_people(8, 5)
    assert draw_people(7, 5, group=0) != draw_people(7, 5, group=1)


def test_a_look_alike_differs_in_at_most_two_visible_features() -> None:
    people = draw_people(1, 80, lookalikes=1.0)
    for i, person in enumerate(people[1:], start=1):
        different = [
            [
                name
                for name, fields in DISTINCTIVE_FEATURES.items()
                if any(getattr(person, f) != getattr(other, f) for f in fields)
            ]
            for other in people[:i]
        ]
        fewest = min(different, key=len)
        assert len(fewest) <= 2
        assert fewest, "two identities must never be the same person"


@pytest.mark.parametrize("phase", np.linspace(0, 2 * math.pi, 9), ids=lambda p: f"phase {p:.1f}")
def test_feet_touch_the_ground_and_the_height_is_right(people: list[Person], phase: float) -> None:
    for person in people[:20]:
        plain = replace(person, hat="none", hair_style="short", bag="none", lean=0.0)
        mesh = make_mesh(plain)
        matrices, shifts = pose(plain, phase)
        points = np.einsum("vij,vj->vi", matrices[mesh.bones], mesh.vertices) + shifts[mesh.bones]
        assert -0.06 < points[:, 2].min() < 0.05
        assert 0.93 * person.height < points[:, 2].max() < 1.06 * person.height


def test_the_right_leg_and_the_left_arm_swing_together(people: list[Person]) -> None:
    person = replace(people[0], holds_phone=False, arm_swing=0.5)
    _, shifts = pose(person, math.pi / 2)
    right_foot, left_foot, right_hand, left_hand = shifts[11], shifts[12], shifts[5], shifts[6]
    assert right_foot[1] > left_foot[1] + 0.3
    assert left_hand[1] > right_hand[1] + 0.1


def test_a_backpack_is_visible_from_behind_and_not_from_the_front(people: list[Person]) -> None:
    bare = replace(people[0], bag="none", texture="plain", upper="tshirt")
    packed = replace(bare, bag="backpack", bag_colour=(40, 40, 220))
    behind = np.abs(drawn(packed, 0.0) - drawn(bare, 0.0)).sum(-1) > 60
    before = np.abs(drawn(packed, math.pi) - drawn(bare, math.pi)).sum(-1) > 60
    assert behind.mean() > 0.04
    assert before.mean() < 0.5 * behind.mean()


def test_a_print_is_only_visible_from_the_front(people: list[Person]) -> None:
    plain = replace(people[0], bag="none", upper="tshirt", texture="plain", texture_seed=1, hair_style="short")
    printed = replace(plain, texture="print")
    assert (np.abs(drawn(printed, math.pi) - drawn(plain, math.pi)).sum(-1) > 60).mean() > 0.005
    assert (np.abs(drawn(printed, 0.0) - drawn(plain, 0.0)).sum(-1) > 60).mean() < 0.002


@pytest.mark.parametrize(
    "heading", [0.0, 0.8, 1.6, 2.4, 3.1, 4.0, 4.7, 5.5], ids=lambda h: f"{math.degrees(h):.0f} deg"
)
def test_the_mesh_has_no_holes_from_any_side(people: list[Person], heading: float) -> None:
    """From any side, the middle of the body shows the person, not the background."""
    person = replace(
        people[0], upper="tshirt", texture="plain", upper_colour=(30, 30, 230), bag="none", hair_style="short"
    )
    picture = drawn(person, heading)
    torso = picture[90:120, 58:70]
    assert (torso[..., 2] > 1.7 * torso[..., 0]).mean() > 0.95
