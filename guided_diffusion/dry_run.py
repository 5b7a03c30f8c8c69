"""What a training run would take: parameters, and its memory estimated by a step on tensors without data."""

import weakref
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .dist_util import autocast
from .logger import counted
from .medsegdiff import build_model
from .sharding import whole_at_once


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, as long as they live."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage):
        if storage._cdata in self.known:
            return
        self.known.add(storage._cdata)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, key, size):
        self.known.discard(key)
        self.live -= size


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of one process in training: weights, their gradients, AdamW's two moments, the averages (EMA), what the
    forward and backward pass hold at their peak, and, of several processes, what they exchange: gradients, or what is
    gathered of weights in shards and of their gradients. saving: what the first process's main memory takes to put
    shards together for a checkpoint; 0 where nothing is in shards."""

    parameters: int  # their number, not bytes
    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    exchanged: int
    saving: int = 0

    @property
    def total(self):
        """Their sum: an upper bound, since gradients are not all there when activations are at their peak."""
        return self.weights + self.gradients + self.optimizer + self.averages + self.activations + self.exchanged

    def told(self, place, images, precision, draws=1):
        """Lines that say it; place: what each of these runs on, in words. images, draws: see `estimate_training`."""
        parts = ["weights", "gradients", "optimizer", "averages", "activations", "exchanged"]
        exchanged = "blocks gathered from shards" if self.saving else "gradients in exchange"
        names = {"averages": "EMA", "exchanged": exchanged}
        saves = self.saving > 0
        told = [f"{names.get(part, part)} {_bytes(getattr(self, part))}" for part in parts if getattr(self, part)]
        each = f", with {draws} draws of noise each," if draws > 1 else ""
        return [
            f"parameters: {self.parameters / 1e6:.4g} M",
            f"memory for training on {place}: about {_bytes(self.total)}: {', '.join(told)}",
            f"how it is estimated: {counted(images, 'image')} at once{each} in {precision}; one forward and backward "
            "pass over tensors without data, of which all that lives at once is counted; what libraries and the memory "
            "allocator take comes on top",
            *([f"while it writes a checkpoint the first process takes {_bytes(self.saving)} of main memory"] * saves),
        ]


def _bytes(number):
    return f"{number / 2**30:.1f} GiB" if number >= 10 * 2**30 else f"{number / 2**20:.0f} MiB"


def estimate_training(
    options,
    image_channels,
    mask_channels,
    num_labels,
    *,
    images,
    precision,
    averages,
    processes=1,
    shards=False,
    draws=1,
    stages=False,
):
    """The `TrainingMemory` of a model (`config.ModelOptions`) that is trained on parts of `images` images at once.

    One forward and backward pass is run on tensors that have shapes and no data, in the `precision` of the training,
    and every storage counted as long as it lives: with --use_checkpoint also what is computed twice. averages: the
    number of EMA rates. shards: whether the processes split weights and all that goes with them. draws: how many
    masks, times and noises the diffusion sees of each image, which is encoded once. stages: whether the condition
    model learns first and the diffusion after it; a pass of each is run, and the larger one counts. What a GPU's
    libraries and the memory allocator take besides is not in it.
    """
    shards = shards and processes > 1
    with FakeTensorMode():
        model = build_model(options, image_channels, mask_channels, num_labels)
        image = torch.empty(images, image_channels, options.image_size, options.image_size)
        for parameter in model.parameters():  # gradients are counted apart
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
        activations = []
        for alone in (True, False) if stages else (False,):
            if stages:
                model.fix_condition(not alone)
            with _LiveBytes() as count:
                with autocast(precision, torch.device("cpu"), keep_weights=not shards):
                    loss = _loss_of_pass(model, image, draws, alone)
                loss.backward()
            activations.append(count.peak)
    parameters = sum(p.numel() for p in model.parameters())
    weights = 4 * parameters  # bytes, in float32
    share = -(-weights // processes) if shards else weights
    exchanged = 2 * 4 * whole_at_once(model) if shards else weights  # with their gradients
    return TrainingMemory(
        parameters=parameters,
        weights=share,
        gradients=share,
        optimizer=2 * share,
        averages=averages * share,
        activations=max(activations),
        exchanged=exchanged if processes > 1 else 0,
        saving=(3 + averages) * weights if shards else 0,
    )


def _loss_of_pass(model, image, draws, condition_alone):
    """A loss of all that the network answers, as `parallel.StepLosses` asks it."""
    label = torch.zeros(len(image), dtype=torch.long) if model.label_embedding is not None else None
    condition = model.encode(image, label)
    if draws > 1:
        condition = condition.rows(torch.arange(len(image)).repeat_interleave(draws))
    if condition_alone:
        return condition.coarse.float().square().mean()
    rows = draws * len(image)
    x_t, t = image.new_empty(rows, model.mask_channels, *image.shape[2:]), torch.zeros(rows, dtype=torch.long)
    return sum(output.float().square().mean() for output in model(x_t, t, condition) if output is not None)


def _drop_gradient(parameter):
    parameter.grad = None
