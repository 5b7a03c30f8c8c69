"""The sampling loop: ensembles of many images through the network, and finished cases to the results folder."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from ..config.sample_options import SampleOptions
from ..data.batches import readable_batches
from ..data.resizing import WHOLE, View
from ..models.medsegdiff import check_size
from ..runtime.console import console
from ..runtime.distributed import autocast, memory_format
from ..runtime.errors import is_out_of_memory
from .members import draw_members
from .plan import ONE_STEP, plan_sampling, with_members
from .tiles import crop_members, in_tiles

PIXELS_AT_ONCE = {"cpu": 2**17, "cuda": 2**22}  # of all images x members in one pass, to begin with


WAITING_BATCHES = 2  # that may wait to be written before the network waits


def rows_at_once(option, device, image_size):
    """Images x members in one pass of the network for `--sample_batch_size` ("auto" or a number).

    auto is what fills the machine: 64 of 256 x 256 on a GPU, which is halved when memory runs out; on a CPU, which
    gains nothing by large batches, 2.
    """
    if option != "auto":
        return int(option)
    return max(1, PIXELS_AT_ONCE["cuda" if device.type == "cuda" else "cpu"] // image_size**2)


def batches_of(units, images):
    """Lists of data set indices, each at most `images` long: of 2-D cases in their order, of each volume apart.

    Which cases share a batch does not depend on the number of processes.
    """
    blocks, flat = [], []
    for unit in units:
        if unit.is_volume:
            blocks.append(list(unit.indices))
        else:
            flat.extend(unit.indices)
    return [block[i : i + images] for block in (flat, *blocks) for i in range(0, len(block), images)]


def share_of(units, images, process, processes):
    """The units that process number `process` of `processes` samples: every `processes`-th batch, volumes whole."""
    flat = [unit for unit in units if not unit.is_volume]
    blocks = [flat[i : i + images] for i in range(0, len(flat), images)]
    blocks += [[unit] for unit in units if unit.is_volume]
    return [unit for block in blocks[process::processes] for unit in block]


def build_sampler(checkpoint, settings, device, precision):
    """The `EnsembleSampler` of a `Checkpoint`, as the `Settings` of a sampling command say."""
    sample, trained = settings.sample, checkpoint.config["train"]
    model, diffusion = checkpoint.build(settings.model)
    checkpoint.load_weights(model, sample.weights)
    check_size(settings.image_size, model.shape)
    if settings.model.version == "unet":
        plan = with_members(ONE_STEP, sample)
    else:
        is_published = trained.get("recipe") == "published"
        plan = plan_sampling(sample, settings.given, diffusion, is_published=is_published)
    if sample.tile != trained["crop"]:
        how = "squares cut from larger images" if trained["crop"] else "whole images made smaller"
        console().warning(
            f"warning: --tile {sample.tile}: the checkpoint was trained on {how}; images larger than --image_size now "
            "have another scale"
        )
    view = View(keep_size=sample.tile)
    return EnsembleSampler(model, diffusion, plan, sample, device, precision, settings.image_size, view)


@dataclass
class EnsembleSampler:
    """Samples the cases of a data set in batches and hands each finished case or volume to the results folder.

    options: resolved `SampleOptions`. view: what the dataset shows the network of each case; images that keep a size
    above image_size are sampled in tiles, one image to a batch. rows: images x members, or tiles, in one pass, halved
    when memory runs out unless `options` set a number. images: how many are read at once.
    """

    model: torch.nn.Module
    diffusion: object
    plan: object
    options: SampleOptions
    device: torch.device
    precision: str
    image_size: int
    view: View = WHOLE

    def __post_init__(self):
        self.rows = rows_at_once(self.options.sample_batch_size, self.device, self.image_size)
        self.images = self.options.batch_size or max(1, self.rows // self.options.num_ensemble)
        if self.view.keep_size:
            self.images = 1
        self.model.to(self.device, memory_format=memory_format(self.precision, self.device))
        self.warm = not self.options.compile
        if self.options.compile:
            self.model.forward = torch.compile(self.model.forward)

    def run(self, dataset, writer, num_workers, show=True):
        """Sample the images of a `ResultWriter`'s units, with a bar over the denoising steps (if `show`).

        A unit that cannot be read, or a slice of which cannot, is reported and left out as a whole. Returns {name of a
        unit left out: why}. Fusing and writing go on in the background while the network draws the next batch, unless
        this process also reads the images (num_workers 0): a loader does one thing at a time.
        """
        unread, done, units = {}, 0, writer.units
        batches, steps = batches_of(units, self.images), self.options.num_ensemble * len(self.plan.timesteps)
        total = sum(map(len, batches)) * steps
        with (
            tqdm(total=total, desc="sampling", unit="step", dynamic_ncols=True, disable=not show) as bar,
            _background(num_workers > 0) as later,
        ):
            loader = readable_batches(dataset, batches, num_workers=num_workers)
            for indices, (batch, failed) in zip(batches, loader, strict=True):
                for index, why in failed:
                    unit = writer.unit_of[index]
                    if unit not in unread:
                        unread[unit] = why
                        # Not a warning, which only the first process shows: each process has its own share.
                        console().error(f"warning: {unit.name}: goes on without it: {why}")
                        later(writer.leave_out, unit)
                readable = [index for index in indices if writer.unit_of[index] not in unread]
                bar.total -= (len(indices) - len(readable)) * steps
                if readable:  # a batch holds single images, or slices of one volume, which are all left out
                    later(writer.write, readable, batch, *self.draw(batch, bar))
                    done += len(readable)
                bar.set_postfix_str(f"{done} of {len(writer.unit_of)} images", refresh=False)
        return {unit.name: why for unit, why in unread.items()}

    def draw(self, batch, bar):
        """The batch's `Members` on the CPU and its `Trace` (of nothing without --debug)."""
        while True:
            began = bar.n
            try:
                return self._draw(batch, bar)
            except RuntimeError as error:
                fixed = self.options.sample_batch_size != "auto"
                if fixed or self.rows == 1 or not is_out_of_memory(error):
                    raise
            tiled = self.view.keep_size  # in how many tiles is not known here
            most = self.rows if tiled else len(batch["name"]) * self.options.num_ensemble
            self.rows = max(1, min(self.rows, most) // 2)
            console().info(f"out of memory: goes on with {self.rows} images x members at once (--sample_batch_size)")
            bar.update(began - bar.n)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _draw(self, batch, bar):
        debug, members = self.options.debug, self.options.num_ensemble
        conditional = self.model.label_embedding is not None
        trace = Trace(bar, len(batch["name"]), len(self.plan.timesteps) if debug else 0)
        began = time.monotonic()
        image = batch["image"].to(self.device, non_blocking=True)
        model = in_tiles(self.model, image, self.image_size, self.options.tile_overlap, self.rows)
        with autocast(self.precision, self.device):
            drawn = draw_members(
                model,
                self.diffusion,
                self.plan,
                image.to(memory_format=memory_format(self.precision, self.device)),
                batch["name"],
                members=members,
                seed=self.options.seed,
                label=batch["label"].to(self.device) if conditional else None,
                watch=trace,
                rows=None if debug else self.rows,  # the trace follows a batch as a whole
            )
        if not self.warm:
            console().info(f"the first batch, with the network's compilation, took {time.monotonic() - began:.1f} s")
            self.warm = True
        if model is not self.model:
            drawn = crop_members(drawn, batch["size"][0])
        return drawn.cpu(), trace


@contextmanager
def _background(is_wanted):
    """A function (task, *arguments) that runs tasks in order, in a thread if that `is_wanted`.

    It waits while more than `WAITING_BATCHES` tasks are not done. On leaving the context all are done.
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
    """Follows the steps of a batch: moves the bar and keeps x_t and x_0 of `kept_steps` steps for the animation.

    It keeps 50 steps at most: a thousand would take gigabytes. images: how many the batch has.
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
        """Lists over steps of x_t and x0 [E, K, H, W] of image n; of a batch that was drawn in one pass."""

        def members(x):  # rows are member by member
            return x[n :: self.images]

        return [members(x) for x in self.states], [members(x) for x in self.predictions]
