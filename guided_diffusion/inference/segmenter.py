"""For notebooks and other programs: a checkpoint as a function from images to masks.

from guided_diffusion import Segmenter

segmenter = Segmenter.load("runs/first")
mask, probability, uncertainty = segmenter(image)
"""

import dataclasses
import os

import numpy as np
import torch
from tqdm import tqdm

from ..checkpoint import load_checkpoint
from ..config.command_line import nearest_name, options_from
from ..config.options import DeviceOptions, ModelOptions
from ..config.sample_options import SampleOptions
from ..data.batches import collate
from ..data.cases import Geometry
from ..data.loader_checks import own_errors
from ..data.registry import find_loader
from ..data.truth import stem_of
from ..io.images import read_picture
from ..io.nifti import as_3d, nifti_geometry, read_nifti_channels, read_nifti_header
from ..io.orientation import NO_TURN, canonical_turn, is_degenerate, reoriented, reoriented_back
from ..io.storage import fetch_file, is_remote
from ..io.volume_formats import is_volume_path
from ..runtime.console import counted
from ..runtime.distributed import pick_device, pick_precision
from ..runtime.errors import UserError
from ..runtime.program import command_name
from .answer import stack_slices
from .cleanup import cleaned
from .plan import describe_augmentation, describe_masks, describe_members
from .sampler import build_sampler
from .several import checkpoint_files, settle_several
from .writer import fuse_batch

# The parameters of `Segmenter.load` that its flags have other names for, or that are no flags.
PARAMETERS = {"num_ensemble": "members", "diffusion_steps": "steps", "gpu_dev": "device", "data_name": ""}
PARAMETERS |= dict.fromkeys(("members", "steps", "device", "precision"), "")


