"""Draw an ensemble of masks for each image from a trained checkpoint, fuse them, and write a results folder."""

from guided_diffusion.errors import interruptible_imports, run_script

if __name__ == "__main__":
    interruptible_imports()  # those below take seconds

import dataclasses
import platform
import time
from collections import defaultdict
from contextlib import nullcontext

import numpy as np
import torch
from tqdm import tqdm

from guided_diffusion.attention_maps import AttentionRecorder, attention_sheet
from guided_diffusion.checkpoint import file_hash, load_checkpoint
from guided_diffusion.command_line import parse
from guided_diffusion.config import (
    DataOptions,
    DeviceOptions,
    DiffusionOptions,
    ModelOptions,
    SampleOptions,
    saved_options,
)
from guided_diffusion.data import build_dataset, group_cases, sampling_batches
from guided_diffusion.dist_util import autocast, pick_device, pick_precision
from guided_diffusion.errors import NoCasesError, UserError
from guided_diffusion.evaluation import evaluate, format_summary, majority, on_grid, raters_of
from guided_diffusion.files import check_writable
from guided_diffusion.leakage import leakage_warning
from guided_diffusion.logger import console, counted
from guided_diffusion.medsegdiff import check_size
from guided_diffusion.pictures import denoising_frames, displayed
from guided_diffusion.plan import ONE_LOOK, plan_sampling
from guided_diffusion.report import write_overview
from guided_diffusion.results import ResultsFolder, fuse_cases, stack_slices
from guided_diffusion.sampling import draw_members

EXAMPLE = """python scripts/segmentation_sample.py --model_path runs/isic/model005000.pt --data_dir ISIC/Test \\
      --out_dir runs/isic/results --num_ensemble 5"""


def main(argv=None):
    """Parse the command line, sample every case that is not finished, evaluate where truth exists."""
    groups = [SampleOptions, DataOptions, ModelOptions, DiffusionOptions, DeviceOptions]
    (sample, data, model_options, diffusion_options, device_options), given = parse(
        __doc__, groups, argv, example=EXAMPLE, saved=(ModelOptions, DiffusionOptions)
    )
    for name in ("model_path", "data_dir"):
        if name not in given:
            raise UserError(f"--{name}: is needed; see --help")
    checkpoint = load_checkpoint(sample.model_path)
    trained = checkpoint.config
    fixed = given - {"image_size"}  # the network may run at another size; its frequency maps are resampled
    image_size = model_options.image_size if "image_size" in given else trained["model"]["image_size"]
    model_options = saved_options(ModelOptions, trained["model"], model_options, fixed, sample.model_path)
    # In sampling --diffusion_steps is the number of steps taken, not the T that the checkpoint was trained with.
    saved_options(
        DiffusionOptions, trained["diffusion"], diffusion_options, given - {"diffusion_steps"}, sample.model_path
    )
    if "data_name" not in given:
        data.data_name = trained["data"]["data_name"]

    device = pick_device(device_options.gpu_dev, "gpu_dev" in given)
    precision = pick_precision(device_options.precision, device)
    model, diffusion = checkpoint.build(model_options)
    checkpoint.load_weights(model, sample.weights)
    check_size(image_size, len(model.shape.multipliers))
    if model_options.version == "unet":
        plan, sample.num_ensemble = ONE_LOOK, 1
        console().info("a plain U-Net has one answer: one member in one step, whatever the sampling flags say")
    else:
        plan = plan_sampling(sample, given, diffusion)
    dataset = find_data(data, image_size, chosen="data_name" in given)
    check_dataset(dataset, checkpoint)
    check_writable(sample.out_dir)

    manifest = describe_run(sample, data, checkpoint, plan, image_size, precision, device, dataset)
    folder = ResultsFolder(sample.out_dir, manifest, save_samples=sample.save_samples)
    units = group_cases(dataset.cases)[: sample.num_samples or None]
    waiting = [unit for unit in units if not folder.finished(unit.name, unit.is_volume)]
    describe(dataset, units, waiting, trained["data"])
    read_raters, began = ReadableRaters(), time.monotonic()
    if waiting:
        console().info(f"{counted(sample.num_ensemble, 'member')} by {plan}, on {device} in {precision}")
        sampler = EnsembleSampler(model.to(device), diffusion, plan, sample, device, precision, read_raters)
        warn_if_empty(sampler.run(dataset, waiting, folder, data.num_workers), len(waiting), checkpoint.step)
    folder.complete(seconds=round(time.monotonic() - began, 2), cases_sampled=len(waiting), cases=len(units))
    finish(sample, dataset, units, read_raters)


