"""Data parallel training: every process computes gradients for its share of the batch, and all take the sum's step."""

from contextlib import nullcontext

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .dist_util import peers_needed


class StepLosses(nn.Module):
    """All that a training step asks of the network, as one module: DistributedDataParallel watches a single forward,
    and a step both encodes and denoises."""

    def __init__(self, model, diffusion):
        super().__init__()
        self.model, self.diffusion = model, diffusion

    def forward(self, image, label, mask, t, noise, dice=False):
        """The losses per item (see `GaussianDiffusion.training_losses`) of images [N, C, H, W] with labels [N] or
        None."""
        return self.diffusion.training_losses(self.model, mask, self.model.encode(image, label), t, noise, dice)


def with_shared_gradients(losses, processes):
    """The `StepLosses` for one of several processes, whose backward pass averages the gradients over all of them.

    Alone it is returned as it is. The first process's weights become everyone's.
    """
    if processes.count == 1:
        return losses
    # Without the coarse loss its decoder gets no gradient at all. The others then do not wait for one, and it stays
    # None as in a single process; to look for such parameters at each step would only cost time otherwise.
    with peers_needed():
        return DistributedDataParallel(
            losses,
            device_ids=[processes.device] if processes.device.type == "cuda" else None,
            find_unused_parameters=not losses.diffusion.coarse_weight,
        )


def gradients_exchanged(losses, now):
    """A context for a forward and backward pass: the processes exchange what they have summed up only if `now`."""
    return nullcontext() if now or not isinstance(losses, DistributedDataParallel) else losses.no_sync()
