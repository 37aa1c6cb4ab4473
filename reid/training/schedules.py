"""Schedules as pure functions of time, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from reid.config import ScheduleConfig


def learning_rate_factor(schedule: ScheduleConfig, epoch: int, step: int = 0, steps: int = 1) -> float:
    """Return the factor of the base learning rate in `step` (from 0) of the `steps` of `epoch` (from 0).

    t = epoch + 1 if the factor is constant within an epoch (as in BoT's code, where the first epoch is already the
    first step of the warm-up), or t = epoch + step / steps if it changes at every step. With w = `warmup_epochs`,
    s = `warmup_start`, f = `final`, T = `epochs`, and p = (t − w) / (T − w), the progress after the warm-up:

    - warm-up, t < w: s + (1 − s)·t / w, times the factor below; in `onecycle` 1 + (s − 1)·(1 + cos(π·t / w)) / 2.
    - multistep: gamma to the power of the number of milestones ≤ t.
    - cosine, onecycle: f + (1 − f)·(1 + cos(π·p)) / 2.
    - linear: 1 + (f − 1)·p.

    Source of the warm-up and milestones: Luo et al., "Bag of Tricks and A Strong Baseline for Deep Person
    Re-identification", CVPRW 2019, section 3.1. Cosine: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5. One
    cycle: Smith and Topin, "Super-Convergence", 2018, with two half cosines instead of three straight lines.
    """
    t = _time(schedule, epoch, step, steps)
    warm, start = schedule.warmup_epochs, schedule.warmup_start
    warming_up = t < warm
    if schedule.kind == "onecycle" and warming_up:
        return 1 + (start - 1) * _half_cosine(t / warm)
    factor = start + (1 - start) * t / warm if warming_up else 1.0
    if schedule.kind == "multistep":
        return factor * schedule.gamma ** bisect_right(schedule.milestones, t)
    progress = _after_warmup(schedule, t)
    remaining = 1 - progress if schedule.kind == "linear" else _half_cosine(progress)
    return factor * (schedule.final + (1 - schedule.final) * remaining)


def momentum_at(schedule: ScheduleConfig, base: float, epoch: int, step: int = 0, steps: int = 1) -> float:
    """Return the momentum: `base`; in `onecycle` half a cosine to `peak_momentum` at the highest rate, and back."""
    if schedule.kind != "onecycle" or schedule.peak_momentum is None:
        return base
    t = _time(schedule, epoch, step, steps)
    warm = schedule.warmup_epochs
    depth = 1 - _half_cosine(t / warm) if t < warm else _half_cosine(_after_warmup(schedule, t))
    return base + (schedule.peak_momentum - base) * depth


def _time(schedule: ScheduleConfig, epoch: int, step: int, steps: int) -> float:
    return epoch + 1.0 if schedule.per == "epoch" else epoch + step / steps


def _after_warmup(schedule: ScheduleConfig, t: float) -> float:
    warm = schedule.warmup_epochs
    return min(max(t - warm, 0.0) / max(schedule.epochs - warm, 1e-9), 1.0)


def _half_cosine(progress: float) -> float:
    """Fall from 1 to 0."""
    return (1 + math.cos(math.pi * progress)) / 2


def current_stage(stages: Sequence[Sequence[float]], progress: float) -> tuple[int, ...] | None:
    """Return the values of the last stage (`[fraction, value, …]`) that began by `progress`; None without stages."""
    if not stages:
        return None
    current = bisect_right(stages, progress, key=lambda stage: stage[0]) - 1
    return tuple(int(value) for value in stages[current][1:])
