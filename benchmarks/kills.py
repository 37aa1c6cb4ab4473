"""`kill -9` at random moments of each command that writes files: is the finished result that of an uninterrupted run?

Each try starts the command in a new folder, kills it, runs the command again (training: with `--resume`) to its end and
compares all files with those of an uninterrupted run. Odd tries are killed at a random moment of their CPU time; even
ones at a random write: a flush, a rename, a new folder or a removed file, counted in the uninterrupted run (a flush is
cut to half of its file first). Meanwhile another process reads every visible file again and again.

Commands run in forks of one process that has imported everything, and the workers of `synthesize` are forks of theirs,
so that a try takes the time of its work only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pyarrow.parquet as pq
import torch
import yaml

from benchmarks.measure import Benchmark
from reid.commands import main as reid
from reid.config import load_config
from reid.core.atomic import write_json
from reid.core.console import console, make_table
from reid.data.pixels import load_training_data

IMPORTED = (
    "_strptime", "pandas", "pyarrow.dataset", "scipy.optimize", "torch.utils.tensorboard", "torch.utils.serialization",
    "reid.pipelines.train", "reid.pipelines.match", "reid.pipelines.embed", "reid.pipelines.export", "reid.synthetic",
    "reid.report", *(f"reid.commands.{name}" for name in ("train", "embed", "match", "model", "data")),
)  # fmt: skip
"""Imported before processes are forked."""

WRITES = ("fsync", "replace", "mkdir", "unlink", "rmdir")
TIMES = ("seconds", "crops_per_second")
"""Measured values of JSON files and checkpoints, which are not compared."""


@dataclass
class Result:
    """What the tries of one command showed."""

    kills: int = 0
    finished_before: int = 0
    different: int = 0
    failed: int = 0
    half_files: int = 0
    reads: int = 0
    orphans: int = 0
    leftovers: int = 0
    messages: tuple[str, ...] = ()
    not_compared: tuple[str, ...] = ()


def training(inputs: Path) -> list[str]:
    """Return the settings of a training of two epochs."""
    return [
        f"data.train=market1501:{inputs / 'data'}", "model.backbone=light10", "model.height=32", "model.width=16",
        "sampler.batch_size=8", "sampler.crops_per_id=2", "schedule.epochs=2", "eval.split=validation",
        "eval.fraction=0.4", "eval.every=1", "log_every=2", "save_every=2", "device=cpu",
    ]  # fmt: skip


def train(inputs: Path, out: Path) -> None:
    """Train, or resume the training of a killed process."""
    settings = [*training(inputs), f"data.store_dir={inputs / 'store'}"]
    started = (out / "run/config.yaml").is_file()
    reid(["train", "--resume", str(out / "run")] if started else ["train", "--out", str(out / "run"), *settings])


def pack(inputs: Path, out: Path) -> None:
    """Pack the train crops."""
    load_training_data(load_config(None, [*training(inputs), f"data.store_dir={out / 'store'}"]))


def embed(inputs: Path, out: Path) -> None:
    """Embed the gallery."""
    data = f"market1501:{inputs / 'data'}"
    given = ["--model", str(inputs / "run/last.pt"), "--data", data, "--split", "gallery", "--batch-size", "8"]
    reid(["embed", *given, "--device", "cpu", "--out", str(out / "gallery.parquet")])


def match(inputs: Path, out: Path) -> None:
    """Match the tracks of all cameras, with pictures of their boxes."""
    data = inputs / "data"
    given = ["--tracks", data / "tracks", "--videos", data / "stills", "--truth", data / "truth", "--per-track", 2]
    given += ["--model", inputs / "run/last.pt", "--device", "cpu", "--out", out / "matched"]
    reid(["match", *map(str, given)])


def export(inputs: Path, out: Path) -> None:
    """Export a bundle, which a killed process may have completed."""
    if (out / "bundle").exists():
        return
    given = ["--model", inputs / "run/last.pt", "--to", "torchscript", "--out", out / "bundle"]
    reid(["model", "export", *map(str, given), "--images", str(inputs / "data/query")])


def synthesize(inputs: Path, out: Path) -> None:
    """Generate a data set."""
    reid(["data", "synthesize", "--out", str(out / "data"), "ids=4", "cameras=2", "stills=1"])


COMMANDS: dict[str, Callable[[Path, Path], None]] = {
    "train": train, "pack": pack, "embed": embed, "match": match, "export": export, "synthesize": synthesize,
}  # fmt: skip


def prepare(inputs: Path) -> None:
    """Make a data set with tracks, and a small model."""
    reid(["data", "synthesize", "--out", str(inputs / "data"), "ids=12", "cameras=2", "stills=4"])


def prepare_model(inputs: Path) -> None:
    """Train the model that the other commands use."""
    reid(["train", "--out", str(inputs / "run"), *training(inputs), f"data.store_dir={inputs / 'store'}"])


def start(task: Callable[[], None], log: Path, die_at_write: int = 0, count: Path | None = None) -> int:
    """Run a task in a forked process with its own session; its output goes to `log`."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    writes, process = 0, os.getpid()
    forked = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: forked  # type: ignore[assignment, misc]

    def watched(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal writes
            writes += os.getpid() == process
            if writes == die_at_write and os.getpid() == process:
                if name == "fsync":
                    with contextlib.suppress(OSError):
                        os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        return call

    for name in WRITES:
        setattr(os, name, watched(name, getattr(os, name)))
    code = 1
    try:
        task()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", flush=True)
    finally:
        if count is not None:
            count.write_text(str(writes))
        os._exit(code)


def finish(child: int) -> int:
    """Wait for a process and return its exit code (negative: signal)."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def processes_of(session: int) -> dict[int, float]:
    """Return the processes of a session that are not zombies, with their seconds of CPU time, ended children included.

    The first process of a session that has ended keeps its own time until it is waited for.
    """
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found[int(stat.parent.name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return found


def kill_after(child: int, seconds: float) -> None:
    """Send SIGKILL to a process when it and its workers have used some CPU time, if it has not ended before."""
    while (used := processes_of(child)) and sum(used.values()) < seconds:
        time.sleep(0.03)
    os.kill(child, signal.SIGKILL)


def plain(value: Any) -> Any:
    """Return the content of a checkpoint as comparable values, without wall times."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), list(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in TIMES}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def content_of(path: Path) -> Any:
    """Read a file completely and parse it.

    Raises:
        Exception: it is not complete.
    """
    data = path.read_bytes()
    match path.suffix:
        case ".pt" if path.parent.name != "bundle":
            return plain(torch.load(io.BytesIO(data), weights_only=True))
        case ".pt" | ".npz":
            if (damaged := zipfile.ZipFile(io.BytesIO(data)).testzip()) is not None:
                raise ValueError(f"{damaged} is damaged")
        case ".py":
            compile(data, path.name, "exec")
        case ".md":
            return re.sub(rb"Crops per second at export.*", b"", data)
        case ".json":
            return plain(json.loads(data))
        case ".yaml":
            return dict(yaml.safe_load(data))
        case ".jsonl":
            for line in data[: data.rfind(b"\n") + 1].splitlines():  # the last line may be incomplete
                json.loads(line)
        case ".parquet":
            table = pq.read_table(io.BytesIO(data), use_threads=False)
            if path.name == "index.parquet":  # of a packed store; its metadata names the file of pixels
                return table.to_pydict()
        case ".jpg" | ".png":
            ends = data.endswith((b"\xff\xd9", b"IEND\xaeB`\x82"))
            if not ends or cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is None:
                raise ValueError("incomplete image")
        case ".html":
            if not data.rstrip().endswith(b"</html>"):
                raise ValueError("incomplete page")
    return data


def files_of(folder: Path) -> dict[str, Path]:
    """Return the visible files of a folder by relative path; TensorBoard appends to its own, so they are left out."""
    paths = [Path(base, name) for base, _, names in os.walk(folder) for name in names]
    named: dict[str, Path] = {}
    for path in paths:
        name = re.sub(r"-[0-9a-f]{8}(\.u8|\.parquet)$", r"\1", str(path.relative_to(folder)))  # drawn names
        name += "#2" * (name in named)
        if not name.startswith(".") and "/." not in name and "tensorboard" not in name:
            named[name] = path
    return named


def read_all_the_time(folder: Path, stop: Path, report: Path) -> None:
    """Read each new version of every visible file, until `stop` exists; report the number of reads and failures."""
    seen: dict[tuple[str, int, int], bool] = {}
    failures: list[str] = []
    parent = os.getppid()
    while not stop.exists() and os.getppid() == parent:
        for name, path in files_of(folder).items():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                stat = path.stat()
                version = (name, stat.st_mtime_ns, stat.st_size)
                if version not in seen:
                    seen[version] = True
                    try:
                        content_of(path)
                    except (FileNotFoundError, NotADirectoryError):
                        pass
                    except Exception as error:
                        failures.append(f"{name}: {type(error).__name__} {error}")
        time.sleep(0.02)
    report.write_text(json.dumps({"reads": len(seen), "failures": failures}))


def measure(name: str, inputs: Path, work: Path, kills: int, minutes: float, rng: np.random.Generator) -> Result:
    """Kill one command `kills` times and compare each finished result with that of uninterrupted runs."""
    command, log, result = COMMANDS[name], work / "log.txt", Result()
    expected: list[dict[str, Any]] = []
    seconds, writes = 0.0, 0  # of CPU time
    for number in range(2):
        out = work / f"whole{number}"
        out.mkdir()
        before = os.times()
        code = finish(start(lambda out=out: command(inputs, out), log, count=work / "writes"))  # type: ignore[misc]
        after = os.times()
        if code != 0:
            raise click.ClickException(f"{name} failed without a kill: {log.read_text()[-2000:]}")
        seconds = after.children_user + after.children_system - before.children_user - before.children_system
        writes = int((work / "writes").read_text())
        expected.append({file: content_of(path) for file, path in files_of(out).items()})
    compared = [file for file, content in expected[0].items() if expected[1].get(file) == content]
    result.not_compared = tuple(file for file in expected[0] if file not in compared)
    temporary = work / "temporary"
    temporary.mkdir()
    tempfile.tempdir = str(temporary)
    stop, report, visible = work / "stop", work / "report.json", work / "visible"
    visible.mkdir()
    reader = start(lambda: read_all_the_time(visible, stop, report), work / "reader.txt")
    messages: list[str] = []
    end = time.monotonic() + 60 * minutes
    for number in itertools.count():
        if result.kills == kills or time.monotonic() > end:
            break
        out = visible / str(number)
        out.mkdir()
        at_write = int(rng.integers(1, writes + 1)) if number % 2 else 0
        child = start(lambda out=out: command(inputs, out), log, die_at_write=at_write)  # type: ignore[misc]
        if not at_write:
            kill_after(child, rng.uniform(0, seconds))
        killed = finish(child) == -signal.SIGKILL
        result.kills += killed
        if number % 10 == 9:
            console.print(f"{name}: {number + 1} tries, {result.failed} failed, {result.different} different")
        result.finished_before += not killed
        until = time.monotonic() + 10
        while processes_of(child) and time.monotonic() < until:
            time.sleep(0.05)
        for orphan in processes_of(child):
            result.orphans += 1
            os.kill(orphan, signal.SIGKILL)
        where = f"kill {number} ({f'write {at_write}' if at_write else 'random time'})"
        code = 0 if not killed else finish(start(lambda out=out: command(inputs, out), log))  # type: ignore[misc]
        if code != 0:
            result.failed += 1
            messages.append(f"{where}: {' '.join(log.read_text()[-400:].split())}")
        else:
            found = files_of(out)
            wrong = [file for file in compared if file not in found or content_of(found[file]) != expected[0][file]]
            wrong += [file for file in found if file not in expected[0]]
            result.different += bool(wrong)
            if wrong:
                messages.append(f"{where}: {', '.join(wrong[:5])} differ")
            result.leftovers += sum(1 for path in out.rglob("*") if ".part" in path.name)
        shutil.rmtree(out)
    result.leftovers += sum(1 for _ in temporary.iterdir())
    stop.touch()
    finish(reader)
    readings = json.loads(report.read_text())
    result.reads, result.half_files = readings["reads"], len(readings["failures"])
    result.messages = (*messages, *readings["failures"])
    return result


@click.command(cls=Benchmark)
@click.argument("commands", nargs=-1, type=click.Choice(list(COMMANDS)))
@click.option("--kills", default=100, show_default=True, type=click.IntRange(1), help="Kills of each command.")
@click.option("--minutes", default=60.0, show_default=True, help="Time after which a command gets no further kills.")
@click.option("--seed", default=0, show_default=True, type=int, help="Seed of the moments.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="File for the numbers.")
def main(commands: tuple[str, ...], kills: int, minutes: float, seed: int, json_file: Path | None) -> None:
    """Kill each command at random moments, finish it, and compare (default: all commands)."""
    torch.set_num_threads(1)
    for module in IMPORTED:
        importlib.import_module(module)
    gc.freeze()  # forks then copy fewer pages
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as temporary:
        inputs = Path(temporary, "inputs")
        for task in (prepare, prepare_model):
            if finish(start(lambda task=task: task(inputs), Path(temporary, "log.txt"))):  # type: ignore[misc]
                raise click.ClickException(Path(temporary, "log.txt").read_text()[-2000:])
        rows = []
        for name in commands or COMMANDS:
            began = time.monotonic()
            work = Path(temporary, name)
            work.mkdir()
            found = results[name] = measure(name, inputs, work, kills, minutes, np.random.default_rng(seed))
            numbers = (found.kills, found.finished_before, found.failed, found.different, found.half_files)
            rows.append((name, *map(str, (*numbers, found.reads, found.orphans, found.leftovers))))
            console.print(f"{name}: {', '.join(f'{v} {k}' for k, v in vars(found).items() if isinstance(v, int))}")
            console.print(f"{name}: {time.monotonic() - began:.0f} s")
            for message in found.messages[:10]:
                console.print(f"{name}: {message}")
            if found.not_compared:
                console.print(f"{name}: uninterrupted runs differ in, so not compared: {', '.join(found.not_compared)}")
    headings = ("", "kills", "ended before", "failed", "different", "half files", "reads", "orphans", ".part left")
    console.print(make_table(headings, rows))
    if json_file is not None:
        write_json(json_file, {name: vars(found) for name, found in results.items()})
    if any(found.failed or found.different or found.half_files for found in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
