"""The command class of the benchmarks, and their timing and memory measurements."""

from __future__ import annotations

import multiprocessing
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import torch

from reid.core.errors import ReidError

INSTRUCTIONS = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8"),  # x86
    *("asimd", "asimddp", "i8mm", "bf16", "sve"),  # Arm
)
"""Instruction sets that decide how fast products, int8 and bfloat16 are, as Linux names them."""

_PRINTED = "REID_BENCHMARK_PROCESSOR_PRINTED"


class Benchmark(click.Command):
    """A command that prints the processor first, once for all its processes."""

    def invoke(self, ctx: click.Context) -> Any:
        """Print the processor, then run."""
        if _PRINTED not in os.environ:
            click.echo(describe_processor())
            os.environ[_PRINTED] = "1"
            ctx.call_on_close(lambda: os.environ.pop(_PRINTED))
        return super().invoke(ctx)


def describe_processor() -> str:
    """Return the processor's model and instruction sets, the level that torch uses, and the GPU if there is one."""
    found: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        found = {key.strip().lower(): value.strip() for key, _, value in lines}
    flags = (found.get("flags") or found.get("features") or "").split()
    sets = " ".join(name for name in INSTRUCTIONS if name in flags) or "instruction sets unknown"
    family = f" family {found['cpu family']} model {found['model']}" if "cpu family" in found else ""
    name = found.get("model name") or platform.processor() or platform.machine()
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    level = torch.backends.cpu.get_cpu_capability()
    return f"Processor: {name}{family}, {os.cpu_count()} CPUs, {sets}; torch uses {level}{gpu}"


def at_median(times: Sequence[float], of: Sequence[float] | None = None) -> float:
    """Return the median of times, or of their ratios to those of the same round."""
    return statistics.median(times if of is None else [a / b for a, b in zip(times, of, strict=True)])


def peak_above_inputs(prepare: Callable[..., Callable[[], object]], *arguments: Any) -> int:
    """Return the peak of the bytes that a step needs in addition to its inputs, in a separate process.

    `prepare(*arguments)` creates the inputs and returns the step. Linux only: the kernel's high-water mark is read.

    Raises:
        ReidError: there is no /proc, or the process died.
    """
    if not Path("/proc/self/clear_refs").exists():
        raise ReidError("Peak memory is read from Linux's /proc, which does not exist here. Use Linux.")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(sender, prepare, arguments))
    process.start()
    sender.close()
    try:
        return int(receiver.recv())
    except EOFError as error:
        raise ReidError("The process that measured peak memory died. Use a machine with more memory.") from error
    finally:
        process.join()


def _measure(sender: Connection, prepare: Callable[..., Callable[[], object]], arguments: tuple[Any, ...]) -> None:
    step = prepare(*arguments)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    step()
    sender.send(_status("VmHWM") - before)


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])
