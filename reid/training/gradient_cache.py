"""Gradient caching: the loss of a whole batch with the memory of a chunk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reid.core.errors import check_number

Outputs = Sequence[Tensor | None]
"""Outputs of a network for B crops: tensors `[B, …]`, or None."""


def backward_in_chunks(
    network: nn.Module,
    images: Tensor,
    forward: Callable[[nn.Module, Tensor], Outputs],
    loss_of: Callable[[Outputs], Tensor],
    chunk: int,
    seed: Sequence[int],
) -> None:
    """Compute the gradient of `loss_of(forward(network, images))` with the graph of only `chunk` crops in memory.

    Gao, Zhang, Han, Callan 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup":

    1. Every chunk passes through the network without a graph, and the outputs are concatenated.
    2. The loss of the whole batch and its gradient with respect to the outputs are computed.
    3. Every chunk passes again, with a graph, and its part of that gradient is propagated back.

    The gradient equals that of the whole batch, up to rounding, if an output depends on its crop only. In training mode
    BatchNorm uses the statistics of each chunk, and running statistics are updated once per chunk, in pass 3. Random
    draws, e.g. of dropout, are seeded by (`seed`, chunk) in both passes. The cost is one more forward pass.

    With DistributedDataParallel gradients are exchanged once, in the last chunk; pass 1 uses the inner module.

    Args:
        network: the network that `forward` gets.
        images: `[B, …]`, divided into as few chunks as possible, of nearly equal size.
        forward: computes the outputs of a chunk.
        loss_of: computes the scalar loss from the outputs of all images.
        chunk: largest number of crops in a chunk.
        seed: integers, 0 or more.

    Raises:
        ConfigError: `chunk` below 1.
    """
    check_number("chunk", chunk, 1)
    module = network.module if isinstance(network, DistributedDataParallel) else network
    parts = images.tensor_split(max(1, -(-len(images) // chunk)))
    with torch.no_grad():
        buffers = [buffer.clone() for buffer in module.buffers()]
        first = []
        for number, part in enumerate(parts):
            with seeded(images.device, *seed, number):
                first.append(forward(module, part))
        for buffer, before in zip(module.buffers(), buffers, strict=True):
            buffer.copy_(before)
    leaves = [None if pieces[0] is None else torch.cat(pieces).requires_grad_() for pieces in zip(*first, strict=True)]
    loss_of(leaves).backward()
    used = [number for number, leaf in enumerate(leaves) if leaf is not None and leaf.grad is not None]
    gradients = [leaves[number].grad.tensor_split(len(parts)) for number in used]  # type: ignore[union-attr]
    for number, part in enumerate(parts):
        with exchange(network, number == len(parts) - 1):
            with seeded(images.device, *seed, number):
                outputs = forward(network, part)
            again = [outputs[index] for index in used]
            torch.autograd.backward(again, [gradient[number] for gradient in gradients])  # type: ignore[arg-type]


@contextlib.contextmanager
def seeded(device: torch.device, *key: int) -> Iterator[None]:
    """Seed the generators from integers; restore their states at the end."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        number = int(np.random.SeedSequence(key).generate_state(1)[0])
        torch.default_generator.manual_seed(number)  # torch.manual_seed takes 4 ms on a machine without a GPU
        if device.type == "cuda":
            torch.cuda.manual_seed_all(number)
        elif device.type == "mps":
            torch.mps.manual_seed(number)
        yield


def exchange(network: nn.Module, wanted: bool) -> contextlib.AbstractContextManager[None]:
    """Exchange gradients between processes inside this context only if `wanted`."""
    if isinstance(network, DistributedDataParallel) and not wanted:
        return network.no_sync()
    return contextlib.nullcontext()
