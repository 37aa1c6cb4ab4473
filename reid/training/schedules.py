"""The learning rate's factor as a pure function of time, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from bisect import bisect_right

from reid.config import ScheduleConfig


def learning_rate_factor(schedule: ScheduleConfig, epoch: int, step: int = 0, steps: int = 1) -> float:
    """What the base learning rate is multiplied by in `step` (from 0) of `steps` of `epoch` (from 0).

    With t = epoch + 1 when the factor is constant within an epoch (as in BoT's code, whose first epoch already is
    one step up the warm-up), or t = epoch + step / steps when it moves at every step:

    - warm-up, t < w: s + (1 − s)·t / w, with w = `warmup_epochs` and s = `warmup_start`; it multiplies what follows.
    - multistep: gamma to the number of milestones ≤ t.
    - cosine: f + (1 − f)·(1 + cos(π·(t − w) / (T − w))) / 2 over the T − w epochs after the warm-up, f = `final`.

    Source of the warm-up and milestones: Luo et al., "Bag of Tricks and A Strong Baseline for Deep Person
    Re-identification", CVPRW 2019, section 3.1. Cosine: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5.
    """
    t = epoch + 1.0 if schedule.per == "epoch" else epoch + step / steps
    warm = schedule.warmup_epochs
    factor = schedule.warmup_start + (1 - schedule.warmup_start) * t / warm if t < warm else 1.0
    if schedule.kind == "multistep":
        return factor * schedule.gamma ** bisect_right(schedule.milestones, t)
    progress = min(max(t - warm, 0.0) / max(schedule.epochs - warm, 1e-9), 1.0)
    return factor * (schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2)
