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

from reid.config import load_config, save_settings
from reid.training import trainer
from tests.training.runs import ALONE


def train_and_die(settings: list[str], out: Path, place: str, turn: int) -> None:
    left = [turn]

    def die_if(here: str) -> None:
        if here == place:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    class Mortal(trainer._Trainer):
        def _step(self, batches):
            die_if("before a step")
            terms = super()._step(batches)
            die_if("after a step")
            return terms

        def _line(self, content):
            if place == "in a line" and left[0] == 1:
                with open(self.out / trainer.LOG, "a") as log:
                    log.write('{"step": ' + str(content["step"]))
            die_if("in a line")
            super()._line(content)

        def describe(self):
            self.out.mkdir(exist_ok=True)
            save_settings(self.config, self.out / trainer.SETTINGS)
            die_if("before anything")
            super().describe()

    save = torch.save

    def saving(content, path) -> None:
        save(content, path)
        if place == "in a save" and left[0] == 1:
            os.truncate(path, os.path.getsize(path) // 2)
        die_if("in a save")
        die_if("before the rename")

    torch.save = saving
    trainer._Trainer = Mortal  # type: ignore[misc]
    trainer.train(load_config(None, settings), out, ALONE, resume=out.exists())


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
