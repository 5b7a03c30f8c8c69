"""What the benchmark times: a network by the plain and by the fast path, and loaders beside the naive way."""

import copy
import shutil
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.data import Dataset

from .batches import sampling_batches
from .benchmark import CACHED, FAST, MASK_CHANNELS, NUM_LABELS, PLAIN, seconds_of, time_by_turns
from .compiling import compiled
from .config import DiffusionOptions, build
from .data import build_dataset
from .dist_util import autocast, memory_format, training_memory_format
from .errors import UserError
from .gaussian_diffusion import build_diffusion
from .medsegdiff import build_model
from .model_output import ModelOutput
from .nn import without_autocast
from .phantom import write_brats, write_isic
from .plan import ONE_STEP, plan_sampling
from .run_options import SampleOptions
from .sampling import draw_members
from .train_options import TrainOptions
from .train_util import TrainLoop
from .units import group_cases
from .volume_store import use_cache
from .volumes import VolumeReader

ENOUGH_SECONDS = 2.0  # a case that took this long is not sampled again for the table
PICTURES, PICTURE_SIZE = 8, 256
VOLUMES, VOLUME_SIZE, VOLUME_SLICES, NAIVE_SLICES = 2, 96, 48, 4

# ---- the network -------------------------------------------------------------------------------------------------


class OneAtATime(nn.Module):
    """A network as it is used plainly: members go through it one by one, and each step encodes the image anew, or
    (cached) takes the condition that was encoded once.

    It stands for `model` wherever masks are sampled, so that both paths go through the same sampler.
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
    """One network on random images, by both paths.

    Plain: fp32, one member at a time, the condition computed at every step. Fast: `precision`, all members in one
    batch, the condition encoded once, and compiled if asked. Layers that start at zero are filled with small numbers,
    so that the paths' masks can be compared.
    """

    def __init__(self, options, device, precision, *, image_channels, batch_size, members, compile=False):
        torch.manual_seed(0)
        self.device, self.precision, self.batch_size, self.members = device, precision, batch_size, members
        self.has_steps = options.version != "unet"
        self.model = build_model(options, image_channels, MASK_CHANNELS, NUM_LABELS).to(device)
        for parameter in self.model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        self.sampling = copy.deepcopy(self.model).to(memory_format=memory_format(precision, device))
        self.compile = compile
        if compile:
            self.sampling = compiled(self.sampling)
        self.diffusion = build_diffusion(build(DiffusionOptions, {}))
        size = (options.image_size, options.image_size)
        self.images = torch.randn(batch_size, image_channels, *size)
        self.masks = (torch.rand(batch_size, 1, MASK_CHANNELS, *size) < 0.5).float()  # one rater
        self.labels = torch.zeros(batch_size, dtype=torch.long) if options.class_cond else None

    def _case(self):
        """The first image and its label, on the device."""
        label = None if self.labels is None else self.labels[:1].to(self.device)
        return self.images[:1].to(self.device), label

    def _context(self, path):
        return autocast(self.precision, self.device) if path == FAST else without_autocast(self.device.type)

    def _eval(self):
        self.model.eval()
        self.sampling.eval()

    def time_row(self):
        """Seconds of one forward pass of one image in fp32, to foresee how long a benchmark takes."""
        self._eval()
        image, label = self._case()
        x_t, t = torch.randn(1, MASK_CHANNELS, *image.shape[-2:], device=self.device), torch.zeros(1).to(self.device)

        @torch.inference_mode()
        def forward():
            self.model(x_t, t, self.model.encode(image, label))

        return min(seconds_of(forward, self.device) for _ in range(2))

    def time_step(self, repeats, done=lambda: None):
        """`Timing`s of one denoising step of all members of one image: plain, plain with the condition cached, and
        fast; and of its condition.

        The plain U-Net has no steps that cost anything: its step is its one answer, condition included.
        """
        self._eval()
        image, label = self._case()
        rows = self.members
        x_t = torch.randn(rows, MASK_CHANNELS, *image.shape[-2:], device=self.device)
        same = torch.zeros(rows, dtype=torch.long, device=self.device)

        def step(path, model):
            with torch.inference_mode(), self._context(path):
                condition = model.encode(image, label).rows(same)

            def call():
                with torch.inference_mode(), self._context(path):
                    now = condition if self.has_steps else model.encode(image, label).rows(same)
                    self.diffusion.denoiser(model, now)(x_t, self.diffusion.num_timesteps // 2)

            return call

        def encode():
            with torch.inference_mode(), self._context(FAST):
                self.sampling.encode(image, label)

        # The outer context keeps the weights in half precision from step to step, as sampling does.
        with self._context(FAST):
            plain, fast = step(PLAIN, OneAtATime(self.model)), step(FAST, self.sampling)
            calls = {PLAIN: plain, FAST: fast, "condition": encode}
            if self.has_steps:
                calls[CACHED] = step(PLAIN, OneAtATime(self.model, cached=True))
            return time_by_turns(calls, repeats, self.device, done)

    def time_training(self, repeats, done=lambda: None):
        """`Timing`s of one training step on a batch: plain, which is fp32, contiguous and with AdamW as torch runs it
        unless told otherwise, and as the training script takes it."""
        calls = {path: self._training_step(path, self.batch_size) for path in (PLAIN, FAST)}
        return time_by_turns(calls, repeats, self.device, done)

    def time_batch(self, batch_size, repeats):
        """The `Timing` of a training step on a batch of another size, by the fast path."""
        return time_by_turns({FAST: self._training_step(FAST, batch_size)}, repeats, self.device)[FAST]

    def _training_step(self, path, batch_size):
        """A function that takes one training step, with a network, averages and an optimizer of its own."""
        fast = path == FAST
        model = copy.deepcopy(self.model).train()
        if fast:
            model.to(memory_format=training_memory_format(self.device))
        options = build(TrainOptions, {"batch_size": batch_size, "compile": fast and self.compile})
        precision = self.precision if fast else "fp32"
        loop = TrainLoop(model, self.diffusion, None, options, config={}, device=self.device, precision=precision)
        if not fast:
            loop.optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
        which = [n % self.batch_size for n in range(batch_size)]
        batch = {"image": self.images[which], "mask": self.masks[which], "name": [f"random {n}" for n in which]}
        if self.labels is not None:
            batch["label"] = self.labels[which]

        def step():
            loop.train_step(batch)
            loop.step += 1

        return step

    def draw(self, path, steps, members):
        """Soft masks [E, 1, K, H, W] of the first image, by `steps` steps of the default sampler."""
        self._eval()
        image, label = self._case()
        plan = ONE_STEP
        if self.has_steps:
            asked = {"diffusion_steps": steps, "dpm_solver": True}
            plan = plan_sampling(build(SampleOptions, asked), set(asked), self.diffusion)
        model = self.sampling if path == FAST else OneAtATime(self.model)
        with self._context(path):
            drawn = draw_members(model, self.diffusion, plan, image, ["random"], members=members, label=label)
        return drawn.soft

    def time_sampling(self, steps, repeats, done=lambda: None):
        """`Timing`s of sampling all members of one image in `steps` steps, plain and fast, and the largest difference
        between their masks."""
        masks = {}

        def sample(path):
            masks[path] = self.draw(path, steps, self.members)

        calls = {PLAIN: lambda: sample(PLAIN), FAST: lambda: sample(FAST)}
        timings = time_by_turns(calls, repeats, self.device, done)
        return timings, (masks[PLAIN] - masks[FAST]).abs().max().item()

    def time_case(self, steps, members, repeats):
        """The `Timing` of sampling one image by the fast path, after a step as warm-up; repeated while quick."""
        timing = time_by_turns({FAST: lambda: self.draw(FAST, 1, members)}, 0, self.device)[FAST]
        while not timing.times or (sum(timing.times) < ENOUGH_SECONDS and len(timing.times) < repeats):
            timing.times.append(seconds_of(lambda: self.draw(FAST, steps, members), self.device))
        return timing


# ---- the data ----------------------------------------------------------------------------------------------------


class DecodedForEverySlice(Dataset):
    """A data set of volumes read the naive way: the files of a volume are decompressed whole for each slice."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        self.dataset.volumes = VolumeReader(self.dataset.volumes.normalise)
        return self.dataset[index]


