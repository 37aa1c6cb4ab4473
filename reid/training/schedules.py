"""What moves over the run, as pure functions of time, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from reid.config import ScheduleConfig


def learning_rate_factor(schedule: ScheduleConfig, epoch: int, step: int = 0, steps: int = 1) -> float:
    """What the base learning rate is multiplied by in `step` (from 0) of `steps` of `epoch` (from 0).

    With t = epoch + 1 when the factor is constant within an epoch (as in BoT's code, whose first epoch already is
    one step up the warm-up), or t = epoch + step / steps when it moves at every step; w = `warmup_epochs`,
    s = `warmup_start`, f = `final`, T = `epochs`, and p = (t − w) / (T − w) the share done of what follows the warm-up:

    - warm-up, t < w: s + (1 − s)·t / w, times what follows; in `onecycle` 1 + (s − 1)·(1 + cos(π·t / w)) / 2.
    - multistep: gamma to the number of milestones ≤ t.
    - cosine, onecycle: f + (1 − f)·(1 + cos(π·p)) / 2.
    - linear: 1 + (f − 1)·p.

    Source of the warm-up and milestones: Luo et al., "Bag of Tricks and A Strong Baseline for Deep Person
    Re-identification", CVPRW 2019, section 3.1. Cosine: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5. One
    cycle: Smith and Topin, "Super-Convergence", 2018, with two half cosines for its three straight lines.
    """
    t = _time(schedule, epoch, step, steps)
    warm, start = schedule.warmup_epochs, schedule.warmup_start
    rising = t < warm
    if schedule.kind == "onecycle" and rising:
        return 1 + (start - 1) * _fall(t / warm)
    factor = start + (1 - start) * t / warm if rising else 1.0
    if schedule.kind == "multistep":
        return factor * schedule.gamma ** bisect_right(schedule.milestones, t)
    share = _after_warmup(schedule, t)
    left = 1 - share if schedule.kind == "linear" else _fall(share)
    return factor * (schedule.final + (1 - schedule.final) * left)


def momentum_at(schedule: ScheduleConfig, base: float, epoch: int, step: int = 0, steps: int = 1) -> float:
    """The momentum there: `base`; in `onecycle` by half cosines to `peak_momentum`, where the rate peaks, and back."""
    if schedule.kind != "onecycle" or schedule.peak_momentum is None:
        return base
    t = _time(schedule, epoch, step, steps)
    warm = schedule.warmup_epochs
    depth = 1 - _fall(t / warm) if t < warm else _fall(_after_warmup(schedule, t))
    return base + (schedule.peak_momentum - base) * depth


def _time(schedule: ScheduleConfig, epoch: int, step: int, steps: int) -> float:
    return epoch + 1.0 if schedule.per == "epoch" else epoch + step / steps


def _after_warmup(schedule: ScheduleConfig, t: float) -> float:
    warm = schedule.warmup_epochs
    return min(max(t - warm, 0.0) / max(schedule.epochs - warm, 1e-9), 1.0)


def _fall(share: float) -> float:
    """From 1 to 0 by half a cosine."""
    return (1 + math.cos(math.pi * share)) / 2


def in_force(stages: Sequence[Sequence[float]], progress: float) -> tuple[int, ...] | None:
    """Return the values of the last stage (`[fraction, value, …]`) that began by `progress`; None without stages."""
    if not stages:
        return None
    begins = [stage[0] for stage in stages]
    return tuple(int(value) for value in stages[bisect_right(begins, progress) - 1][1:])
