"""What the benchmarks time: training steps, denoising steps and ensembles, by a plain and by a fast path."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from guided_diffusion.config.fields import build
from guided_diffusion.config.options import DeviceOptions, DiffusionOptions
from guided_diffusion.config.recipe import DEFAULT_RECIPE, recipe_values
from guided_diffusion.config.sample_options import SampleOptions
from guided_diffusion.config.settings import Settings, members_as_trained, members_by_default
from guided_diffusion.config.train_options import TrainOptions
from guided_diffusion.diffusion.gaussian_diffusion import build_diffusion
from guided_diffusion.inference.members import answer_in_one_pass, draw_members
from guided_diffusion.inference.plan import NO_STEPS, ONE_STEP, plan_sampling, with_members
from guided_diffusion.inference.tta import LOGIT_FIELDS
from guided_diffusion.io.memory import free_memory_on
from guided_diffusion.io.storage import WorkFolder
from guided_diffusion.models.layers import without_autocast
from guided_diffusion.models.medsegdiff import build_model
from guided_diffusion.models.outputs import ModelOutput
from guided_diffusion.runtime.distributed import autocast, memory_format
from guided_diffusion.training.loop import TrainLoop
from guided_diffusion.training.parallel import compiled
from guided_diffusion.training.run import Run
from guided_diffusion.training.step_memory import StepMemory

PLAIN, CACHED, FAST = "plain", "plain, condition cached", "fast"
MASK_CHANNELS, NUM_LABELS = 1, 2


def training_loop(model, network, diffusion, options, precision, dataset=None):
    """The `TrainLoop` that the training script builds; it writes nothing until it is run."""
    return TrainLoop(run_of(network, diffusion, options, precision, dataset), model, build_diffusion(diffusion))


def run_of(network, diffusion, options, precision, dataset=None):
    """The `Run` of these options."""
    settings = Settings(network, diffusion, build(DeviceOptions, {}), network.image_size, frozenset(), train=options)
    return Run(settings, precision, dataset, WorkFolder(options.out_dir))


class Counts(NamedTuple):
    """A network's parameters, and the FLOPs (a multiplication and an addition are two) for one image: of `encode`
    (condition, once an image) and of one denoising step of one member (step)."""

    parameters: int
    condition: int
    step: int

    @property
    def forward(self):
        """FLOPs of a whole forward pass of one image."""
        return self.condition + self.step


def count(options, image_channels):
    """The `Counts` of the network that `ModelOptions` name, computed on the meta device: any size works.

    Convolutions, linear layers and attention's products count. Norms, activations, resampling and Fourier transforms
    do not; a product of complex numbers counts as one of real ones.
    """
    with torch.device("meta"), torch.no_grad():
        model = build_model(options, image_channels, MASK_CHANNELS, NUM_LABELS).eval()
        image = torch.empty(1, image_channels, options.image_size, options.image_size)
        x_t, t = torch.empty(1, MASK_CHANNELS, *image.shape[-2:]), torch.zeros(1)
        label = torch.zeros(1, dtype=torch.long) if options.class_cond else None
        with FlopCounterMode(display=False) as encoding:
            condition = model.encode(image, label)
        with FlopCounterMode(display=False) as denoising:
            model(x_t, t, condition)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Counts(parameters, encoding.get_total_flops(), denoising.get_total_flops())


class OneAtATime(nn.Module):
    """A network used plainly: members pass one by one, and each step encodes the image anew.

    With `cached` each step takes the condition that was encoded once. The class stands for `model` in the sampler, so
    both paths run the same sampling code.
    """

    def __init__(self, model, cached=False):
        super().__init__()
        self.model, self.cached, self.mask_channels = model, cached, model.mask_channels

    def encode(self, image, label=None):
        """The model's condition, or the image [N, C, H, W] kept for later."""
        return self.model.encode(image, label) if self.cached else _NotEncoded(image, label)

    def forward(self, x_t, t, condition):
        """x_t: [E * N, K, H, W]; condition: of as many rows. Returns the `ModelOutput` of all of them."""
        outputs = []
        for row in range(len(x_t)):
            only = condition.rows(torch.tensor([row], device=x_t.device))
            only = only if self.cached else self.model.encode(*only)
            outputs.append(self.model(x_t[row : row + 1], t[row : row + 1], only))
        parts = zip(*outputs, strict=True)
        return ModelOutput(*(None if part[0] is None else torch.cat(part) for part in parts))


