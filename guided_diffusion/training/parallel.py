"""Data parallel training: every process computes gradients for its share of the batch, and all take the sum's step."""

import copy
import warnings
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..models.sharding import shard_the_rest
from ..runtime.distributed import peers_needed
from ..runtime.errors import UserError, is_out_of_memory


class StepLosses(nn.Module):
    """All that a training step asks of the network, as one module: DistributedDataParallel watches a single forward,
    and a step both encodes and denoises."""

    def __init__(self, model, diffusion):
        super().__init__()
        self.model, self.diffusion = model, diffusion

    def forward(self, image, label, mask, t, noise, *, dice=False, condition_alone=False):
        """The losses per row (see `GaussianDiffusion.training_losses`).

        image: [N, C, H, W]; label: [N] or None; mask, noise: [N, K, H, W]; t: [N].
        condition_alone: of the condition model's own mask alone, without the diffusion.
        """
        condition = self.model.encode(image, label)
        if condition_alone:
            loss = self.diffusion.coarse_mask_loss(condition.coarse, mask, t, dice)
            return {"loss": loss, "coarse": loss}
        return self.diffusion.training_losses(self.model, mask, condition, t, noise, dice)


def with_shared_gradients(losses, processes, stages=False, shards=False):
    """The `StepLosses` for one of several processes, whose backward pass averages the gradients over all of them.

    Alone it is returned as it is. The first process's weights become everyone's. stages: whether parts of the network
    learn at different times. shards: its blocks were split among the processes while it was built (see
    `sharding.sharded_as_built`), and each is to get the gradients of its own shards alone.
    """
    if processes.count == 1:
        return losses
    if shards:
        return shard_the_rest(losses, processes)
    # Without the coarse loss its decoder gets no gradient at all, and in a stage the other part gets none. The others
    # then do not wait for one, and it stays None as in a single process; to look for such parameters at each step would
    # only cost time otherwise.
    with peers_needed():
        return DistributedDataParallel(
            losses,
            device_ids=[processes.device] if processes.device.type == "cuda" else None,
            find_unused_parameters=stages or not losses.diffusion.coarse_weight,
        )


def gradients_exchanged(losses, now):
    """A context for a forward and backward pass: the processes exchange what they have summed up only if `now`.

    Shards are exchanged in every pass: what waits would be the gradients of all weights, whole.
    """
    return nullcontext() if now or not isinstance(losses, DistributedDataParallel) else losses.no_sync()


@contextmanager
def ready_for_calls(losses):
    """Within, every process may call the network itself, without its `StepLosses`, if all do so equally often."""
    if not hasattr(losses, "unshard"):
        yield
        return
    losses.unshard()  # what no block has; blocks see to themselves
    try:
        yield
    finally:
        losses.reshard()


# ---- Networks compiled by torch.compile, and what is told where that fails ------------------------------------------


def compiled(model):
    """The network with `encode` and `forward` compiled, which happens at their first call for each shape.

    A shallow copy: it shares the weights with `model`, which stays as it is.
    """
    warnings.filterwarnings("ignore", message="Torchinductor does not support code generation for complex operators")
    fast = copy.copy(model)
    fast.encode, fast.forward = (torch.compile(part, dynamic=False) for part in (model.encode, model.forward))
    return fast


@contextmanager
def compiler_errors(compile, what, remedy="leave it out"):
    """Within, where `compile` is on, turn whatever the compiler raises, of many kinds, into one line of `UserError`."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if not compile or is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--compile True: {what} fails ({reason}); {remedy}") from error