def find_data(data, image_size, chosen):
    """The data to sample. chosen: whether --data_name was, rather than taken from the checkpoint."""
    try:
        return build_dataset(data.data_name, data.data_dir, image_size, split="test")
    except NoCasesError as error:
        if chosen:
            raise
        raise UserError(
            f"{error}; the checkpoint was trained on {data.data_name}: for others add --data_name"
        ) from None


def describe(dataset, units, waiting, trained):
    """Say what is about to be sampled. trained: the data that the checkpoint was trained on."""
    everything = len(group_cases(dataset.cases))
    asked_for = "" if len(units) == everything else f", of which --num_samples takes the first {len(units)}"
    done = len(units) - len(waiting)
    console().info(f"{counted(everything, 'case')} of {dataset.data_dir}{asked_for}; {done} finished already")
    for line in (*dataset.notes, leakage_warning(dataset, units, trained)):
        if line:
            console().warning(line)


def warn_if_empty(empty, count, step):
    """Warn where masks are empty, which may mean that the training was too short."""
    if empty:
        console().warning(
            f"warning: {empty} of {counted(count, 'mask')} {'is' if empty == 1 else 'are'} empty. The checkpoint was "
            f"trained for {counted(step, 'step')}: if that is few, train on; else compare the overlays with images "
            "that it was trained on"
        )


def check_dataset(dataset, checkpoint):
    """Raise `UserError` where the data does not fit the checkpoint."""
    if dataset.image_channels != checkpoint.image_channels:
        raise UserError(
            f"{dataset.data_dir}: images have {dataset.image_channels} channels, the checkpoint was trained with "
            f"{checkpoint.image_channels}"
        )
    if checkpoint.config["model"]["class_cond"]:
        if list(dataset.label_names) != checkpoint.label_names:
            raise UserError(
                f"{dataset.data_dir}: has the labels {list(dataset.label_names)}, the class-conditional checkpoint was "
                f"trained with {checkpoint.label_names}"
            )
        for case in dataset.cases:
            if case.label is None:
                raise UserError(f"{case.images[0]}: has no class label, which this class-conditional checkpoint needs")


def describe_run(sample, data, checkpoint, plan, image_size, precision, device, dataset):
    """The manifest: everything that decides the results, and what they were made with."""
    names = ("num_ensemble", "fuse", "weights", "seed", "save_samples", "debug")
    settings = {name: getattr(sample, name) for name in names}
    settings |= {"image_size": image_size, "precision": precision, **plan.settings()}
    return {
        "status": "running",
        "checkpoint": str(sample.model_path),
        "checkpoint_sha256": file_hash(sample.model_path),
        "step": checkpoint.step,
        "settings": settings,
        "data": {"data_name": data.data_name, "data_dir": str(dataset.data_dir.resolve()), "split": "test"},
        "config": checkpoint.config,
        "class_names": checkpoint.class_names,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }


