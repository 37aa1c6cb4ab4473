"""`reid train`: settings in, a run folder out."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from reid.config import load_config
from reid.core.errors import ReidError


@click.command(context_settings={"ignore_unknown_options": False})
@click.option("--config", "config_file", type=click.Path(), help="YAML file with settings over the defaults.")
@click.option("--out", type=click.Path(), help="Run folder, new or empty.  [default: runs/CONFIG-DATE]")
@click.option("--resume", type=click.Path(), metavar="RUN", help="Continue the run in this folder, with its settings.")
@click.option("--show-settings", is_flag=True, help="Print every setting as it would be used, and stop.")
@click.option("--dry-run", is_flag=True, help="Check data, settings, memory, disk and output in seconds, and stop.")
@click.option(
    "--profile", type=click.IntRange(1), metavar="STEPS", help="Print where the time of a step goes, and stop."
)
@click.argument("overrides", nargs=-1, metavar="[key.sub=value]...")
def command(
    config_file: str | None,
    out: str | None,
    resume: str | None,
    show_settings: bool,
    dry_run: bool,
    profile: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Train a model on one or several data sets.

    \b
    reid train data.train=market1501:/data/Market-1501-v15.09.15
    reid train --config configs/market1501_bot.yaml data.train=market1501:/data/Market-1501-v15.09.15
    reid train --config ... --dry-run
    reid train --resume runs/market1501_bot-20260101-120000
    torchrun --nproc-per-node=2 tools/train.py --config ...

    Without --config the settings are BoT's (ResNet-50, 256x128, batch-hard triplet + softmax). Every setting can be
    given as key.sub=value; the values are YAML.
    """
    if resume and (config_file or overrides or out):
        raise ReidError("--resume continues a run with its own settings: give neither --config, --out nor settings.")
    config = load_config(config_file, overrides)
    if show_settings:
        import yaml

        click.echo(yaml.safe_dump(config.as_dict(), sort_keys=False), nl=False)
        return
    from reid.core.console import console
    from reid.core.distributed import init_distributed
    from reid.training.trainer import BEST, LAST, SETTINGS, Interrupted, train

    if not out and not resume and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")):
        raise ReidError("torchrun --max-restarts needs --out, so that a restart finds the run that it goes on with.")
    if out and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and (Path(out) / SETTINGS).is_file():
        resume = out
    if resume and (Path(resume) / SETTINGS).is_file():
        config = load_config(Path(resume) / SETTINGS)
    name = Path(config_file).stem if config_file else "train"
    with init_distributed(config.device, config.rank_timeout) as ranks:
        now = time.localtime(ranks.first(time.time()))
        folder = Path(resume or out or f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S', now)}")
        if dry_run or profile:
            from reid.training.dry_run import check_run, profile_run

            if dry_run:
                check_run(config, folder, ranks)
            if profile:
                profile_run(config, ranks, profile)
            return
        try:
            repeats = Path(config_file).parent if config_file else None
            progress = train(config, folder, ranks, resume=bool(resume), repeats=repeats)
        except Interrupted as stop:
            if ranks.is_first:
                console.print(str(stop))
            raise SystemExit(128 + stop.signal) from stop
        if ranks.is_first:
            minutes = progress.seconds / 60
            best = folder / (BEST if progress.history else LAST)
            console.print(
                f"{progress.step:,} steps in {minutes:.1f} minutes; to score it: reid test --checkpoint {best}"
            )
