"""The results folder: the files that sampling writes for each case, and the manifest of the run.

manifest.json             checkpoint, settings, versions, seconds; status "running", "complete", or "incomplete" if
                          some cases, listed as "unread", could not be read
masks/NAME.png            the fused mask, 0 or 255, at the input's size
probability/NAME.png      16 bit: the members' mean, or the answer in one pass, after temperature scaling, 0..65535 for
                          0..1
uncertainty/NAME.png      8 bit: the members' standard deviation, in one pass sqrt(p (1 - p)), 0..255 for 0..0.5
overlay/NAME.png          the input with the outlines of the mask (red) and the truth (green); small inputs are enlarged
                          by a whole factor, volumes are a montage
variance/, entropy/, mutual_information/NAME.png   with --uncertainty_maps, 16 bit: 0..65535 for 0..0.25, 1 and 1 bit;
                          the last only of several members; of several checkpoints also data_entropy/NAME.png
samples/NAME_kk.png       with --save_samples: each member's mask; coarse/NAME.png: the coarse mask, 8 bit
debug/NAME.gif            with --debug: the denoising, step by step
NAME_seg.nii.gz           a volume's fused mask, with sform, qform, codes, units and sizes of voxels of its image;
                          beside it NAME_prob and NAME_uncertainty, with --save_samples NAME_sample_kk and NAME_coarse,
                          with --uncertainty_maps NAME_variance and so on, in their own units. For a 2-D image in a
                          NIfTI file the mask alone is written so, besides its picture

With `--classes` the masks are label maps in the data's own label values. With several classes each has its own soft
maps: probability/CLASS/NAME.png, NAME_prob_CLASS.nii.gz and so on.
"""

import os
from pathlib import Path

import numpy as np

from ..config.fields import without_removed
from ..data.classes import BINARY
from ..io.drawing import class_colour, displayed, enlarged, overlay, save_animation
from ..io.files import atomic_path, remove_temporaries, write_json
from ..io.images import write_label_png, write_png
from ..io.nifti import write_nifti
from ..io.volume_formats import is_volume_path
from ..runtime.errors import UserError
from .answer import PIXEL_MAPS
from .manifest import read_manifest
from .volume_files import VolumeFiles

MAX_NAME = 255  # bytes of a file's name
IDLE = 60  # seconds after which a temporary file is one of a killed run
# By older manifests.
IMPLIED = dict(temperature=1.0, uncertainty_maps=False, split="test", tile=False, published="", shares=[])
IMPLIED |= dict(threshold=0.5, max_misses=0.0, fill_holes=False, keep_largest=False, min_size=0)
OPTIONAL = ("data_name", "ct_window")  # compared only where the older manifest has them