@dataclasses.dataclass
class EnsembleSampler:
    """Samples the cases of a data set in batches and hands each finished case or volume to the results folder."""

    model: torch.nn.Module
    diffusion: object
    plan: object
    options: SampleOptions
    device: torch.device
    precision: str
    read_raters: object

    def run(self, dataset, units, folder, num_workers):
        """Sample all `units`, with a bar over the denoising steps of their images. Returns how many masks are empty."""
        unit_of = {index: unit for unit in units for index in unit.indices}
        indices = [index for unit in units for index in unit.indices]
        slices = defaultdict(list)  # the maps of volumes that are not complete yet
        batches = sampling_batches(dataset, indices, self.options.batch_size, num_workers=num_workers)
        position = empty = 0
        total = len(indices) * len(self.plan.timesteps)
        with tqdm(total=total, desc="sampling", unit="step", dynamic_ncols=True) as bar:
            for batch in batches:
                for maps in self.sample_batch(batch, dataset, folder, bar):
                    unit = unit_of[indices[position]]
                    slices[unit].append(maps)
                    if len(slices[unit]) == len(unit.cases):
                        answer = write_unit(folder, dataset, unit, slices.pop(unit), self.read_raters)
                        empty += not answer.mask.any()
                    position += 1
                bar.set_postfix_str(f"{position} of {len(indices)} images")
        return empty

    def sample_batch(self, batch, dataset, folder, bar):
        """The `CaseMaps` of each image of a batch."""
        conditional = self.model.label_embedding is not None
        label = batch["label"].to(self.device) if conditional else None
        trace = Trace(bar, len(self.plan.timesteps) if self.options.debug else 0)
        recorder = AttentionRecorder(self.model) if self.options.debug else nullcontext()
        with autocast(self.precision, self.device), recorder:
            members = draw_members(
                self.model,
                self.diffusion,
                self.plan,
                batch["image"].to(self.device),
                batch["name"],
                members=self.options.num_ensemble,
                seed=self.options.seed,
                label=label,
                watch=trace,
            )
        maps = fuse_cases(members, batch["size"], self.options.fuse)
        if self.options.debug:
            by_name = {case.name: case for case in dataset.cases}
            for n, name in enumerate(batch["name"]):
                picture = displayed(dataset.load_image(by_name[name]))
                frames = denoising_frames(picture, *trace.of_image(n))
                folder.write_debug(name, frames, attention_sheet(picture, recorder, n, maps[n].mask))
        return maps


class Trace:
    """Follows the steps of a batch: moves the bar and, of `kept_steps` steps, holds x_t and x0 for the animation.

    Of more than 50 steps it holds 50: a thousand would take gigabytes.
    """

    def __init__(self, bar, kept_steps):
        self.bar, self.step = bar, 0
        self.kept = set(np.linspace(0, kept_steps - 1, min(kept_steps, 50)).round().astype(int).tolist())
        self.states, self.predictions = [], []

    def __call__(self, x, x0):
        self.bar.update(x.shape[1])  # [E, N, K, H, W]: N images go a step on
        if self.step in self.kept:
            self.states.append(x.float().cpu().numpy())
            self.predictions.append(x0.float().cpu().numpy())
        self.step += 1

    def of_image(self, n):
        """Lists over steps of x_t and x0 [E, H, W] of image n."""
        return [x[:, n, 0] for x in self.states], [x[:, n, 0] for x in self.predictions]


def write_unit(folder, dataset, unit, maps, read_raters):
    """Write one finished 2-D case, or restack and write one volume. Returns its `CaseMaps`."""
    answer = stack_slices(maps) if unit.is_volume else maps[0]

    def image_of(k):
        return dataset.load_image(unit.cases[k])

    truth = majority(read_raters(dataset, unit.cases))
    if truth is not None:
        truth = on_grid(truth, answer.mask.shape)
    if unit.is_volume:
        folder.write_volume(unit.name, answer, dataset.geometry(unit.cases[0]).affine, image_of, truth)
    else:
        folder.write_image(unit.name, answer, image_of(0), truth)
    return answer


class ReadableRaters:
    """`raters_of`, but None, with a warning for each mask, where the truth cannot be read: sampling needs none."""

    def __init__(self):
        self.told = set()

    def __call__(self, dataset, cases):
        try:
            return raters_of(dataset, cases)
        except Exception as error:  # the loader may be the user's own and raise anything
            if cases[0].masks not in self.told:
                self.told.add(cases[0].masks)
                reason = " ".join(str(error).split()) or type(error).__name__
                console().warning(f"warning: {cases[0].name}: goes on without its truth: {reason}")
            return None


def finish(sample, dataset, units, read_raters):
    """Evaluate where there is truth, draw the overview, and say where to look."""
    if any(case.masks for unit in units for case in unit.cases):
        try:
            console().info(format_summary(evaluate(sample.out_dir, dataset, read_raters=read_raters)))
        except UserError as error:  # the masks are there all the same
            console().warning(f"warning: not evaluated: {error}")
    overview = write_overview(sample.out_dir, dataset, units, read_raters=read_raters)
    console().info(f"masks: {sample.out_dir}   a first look: {overview}")


if __name__ == "__main__":
    run_script(main)