class _NotEncoded(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor | None

    def rows(self, which):
        return _NotEncoded(self.image[which], None if self.label is None else self.label[which])


class NetworkBench:
    """One network on random images, by two paths.

    Plain: fp32, one member at a time, the condition encoded at every step. Fast: `precision`, all members in one
    batch, the condition encoded once, compiled if asked. Layers that start at zero get small random weights, so that
    the masks of both paths can be compared.
    """

    def __init__(self, options, device, precision, *, image_channels, members, compile=False, diffusion=None):
        torch.manual_seed(0)
        self.device, self.precision, self.members, self.compile = device, precision, members, compile
        self.network, self.has_steps = options, options.version != "unet"
        self.model = build_model(options, image_channels, MASK_CHANNELS, NUM_LABELS).to(device)
        for parameter in self.model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        self.sampling = copy.deepcopy(self.model).to(memory_format=memory_format(precision, device))
        if compile:
            self.sampling = compiled(self.sampling)
        self.model.eval()
        self.sampling.eval()
        self.diffusion_options = diffusion or build(DiffusionOptions, {})
        self.diffusion = build_diffusion(self.diffusion_options)
        self.shape = (image_channels, options.image_size, options.image_size)
        self.image = torch.randn(1, *self.shape, device=device)
        self.label = torch.zeros(1, dtype=torch.long, device=device) if options.class_cond else None

    def context(self, path):
        """The precision in which a path computes."""
        return autocast(self.precision, self.device) if path == FAST else without_autocast(self.device.type)

    def training_step(self, path, batch_size):
        """A function that takes one training step with a network, averages and an optimizer of its own.

        The plain path is fp32 with contiguous feature maps and AdamW as torch runs it by default.
        """
        fast = path == FAST
        model = copy.deepcopy(self.model).train()
        precision = self.precision if fast else "fp32"
        if fast:
            model.to(memory_format=memory_format(precision, self.device))
        options = build(TrainOptions, {"batch_size": batch_size, "compile": fast and self.compile})
        loop = training_loop(model, self.network, self.diffusion_options, options, precision)
        if not fast:
            loop.optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
        size = self.shape[-2:]
        batch = {
            "image": torch.randn(batch_size, *self.shape),
            "mask": (torch.rand(batch_size, 1, MASK_CHANNELS, *size) < 0.5).float(),  # one rater
            "name": [f"random {n}" for n in range(batch_size)],
        }
        if self.label is not None:
            batch["label"] = torch.zeros(batch_size, dtype=torch.long)
        if self.device.type == "cuda":  # as the loader pins them
            batch = {name: x.pin_memory() if isinstance(x, torch.Tensor) else x for name, x in batch.items()}

        def step():
            loop.train_step(batch)
            loop.step += 1

        return step

    def step_memory(self, path, batch_size):
        """The `StepMemory` that estimates what a training step needs, weights included."""
        data = SimpleNamespace(image_channels=self.shape[0], class_names=["mask"] * MASK_CHANNELS, label_names=["", ""])
        options, precision = build(TrainOptions, {"batch_size": batch_size}), self.precision if path == FAST else "fp32"
        return StepMemory(run_of(self.network, self.diffusion_options, options, precision, data), self.device)

    def training_memory(self, path, batch_size):
        """The bytes that a training step needs; 0 where they clearly fit: the estimate takes seconds."""
        memory = self.step_memory(path, batch_size)
        return memory.need(batch_size) if memory.bound(batch_size) > free_memory_on(self.device) / 2 else 0

    def denoising_step(self, path):
        """A function that takes one denoising step of all members of one image.

        The plain U-Net has no steps: its one answer includes the encoding of the image.
        """
        model = self.sampling if path == FAST else OneAtATime(self.model, cached=path == CACHED)
        x_t = torch.randn(self.members, MASK_CHANNELS, *self.shape[-2:], device=self.device)
        same = torch.zeros(self.members, dtype=torch.long, device=self.device)
        with torch.inference_mode(), self.context(path):
            condition = model.encode(self.image, self.label).rows(same)

        def step():
            with torch.inference_mode(), self.context(path):
                now = condition if self.has_steps else model.encode(self.image, self.label).rows(same)
                self.diffusion.denoiser(model, now)(x_t, self.diffusion.num_timesteps // 2)

        return step

    def encode(self):
        """Encode the image, by the fast path."""
        with torch.inference_mode(), self.context(FAST):
            self.sampling.encode(self.image, self.label)

    def plan(self, **asked):
        """The `SamplingPlan` of these flags of sampling, for a checkpoint of the default recipe: with its scales."""
        options = members_as_trained(build(SampleOptions, asked), recipe_values(DEFAULT_RECIPE, {}))
        return plan_sampling(options, set(asked), self.diffusion) if self.has_steps else with_members(ONE_STEP, options)

    def encodings(self, plan):
        """How many images the network encodes for one image: test-time augmentation of mask logits asks for more."""
        with torch.device("meta"), torch.no_grad():
            model = build_model(self.network, self.shape[0], MASK_CHANNELS, NUM_LABELS)
            label = None if self.label is None else torch.zeros(1, dtype=torch.long)
            fields = model.encode(torch.empty(1, *self.shape), label)._fields
        return 1 + len(plan.scales) if set(LOGIT_FIELDS).intersection(fields) else 1

    def default_members(self):
        """How many members `medsegdiff sample` draws by default; 0: the condition model answers in one pass."""
        return members_by_default(0, self.network.version, recipe_values(DEFAULT_RECIPE, {}))

    def answer(self, plan):
        """The default answer in one pass, by the fast path: its probability [1, 1, K, H, W]."""
        plan = replace(NO_STEPS, scales=plan.scales)
        with self.context(FAST):
            return answer_in_one_pass(self.sampling, self.diffusion, plan, self.image, label=self.label).soft

    def draw(self, path, plan, members=None):
        """Soft masks [E, 1, K, H, W] of the image. plan: its scales count on the fast path alone. members: E."""
        if path != FAST:
            plan = replace(plan, scales=())
        model = self.sampling if path == FAST else OneAtATime(self.model, cached=path == CACHED)
        with self.context(path):
            drawn = draw_members(
                model, self.diffusion, plan, self.image, ["random"], members=members or self.members, label=self.label
            )
        return drawn.soft
