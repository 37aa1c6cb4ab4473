"""What `test_two_ranks_losses.py` runs in one process and in two: `python -m tests.training.two_ranks FILE`."""

from __future__ import annotations

import sys

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reid.config import LossConfig
from reid.core.distributed import DistributedContext, init_distributed
from reid.losses import Objective
from reid.losses.mining import MINING_NAMES
from reid.training.gradient_cache import backward_in_chunks

B, CLASSES = 24, 6
CASES: dict[str, dict[str, object]] = {
    **{f"triplet, {name}": {"mining": name, "softmax_weight": 0} for name in MINING_NAMES},
    "triplet, soft margin, cosine, camera-aware": {
        "margin": None, "distance": "cosine", "camera_aware": True, "softmax_weight": 0,
    },
    "triplet, easier by hardness .5": {"hardness": 0.5, "softmax_weight": 0},
    "softmax alone": {"triplet_weight": 0},
    "triplet and softmax": {},
    "contrastive": {"extra": {"contrastive": {"weight": 1.0}}, "triplet_weight": 0, "softmax_weight": 0},
    "circle with a memory": {"extra": {"circle": {"weight": 0.1, "memory": 36}}, "softmax_weight": 0},
    "center, centres learned": {"extra": {"center": {"weight": 0.1, "rate": None}}, "softmax_weight": 0},
    "arcface on the embeddings": {"extra": {"arcface": {"weight": 1.0}}, "softmax_weight": 0},
    "triplet and softmax, in chunks of 5": {"chunk": 5},
}  # fmt: skip


class Net(nn.Module):
    """No BatchNorm: a crop's features depend on nothing but the crop."""

    def __init__(self, softmax: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 8))
        self.classifier = nn.Linear(8, CLASSES) if softmax else None
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.5, generator=generator)

    def forward(self, x: Tensor) -> list[Tensor | None]:
        features = self.features(x)
        return [features, features, None if self.classifier is None else self.classifier(features)]


def run(case: str, ranks: DistributedContext) -> dict[str, Tensor]:
    """Loss and gradients of two batches in turn, this rank holding its part of each."""
    settings = dict(CASES[case])
    chunk = settings.pop("chunk", 0)
    objective = Objective(LossConfig(**settings), dim=8, num_classes=CLASSES).double()
    net = Net(objective.uses_softmax).double()
    network = DistributedDataParallel(net) if ranks.world_size > 1 else net
    labels, camids = torch.arange(B) % 12 // 2, torch.arange(B) % 5
    generator = torch.Generator().manual_seed(1)
    found = {}
    for turn in range(2):
        whole = torch.randn(B, 10, generator=generator, dtype=torch.float64)
        own = slice(ranks.rank * B // ranks.world_size, (ranks.rank + 1) * B // ranks.world_size)
        gather = ranks.gather_with_gradient
        there = gather(labels[own]), gather(camids[own])

        def loss_of(outputs, there=there, turn=turn, gather=gather):
            features, embeddings, logits = (None if part is None else gather(part) for part in outputs)
            loss, _ = objective(features, logits, *there, embeddings)
            found[f"{turn} loss"] = loss.detach()
            return loss

        network.zero_grad()
        objective.zero_grad()
        if chunk:
            backward_in_chunks(network, whole[own], lambda net, x: net(x), loss_of, chunk, (0,))
        else:
            loss_of(network(whole[own])).backward()
        for name, parameter in [*net.named_parameters(), *objective.named_parameters()]:
            if name.startswith("extra."):
                ranks.average(parameter.grad)
            found[f"{turn} {name}"] = parameter.grad.clone()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with init_distributed("cpu") as ranks:
        torch.save({case: run(case, ranks) for case in CASES}, f"{sys.argv[1]}.{ranks.rank}")
