"""Run the same code in one process or many. `torchrun` sets the environment; `DistributedContext` describes it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from reid.core.errors import ConfigError, ReidError, first_line


@dataclass(frozen=True)
class DistributedContext:
    """This process among `world_size`. With one process, every method returns its input."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def gather_with_gradient(self, tensor: Tensor) -> Tensor:
        """Concatenate the rows of all ranks, in rank order: `[B, ...]` → `[world_size·B, ...]`.

        The gradient of a row returns to its rank, summed over the ranks that used it. Together with the mean over ranks
        of DistributedDataParallel, a loss of the gathered rows has the gradient of one process with the whole batch.
        """
        if self.world_size == 1:
            return tensor
        padded = tensor.new_zeros(self.world_size, *tensor.shape)
        padded[self.rank] = tensor
        return sum_with_gradient(padded).flatten(0, 1)  # x + 0 is exact

    def gather_rows(self, rows: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return the arrays of all ranks, in rank order. Lengths may differ."""
        if self.world_size == 1:
            return [rows]
        gathered: list[NDArray[np.float32]] = [rows] * self.world_size
        dist.all_gather_object(gathered, rows)
        return gathered

    def first(self, number: float) -> float:
        """Return the number of the first rank. All ranks must call this."""
        if self.world_size == 1:
            return number
        shared = torch.tensor([number], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared.item())

    def average(self, tensor: Tensor) -> None:
        """Replace the tensor by its mean over the ranks. All ranks must call this."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
            tensor /= self.world_size

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank. All ranks must call this."""
        if self.world_size == 1:
            return flag
        count = torch.tensor([float(flag)], device=self.device)
        dist.all_reduce(count)
        return bool(count.item() > 0)


def sum_with_gradient(tensor: Tensor) -> Tensor:
    """Return the sum over all processes; gradients are summed too. Needs a process group."""
    from torch.distributed.nn.functional import all_reduce

    total: Tensor = all_reduce(tensor)
    return total


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device called `name`; `auto` is the GPU of this rank if there is one, else Apple's GPU, else the CPU.

    Raises:
        ConfigError: not a device name, or a device that this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", local_rank)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r} is not a device. Use auto, cpu, cuda, cuda:1 or mps.") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"device={name!r}, but torch finds no CUDA GPU. Use device=cpu or device=auto.")
        index = local_rank if device.index is None else device.index
        if index >= torch.cuda.device_count():
            raise ConfigError(f"device={name!r}, but there are {torch.cuda.device_count()} GPUs, numbered from 0.")
        return torch.device("cuda", index)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device={name!r}, but torch finds no Apple GPU. Use device=cpu or device=auto.")
    return device


@contextlib.contextmanager
def init_distributed(device: str, timeout_minutes: float = 30.0) -> Iterator[DistributedContext]:
    """Join the processes that `torchrun` started (NCCL on GPUs, gloo on CPUs); without it, use one process.

    Raises:
        ConfigError: an environment variable of `torchrun` has an invalid value.
        ReidError: another process did not start, ended, or did not answer for `timeout_minutes`.
    """
    world_size = _from_environment("WORLD_SIZE", 1, 1, 1_000_000)
    rank = _from_environment("RANK", 0, 0, world_size - 1)
    local_rank = _from_environment("LOCAL_RANK", 0, 0, 1_000_000)
    chosen = pick_device(device, local_rank)
    if world_size == 1:
        yield DistributedContext(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    _from_environment("MASTER_PORT", 0, 1, 65535)
    try:
        timeout = timedelta(minutes=timeout_minutes)
        store, *_ = next(dist.rendezvous("env://", timeout=timeout))
        # after a restart torchrun may keep its store with the addresses of the ended processes
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt {attempt}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    except (RuntimeError, ValueError, OSError) as error:  # of the store, the network or the backend
        address = ":".join(os.environ.get(name, "unset") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise ReidError(
            f"Process {rank} of {world_size} did not meet the others at {address} (MASTER_ADDR:MASTER_PORT): "
            f"{first_line(error)}. Start all processes with torchrun within rank_timeout={timeout_minutes:g} minutes, "
            "and use an address that all of them reach and a free port."
        ) from error
    try:
        yield DistributedContext(rank, world_size, chosen)
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        raise ReidError(
            f"Process {rank} of {world_size} lost the others: {first_line(error)}. Look for the first error of "
            f"another process, or for one that did not answer for rank_timeout={timeout_minutes:g} minutes."
        ) from error
    dist.destroy_process_group()  # after an error this would wait for the others


def _from_environment(name: str, default: int, low: int, high: int) -> int:
    """Return a number that `torchrun` set."""
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit() and (name not in os.environ or low <= int(text[:9]) <= high)):
        raise ConfigError(
            f"The environment variable {name} is {text!r}; it must be a whole number from {low} to {high}. Start the "
            f"processes with torchrun, or unset {name} to use one process."
        )
    return int(text)
