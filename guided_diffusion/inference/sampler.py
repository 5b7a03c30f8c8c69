"""The sampling loop: batches of images become ensembles, which go to a `ResultWriter`."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from tqdm import tqdm

from ..config.sample_options import SampleOptions
from ..data.batches import readable_batches
from ..data.resizing import WHOLE, View
from ..models.medsegdiff import check_size
from ..runtime.console import console
from ..runtime.distributed import autocast, memory_format, sent
from ..runtime.errors import UserError, is_out_of_memory
from .mask_rules import with_mask_rules
from .members import answer_in_one_pass, draw_members, joined_members
from .plan import NO_STEPS, ONE_STEP, plan_sampling, with_members
from .sampling_memory import fitting_rows
from .several import dealt
from .tiles import crop_members, in_tiles

PIXELS_AT_ONCE = {"cpu": 2**17, "cuda": 2**22, "mps": 2**19}  # of images x members in one pass, at first; mps: a guess
WAITING_BATCHES = 2  # that may queue for the writer before the network waits


def rows_at_once(option, device, image_size):
    """Images x members in one pass of the network, by `--sample_batch_size` ("auto" or a number).

    auto: 64 of 256 x 256 pixels on a GPU, halved when memory runs out; 2 on a CPU, which gains nothing from more.
    """
    if option != "auto":
        return int(option)
    return max(1, PIXELS_AT_ONCE[device.type] // image_size**2)


def batches_of(units, images):
    """Lists of at most `images` data set indices: 2-D cases in their order, then each volume by itself."""
    blocks, flat = [], []
    for unit in units:
        if unit.is_volume:
            blocks.append(list(unit.indices))
        else:
            flat.extend(unit.indices)
    return [block[i : i + images] for block in (flat, *blocks) for i in range(0, len(block), images)]


def share_of(units, images, process, processes):
    """The units of one process: every `processes`-th batch, with volumes whole.

    process: its number. Which cases share a batch does not depend on the number of processes.
    """
    flat = [unit for unit in units if not unit.is_volume]
    blocks = [flat[i : i + images] for i in range(0, len(flat), images)]
    blocks += [[unit] for unit in units if unit.is_volume]
    return [unit for block in blocks[process::processes] for unit in block]


def build_sampler(checkpoints, settings, device, precision, sharing=1):
    """The `EnsembleSampler` of `Checkpoint`s, by the `Settings` of each of them (see `several.settle_several`).

    All networks are in memory at once. sharing: the number of processes of this machine. Raises
    `UserError` for checkpoints that flags sample in different ways, and where a pass does not fit the free memory.
    """
    (model, diffusion, plan), *others = [_network(*one) for one in zip(checkpoints, settings, strict=True)]
    sample = settings[0].sample
    if others:
        for _, _, other in others:
            _check_same_plan(plan, other)
        fuse = "mean" if sample.fuse == "auto" else plan.fuse
        members = 0 if settings[0].model.version == "unet" else sample.num_ensemble
        plan = replace(plan, fuse=fuse, shares=dealt(members, len(checkpoints)))
    plan = with_mask_rules(plan, sample, checkpoints[0], settings[0].image_size)
    if sample.tile != checkpoints[0].config["train"]["crop"]:
        trained_on = "whole images made smaller" if sample.tile else "squares cut from larger images"
        console().warning(
            f"warning: --tile {sample.tile}: the checkpoint was trained on {trained_on}; images larger than "
            "--image_size now have another scale"
        )
    view, networks = View(keep_size=sample.tile), tuple((model, diffusion) for model, diffusion, _ in others)
    size = settings[0].image_size
    sampler = EnsembleSampler(model, diffusion, plan, sample, device, precision, size, view, networks)
    sampler.fit_memory(checkpoints[0].image_channels, sharing)
    return sampler


def _network(checkpoint, settings):
    """The model, the diffusion and the `SamplingPlan` of a `Checkpoint`."""
    sample, trained = settings.sample, checkpoint.config["train"]
    model, diffusion = checkpoint.build(settings.model)
    checkpoint.load_weights(model, sample.weights)
    check_size(settings.image_size, model.shape)
    version, is_published = settings.model.version, trained.get("recipe") == "published"
    if version == "unet":
        plan = with_members(ONE_STEP, sample)
    elif not sample.num_ensemble:
        plan = with_members(NO_STEPS, sample)
    else:
        plan = plan_sampling(sample, settings.given, diffusion, is_published=is_published)
        plan = replace(plan, published=version if is_published else "")
    return model, diffusion, plan


def _check_same_plan(plan, other):
    ours, theirs = plan.settings(), other.settings()
    for name, value in ours.items():
        if theirs[name] != value:
            raise UserError(
                f"--model_path: the checkpoints would be sampled with different {name}, {value} and {theirs[name]}; "
                "name checkpoints that were trained alike, or set --sampler, --diffusion_steps, --symmetries and "
                "--scales"
            )


@dataclass
class EnsembleSampler:
    """Samples the cases of a data set in batches.

    options: resolved `SampleOptions`. view: how the dataset shows a case to the network; images that stay larger than
    image_size are sampled in tiles, one image per batch. others: (model, diffusion) of each further checkpoint. rows:
    images x members, or tiles, in one pass; halved when memory runs out, unless `options` set a number. images: how
    many make a batch.
    """

    model: torch.nn.Module
    diffusion: object
    plan: object
    options: SampleOptions
    device: torch.device
    precision: str
    image_size: int
    view: View = WHOLE
    others: tuple = ()

    def __post_init__(self):
        self.rows = rows_at_once(self.options.sample_batch_size, self.device, self.image_size)
        self.shares = self.plan.shares or (max(1, self.options.num_ensemble),)
        self.masks = sum(self.shares)  # of each image that pass the networks
        self._divide(self.rows)
        self.warm = not (self.options.compile and self.options.num_ensemble)
        for model, _ in self.networks:
            model.to(self.device, memory_format=memory_format(self.precision, self.device))
            if not self.warm:  # the answer in one pass calls no step
                model.forward = torch.compile(model.forward)

    def _divide(self, rows):
        """Let `rows` rows pass the networks at once."""
        self.rows = rows
        self.images = 1 if self.view.keep_size else self.options.batch_size or max(1, rows // self.masks)

    def fit_memory(self, image_channels, sharing=1):
        """Let as many rows pass at once as fit the free memory: see `sampling_memory.fitting_rows`."""
        rows = fitting_rows(self, image_channels, sharing)
        if rows < self.rows:
            console().info(f"memory: {self.rows} images x members do not fit at once: goes on with {rows}")
            self._divide(rows)

    @property
    def networks(self):
        """(model, diffusion) of each checkpoint."""
        return ((self.model, self.diffusion), *self.others)

    def run(self, dataset, writer, num_workers, show=True):
        """Sample the units of a `ResultWriter`, with a progress bar over denoising steps if `show`.

        A unit with an unreadable image or slice, or one that cannot be written, is reported and left out. Returns {its
        name: the reason}.
        Fusing and writing run in a thread while the network draws the next batch, unless this process also reads the
        images (num_workers 0): a loader need not be thread-safe.
        """
        unread, done, units = {}, 0, writer.units
        batches, steps = batches_of(units, self.images), self.steps
        total = sum(map(len, batches)) * steps
        with (
            tqdm(total=total, desc="sampling", unit="step", dynamic_ncols=True, disable=not show) as bar,
            _background(num_workers > 0) as later,
        ):
            # Each worker would decode the same volume, so one reads them all.
            workers = min(num_workers, 1) if all(unit.is_volume for unit in units) else num_workers
            loader = readable_batches(dataset, batches, num_workers=workers)
            for indices, (batch, failed) in zip(batches, loader, strict=True):
                for index, why in failed:
                    unit = writer.unit_of[index]
                    if unit not in unread:
                        unread[unit] = why
                        # An error, as only the first process shows warnings and each process has its own share.
                        console().error(f"warning: {unit.name}: goes on without it: {why}")
                        later(writer.leave_out, unit)
                given_up = {*unread, *writer.failed}
                readable = [index for index in indices if writer.unit_of[index] not in given_up]
                bar.total -= (len(indices) - len(readable)) * steps
                if readable:  # of a volume, all slices are or none
                    names = [writer.unit_of[index].name for index in readable]
                    later(writer.write, readable, batch, *self.draw(batch, names, bar))
                    done += len(readable)
                bar.set_postfix_str(f"{done} of {len(writer.unit_of)} images", refresh=False)
        return {unit.name: why for unit, why in {**unread, **writer.failed}.items()}

    @property
    def steps(self):
        """The steps of the progress bar for each image."""
        return self.masks * max(1, len(self.plan.timesteps))

    def draw(self, batch, names, bar):
        """The batch's `Members` on the CPU and its `Trace`. Halves `rows` when memory runs out.

        names: of each image's case or volume, which with the seed decide the noise.
        """
        while True:
            began = bar.n
            try:
                return self._draw(batch, names, bar)
            except RuntimeError as error:
                fixed = self.options.sample_batch_size != "auto"
                if fixed or self.rows == 1 or not is_out_of_memory(error):
                    raise
            tiled = self.view.keep_size  # the number of tiles is not known here
            used = self.rows if tiled else len(names) * self.masks
            self.rows = max(1, min(self.rows, used) // 2)
            console().info(f"out of memory: goes on with {self.rows} images x members at once (--sample_batch_size)")
            bar.update(began - bar.n)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _draw(self, batch, names, bar):
        debug = self.options.debug
        conditional = self.model.label_embedding is not None
        trace = Trace(bar, len(names), len(self.plan.timesteps) if debug else 0)
        began = time.monotonic()
        image = sent(batch["image"], self.device)
        label = sent(batch["label"], self.device) if conditional else None
        parts, first = [], 0
        for (whole, diffusion), share in zip(self.networks, self.shares, strict=True):
            model = in_tiles(whole, image, self.image_size, self.options.tile_overlap, self.rows)
            with autocast(self.precision, self.device):
                placed = image.to(memory_format=memory_format(self.precision, self.device))
                if self.options.num_ensemble:
                    drawn = draw_members(
                        model,
                        diffusion,
                        self.plan,
                        placed,
                        names,
                        members=share,
                        seed=self.options.seed,
                        label=label,
                        watch=trace,
                        rows=None if debug else self.rows,  # a trace needs the batch in one pass
                        first=first,
                    )
                else:
                    drawn = answer_in_one_pass(model, diffusion, self.plan, placed, label=label, rows=self.rows)
                    bar.update(len(names))
            parts.append(drawn if model is whole else crop_members(drawn, batch["size"][0]))
            first += share
        if not self.warm:
            console().info(f"the first batch, with the network's compilation, took {time.monotonic() - began:.1f} s")
            self.warm = True
        return joined_members(parts).cpu(), trace


@contextmanager
def _background(is_wanted):
    """A function (task, *arguments) that runs tasks in order, in a thread if `is_wanted`.

    A call waits while more than `WAITING_BATCHES` tasks are queued. The context ends when all tasks are done. Raises
    the first error of a task, in a later call or at the end.
    """
    if not is_wanted:
        yield lambda task, *arguments: task(*arguments)
        return
    pending = []

    def later(task, *arguments):
        pending.append(executor.submit(task, *arguments))
        while len(pending) > WAITING_BATCHES or (pending and pending[0].done()):
            pending.pop(0).result()

    with ThreadPoolExecutor(1) as executor:
        yield later
        for task in pending:
            task.result()


class Trace:
    """A sampler's `watch`: moves the bar, and keeps x_t and x0 of up to 50 of `kept_steps` steps for an animation.

    kept_steps: the steps of the plan, or 0 to keep nothing. All 1000 would take gigabytes. images: the batch's number.
    """

    def __init__(self, bar, images, kept_steps):
        self.bar, self.images = bar, images
        self.kept = set(np.linspace(0, kept_steps - 1, min(kept_steps, 50)).round().astype(int).tolist())
        self.states, self.predictions = [], []
        self.step = 0

    def __call__(self, x, x0):
        self.bar.update(len(x))
        if self.step in self.kept:
            self.states.append(x.float().cpu().numpy())
            self.predictions.append(x0.float().cpu().numpy())
        self.step += 1

    def of_image(self, n):
        """x_t and x0 of image n, each a list over steps of [E, K, H, W]. The batch must have been drawn in one pass."""
        rows = slice(n, None, self.images)
        return [x[rows] for x in self.states], [x[rows] for x in self.predictions]
