"""Planning of a new run whose sizes are open: its data are looked at, and steps of a few networks are timed."""

import time
from dataclasses import asdict

import torch

from ..config.command_line import options_over
from ..config.settings import settle
from ..data.fingerprint import data_fingerprint
from ..diffusion.gaussian_diffusion import build_diffusion
from ..io.memory import free_memory_on
from ..models.medsegdiff import build_model
from ..runtime.distributed import autocast, memory_format
from ..runtime.errors import is_out_of_memory
from ..runtime.threads import usable_cores
from .optimization import EMA, build_optimizer, gradient_norm, take_step
from .parallel import StepLosses
from .stages import mark_learning
from .training_plan import Machine, plan_training

TIMED_STEPS, LONG_STEP = 3, 1.0  # steps that are timed after a first one, whose seconds decide: of long ones only one
GPU_WARM_UP = 5  # steps of a GPU, which tunes its kernels in them
TIMED_ITEMS = 4  # items whose augmentation is timed


def find_plan(options, given, settings, dataset, facts, precision, processes):
    """(the `Fingerprint` of a data set, the `Plan` of a new run on it).

    options, given: from `command_line.parse`. settings: the `Settings` without a plan. facts: see `settings.settle`.
    Raises `UserError` for a file that cannot be read.
    """
    found = data_fingerprint(dataset)
    device = processes.device
    machine = Machine(device.type, free_memory_on(device, processes.on_machine), usable_cores())
    values = {
        name: value for part in (settings.data, settings.train, settings.model) for name, value in asdict(part).items()
    }

    def seconds_of(flags):
        settled = settle(options_over(options, given, flags), given, None, facts)
        return step_seconds(settled, dataset, device, precision, processes.count)

    return found, plan_training(found, machine, values, given, seconds_of)


# ---- the seconds of a step -------------------------------------------------------------------------------------------


def step_seconds(settings, dataset, device, precision, processes=1):
    """The seconds of a training step of each stage, (first, second), both the same without stages; infinite where the
    memory is too small.

    The network learns from random images of the loader's shape, in this process's share of the batch.
    """
    items = max(1, settings.train.batch_size // processes)
    stages = [(True, False), (False, True)] if settings.train.condition_steps else [(False, False)]
    reading = _reading_seconds(settings, dataset, device, items)
    try:
        computing = [_computing_seconds(settings, dataset, device, precision, items, *stage) for stage in stages]
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return float("inf"), float("inf")
    # A CPU reads and computes on the same cores; the images of a GPU are read beside it.
    times = [one + reading if device.type == "cpu" else max(one, reading) for one in computing]
    return times[0], times[-1]


def _computing_seconds(settings, dataset, device, precision, items, first, second):
    """The median seconds of a step of one stage; of the second, which is short, one step is timed."""
    labels = len(dataset.label_names)
    model = build_model(settings.model, dataset.image_channels, len(dataset.class_names), labels).train()
    model.to(device, memory_format=memory_format(precision, device))
    diffusion = build_diffusion(settings.diffusion)
    optimizer = build_optimizer(model.parameters(), settings.train.lr, settings.train.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    averages = [EMA(model, rate) for rate in settings.train.ema_rates()]
    frozen = settings.train.freeze_encoder
    mark_learning(
        model, first=first, second=second, has_coarse_loss=bool(diffusion.coarse_weight), freeze_encoder=frozen
    )
    losses, side = StepLosses(model, diffusion), settings.model.image_size
    image = torch.randn(items, dataset.image_channels, side, side, device=device)
    mask = torch.zeros(items, len(dataset.class_names), side, side, device=device)
    mask[..., : side // 4, : side // 4] = 1
    t = torch.arange(items, device=device) * settings.diffusion.diffusion_steps // items
    label = torch.zeros_like(t) if model.label_embedding is not None else None

    def step():
        began = time.perf_counter()
        with autocast(precision, device):
            target = mask if second else None
            found = losses(image, label, mask, t, torch.randn_like(mask), target, dice=True, condition_alone=first)
        found["loss"].mean().backward()
        take_step(optimizer, scaler, model.parameters(), gradient_norm(model.parameters()), settings.train.grad_clip)
        for average in averages:
            average.update(model, 1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    once = step()
    for _ in range(GPU_WARM_UP if device.type == "cuda" else 0):
        step()
    return float(torch.tensor([step() for _ in range(TIMED_STEPS if once < LONG_STEP and not second else 1)]).median())


def _reading_seconds(settings, dataset, device, items):
    """The seconds that the augmentation of a step's images takes on this machine's cores."""
    if settings.train.augment == "none":
        return 0.0
    from ..data.augment import Augmentation  # torchvision takes a second to import

    side = settings.model.image_size
    item = {
        "image": torch.rand(dataset.image_channels, side, side) * 2 - 1,
        "mask": torch.zeros(1, len(dataset.class_names), side, side),
    }
    was, dataset.orientation = dataset.orientation, settings.train.orientation
    try:
        augment = Augmentation(settings.train.augment, dataset, settings.train.seed)
        augment(dict(item), 0)
        began = time.perf_counter()
        for position in range(TIMED_ITEMS):
            augment(dict(item), position)
        each = (time.perf_counter() - began) / TIMED_ITEMS
    finally:
        dataset.orientation = was
    workers = usable_cores() if device.type == "cpu" else max(1, settings.data.num_workers)
    return items * each / workers
