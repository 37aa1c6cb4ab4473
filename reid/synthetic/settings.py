"""Settings of a synthetic data set."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, PositiveFloat, model_validator

from reid.config import Fraction, Natural, NonNegative, Settings
from reid.core.errors import ConfigError


class Difficulty(Settings):
    """What makes the data set difficult."""

    model_config = ConfigDict(frozen=True)

    lookalikes: Fraction = 0.25
    """Fraction of identities that copy another identity's clothes except for two features."""
    colour: NonNegative = 0.35
    """Colour difference between cameras; 0: none, 1: more than in most real places."""
    degrade: NonNegative = 0.6
    """Blur, noise, lost detail and compression added by the cameras; 0: none, 1: strong."""
    crowd: PositiveFloat = 2.0
    """Mean number of people that a camera sees simultaneously."""
    occluders: Natural = 3
    """Number of poles, bushes, cars and railings in each camera's view."""
    jitter: NonNegative = 0.02
    """σ of a detected box's error, as a fraction of its height."""
    bad_boxes: Fraction = 0.06
    """Fraction of crops whose box cuts off head, feet or side, or is far too large."""
    hidden: Fraction = 0.35
    """Largest fraction of a person that may be hidden in a crop."""
    reentry: Fraction = 0.08
    """Probability, at each step of a walk, of returning to the camera just left."""


class TrackerFaults(Settings):
    """Errors of the simulated single-camera tracker."""

    model_config = ConfigDict(frozen=True)

    miss: Fraction = 0.03
    """Probability that a box is missed."""
    blind: NonNegative = 0.7
    """Hidden fraction of a person above which no box is found; above 1: always found."""
    jitter: NonNegative = 0.012
    """σ of each box edge, as a fraction of the box height."""
    split: Fraction = 0.12
    """Probability that a walk is split into two tracks."""
    switch: Fraction = 0.15
    """Probability that two tracks swap ids where their boxes meet."""
    false_tracks: NonNegative = 0.06
    """False tracks per true walk."""


class FloorSettings(Settings):
    """One floor that all cameras see parts of; used by the sites `floor` and `corridor`."""

    model_config = ConfigDict(frozen=True)

    overlap: Fraction = 0.5
    """Fraction of a camera's view that the next one sees too; 0: gaps between the views, 1: all see the same place."""
    meetings: Fraction = 0.3
    """Fraction of walks that lead to where another person stops, at that time."""
    distortion: float = Field(default=0.0, ge=-0.3, le=0.3)
    """Radial lens distortion k1 of every camera (OpenCV's); below 0: barrel, above 0: pincushion."""


class SyntheticSettings(Settings):
    """All settings of a synthetic data set; the same values give the same files.

    Example:
        >>> SyntheticSettings(ids=20, difficulty={"crowd": 4}).difficulty.crowd
        4.0
    """

    model_config = ConfigDict(frozen=True)

    seed: Natural = 0
    """Seed of everything."""
    ids: int = Field(default=350, ge=4, le=9999)
    """Identities of the train and test splits together."""
    cameras: int = Field(default=6, ge=1, le=99)
    """Number of cameras; at least 2 if they are separate. With one camera there are no queries."""
    site: Literal["separate", "floor", "corridor"] = "separate"
    """`separate`: people walk from view to view; `floor`: the cameras share one floor; `corridor`: a one-way floor."""
    train_fraction: Fraction = 0.7
    """Fraction of the identities in the train split; at least two are in each split."""
    crops_per_pass: tuple[int, int] = (2, 4)
    """Least and largest number of crops per walk through one camera's view; at least 2."""
    distractors: NonNegative = 0.18
    """Crops of identity 0000 (people of no query, empty background) per other gallery crop."""
    junk: NonNegative = 0.15
    """Crops of identity -1 (parts of people, two people in a box) per other gallery crop."""
    fps: PositiveFloat = 10.0
    """Frames per second of every camera."""
    size: tuple[int, int] = (64, 128)
    """Width and height of a crop, pixels; at least 16."""
    track_seconds: PositiveFloat | None = None
    """Length of the test recording in tracks, truth and videos; null: all of it. Crops always use all of it."""
    videos: bool = False
    """Write videos of the test recording."""
    stills: Natural = 0
    """Boxes per track whose frames are written as images: those that `reid match` selects. Replaces videos."""
    floor: FloorSettings = FloorSettings()
    difficulty: Difficulty = Difficulty()
    tracker: TrackerFaults = TrackerFaults()

    @model_validator(mode="after")
    def _check_pairs(self) -> SyntheticSettings:
        low, high = self.crops_per_pass
        if not 2 <= low <= high:
            raise ConfigError(f"crops_per_pass is [{low}, {high}]. Give two rising numbers from 2.")
        if self.cameras < 2 and self.site == "separate":
            raise ConfigError("cameras=1 needs site=floor or site=corridor. Give 2 or more separate cameras.")
        if min(self.size) < 16:
            raise ConfigError(f"size is {list(self.size)}. Give a width and height of at least 16 pixels.")
        return self
