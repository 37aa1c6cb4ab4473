"""Runs that die by SIGKILL at a chosen place, each in a process of its own: `python -m tests.training.killed JSON`.

The JSON is `{"settings": [...], "runs": {folder: [[place, turn], ...]}}`: in each folder, training starts (or goes on)
and is killed the `turn`-th time it comes to `place`, once for each pair. One process imports everything and forks.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from reid.config import load_config
from reid.training import run_folder, trainer
from reid.training.trainer import Trainer
from tests.training.runs import ALONE, Record


def train_and_die(settings: list[str], out: Path, place: str, turn: int) -> None:
    left = [turn]

    def die_if(here: str) -> None:
        if here == place:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def before_line(_: Trainer, line: dict) -> None:
        if place == "in a line" and left[0] == 1:
            with open(out / run_folder.LOG, "a") as log:
                log.write('{"step": ' + str(line["step"]))
        die_if("in a line")

    hook = Record(
        on_step_start=lambda *_: die_if("before a step"), on_step_end=lambda *_: die_if("after a step"),
        on_log=before_line,
    )  # fmt: skip
    replace = os.replace

    def rename(source, target) -> None:
        if Path(target).name == "config.yaml":
            die_if("in the settings")
        replace(source, target)

    os.replace = rename
    write_json = run_folder.write_json

    def write_after_settings(*given) -> None:
        die_if("before anything")
        write_json(*given)

    run_folder.write_json = write_after_settings
    save = torch.save

    def saving(content, path) -> None:
        save(content, path)
        if place == "in a save" and left[0] == 1:
            os.truncate(path, os.path.getsize(path) // 2)
        die_if("in a save")
        die_if("before the rename")

    torch.save = saving
    resume = (out / "config.yaml").is_file()
    trainer.train(load_config(None, settings), out, ALONE, resume=resume, hooks=[hook])


def main() -> None:
    task = json.loads(sys.argv[1])
    for out, kills in task["runs"].items():
        for place, turn in kills:
            child = os.fork()
            if child == 0:
                try:
                    train_and_die(task["settings"], Path(out), place, turn)
                finally:
                    os._exit(1)
            _, status = os.waitpid(child, 0)
            if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
                raise SystemExit(f"{out} was not killed {place}, turn {turn}: status {status}")


if __name__ == "__main__":
    main()
