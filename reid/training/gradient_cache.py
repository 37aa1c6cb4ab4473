"""The loss of a whole batch in the memory of a part of it: gradient caching."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reid.core.errors import ReidError

Outputs = Sequence[Tensor | None]
"""What a network gives for B crops: tensors `[B, …]`, None for what it does not give."""


def backward_in_chunks(
    network: nn.Module,
    images: Tensor,
    forward: Callable[[nn.Module, Tensor], Outputs],
    loss_of: Callable[[Outputs], Tensor],
    chunk: int,
    seed: Sequence[int],
) -> None:
    """Leave in the parameters the gradient of `loss_of(forward(network, images))`, holding the graph of `chunk` crops.

    Gao, Zhang, Han, Callan 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup":

    1. every chunk passes through the network without a graph; the outputs are put together;
    2. the loss of the whole batch is taken, and its gradient by the outputs is kept;
    3. every chunk passes again, with a graph, and its part of that gradient is sent back.

    The gradient is that of the whole batch, to rounding, wherever an output depends on its own crop alone. In training
    mode BatchNorm makes it depend on the crops of its chunk: statistics are each chunk's, as if each had a GPU of its
    own, and the running ones move once a chunk, in pass 3 (all buffers are put back after pass 1). Random draws, of
    dropout for instance, are those of (`seed`, chunk) in both passes. It costs one more forward pass.

    With DistributedDataParallel gradients are exchanged once, in the last chunk; pass 1 runs without it.

    Args:
        network: called by `forward`; in pass 1, the module inside where it is a DistributedDataParallel.
        images: `[B, …]`, cut along its rows into the fewest chunks of at most `chunk`; sizes differ by 1 at most.
        forward: network and some of the images to outputs, in the number format that training uses.
        loss_of: the outputs of all images to the scalar to send back, scaled where training scales it.
        chunk: 2 or more, for a BatchNorm has no statistics of one crop.
        seed: integers, 0 or more.

    Raises:
        ReidError: `chunk` below 2.
    """
    if chunk < 2:
        raise ReidError(f"loss.chunk={chunk}: a chunk must hold 2 crops or more; 0 turns gradient caching off.")
    bare = network.module if isinstance(network, DistributedDataParallel) else network
    parts = images.tensor_split(max(1, -(-len(images) // chunk)))
    with torch.no_grad():
        buffers = [buffer.clone() for buffer in bare.buffers()]
        first = []
        for number, part in enumerate(parts):
            with seeded(images.device, *seed, number):
                first.append(forward(bare, part))
        for buffer, before in zip(bare.buffers(), buffers, strict=True):
            buffer.copy_(before)
    leaves = [None if pieces[0] is None else torch.cat(pieces).requires_grad_() for pieces in zip(*first, strict=True)]
    loss_of(leaves).backward()
    used = [number for number, leaf in enumerate(leaves) if leaf is not None and leaf.grad is not None]
    gradients = [leaves[number].grad.tensor_split(len(parts)) for number in used]  # type: ignore[union-attr]
    for number, part in enumerate(parts):
        with without_exchange(network) if number < len(parts) - 1 else contextlib.nullcontext():
            with seeded(images.device, *seed, number):
                outputs = forward(network, part)
            again = [outputs[place] for place in used]
            torch.autograd.backward(again, [gradient[number] for gradient in gradients])  # type: ignore[arg-type]


@contextlib.contextmanager
def seeded(device: torch.device, *key: int) -> Iterator[None]:
    """Draws inside come from `key`; the global generators go on afterwards where they were."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        number = int(np.random.SeedSequence(key).generate_state(1)[0])
        torch.default_generator.manual_seed(number)  # not torch.manual_seed: that takes 4 ms on a machine without a GPU
        if device.type == "cuda":
            torch.cuda.manual_seed_all(number)
        elif device.type == "mps":
            torch.mps.manual_seed(number)
        yield


def without_exchange(network: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Gradients of several processes stay apart inside: more are to be added before they are shared."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else contextlib.nullcontext()