class Segmenter:
    """A trained network with its settings. `load` makes one; call it with an image or a batch.

    With the same checkpoint, image, case name, seed and settings it returns the masks of `medsegdiff sample`.
    It computes in as many threads as torch has in the caller's program (`torch.set_num_threads`): other than the
    commands, it sets no number itself.
    """

    def __init__(self, checkpoint, sampler, data_name=None):
        self.checkpoint, self.sampler = checkpoint, sampler
        if data_name is None:
            stored, where = checkpoint.config["data"]["data_name"], str(sampler.options.model_path)
            loader = find_loader(stored, named_by=where, flag="data_name=")
        else:
            loader = find_loader(data_name)
        kept = checkpoint.config.get("loader", {})
        missing = [name for name in loader.kept if name not in kept]
        if missing:
            raise UserError(
                f"{sampler.options.model_path}: is older than Segmenter and lacks the normalisation of "
                f"{loader.__name__}; train one more step (--resume_checkpoint) or use {command_name('sample')}"
            )
        self.loader = loader.without_data(kept, checkpoint.class_names)

    def __repr__(self):
        config, sampler = self.checkpoint.config, self.sampler
        settings = sampler.plan.settings() | {"num_ensemble": sampler.options.num_ensemble}
        described, augmented = describe_members(settings), describe_augmentation(settings)
        lines = [
            f"model: {config['model']['version']} of step {self.checkpoint.step}, {sampler.options.model_path}",
            f"images: {self._channels}, normalised as by {type(self.loader).__name__}",
            f"classes: {self.classes.described()}",
            f"members: {described}{'; ' if augmented else ''}{augmented}; seed {sampler.options.seed}",
            *([f"masks: {masks}"] if (masks := describe_masks(settings)) else []),
            f"runs at {sampler.image_size} x {sampler.image_size} pixels in {sampler.precision} on {sampler.device}",
        ]
        return "\n  ".join(["Segmenter", *lines])

    @classmethod
    def load(
        cls,
        path,
        *,
        members=0,
        steps=0,
        sampler="auto",
        fuse="auto",
        seed=0,
        device=None,
        precision="auto",
        data_name=None,
        **options,
    ):
        """The `Segmenter` of a checkpoint file, or of a run's folder: its best.pt, else last.pt. Local, on gs:// or
        az://.

        path: also a list of them; each then draws its share of the members, and the mean of their probabilities is the
            answer. All networks are in memory at once.

        members, steps, sampler, fuse, seed, precision: as --num_ensemble, --diffusion_steps, --sampler, --fuse,
            --seed and --precision of `medsegdiff sample`. members=0: as the checkpoint was trained, in one pass
            without the diffusion where a condition model was trained to answer, else 5 members.
        device: a torch device or its name; None: the first GPU (CUDA, else mps), or the CPU without one.
        data_name: needed where a loader of your own trained the checkpoint: its file and class,
            "path/to/my_loader.py:MyDataset". The file named in the checkpoint is never run.
        options: other flags of that command, such as weights="model", image_size=512 or solver_order=3.
        Raises `UserError` for whatever that command refuses, and ValueError for an unknown device.
        """
        others = {item.name for group in (SampleOptions, ModelOptions) for item in dataclasses.fields(group)}
        if unknown := sorted(options.keys() - others):
            near = nearest_name(unknown[0], others | PARAMETERS.keys())
            meant = f"; did you mean {PARAMETERS.get(near[1]) or near[1]}?" if near else ""
            raise UserError(f"{unknown[0]}: is neither a parameter of Segmenter.load nor a flag of sampling{meant}")
        files = checkpoint_files([path] if isinstance(path, (str, os.PathLike)) else list(path))
        values = {"model_path": ",".join(files), "num_ensemble": members, "diffusion_steps": steps, "sampler": sampler}
        values |= {"fuse": fuse, "seed": seed, **options}
        groups = [SampleOptions, ModelOptions, DeviceOptions]
        asked, given = options_from(groups, values | {"precision": precision})
        device = pick_device("0") if device is None else _usable(device)
        checkpoints = [load_checkpoint(fetch_file(file) if is_remote(file) else file, where=file) for file in files]
        settings = settle_several(asked, given, checkpoints, files)
        precision = pick_precision(settings[0].device.precision, device)
        return cls(checkpoints[0], build_sampler(checkpoints, settings, device, precision), data_name)

    @property
    def classes(self):
        """The `classes.Classes`, with names and label values; `labels_of(answer.mask)` is the script's label map."""
        return self.checkpoint.classes

    @property
    def class_names(self):
        """The names of the K classes, without the background."""
        return tuple(self.checkpoint.class_names)

    def __call__(self, images, name=None, *, axes=None, label=None, progress=False):
        """Segment an image, or each image of a batch.

        images: a NumPy array or torch tensor, [H, W] for one channel, [H, W, C] or [C, H, W], of any size. Its values
            are those of its file: 0 to 255 for photographs; any unit for MRI, which is normalised here; for your own
            loader what `read_image` returns. A batch is a list of images, or one array with N first. An image may also
            be the path of its file; that of a volume is segmented as by `volume`.
        name: the case's name, or a list of them; seed and name decide the members' noise. By default a file's name
            without its suffix, else "0", "1", ...
        axes: "HWC" or "CHW". None: the axis with as many entries as the checkpoint has channels; an image that fits
            both ways needs `axes`.
        label: for a class-conditional checkpoint, one of its label_names or its number, or a list of them.
        progress: whether to show a progress bar.
        Returns an `answer.CaseMaps`, which unpacks as mask, probability, uncertainty and also has members and coarse;
        for a batch a list. All are NumPy arrays of the image's own size: [H, W] with one class, [K, H, W] in the order
        of `class_names` with several; members have E first, which is 0 for an answer in one pass.
        Raises ValueError for an image that does not fit or is not an array.
        """
        batch = isinstance(images, (list, tuple)) or np.ndim(images) == 4
        images = list(images) if batch else [images]
        if not batch and _is_path(images[0]) and _is_volume(images[0]):
            return self.volume(images[0], name, label=label, progress=progress)
        own = [stem_of(image) if _is_path(image) else str(n) for n, image in enumerate(images)]
        names = own if name is None else [name] if not batch else list(name)
        labels = list(label) if isinstance(label, (list, tuple)) else [label] * len(images)
        if not len(images) == len(names) == len(labels):
            raise ValueError(f"{len(images)} images have {len(names)} names and {len(labels)} labels")
        raws = [self._raw(image, axes) for image in images]
        answers = self._draw([self._normalised(raw) for raw in raws], names, labels, progress)
        answers = [self._cleaned(answer) for answer in answers]
        answers = [answer.without_class_axis() for answer in answers] if len(self.class_names) == 1 else answers
        return answers if batch else answers[0]

    def volume(self, volume, name=None, *, affine=None, label=None, progress=False):
        """Segment each slice along the last axis of a volume [X, Y, Z] or [C, X, Y, Z], normalised as a whole.

        affine: [4, 4], as `nibabel.load(path).affine`. The volume is turned by it as the script does, and the answer
            is turned back. None: the volume has axial slices [right, front] already, as from `nifti.read_nifti`.
        volume: an array or tensor, or a path of any format that the loaders read, which has its own affine.
        name: the volume's name; seed and name decide the members' noise, which is the same in every slice. By default
            a file's name without its suffix, else "volume".
        Other arguments are those of `__call__`.
        Returns an `answer.CaseMaps` of the volume's size.
        """
        if _is_path(volume):
            if affine is not None:
                raise ValueError("affine is given with a path; the file has its own")
            name = stem_of(volume) if name is None else name
            raw, turn = _read_volume(volume)
        else:
            raw, turn = _as_axial(_tensor(volume, "a volume", "nibabel.load(path).get_fdata()"), affine)
        if raw.ndim != 4 or len(raw) != self.checkpoint.image_channels:
            shape = tuple(np.shape(raw if _is_path(volume) else volume))
            raise ValueError(f"a volume of shape {shape} is not [C, X, Y, Z] with the checkpoint's {self._channels}")
        slices = self._normalised(raw.contiguous()).unbind(-1)
        names = ["volume" if name is None else name] * len(slices)
        answer = self._cleaned(stack_slices(self._draw(slices, names, [label] * len(slices), progress)))
        answer = answer.map_arrays(lambda values: reoriented_back(values, turn))
        return answer.without_class_axis() if len(self.class_names) == 1 else answer

    def _cleaned(self, answer):
        rules = self.sampler.plan.cleanup
        if not rules:
            return answer
        return dataclasses.replace(answer, mask=cleaned(answer.mask, rules, self.loader.classes))

    @property
    def _channels(self):
        count = self.checkpoint.image_channels
        return counted(count, "channel")

    def _raw(self, image, axes):
        """The image as float32 [C, H, W] on the CPU, with its own values."""
        if _is_path(image):
            image, axes = _read_image(image), "CHW"
        raw = _tensor(image, "an image", "numpy.asarray(PIL.Image.open(path))")
        count = self.checkpoint.image_channels
        shape = tuple(raw.shape)
        if axes not in (None, "HWC", "CHW"):
            raise ValueError(f"axes is {axes!r}, not 'HWC' or 'CHW'")
        if raw.ndim == 2:
            raw, axes = raw[None], "CHW"
        if raw.ndim != 3:
            raise ValueError(f"an image of shape {shape} is none of [H, W], [H, W, C] and [C, H, W]")
        last, first = raw.shape[-1] == count, raw.shape[0] == count
        if axes is None and last and first:
            raise ValueError(f"an image of shape {shape} may be [H, W, C] or [C, H, W]: add axes='HWC' or axes='CHW'")
        channels_last = axes == "HWC" or (axes is None and last)
        if not (last if channels_last else first):
            raise ValueError(f"an image of shape {shape} does not have the checkpoint's {self._channels}")
        return (raw.permute(2, 0, 1) if channels_last else raw).contiguous()

    def _normalised(self, raw):
        """An image [C, H, W] or volume [C, X, Y, Z] with its file's values, normalised as in training; float32."""
        if not torch.isfinite(raw).all():
            raise ValueError("an image holds values that are not finite")
        low, high = raw.min().item(), raw.max().item()
        fractions = high <= 1 and bool((raw != raw.round()).any())
        if self._takes_photographs and (low < 0 or high > 255 or fractions):
            raise ValueError(f"an image has values from {low:g} to {high:g}; give them from 0 to 255, as in its file")
        with own_errors(type(self.loader), "normalise_raw"):
            return torch.as_tensor(self.loader.normalise_raw(raw), dtype=torch.float32)

    @property
    def _takes_photographs(self):
        probe = torch.tensor([0.0, 255.0]).expand(self.checkpoint.image_channels, 1, 2)
        with own_errors(type(self.loader), "normalise_raw"):
            return np.array_equal(self.loader.normalise_raw(probe), 2 * probe / 255 - 1)

    def _draw(self, normalised, names, labels, progress):
        """The `CaseMaps` of normalised images, drawn in the batches of the script."""
        sampler, answers = self.sampler, []
        items = [self._item(*case) for case in zip(normalised, names, labels, strict=True)]
        with tqdm(total=len(items) * sampler.steps, desc="sampling", unit="step", disable=not progress) as bar:
            for low in range(0, len(items), sampler.images):
                batch = collate(items[low : low + sampler.images])
                members, *_ = sampler.draw(batch, batch["name"], bar)
                answers += fuse_batch(members, batch, sampler.options, sampler.plan, self.loader.classes)
        return answers

    def _item(self, normalised, name, label):
        item = {"image": self.sampler.view.image(normalised, self.sampler.image_size), "name": str(name)}
        item["size"] = tuple(normalised.shape[-2:])
        if self.checkpoint.config["model"]["class_cond"]:
            known = self.checkpoint.label_names
            if label not in known and label not in range(len(known)):
                raise ValueError(f"label is {label!r}; the class-conditional checkpoint has {', '.join(known)}")
            item["label"] = known.index(label) if label in known else int(label)
        return item


