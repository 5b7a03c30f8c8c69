"""Data parallel training, in which each process computes gradients of its share of the batch, and compilation."""

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
    """The network's whole part of a training step as one module: DistributedDataParallel hooks a single forward, and a
    step both encodes and denoises."""

    def __init__(self, model, diffusion):
        super().__init__()
        self.model, self.diffusion = model, diffusion

    def forward(
        self,
        image,
        label,
        mask,
        t,
        noise,
        coarse_target=None,
        known=None,
        coarse_known=None,
        *,
        dice=False,
        condition_alone=False,
    ):
        """{name: losses [N]} (see `GaussianDiffusion.training_losses`).

        image: [N, C, H, W]; label: [N] or None; mask, noise: [N, K, H, W]; t: [N].
        coarse_target: like mask, or None. known, coarse_known: bool [N, 1, H, W], the pixels at which mask and coarse
        target are known, or None for all.
        condition_alone: compute only the loss of the condition model's coarse mask, without the diffusion.
        """
        condition = self.model.encode(image, label)
        if condition_alone:
            loss = self.diffusion.coarse_mask_loss(condition.coarse, mask, t, dice, known)
            return {"loss": loss, "coarse": loss}
        draws = (mask, condition, t, noise, coarse_target)
        return self.diffusion.training_losses(self.model, *draws, dice=dice, known=known, coarse_known=coarse_known)


def with_shared_gradients(losses, processes, shards=False, some_unused=False):
    """The `StepLosses` with a backward pass that averages gradients over the processes, if there are several.

    All processes get the first one's weights. What does not learn now (see `stages.mark_learning`) is not exchanged.
    shards: whether the network's blocks were split among the processes when it was built (see
    `sharding.sharded_as_built`); each process then gets the gradients of its own shards. some_unused: whether
    parameters that learn may have no gradient. They are then looked for at each step, which takes time.
    """
    if processes.count == 1:
        return losses
    if shards:
        return shard_the_rest(losses, processes)
    with peers_needed():
        devices = [processes.device] if processes.device.type == "cuda" else None
        return DistributedDataParallel(losses, device_ids=devices, find_unused_parameters=some_unused)


def gradients_exchanged(losses, now):
    """A context for a forward and backward pass, after which the processes exchange summed gradients only if `now`.

    Sharded gradients are exchanged in every pass: to wait, each process would need memory for whole gradients.
    """
    return nullcontext() if now or not isinstance(losses, DistributedDataParallel) else losses.no_sync()


@contextmanager
def ready_for_calls(losses):
    """Within, processes may call the network without its `StepLosses`, all of them equally often."""
    if not hasattr(losses, "unshard"):
        yield
        return
    losses.unshard()  # the weights outside of blocks; blocks gather their own
    try:
        yield
    finally:
        losses.reshard()


# ---- torch.compile -------------------------------------------------------------------------------------------------


def compiled(model):
    """A shallow copy of the network, with the same weights, that compiles `encode` and `forward` when first called.

    From here on no convolution of this process rounds to TF32, as a compiled `Head` cannot turn it off for itself.
    """
    torch.backends.cudnn.allow_tf32 = False
    warnings.filterwarnings("ignore", message="Torchinductor does not support code generation for complex operators")
    fast = copy.copy(model)
    fast.encode, fast.forward = (torch.compile(part, dynamic=False) for part in (model.encode, model.forward))
    return fast


@contextmanager
def compiler_errors(compile, what, remedy="leave it out"):
    """Within, turn any error of the compiler into a `UserError` if `compile` is on. what, remedy: for its message."""
    try:
        yield
    except (UserError, OSError):
        raise
    except Exception as error:
        if not compile or is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--compile True: {what} fails ({reason}); {remedy}") from error