class ResultsFolder:
    """Writes cases into `out_dir`. A case's mask is written last, so a case with a mask is finished.

    manifest: a dict of plain types. save_samples: whether to write members and coarse masks. begin: whether to check
    the folder and write the manifest, which one of several processes does. written: called with the paths of each
    finished case, its mask last. classes: the `Classes` of each case's K masks.
    Raises `UserError` if the folder has a manifest with another "checkpoint_sha256", "settings" or "data", or masks
    without a manifest.
    """

    def __init__(
        self, out_dir, manifest, *, save_samples=False, begin=True, written=lambda paths: None, classes=BINARY
    ):
        self.out_dir, self.manifest, self.save_samples = Path(out_dir), manifest, save_samples
        self.written, self.classes = written, classes
        if begin:
            self._begin()

    def _begin(self):
        path = self.out_dir / "manifest.json"
        if path.exists():
            old = read_manifest(self.out_dir)
            self._check_same(path, old)
            self.manifest |= {key: old[key] for key in ("seconds", "cases_sampled") if key in old}
        elif any(self.out_dir.glob("masks/*")) or any(self.out_dir.glob("*_seg.nii*")):
            # They may be a data set's truth: it would count as finished and be scored against itself.
            raise UserError(f"{self.out_dir}: holds masks without a manifest of sampling; choose another --out_dir")
        self._remove_temporaries()
        write_json(path, self.manifest)

    def links(self):
        """{name: where it leads} of the links in the folder itself: files are written through them."""
        if not self.out_dir.is_dir():
            return {}
        with os.scandir(self.out_dir) as entries:
            names = sorted(entry.name for entry in entries if entry.is_symlink())
        return {name: os.path.realpath(self.out_dir / name) for name in names}

    def _remove_temporaries(self):
        """Remove the temporary files of killed runs, but not those that another run may be writing now."""
        soft = ("probability", "uncertainty", "coarse", *PIXEL_MAPS)
        folders = {path.parent for what in soft for path in self.soft_paths("any", False, what)}
        others = {self.out_dir / name for name in ("masks", "overlay", "samples", "debug", "report_files")}
        for folder in (self.out_dir, *sorted(folders | others)):
            remove_temporaries(folder, IDLE)

    def _check_same(self, path, old):
        """Raise `UserError` if the manifest `old`, found at `path`, is of another run than ours."""
        new = self.manifest
        without_removed(old.get("settings", {}), f"{path}: these results were made with", keep=("dynamic_threshold",))
        befores, nows = _identity(old), _identity(new)
        for key in ("checkpoint_sha256", *new["settings"], "data_dir", "split", *OPTIONAL):
            before, now = befores.get(key), nows.get(key)
            if key in OPTIONAL and (before in (None, "AUTO") or str(before).upper() == str(now).upper()):
                continue
            if before != now:
                difference = _difference(key, before, now, old, new)
                raise UserError(f"{path}: these results were made with {difference}; choose another --out_dir")

    def finished(self, name, is_volume):
        """Whether all required files of the case or volume exist."""
        return all(path.exists() for path in self._required_files(name, is_volume))

    def is_outdated(self, name, is_volume, images):
        """Whether an image file of a finished case was changed after its mask was written."""
        written = self.mask_path(name, is_volume).stat().st_mtime
        return any(path.stat().st_mtime > written for path in images)

    def _required_files(self, name, is_volume):
        """The files that every case has, its mask last."""
        maps = self.soft_paths(name, is_volume, "probability") + self.soft_paths(name, is_volume, "uncertainty")
        return [*maps, self.out_dir / "overlay" / f"{name}.png", self.mask_path(name, is_volume)]

    def soft_paths(self, name, is_volume, what):
        """The file of each class's soft map, see `soft_files`."""
        return [self.out_dir / file for file in soft_files(self.classes, name, is_volume, what)]

    def _existing_files(self, name, is_volume, members):
        """A case's existing files without those of --debug, its mask last."""
        extra = [self.member_path(name, is_volume, e) for e in range(members)]
        extra += [] if is_volume else [self.mask_path(name, True)]  # of an image in a NIfTI file
        for what in ("coarse", *PIXEL_MAPS):
            extra += self.soft_paths(name, is_volume, what)
        return [path for path in (*extra, *self._required_files(name, is_volume)) if os.path.exists(path)]

    def member_path(self, name, is_volume, e):
        """The file of member e."""
        return self.out_dir / (f"{name}_sample_{e:02d}.nii.gz" if is_volume else f"samples/{name}_{e:02d}.png")

    def mask_path(self, name, is_volume):
        """The file of the fused mask."""
        return self.out_dir / f"{name}_seg.nii.gz" if is_volume else self.out_dir / "masks" / f"{name}.png"

    def write_image(self, name, maps, image, truth=None, geometry=None):
        """Write the `CaseMaps` of a 2-D case, and the overlay.

        image: raw [C, H, W]. truth: bool [K, H, W] or None. geometry: the `data.Geometry` of an image in a NIfTI file,
        over which the mask is then also written.
        """

        def write(what, values, top, dtype):
            for path, value in zip(self.soft_paths(name, False, what), values, strict=True):
                write_png(path, _scaled(value, top, dtype))

        write("probability", maps.probability, 65535, np.uint16)
        write("uncertainty", maps.uncertainty * 2, 255, np.uint8)
        for what, values in maps.pixel_maps.items():
            write(what, values / PIXEL_MAPS[what], 65535, np.uint16)
        outlines = (
            None if masks is None else np.stack([enlarged(mask) for mask in masks]) for masks in (maps.mask, truth)
        )
        write_png(self.out_dir / "overlay" / f"{name}.png", overlay(enlarged(displayed(image)), *outlines))
        if self.save_samples:
            for e, member in enumerate(maps.members):
                self._write_masks(self.member_path(name, False, e), member)
            if maps.coarse is not None:
                write("coarse", maps.coarse, 255, np.uint8)
        if geometry is not None:
            labels = self.classes.labels_of(maps.mask)[..., None]
            write_nifti(self.mask_path(name, True), *geometry.as_in_file(labels), geometry.placement)
        self._write_masks(self.mask_path(name, False), maps.mask)
        self.written(self._existing_files(name, False, len(maps.members)))

    def begin_volume(self, name, geometry, depth, clean=None):
        """The `VolumeFiles` that take the slices of a volume. geometry: its `data.Geometry`. depth: of its slices.
        clean: see `VolumeFiles`."""
        return VolumeFiles(self, name, geometry, depth, clean)

    def finish_volume(self, files, image_of, truth=None):
        """Write `VolumeFiles` that have all slices; see `VolumeFiles.write`."""
        files.write(image_of, truth)
        self.written(self._existing_files(files.name, True, files.members))

    def _write_masks(self, path, masks):
        """Write masks, bool [K, H, W], as a picture of 0 and 255 or a label map in the classes' colours."""
        if self.classes.is_binary:
            return write_png(path, _scaled(masks[0], 255, np.uint8))
        write_label_png(path, self.classes.labels_of(masks), label_colours(self.classes))

    def write_debug(self, name, frames):
        """Write debug/NAME.gif."""
        with atomic_path(self.out_dir / "debug" / f"{name}.gif") as path:
            save_animation(path, frames)

    def remove_debug(self, names):
        """Remove the files that `write_debug` wrote for these cases."""
        for name in names:
            (self.out_dir / "debug" / f"{name}.gif").unlink(missing_ok=True)

    def complete(self, seconds, sampled, cases, unread=()):
        """Write the run's end to the manifest: seconds and sampled cases, summed over reruns, and all cases.

        unread: names of cases that could not be read; with any, the status is "incomplete".
        """
        self._remove_temporaries()  # those of a run killed just before this one began were too fresh then
        self.manifest["seconds"] = round(self.manifest.get("seconds", 0) + seconds, 2)
        self.manifest["cases_sampled"] = self.manifest.get("cases_sampled", 0) + sampled
        self.manifest.update(cases=cases, status="incomplete" if unread else "complete")
        if unread:
            self.manifest["unread"] = list(unread)
        write_json(self.out_dir / "manifest.json", self.manifest)


