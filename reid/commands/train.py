"""`reid train`: train a model."""

from __future__ import annotations

from pathlib import Path

import click

from reid.commands.options import PATH, Command, option, out_option, overrides_argument


@click.command("train", cls=Command)
@option("Input", "--config", "config_file", type=PATH, help="YAML file with settings.")
@option("Input", "--resume", type=PATH, metavar="RUN", help="Resume the run in this folder, with its settings.")
@out_option("Run folder, new or empty.  [default: runs/CONFIG-DATE]")
@option("Check", "--show-settings", is_flag=True, help="Print all settings and exit.")
@option("Check", "--dry-run", is_flag=True, help="Check data, settings, memory, disk and output in seconds, and exit.")
@option(
    "Check", "--profile", type=click.IntRange(1), metavar="STEPS", help="Measure where a step's time goes, and exit."
)
@overrides_argument
def cli(
    config_file: Path | None,
    resume: Path | None,
    out: Path | None,
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

    The default settings are BoT's (ResNet-50, 256x128, batch-hard triplet loss and softmax). Any setting can be
    changed with key.sub=value; numbers and lists are YAML, paths and names are text. docs/training.md lists them all.
    """
    from reid.config import load_config
    from reid.core.errors import ConfigError

    if resume and (config_file or overrides or out):
        raise ConfigError("--resume uses the settings of the run. Remove --config, --out and key=value settings.")
    config = load_config(config_file, overrides)
    if show_settings:
        import yaml

        click.echo(yaml.safe_dump(config.as_dict(), sort_keys=False), nl=False)
        return
    from reid.core.console import console
    from reid.pipelines.train import check, train_run
    from reid.training.trainer import Interrupted

    if dry_run or profile:
        check(config, resume or out, dry_run=dry_run, profile_steps=profile)
        return
    try:
        result = train_run(config, out, resume=resume, config_file=config_file)
    except Interrupted as stop:
        console.print(str(stop))
        raise SystemExit(128 + stop.signal) from stop
    if result is not None:
        progress, model = result
        console.print(
            f"{progress.step:,} steps in {progress.seconds / 60:.1f} minutes; next: reid test --model {model}"
        )
