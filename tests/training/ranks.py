"""Two processes train together on gloo: `python -m tests.training.ranks JSON`, or as the script of torchrun.

The JSON is a list of `{"settings": [...], "out": folder, "trouble": [kind, rank, step]}`. Each task is run by two
forked processes; what became of them is printed as one line of JSON: exit codes, seconds, and all that they printed.

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
from pathlib import Path

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


def run_two(task: dict) -> dict:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    began = time.monotonic()
    children, outputs = [], []
    for rank in range(2):
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        outputs.append(output)
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
        children.append(child)
    codes: dict[int, int] = {}
    while len(codes) < 2:
        child, status = os.wait()
        codes[children.index(child)] = os.waitstatus_to_exitcode(status)
        if codes[children.index(child)] != 0 and len(codes) == 1:  # what torchrun does when a process fails
            first = time.monotonic()
            if task.get("trouble", [""])[0] == "hang":
                os.kill(children[1 - children.index(child)], signal.SIGTERM)
    ended = time.monotonic()
    printed = []
    for output in outputs:
        output.seek(0)
        printed.append(output.read())
    late = ended - first if any(codes.values()) else 0.0
    return {"codes": [codes[0], codes[1]], "seconds": ended - began, "late": late, "printed": printed}


def main() -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ.get("REID_TEST_TROUBLE"):
            make_trouble(*json.loads(os.environ["REID_TEST_TROUBLE"]))
        reid(["train", *sys.argv[1:]])
        return
    results = [run_two(task) for task in json.loads(Path(sys.argv[1]).read_text())]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
