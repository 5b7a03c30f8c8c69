"""The results folder: what sampling writes for each case, and the manifest that says what ran.

manifest.json             checkpoint, settings, versions, seconds; status "running", "complete", or "incomplete" where
                          cases, "unread", could not be read
masks/NAME.png            the fused mask, 0 or 255, of the input's own size
probability/NAME.png      16 bit: the mean of the members' soft predictions, 0..65535 for 0..1, at the temperature
uncertainty/NAME.png      8 bit: their standard deviation, 0..255 for 0..0.5
overlay/NAME.png          the input with the mask's outline in red (the truth's in green), small inputs enlarged by a
                          whole factor; a mosaic for volumes
variance/, entropy/, mutual_information/NAME.png   with --uncertainty_maps, 16 bit: 0..65535 for 0..0.25, 1 and 1 bit
samples/NAME_kk.png       with --save_samples: each member's mask; coarse/NAME.png: the coarse mask, 8 bit
debug/NAME.gif            with --debug: the denoising, step by step
NAME_seg.nii.gz           of a volume, in its own geometry: the fused mask, NAME_prob, NAME_uncertainty and, with
                          --save_samples, NAME_sample_kk and NAME_coarse; with --uncertainty_maps NAME_variance
                          and so on, in their own units

With `--classes` masks/, samples/, NAME_seg and NAME_sample_kk hold label maps in the data's own label values instead of
masks. Where there are several classes each has soft maps of its own: probability/CLASS/NAME.png, NAME_prob_CLASS.nii.gz
and so on.
"""

from pathlib import Path

import numpy as np

from ..config.options import without_removed
from ..data.classes import BINARY
from ..io.drawing import class_colour, displayed, enlarged, overlay, save_animation, volume_montage
from ..io.files import atomic_path, read_json, remove_temporaries, write_json
from ..io.images import write_label_png, write_png
from ..io.nifti import write_nifti
from ..runtime.errors import UserError
from .answer import PIXEL_MAPS

IDLE = 60  # seconds after which an unfinished file is taken for one of a run that was killed


# In a manifest without them:
OLDER_MANIFESTS = {"temperature": 1.0, "uncertainty_maps": False, "split": "test", "tile": False}


UNTOLD = ("data_name", "ct_window")  # what an older manifest may not say, so that nothing can be compared with


