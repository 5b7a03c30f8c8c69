"""The memory of a training step, estimated before anything is built, and what a run does where it is too little."""

import math
from dataclasses import replace

import torch
from torch import nn

from ..diffusion.gaussian_diffusion import build_diffusion
from ..io.memory import free_memory_on
from ..models.medsegdiff import build_model, unet_shape
from ..runtime.console import console
from ..runtime.distributed import autocast, memory_format
from ..runtime.errors import UserError
from ..runtime.live_memory import USABLE, estimating, followed_on, gigabytes, with_overhead, without_values
from .optimization import EMA, build_optimizer, gradient_norm, take_step
from .parallel import StepLosses
from .stages import mark_learning

TENSORS_OF_BLOCK = 40  # in units of a feature map of its width, more than a residual block with its gradients keeps
TENSORS_OF_ATTENTION = 24  # in units of a map of all pairs of positions, likewise


class StepMemory:
    """Estimates what training takes on a device, in bytes, weights and averages included.

    run: the `run.Run`. device: of each process. sizes: other values of model options, such as use_checkpoint.
    """

    def __init__(self, run, device, **sizes):
        self.options, self.device = replace(run.settings.model, **sizes), device
        self.train, self.precision = run.settings.train, run.precision
        self.diffusion_options, dataset = run.settings.diffusion, run.dataset
        self.channels, self.classes = dataset.image_channels, len(dataset.class_names)
        self.labels = len(dataset.label_names)
        self.known = {}

    def bound(self, items):
        """More than the step on `items` images at once takes, from the network's shape alone."""
        shape, side = unet_shape(self.options), self.options.image_size // self.options.patch_size
        with torch.device("meta"):
            parameters = sum(p.numel() for p in build_model(self.options, *self._of_data).parameters())
        maps = 0
        for level, width in enumerate(shape.widths):
            pixels, blocks = (side / 2**level) ** 2, 2 * shape.blocks + 2
            maps += TENSORS_OF_BLOCK * blocks * pixels * width
            if level in shape.attention_levels or level == len(shape.widths) - 1:
                heads = shape.attention_heads(width)
                maps += TENSORS_OF_ATTENTION * (blocks + self.options.ss_blocks) * heads * pixels**2
        weights = parameters * (5 + len(self.train.ema_rates()))  # gradients, two moments, half-precision copies
        return with_overhead(4 * (weights + items * maps), self.device, recomputes=True)

    def need(self, items):
        """What the step takes with `items` images in each pass: the most of the stages."""
        if items not in self.known:
            stages = [(True, False), (False, True)] if self.train.condition_steps else [(False, False)]
            peak = max(self._peak(items, first, second) for first, second in stages)
            self.known[items] = with_overhead(peak, self.device, self.options.use_checkpoint)
        return self.known[items]

    def most_items(self, free, share):
        """The most images of a pass, of a share of `share` images, with which the step fits `free` bytes; 0: none."""
        low = self.need(1)
        if low > free:
            return 0
        each = max(1, (self.need(min(2, share)) - low))  # memory grows by as much for each further image
        items = int(min(share, 1 + (free - low) // each))
        while items > 1 and self.need(items) > free:
            items -= max(1, items // 10)
        return max(1, items)

    @property
    def _of_data(self):
        return self.channels, self.classes, self.labels

    def _peak(self, items, first, second):
        """The most bytes of tensors of a step on `items` images, with moments and with gradients of a pass before."""
        device = followed_on(self.device)
        diffusion = build_diffusion(self.diffusion_options)
        with without_values(device) as memory:
            with device:
                model = build_model(self.options, *self._of_data).train()
            _lay_out(model, memory_format(self.precision, device))
            optimizer = build_optimizer(model.parameters(), self.train.lr, self.train.weight_decay)
            scaler = torch.amp.GradScaler(device.type, enabled=False)
            averages = [EMA(model, rate) for rate in self.train.ema_rates()]
            stage = {"first": first, "second": second, "freeze_encoder": self.train.freeze_encoder}
            mark_learning(model, **stage, has_coarse_loss=bool(diffusion.coarse_weight))
            learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
            for backward in (self._set_gradients, self._backward):  # the first step makes the moments
                for _ in range(2 if self.train.batch_size > items else 1):
                    backward(learning, StepLosses(model, diffusion), items, first, second, device)
                norm = gradient_norm(model.parameters())
                take_step(optimizer, scaler, model.parameters(), norm, self.train.grad_clip)
                for average in averages:
                    average.update(model, 1)
            return memory.peak

    @staticmethod
    def _set_gradients(learning, *_):
        for parameter in learning:
            parameter.grad = torch.zeros_like(parameter)

    def _backward(self, _, losses, items, first, second, device):
        size = (items, self.classes, self.options.image_size, self.options.image_size)
        image = torch.zeros(items, self.channels, *size[2:], device=device)
        mask, noise = torch.zeros(size, device=device), torch.zeros(size, device=device)
        t = torch.zeros(items, dtype=torch.int64, device=device)
        label = t if losses.model.label_embedding is not None else None
        with autocast(self.precision, device):
            found = losses(image, label, mask, t, noise, mask if second else None, dice=True, condition_alone=first)
        found["loss"].sum().backward()


def _lay_out(model, order):
    """`model.to(memory_format=order)`, which torch refuses for tensors without values."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.ndim == 4:
                module._parameters[name] = nn.Parameter(parameter.detach().to(memory_format=order))


# ---- what a run does -----------------------------------------------------------------------------------------------


def estimate_line(run, device):
    """A line on the memory of the run in one process, and on what it does where that is too little, for --dry_run."""
    train = run.settings.train
    items = min(train.microbatch, train.batch_size) if train.microbatch > 0 else train.batch_size
    with estimating(device):
        _, line, refusal = _decide_by_estimate(run, device, free_memory_on(device), StepMemory(run, device), items)
        return refusal or line
    return "memory: not estimated"


def fitted_to_memory(run, processes):
    """The `Run`, with a smaller microbatch where its share of a batch does not fit, and a line about its memory.

    A --microbatch that is left open becomes the largest that fits. Gradients stay the same except for rounding, and
    dropout's units change, so the value is the run's from then on and a resumed run keeps it. The line is "" where the
    step needs so little that no estimate was made. Raises `UserError` for a step that fits in no such way, with what
    would fit. All processes call this.
    """
    if run.settings.train.fsdp and processes.count > 1:
        return run, "memory: not estimated for shards (--fsdp)"
    free = min(found for found in processes.gather(free_memory_on(processes.device, processes.on_machine)))
    share = -(-run.settings.train.batch_size // processes.count)
    microbatch, line, refusal = processes.from_first(lambda: _decide(run, processes.device, free, share))
    if refusal:
        raise UserError(refusal)
    if microbatch:
        settings = replace(run.settings, train=replace(run.settings.train, microbatch=microbatch))
        run = replace(run, settings=settings)
    return run, line


def _decide(run, device, free, share):
    """A microbatch to set, or 0; a line; why training is refused, or ""."""
    train, memory = run.settings.train, StepMemory(run, device)
    items = min(train.microbatch, share) if train.microbatch > 0 else share
    if memory.bound(items) > free / 2:
        with estimating(device):
            return _decide_by_estimate(run, device, free, memory, items)
    return 0, "", ""


def _decide_by_estimate(run, device, free, memory, items):
    train = run.settings.train
    need, usable = memory.need(items), USABLE * free
    if need <= usable:
        known = "" if math.isinf(free) else f" of {gigabytes(free)} free"
        return 0, f"memory: about {gigabytes(need)}{known} on {device.type}", ""
    most = memory.most_items(usable, items)
    if most and train.microbatch == -1:
        line = f"memory: {items} images at once need about {gigabytes(need)}, and {gigabytes(free)} are free on "
        line += f"{device.type}: --microbatch {most} (about {gigabytes(memory.need(most))}, the same gradients)"
        return most, line, ""
    flags = f"--batch_size {train.batch_size}" if train.microbatch == -1 else f"--microbatch {train.microbatch}"
    text = f"{flags}: a training step needs about {gigabytes(need)} of memory, and {gigabytes(free)} are free on "
    return 0, "", f"{text}{device.type}; {_remedy(run, device, usable, items, most)}"


def _remedy(run, device, usable, items, most):
    """What would fit, for a message."""
    console().info("memory: looking for what fits; this takes seconds for each size that is tried")
    if most:
        return f"give --microbatch {most}"
    if run.start is None and not run.settings.model.use_checkpoint:
        most = StepMemory(run, device, use_checkpoint=True).most_items(usable, items)
        if most:
            return f"give --use_checkpoint True --microbatch {most}"
    if run.start is not None:
        return "train on a device with more memory, or begin anew with a smaller --image_size or --num_channels"
    model = run.settings.model
    for name, value in _smaller(model):
        if StepMemory(run, device, use_checkpoint=True, **{name: value}).need(1) <= usable:
            return f"give --use_checkpoint True --microbatch 1 --{name} {value}"
    return "give a much smaller --image_size and --num_channels"


def _smaller(model):
    """(flag, value) of smaller networks, the largest first."""
    size, channels = model.image_size, model.num_channels
    for part in (2, 4):
        if size % (16 * part) == 0 and size // part >= 64:
            yield "image_size", size // part
        if channels % (32 * part) == 0:
            yield "num_channels", channels // part
