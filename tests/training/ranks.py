"""Two processes train together on gloo: `python -m tests.training.ranks JSON`, or as the script of torchrun.

The JSON is a list of `{"settings": [...], "out": folder, "trouble": [kind, rank, step]}`, those without a trouble
first. Each task is run by two forked processes, those with a trouble at the same time, as they mostly wait; what became
of them is printed as one line of JSON: exit codes, seconds, and all that they printed.

Under torchrun the arguments are those of `reid train`, and `REID_TEST_TROUBLE` holds the trouble of the first start.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from reid.commands import main as reid
from reid.core.distributed import pick_device  # noqa: F401  (torch is imported before the fork)
from reid.core.errors import ReidError
from reid.training import trainer


def make_trouble(kind: str, rank: int, step: int) -> None:
    """Kill, stop (SIGSTOP), hang or fail this process in `step` (from 1) if it is `rank`."""
    original = trainer.Trainer.train_step

    def stepping(self, batches):
        if self.distributed.rank == rank and self.progress.step + 1 == step:
            Path(f"{self.out}.trouble").touch()
            if kind == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            if kind == "hang":
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                time.sleep(600)
            raise ReidError(f"rank {rank} has a trouble of its own")
        return original(self, batches)

    trainer.Trainer.train_step = stepping  # type: ignore[method-assign]


@dataclass
class Job:
    """Two processes of a task, and what is known of those that ended."""

    task: dict
    began: float = field(default_factory=time.monotonic)
    children: list[int] = field(default_factory=list)
    outputs: list[IO[str]] = field(default_factory=list)
    codes: dict[int, int] = field(default_factory=dict)
    first: float = 0.0
    ended: float = 0.0

    def note(self, child: int, status: int) -> None:
        """Do what torchrun does when a process fails."""
        code = self.codes[self.children.index(child)] = os.waitstatus_to_exitcode(status)
        self.ended = time.monotonic()
        if code != 0 and len(self.codes) == 1:
            self.first = self.ended
            if self.task.get("trouble", [""])[0] == "hang":
                os.kill(self.children[1 - self.children.index(child)], signal.SIGTERM)

    def result(self) -> dict:
        printed = []
        for output in self.outputs:
            output.seek(0)
            printed.append(output.read())
        late = self.ended - self.first if any(self.codes.values()) else 0.0
        seconds = self.ended - self.began
        return {"codes": [self.codes[0], self.codes[1]], "seconds": seconds, "late": late, "printed": printed}


def start_two(task: dict) -> Job:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = Job(task)
    for rank in range(2):
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        job.outputs.append(output)
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }  # fmt: skip
            if task.get("trouble"):
                kind, late_rank, seconds = task["trouble"]
                if kind == "late" and rank == late_rank:
                    time.sleep(seconds)
                make_trouble(*task["trouble"])
            try:
                reid(["train", "--out", task["out"], *task["settings"]])
            except SystemExit as end:
                sys.stdout.flush()
                os._exit(int(end.code or 0))
            os._exit(99)
        job.children.append(child)
    return job


def run_together(tasks: list[dict]) -> list[dict]:
    jobs = [start_two(task) for task in tasks]
    while any(len(job.codes) < 2 for job in jobs):
        child, status = os.wait()
        next(job for job in jobs if child in job.children).note(child, status)
    return [job.result() for job in jobs]


def main() -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ.get("REID_TEST_TROUBLE"):
            make_trouble(*json.loads(os.environ["REID_TEST_TROUBLE"]))
        reid(["train", *sys.argv[1:]])
        return
    tasks = json.loads(Path(sys.argv[1]).read_text())
    undisturbed = [result for task in tasks if "trouble" not in task for result in run_together([task])]
    print(json.dumps([*undisturbed, *run_together([task for task in tasks if "trouble" in task])]))


if __name__ == "__main__":
    main()