class ResultsFolder:
    """Writes cases below `out_dir`. A case counts as finished when its mask is there, which is written last.

    manifest: plain types; its "checkpoint_sha256", "settings" and "data" must match those of a manifest found in the
    folder, else `UserError` names the difference. Masks without a manifest are not ours: `UserError` as well. begin:
    whether to check that and to write the manifest; of several processes one does. written: called with the paths
    of each case's files once all of them are there, its mask last. classes: what the K masks of each case are.
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
            old = read_json(path)
            self._check_same(path, old)
            self.manifest |= {key: old[key] for key in ("seconds", "cases_sampled") if key in old}
        elif any(self.out_dir.glob("masks/*")) or any(self.out_dir.glob("*_seg.nii*")):
            # They would count as finished: a data set's own truth, scored against itself.
            raise UserError(f"{self.out_dir}: holds masks that are not of a run of ours; choose another --out_dir")
        self._remove_temporaries()
        write_json(path, self.manifest)

    def _remove_temporaries(self):
        """Remove what killed runs left half written; another run may be writing to the folder as well."""
        soft = ("probability", "uncertainty", "coarse", *PIXEL_MAPS)
        folders = {path.parent for what in soft for path in self._soft_paths("any", False, what)}
        others = {self.out_dir / name for name in ("masks", "overlay", "samples", "debug", "report_files")}
        for folder in (self.out_dir, *sorted(folders | others)):
            remove_temporaries(folder, IDLE)

    def _check_same(self, path, old):
        new = self.manifest
        without_removed(old.get("settings", {}), f"{path}: these results were made with", keep=("dynamic_threshold",))
        for group, key in [
            ("", "checkpoint_sha256"),
            *(("settings", k) for k in new["settings"]),
            *(("data", k) for k in ("data_dir", "split", *UNTOLD)),
        ]:
            before = (old.get(group, {}) if group else old).get(key, OLDER_MANIFESTS.get(key))
            now = (new[group] if group else new).get(key, OLDER_MANIFESTS.get(key))
            if key in UNTOLD and (before in (None, "AUTO") or str(before).upper() == str(now).upper()):
                continue
            if before != now:
                difference = _difference(key, before, now, old, new)
                raise UserError(f"{path}: these results were made with {difference}; choose another --out_dir")

    def finished(self, name, is_volume):
        """Whether the case or volume has been written completely, and all of it is still there."""
        return all(path.exists() for path in self._maps(name, is_volume))

    def _maps(self, name, is_volume):
        """The files that every case has, its mask last."""
        maps = self._soft_paths(name, is_volume, "probability") + self._soft_paths(name, is_volume, "uncertainty")
        return [*maps, self.out_dir / "overlay" / f"{name}.png", self._mask_path(name, is_volume)]

    def _soft_paths(self, name, is_volume, what):
        return [self.out_dir / file for file in soft_files(self.classes, name, is_volume, what)]

    def _files_of(self, name, is_volume, members):
        """The files that there are of a case but for those of --debug, its mask last."""
        extra = [self._member_path(name, is_volume, e) for e in range(members)]
        for what in ("coarse", *PIXEL_MAPS):
            extra += self._soft_paths(name, is_volume, what)
        return [path for path in (*extra, *self._maps(name, is_volume)) if path.exists()]

    def _member_path(self, name, is_volume, e):
        return self.out_dir / (f"{name}_sample_{e:02d}.nii.gz" if is_volume else f"samples/{name}_{e:02d}.png")

    def _mask_path(self, name, is_volume):
        return self.out_dir / f"{name}_seg.nii.gz" if is_volume else self.out_dir / "masks" / f"{name}.png"

    def write_image(self, name, maps, image, truth=None):
        """Write a 2-D case. image: raw [C, H, W]; truth: bool [K, H, W] or None, for the overlay."""

        def write(what, values, top, dtype):
            for path, value in zip(self._soft_paths(name, False, what), values, strict=True):
                write_png(path, _scaled(value, top, dtype))

        write("probability", maps.probability, 65535, np.uint16)
        write("uncertainty", maps.uncertainty * 2, 255, np.uint8)
        for what, values in maps.pixel_maps.items():
            write(what, values / PIXEL_MAPS[what], 65535, np.uint16)
        masks, truths = (
            None if group is None else np.stack([enlarged(mask) for mask in group]) for group in (maps.mask, truth)
        )
        write_png(self.out_dir / "overlay" / f"{name}.png", overlay(enlarged(displayed(image)), masks, truths))
        if self.save_samples:
            for e, member in enumerate(maps.members):
                self._write_masks(self._member_path(name, False, e), member)
            if maps.coarse is not None:
                write("coarse", maps.coarse, 255, np.uint8)
        self._write_masks(self._mask_path(name, False), maps.mask)
        self.written(self._files_of(name, False, len(maps.members)))

    def write_volume(self, name, maps, geometry, image_of, truth=None):
        """Write a volume, lying as its file does.

        geometry: its `data.Geometry`. image_of(k): raw slice k [C, X, Y]; truth: bool [K, X, Y, Z] or None; both for
        the overlay.
        """

        def write_one(path, values):
            write_nifti(path, *geometry.as_in_file(values))

        def write(what, values):
            for path, value in zip(self._soft_paths(name, True, what), values, strict=True):
                write_one(path, value.astype(np.float32))

        write("probability", maps.probability)
        for what, values in {"uncertainty": maps.uncertainty, **maps.pixel_maps}.items():
            write(what, values)
        write_png(self.out_dir / "overlay" / f"{name}.png", volume_montage(image_of, maps.mask, geometry.affine, truth))
        if self.save_samples:
            for e, member in enumerate(maps.members):
                write_one(self._member_path(name, True, e), self.classes.labels_of(member))
            if maps.coarse is not None:
                write("coarse", maps.coarse)
        write_one(self._mask_path(name, True), self.classes.labels_of(maps.mask))
        self.written(self._files_of(name, True, len(maps.members)))

    def _write_masks(self, path, masks):
        """Masks bool [K, H, W] as a picture: the mask, 0 or 255, or a label map with the classes' colours."""
        if self.classes.is_binary:
            return write_png(path, _scaled(masks[0], 255, np.uint8))
        write_label_png(path, self.classes.labels_of(masks), label_colours(self.classes))

    def write_debug(self, name, frames):
        """Write debug/NAME.gif."""
        with atomic_path(self.out_dir / "debug" / f"{name}.gif") as path:
            save_animation(path, frames)

    def remove_debug(self, names):
        """Remove what `write_debug` wrote of these cases."""
        for name in names:
            (self.out_dir / "debug" / f"{name}.gif").unlink(missing_ok=True)

    def complete(self, seconds, sampled, cases, unread=()):
        """Add how the run ended to the manifest: seconds and cases sampled, added up over the runs, and all cases.

        unread: the names of those that could not be read; with any the results are not complete.
        """
        self._remove_temporaries()  # those of a kill just before this run began were too fresh then
        self.manifest["seconds"] = round(self.manifest.get("seconds", 0) + seconds, 2)
        self.manifest["cases_sampled"] = self.manifest.get("cases_sampled", 0) + sampled
        self.manifest.update(cases=cases, status="incomplete" if unread else "complete")
        if unread:
            self.manifest["unread"] = list(unread)
        write_json(self.out_dir / "manifest.json", self.manifest)


def label_colours(classes):
    """{label value: the colour of the class that it is written for} (see `Classes.labels_of`)."""
    values = sorted({value for values in classes.values for value in values})
    colours = {}
    for value, masks in zip(values, classes.masks_of(values).T, strict=True):
        inside = np.flatnonzero(masks)
        colours[value] = class_colour(min(inside, key=lambda k: len(classes.values[k])))
    return colours


def soft_files(classes, name, is_volume, what):
    """The file of each class's soft map, relative to the folder; what: "probability", "uncertainty" or "coarse"."""
    of = [""] if len(classes) == 1 else classes.names
    if is_volume:
        what = {"probability": "prob"}.get(what, what)
        return ["_".join(filter(None, (name, what, part))) + ".nii.gz" for part in of]
    return ["/".join(filter(None, (what, part, f"{name}.png"))) for part in of]


def _difference(key, before, now, old, new):
    """How the manifest `new` differs from the one found, `old`, in `key`, in the words of the command line."""
    if key == "checkpoint_sha256":
        before, now = (f"{m.get('checkpoint')} of step {m.get('step')}" for m in (old, new))
        return f"another checkpoint, {before}, now --model_path is {now}"
    if key in ("sampler", "timesteps"):
        before, now = (f"{len(m['settings']['timesteps'])} steps of {m['settings']['sampler']}" for m in (old, new))
        flags = "--diffusion_steps, --use_ddim, --dpm_solver or --timestep_respacing"
        return f"{before}, now it is {now if now != before else 'as many others'} ({flags} says so)"
    return f"--{key} {before}, now it is {now}"


def _scaled(values, top, dtype):
    return (np.clip(values, 0, 1) * top).round().astype(dtype)