def _usable(device):
    """The torch device of this name. Raises ValueError for one that torch does not know or find here."""
    try:
        usable = torch.device(device)
        torch.zeros(1, device=usable).cpu()
    except (RuntimeError, TypeError, AssertionError) as error:  # whatever this build of torch says
        others = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        others += ["mps"] if torch.backends.mps.is_available() else []
        found = ", ".join(["cpu", *others])
        raise ValueError(
            f"device is {str(device)!r}, but torch finds only {found} here; pass one of these or None"
        ) from error
    return usable


def _is_path(image):
    return isinstance(image, (str, os.PathLike))


def _is_volume(path):
    return is_volume_path(path) and as_3d(read_nifti_header(path)[0])[2] > 1


def _read_image(path):
    """The file of a picture, or of a 2-D image in a format of volumes, as float32 [C, H, W] or [C, X, Y]."""
    if not is_volume_path(path):
        return read_picture(path)
    volume, _ = _read_volume(path)
    if volume.shape[-1] > 1:
        raise ValueError(f"{path}: is a volume, not an image; pass it alone, or to volume()")
    return volume[..., 0]


def _read_volume(path):
    """A volume's file as float32 [C, X, Y, Z] with axial slices, and the turn that made them so."""
    values = read_nifti_channels(path)
    raw = torch.from_numpy(np.ascontiguousarray(values).reshape(*as_3d(values.shape[:-1]), values.shape[-1]))
    return raw.permute(3, 0, 1, 2), Geometry(*nifti_geometry(path)).turn


