"""The sampling loop: ensembles of many images through the network, and finished cases to the results folder."""

import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from ..checkpoint import saved_options
from ..config.options import DiffusionOptions, ModelOptions
from ..config.script_options import SampleOptions
from ..data.batches import readable_batches
from ..data.resizing import WHOLE, View
from ..data.truth import on_grid, raters_of, truths_of
from ..io.drawing import denoising_frames, displayed
from ..models.medsegdiff import check_size
from ..runtime.console import console
from ..runtime.distributed import autocast, memory_format
from ..runtime.errors import UserError, is_out_of_memory, reason_of
from .answer import fuse_cases, stack_slices
from .members import draw_members
from .plan import ONE_STEP, plan_sampling, settle_members
from .temperature import temperature_of
from .tiles import crop_members, in_tiles

PIXELS_AT_ONCE = {"cpu": 2**17, "cuda": 2**22}  # of all images x members in one pass, to begin with


WAITING_BATCHES = 2  # that may wait to be written before the network does


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

    Which cases meet in a batch does not depend on the number of processes that share the batches out.
    """
    blocks, flat = [], []
    for unit in units:
        if unit.is_volume:
            blocks.append(list(unit.indices))
        else:
            flat.extend(unit.indices)
    return [block[i : i + images] for block in (flat, *blocks) for i in range(0, len(block), images)]


def share_of(units, images, process, processes):
    """The units that process number `process` of `processes` samples: every so manyth batch, volumes whole."""
    flat = [unit for unit in units if not unit.is_volume]
    blocks = [flat[i : i + images] for i in range(0, len(flat), images)]
    blocks += [[unit] for unit in units if unit.is_volume]
    return [unit for block in blocks[process::processes] for unit in block]


def build_sampler(checkpoint, options, given, device, precision, model_options=None, diffusion_options=None):
    """The `EnsembleSampler` of a checkpoint, for the script and for `segmenter.Segmenter` alike.

    options: `SampleOptions`; of a plain U-Net, which has one answer, its num_ensemble becomes 1; its temperature
    becomes the checkpoint's unless it has one. given: names of all
    options given explicitly, also of model_options and diffusion_options (by default none was). Raises `UserError`
    for those that contradict the checkpoint.
    """
    model_options, diffusion_options = model_options or ModelOptions(), diffusion_options or DiffusionOptions()
    trained = checkpoint.config
    fixed = given - {"image_size"}  # the network may run at another size; its frequency maps are resampled
    image_size = model_options.image_size if "image_size" in given else trained["model"]["image_size"]
    model_options = saved_options(ModelOptions, trained["model"], model_options, fixed, options.model_path)
    # In sampling --diffusion_steps is the number of steps taken, not the T that the checkpoint was trained with.
    saved_options(
        DiffusionOptions, trained["diffusion"], diffusion_options, given - {"diffusion_steps"}, options.model_path
    )
    options.temperature = temperature_of(checkpoint, options.temperature)
    model, diffusion = checkpoint.build(model_options)
    checkpoint.load_weights(model, options.weights)
    check_size(image_size, model.shape)
    if model_options.version == "unet":
        plan, options.num_ensemble = ONE_STEP, 1
    else:
        plan = plan_sampling(options, given, diffusion)
    plan = settle_members(plan, options, trained["train"], diffusion.exclusive)
    settle_tiles(options, trained["train"]["crop"], given)
    view = View(model_options.neighbours, keep_size=options.tile)
    return EnsembleSampler(model, diffusion, plan, options, device, precision, image_size, view)


def settle_tiles(sample, cropped, given):
    """Decide whether to sample in tiles. cropped: whether the checkpoint was trained on crops."""
    if "tile" not in given:
        sample.tile = cropped
    if "tile_overlap" in given and not sample.tile:
        raise UserError(f"--tile_overlap {sample.tile_overlap:g} belongs to --tile True; leave it out")
    if sample.tile != cropped:
        how = "squares cut from larger images" if cropped else "whole images made smaller"
        console().warning(
            f"warning: --tile {sample.tile}: the checkpoint was trained on {how}; images larger than --image_size now "
            "show it another scale"
        )


@dataclass
class EnsembleSampler:
    """Samples the cases of a data set in batches and hands each finished case or volume to the results folder.

    view: what the dataset shows the network of each case; images that keep a larger size than image_size, one to a
    batch, go through it in tiles. read_raters: called as `raters.raters_of` is. rows: images x members, or tiles,
    in one pass, halved when memory runs out unless `options` ask for a number. images: how many are read at once.
    """

    model: torch.nn.Module
    diffusion: object
    plan: object
    options: SampleOptions
    device: torch.device
    precision: str
    image_size: int
    view: View = WHOLE
    read_raters: object = raters_of

    def __post_init__(self):
        self.rows = rows_at_once(self.options.sample_batch_size, self.device, self.image_size)
        self.images = self.options.batch_size or max(1, self.rows // self.options.num_ensemble)
        if self.view.keep_size:
            self.images = 1
        self.model.to(self.device, memory_format=memory_format(self.precision, self.device))
        self.warm = not self.options.compile
        if self.options.compile:
            self.model.forward = torch.compile(self.model.forward)

    def run(self, dataset, units, folder, num_workers, show=True):
        """Sample all `units`, with a bar over the denoising steps (if `show`).

        A unit that cannot be read, or a slice of which cannot, is told and left out as a whole. Returns how many masks
        are empty, and {name of a unit left out: why}.
        Fusing and writing go on in the background while the network draws the next batch, unless this process also
        reads the images (num_workers 0): a loader is not asked for two things at once.
        """
        writer, unread, done = _Writer(self, dataset, units, folder), {}, 0
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
                        # Not a warning, which only the first process shows: each tells of its own share.
                        console().error(f"warning: {unit.name}: goes on without it: {why}")
                        later(writer.leave_out, unit)
                readable = [index for index in indices if writer.unit_of[index] not in unread]
                bar.total -= (len(indices) - len(readable)) * steps
                if readable:  # a batch is of single images, or of slices of one volume, which are all left out
                    later(writer, readable, batch, *self.draw(batch, bar))
                    done += len(readable)
                bar.set_postfix_str(f"{done} of {len(writer.unit_of)} images", refresh=False)
        return writer.empty, {unit.name: why for unit, why in unread.items()}

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

    def fuse(self, members, sizes, classes):
        """The `CaseMaps` of drawn members as the options ask for them, see `results.fuse_cases`."""
        how = {"temperature": self.options.temperature, "pixel_maps": self.options.uncertainty_maps}
        return fuse_cases(members, sizes, self.options.fuse, classes, **how)

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
    """A function (task, *arguments) that calls tasks one after another, beside the caller if that `is_wanted`, who
    then waits where more than `WAITING_BATCHES` are not done. On leaving all are done."""
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


class _Writer:
    """Fuses drawn batches, in their order, and writes each case or volume that is complete."""

    def __init__(self, sampler, dataset, units, folder):
        self.sampler, self.dataset, self.folder = sampler, dataset, folder
        self.unit_of = {index: unit for unit in units for index in unit.indices}
        self.slices = defaultdict(list)  # the maps of volumes that are not complete yet
        self.empty = 0

    def __call__(self, indices, batch, members, trace):
        maps = self.sampler.fuse(members, batch["size"], self.dataset.classes)
        for n, index in enumerate(indices):
            if self.sampler.options.debug:
                self._write_debug(index, n, trace)
            unit = self.unit_of[index]
            self.slices[unit].append(maps[n])
            if len(self.slices[unit]) == len(unit.cases):
                answer = write_unit(self.folder, self.dataset, unit, self.slices.pop(unit), self.sampler.read_raters)
                self.empty += not answer.mask.any()

    def leave_out(self, unit):
        """Forget and remove what there is of a unit, one of whose slices cannot be read."""
        self.slices.pop(unit, None)
        if self.sampler.options.debug:
            self.folder.remove_debug(case.name for case in unit.cases)

    def _write_debug(self, index, n, trace):
        case = self.dataset.cases[index]
        picture = displayed(self.dataset.load_image(case))
        frames = denoising_frames(picture, *trace.of_image(n))
        self.folder.write_debug(case.name, frames)


class Trace:
    """Follows the steps of a batch: moves the bar and, of `kept_steps` steps, holds x_t and x0 for the animation.

    Of more than 50 steps it holds 50: a thousand would take gigabytes. images: how many the batch has.
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


def write_unit(folder, dataset, unit, maps, read_raters):
    """Write one finished 2-D case, or restack and write one volume. Returns its `CaseMaps`."""
    answer = stack_slices(maps) if unit.is_volume else maps[0]

    def image_of(k):
        return dataset.load_image(unit.cases[k])

    truth = truths_of(dataset, unit.cases, read_raters)
    if truth is not None:
        truth = np.stack([on_grid(mask, answer.mask.shape[1:]) for mask in truth])
    if unit.is_volume:
        folder.write_volume(unit.name, answer, dataset.load_geometry(unit.cases[0]), image_of, truth)
    else:
        folder.write_image(unit.name, answer, image_of(0), truth)
    return answer


class ReadableRaters:
    """`raters_of`, but None, with a warning for each mask, where the truth cannot be read: sampling needs none."""

    def __init__(self):
        self.told = set()

    def __call__(self, dataset, cases, k=0):
        try:
            return raters_of(dataset, cases, k)
        except (UserError, OSError) as error:
            if cases[0].masks not in self.told:
                self.told.add(cases[0].masks)
                console().warning(f"warning: {cases[0].name}: goes on without its truth: {reason_of(error)}")
            return None
