from __future__ import annotations

import math

import pytest
import torch

from reid.config import ScheduleConfig
from reid.core.errors import ConfigError
from reid.training.schedules import current_stage, learning_rate_factor, momentum_at


def test_bot_schedule_by_hand() -> None:
    bot = ScheduleConfig()
    assert learning_rate_factor(bot, 0) == pytest.approx(0.01 * 0.9 + 0.1)  # one tenth up the warm-up
    assert learning_rate_factor(bot, 8) == pytest.approx(0.01 * 0.1 + 0.9)
    assert [learning_rate_factor(bot, epoch) for epoch in (9, 38)] == [1.0, 1.0]
    assert learning_rate_factor(bot, 39) == pytest.approx(0.1)
    assert learning_rate_factor(bot, 68) == pytest.approx(0.1)
    assert learning_rate_factor(bot, 69) == pytest.approx(0.01)
    assert learning_rate_factor(bot, 119) == pytest.approx(0.01)


def test_a_factor_per_epoch_ignores_the_step() -> None:
    assert learning_rate_factor(ScheduleConfig(), 3, 5, 10) == learning_rate_factor(ScheduleConfig(), 3)


def test_cosine_per_step_by_hand() -> None:
    cosine = ScheduleConfig(epochs=12, kind="cosine", warmup_epochs=2, warmup_start=0.1, final=0.2, per="step")
    assert learning_rate_factor(cosine, 0, 0, 4) == pytest.approx(0.1)
    assert learning_rate_factor(cosine, 1, 0, 4) == pytest.approx(0.55)
    assert learning_rate_factor(cosine, 2, 0, 4) == pytest.approx(1.0)
    assert learning_rate_factor(cosine, 7, 0, 4) == pytest.approx(0.6)  # half way
    assert learning_rate_factor(cosine, 4, 2, 4) == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)
    assert learning_rate_factor(cosine, 11, 4, 4) == pytest.approx(0.2)


def test_no_warmup_starts_at_the_base_rate() -> None:
    assert learning_rate_factor(ScheduleConfig(warmup_epochs=0), 0) == 1.0
    assert learning_rate_factor(ScheduleConfig(kind="cosine", warmup_epochs=0, per="step"), 0) == 1.0


@pytest.mark.parametrize(("warm", "epochs", "start", "final"), [(3, 10, 0.04, 0.0001), (1.5, 7, 0.5, 0.2)])
def test_one_cycle_equals_torchs_scheduler(warm: float, epochs: int, start: float, final: float) -> None:
    steps = 10
    schedule = ScheduleConfig(
        epochs=epochs, kind="onecycle", warmup_epochs=warm, warmup_start=start, final=final, per="step",
        peak_momentum=0.8,
    )  # fmt: skip
    total = epochs * steps
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total + 1, pct_start=(warm * steps + 1) / (total + 1), div_factor=1 / start,
        final_div_factor=start / max(final, 1e-30), base_momentum=0.8, max_momentum=0.95,
    )  # fmt: skip
    for number in range(total):
        epoch, step = divmod(number, steps)
        group = optimizer.param_groups[0]
        assert learning_rate_factor(schedule, epoch, step, steps) == pytest.approx(group["lr"], abs=1e-6)
        assert momentum_at(schedule, 0.95, epoch, step, steps) == pytest.approx(group["momentum"], abs=1e-6)
        optimizer.step()
        theirs.step()


def test_linear_by_hand() -> None:
    linear = ScheduleConfig(epochs=12, kind="linear", warmup_epochs=2, warmup_start=0.0, final=0.1, per="step")
    assert [learning_rate_factor(linear, epoch) for epoch in (0, 1, 2, 7, 12)] == pytest.approx([0, 0.5, 1, 0.55, 0.1])


@pytest.mark.parametrize("kind", ["multistep", "cosine", "linear", "onecycle"])
def test_momentum_changes_only_in_one_cycle_with_peak_momentum(kind: str) -> None:
    assert momentum_at(ScheduleConfig(kind=kind), 0.9, 3) == 0.9
    moved = momentum_at(ScheduleConfig(kind=kind, peak_momentum=0.5), 0.9, 3)
    assert (moved != 0.9) == (kind == "onecycle")


def test_current_stage_is_the_last_one_that_began() -> None:
    stages = [[0, 96, 48], [0.5, 128, 64], [0.9, 256, 128]]
    found = [current_stage(stages, fraction) for fraction in (0, 0.49, 0.5, 0.89, 0.9, 1)]
    assert found == [(96, 48), (96, 48), (128, 64), (128, 64), (256, 128), (256, 128)]
    assert current_stage([[0, 32], [0.5, 64]], 0.7) == (64,)
    assert current_stage([], 0.3) is None


@pytest.mark.parametrize(
    "stages",
    [
        [0, 96, 48],  # one stage without its own brackets
        [[0.1, 96, 48]],  # no stage at the start
        [[0, 96]],  # no width
        [[0, 96, 48.5]],  # a fraction of a pixel
        [[0, 96, 0]],  # no pixels
        [[0, 96, 48], [0.5, 64, 32], [0.4, 128, 64]],  # not in order
        [[0, 96, 48], [0, 128, 64]],  # two at the same time
        [[0, 96, 48], [1, 128, 64]],  # never reached
        [["start", 96, 48]],  # text for a number
    ],
)
def test_invalid_stages_are_refused(stages: list) -> None:
    with pytest.raises(ConfigError, match="sizes"):
        ScheduleConfig(sizes=stages)
