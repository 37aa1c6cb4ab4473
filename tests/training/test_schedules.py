from __future__ import annotations

import math

import pytest

from reid.config import ScheduleConfig
from reid.training.schedules import learning_rate_factor


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