def check_name_lengths(units, classes, sample, members):
    """Raise `UserError` for a case whose name is too long for one of its files in a results folder.

    units: the `cases.Unit`s. sample: the `SampleOptions`, which decide on the files. members: how many are saved.
    """
    kinds = ("probability", "uncertainty", *(PIXEL_MAPS if sample.uncertainty_maps else ()))
    kinds += ("coarse",) if sample.save_samples else ()
    for unit in units:
        name, is_volume = unit.name, unit.is_volume
        files = [file for kind in kinds for file in soft_files(classes, name, is_volume, kind)]
        files += [f"{name}_seg.nii.gz"] if is_volume_path(unit.cases[0].images[0]) else []
        if sample.save_samples and members:
            last = f"{members - 1:02d}"
            files.append(f"{name}_sample_{last}.nii.gz" if is_volume else f"{name}_{last}.png")
        longest = max((Path(file).name for file in files), key=lambda file: len(file.encode()))
        if len(longest.encode()) > MAX_NAME:
            raise UserError(
                f"{unit.cases[0].images[0]}: its name is too long by {len(longest.encode()) - MAX_NAME} bytes for the "
                f"result ...{longest[-40:]}: file systems allow {MAX_NAME}; rename the image, or leave it out"
            )


def label_colours(classes):
    """The colour of each label value, {value: colour}: that of its smallest class (see `Classes.labels_of`)."""
    values = sorted({value for values in classes.values for value in values})
    colours = {}
    for value, masks in zip(values, classes.masks_of(values).T, strict=True):
        inside = np.flatnonzero(masks)
        colours[value] = class_colour(min(inside, key=lambda k: len(classes.values[k])))
    return colours


def soft_files(classes, name, is_volume, what):
    """The file of each class's soft map, relative to the folder.

    what: "probability", "uncertainty", "coarse" or a name in `PIXEL_MAPS`.
    """
    class_names = [""] if len(classes) == 1 else classes.names
    if is_volume:
        what = {"probability": "prob"}.get(what, what)
        return ["_".join(filter(None, (name, what, part))) + ".nii.gz" for part in class_names]
    return ["/".join(filter(None, (what, part, f"{name}.png"))) for part in class_names]


def _identity(manifest):
    """The parts of a manifest that decide its results, as one dict."""
    data = {key: value for key, value in manifest.get("data", {}).items() if key in ("data_dir", "split", *OPTIONAL)}
    return {**IMPLIED, **manifest.get("settings", {}), **data, "checkpoint_sha256": manifest.get("checkpoint_sha256")}


def _difference(key, before, now, old, new):
    """The difference between the manifests `old` and `new` in `key`, as flags of the command line."""
    if key == "checkpoint_sha256":
        before, now = (f"{m.get('checkpoint')} of step {m.get('step')}" for m in (old, new))
        return f"another checkpoint, {before}, now --model_path is {now}"
    if key in ("sampler", "timesteps"):
        before, now = (_steps_of(manifest.get("settings", {})) for manifest in (old, new))
        flags = "--diffusion_steps, --sampler, --use_ddim, --dpm_solver or --timestep_respacing"
        return f"{before}, now it is {now if now != before else 'as many other steps'} (by {flags})"
    if key == "num_ensemble" and not now:
        return f"--num_ensemble {before}, now it is left out, which asks for the answer in one pass"
    if key == "published":
        return "members that are not mixed as the published script mixes them"
    return f"--{key} {before}, now it is {now}"


def _steps_of(settings):
    return f"{len(settings.get('timesteps', ()))} steps of {settings.get('sampler', 'an unknown sampler')}"


def _scaled(values, top, dtype):
    """Values in [0, 1] as integers in 0..top."""
    return (np.clip(values, 0, 1) * top).round().astype(dtype)