def _as_axial(raw, affine):
    """A volume [X, Y, Z] or [C, X, Y, Z] as [C, X, Y, Z] with axial slices, and the turn that made them so."""
    raw = raw[None] if raw.ndim == 3 else raw
    if affine is None or raw.ndim != 4:
        return raw, NO_TURN
    turn = canonical_turn(_placing(affine), raw.shape[1:])
    turned = np.ascontiguousarray(reoriented(raw.numpy().transpose(1, 2, 3, 0), turn))
    return torch.from_numpy(turned).permute(3, 0, 1, 2), turn


def _placing(affine):
    """The affine as float64 [4, 4]. Raises ValueError for one that places no volume in space."""
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4) or is_degenerate(affine):
        raise ValueError(
            f"affine is {affine.tolist()}, which places no volume in space; pass nibabel.load(path).affine, or None "
            "for axial slices [right, front]"
        )
    return affine


def _tensor(values, what, reader):
    """Anything like a non-empty array of real numbers as a float32 tensor on the CPU; raises ValueError for others.

    what: "an image" or "a volume"; reader: code that reads its file; both for messages.
    """
    if not isinstance(values, torch.Tensor):
        try:
            values = np.asarray(values)
        except ValueError as error:  # rows of different lengths
            raise ValueError(f"{what} is not an array; pass an array of numbers, as from {reader}") from error
        if values.dtype.kind not in "biufc":
            raise ValueError(f"{what} has dtype {values.dtype}; pass an array of numbers, as from {reader}")
        values = torch.from_numpy(values.astype(np.complex64 if values.dtype.kind == "c" else np.float32))
    if values.is_complex():
        raise ValueError(f"{what} has complex numbers; pass their magnitude, as from abs()")
    if 0 in values.shape:
        raise ValueError(f"{what} of shape {tuple(values.shape)} has no pixels; check how it was read or cut")
    return values.detach().cpu().float()