class DataBench:
    """Data loaded through the DataLoader in this process, resized to image_size x image_size pixels.

    Pictures: ISIC phantoms of 320 x 256 pixels, written below `folder`. Volumes: BraTS phantoms of 96 x 96 x 48, four
    modalities and the truth, or the cases in `data_dir`. The system's file cache is warm in all of it: the files have
    just been written or read.
    """

    def __init__(self, folder, image_size, batch_size, data_dir=""):
        self.folder, self.batch_size = folder, batch_size
        write_isic(folder / "isic", PICTURES, 0, size=PICTURE_SIZE)
        if not data_dir:
            write_brats(folder / "brats", VOLUMES, 0, size=VOLUME_SIZE, num_slices=VOLUME_SLICES)
        self.pictures, self.volumes = (
            build_dataset(name, place, image_size, split="train", need_masks=True)
            for name, place in (("ISIC", folder / "isic"), ("BRATS", data_dir or folder / "brats"))
        )
        if self.volumes.cases[0].volume is None:
            raise UserError(f"--data_dir {data_dir}: holds 2-D slices; name a folder of volumes")
        shape = self.volumes.load_geometry(self.volumes.cases[0]).shape
        self.described = f"{len(group_cases(self.volumes.cases))} of {' x '.join(map(str, shape))}"

    def time_loading(self, repeats, done=lambda: None):
        """How fast items are loaded: dict of name -> (`Timing`, items a call).

        isic: pictures. brats_naive: every slice decompresses its volume. brats_cold: a cache is made (see
        `volume_store`) and every slice read from it once. brats_cached: every slice is read from it by a data set that
        finds it there, as later runs do.
        """
        naive = DecodedForEverySlice(copy.copy(self.volumes))
        some = list(range(0, len(self.volumes), len(self.volumes) // NAIVE_SLICES))[:NAIVE_SLICES]
        cache = self.folder / "cache"

        def cached():
            self.volumes.volumes = VolumeReader(self.volumes.volumes.normalise)
            use_cache(self.volumes, cache, show=False)
            self._load(self.volumes)

        def cold():
            shutil.rmtree(cache, ignore_errors=True)
            cached()

        calls = {
            "isic": (lambda: self._load(self.pictures), len(self.pictures)),
            "brats_naive": (lambda: self._load(naive, some), len(some)),
            "brats_cold": (cold, len(self.volumes)),
            "brats_cached": (cached, len(self.volumes)),  # by its turn right after the cold one
        }
        device = torch.device("cpu")
        timings = time_by_turns({name: call for name, (call, _) in calls.items()}, repeats, device, done)
        return {name: (timings[name], items) for name, (_, items) in calls.items()}

    def _load(self, dataset, indices=None):
        indices = indices or list(range(len(dataset)))
        batches = [indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size)]
        for _ in sampling_batches(dataset, batches):
            pass
