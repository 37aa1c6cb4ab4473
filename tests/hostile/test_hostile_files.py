"""Every reader of every room refuses hostile files with a `ReidError`, quickly and in little memory."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hostile.readers import READERS
from tests.hostile.variants import OWNED, Variant, variants

MOST_SECONDS = 10
MOST_MEMORY = 2**30
FEWEST = 300
WALL_SECONDS = 60
"""After which a reader is killed: more than `MOST_SECONDS` of CPU time, because other processes may be busy."""


class ReaderProcess:
    """A process that reads files; it is replaced after it died or was killed."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None

    def read(self, variant: Variant) -> dict[str, Any]:
        if self.process is None:
            command = [sys.executable, "-m", "tests.hostile.readers"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(
                command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment
            )
            assert self.process.stdout is not None
            assert self.process.stdout.readline() == "ready\n"
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([variant.reader, str(variant.path)]) + "\n")
        self.process.stdin.flush()
        answered = select.select([self.process.stdout], [], [], WALL_SECONDS)[0]
        line = self.process.stdout.readline() if answered else ""
        if not line:
            code = self.process.poll()
            self.close()
            return {"outcome": f"died with {code}" if answered else "hung", "seconds": 0, "memory": 0}
        return dict(json.loads(line))

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Variant, dict[str, Any]]]]:
    OWNED.unlink(missing_ok=True)
    process = ReaderProcess()
    results = []
    try:
        for variant in variants(tmp_path_factory.mktemp("hostile")):
            results.append((variant, process.read(variant)))
            variant.path.unlink()
    finally:
        process.close()
    counts = Counter(result["outcome"] if len(result["outcome"]) < 20 else "traceback" for _, result in results)
    slowest = max(result["seconds"] for _, result in results)
    largest = max(result["memory"] for _, result in results)
    print(f"\n{len(results)} hostile files: {dict(counts)}, slowest {slowest:.2f} s, most {largest / 2**20:.0f} MiB")
    yield results
    OWNED.unlink(missing_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_hostile_files_are_refused_or_read_but_nothing_else(
    outcomes: list[tuple[Variant, dict[str, Any]]], reader: str
) -> None:
    wrong = []
    for variant, result in outcomes:
        if variant.reader != reader:
            continue
        if result["outcome"] not in ("read", "refused"):
            wrong.append(f"{variant.name}: {result['outcome'][-600:]}")
        if result["outcome"] == "read" and variant.must_be_refused:
            wrong.append(f"{variant.name} was read")
        if result["outcome"] == "refused" and variant.name.endswith(": valid"):
            wrong.append(f"{variant.name} was refused")
        if result["seconds"] > MOST_SECONDS or result["memory"] > MOST_MEMORY:
            wrong.append(f"{variant.name} took {result['seconds']:.1f} s and {result['memory'] / 2**20:.0f} MiB")
    assert wrong == []


@pytest.mark.slow
def test_nothing_in_hostile_files_is_executed(outcomes: list[tuple[Variant, dict[str, Any]]]) -> None:
    assert len(outcomes) >= FEWEST
    assert not OWNED.exists()
    assert not Path("/tmp/owned").exists()
