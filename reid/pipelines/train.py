"""Train in a new or resumed run folder, under torchrun or alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

from reid.config import Config, load_config
from reid.core.distributed import init_distributed
from reid.core.errors import ConfigError
from reid.training.dry_run import check_run
from reid.training.profiling import profile_run
from reid.training.run_folder import BEST, LAST, SETTINGS
from reid.training.trainer import Interrupted, Progress, train


def check(config: Config, out: Path | None, *, dry_run: bool = False, profile_steps: int | None = None) -> None:
    """Check a training, or measure where the time of its steps goes, without training.

    Raises:
        ReidError: as `check_run` and `profile_run`.
    """
    with init_distributed(config.device, config.rank_timeout) as distributed:
        if dry_run:
            check_run(config, out or _new_folder(None, time.time()), distributed)
        if profile_steps:
            profile_run(config, distributed, profile_steps)


def train_run(
    config: Config, out: Path | None = None, *, resume: Path | None = None, config_file: Path | None = None
) -> tuple[Progress, Path] | None:
    """Train a run, or resume it.

    A process that torchrun restarted resumes the run in `out`.

    Args:
        config: the settings; a resumed run uses its own.
        out: the run folder. Default: a new one in runs/.
        resume: folder of a run to resume.
        config_file: file that the settings came from. It names the default folder; if it is in a run folder, a warning
            reports data that differ from that run's.

    Returns:
        The progress, and the best checkpoint (the last one without evaluations); None in all processes but the first.

    Raises:
        ReidError: as `reid.training.train`, or torchrun restarts processes but `out` is missing.
        Interrupted: the process was stopped by a signal; the run can be resumed.
    """
    if not out and not resume and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise ConfigError("torchrun --max-restarts needs --out, so that a restarted process finds its run. Pass --out.")
    if out and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and (out / SETTINGS).is_file():
        resume = out
    if resume and (resume / SETTINGS).is_file():
        config = load_config(resume / SETTINGS)
    with init_distributed(config.device, config.rank_timeout) as distributed:
        folder = resume or out or _new_folder(config_file, distributed.first(time.time()))
        try:
            repeats = config_file.parent if config_file else None
            progress = train(config, folder, distributed, resume=bool(resume), repeats=repeats)
        except Interrupted as stop:
            if not distributed.is_first:
                raise SystemExit(128 + stop.signal) from stop
            raise
        return (progress, folder / (BEST if progress.history else LAST)) if distributed.is_first else None


def _new_folder(config_file: Path | None, seconds: float) -> Path:
    name = config_file.stem if config_file else "train"
    return Path(f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(seconds))}")
