"""BatchNorm over the batches of all processes on any device (torch's SyncBatchNorm needs GPUs)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from reid.core.distributed import sum_with_gradient


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """`y = γ·(x − μ) / √(σ² + ε) + β` with μ and σ² over the crops of all processes, which have equal batch sizes.

    Gradients flow through the shared statistics, so that with gathered losses a step equals that of one process with
    the whole batch. Running statistics are updated as in `nn.BatchNorm2d` (unbiased variance), and evaluation is equal.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        return

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, ...]` → the same shape."""
        if not self.training:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = sum_with_gradient(x.sum(axes)) / count
        centred = x - mean.view(shape)
        variance = sum_with_gradient(centred.square().sum(axes)) / count
        if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        y = centred * scale.view(shape)
        return y if self.bias is None else y + self.bias.view(shape)


def share_statistics(model: nn.Module, device: torch.device) -> None:
    """Make every BatchNorm of `model` use the statistics of all processes (on GPUs with torch's SyncBatchNorm)."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return
    for module in list(model.modules()):
        for name, norm in module.named_children():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d):
                shared = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum, device=device)
                shared.load_state_dict(norm.state_dict())
                shared.weight, shared.bias = norm.weight, norm.bias
                setattr(module, name, shared)
