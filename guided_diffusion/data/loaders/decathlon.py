"""Volumes with a dataset.json, in the layouts of the Medical Segmentation Decathlon and of nnU-Net."""

import re

from ...io.files import list_files, read_json, split_suffix
from ...io.nifti import NIFTI_SUFFIXES
from ...runtime.console import counted
from ...runtime.errors import UserError
from ..classes import read_labels_of, reserved_label
from ..dataset import SegmentationDataset
from ..truth import RaterFolders
from ..volumes import CTWindow, VolumeReader, normalised_channels, zscore

SOFT_TISSUE, LUNG = (-160, 240), (-1000, 400)  # usual CT windows, HU


class DecathlonDataset(SegmentationDataset):
    """Slices [C, X, Y] of volumes; the mask is every label but 0, or the classes of --classes.

    data_dir holds dataset.json, imagesTr/, labelsTr/ and optionally imagesTs/ with NIfTI files. In the layout of the
    Decathlon a volume is a 3-D file, or a 4-D file with the channels last. In the layout of nnU-Net each channel is a
    3-D file: imagesTr/NAME_0000.nii.gz, NAME_0001.nii.gz and labelsTr/NAME.nii.gz.

    In dataset.json "modality" (or "channel_names") lists the channels and which of them are CT, and "labels" names the
    values of label maps. `split` "train" takes imagesTr. "test" takes imagesTs, whose labels are not published, or
    imagesTr if there is no imagesTs. With several raters the masks are labelsTr/RATER/NAME.nii.gz.

    CT is clipped to `ct_window` in HU and mapped to [-1, 1]. The default window is -1000 to 400 for a task with "lung"
    in its name, else -160 to 240. Other channels are z-scores over a volume's non-zero voxels, clipped to +-5.
    """

    data_name = "MSD"
    kept = ("modalities", "window")
    left_right_axis = -2  # a slice is [X, Y]

    @classmethod
    def recognises(cls, data_dir):
        """Whether the folder holds dataset.json and imagesTr/."""
        return (data_dir / "dataset.json").is_file() and (data_dir / "imagesTr").is_dir()

    def find_cases(self):
        path = self.data_dir / "dataset.json"
        if not path.is_file():
            return []
        self.description = _read_description(path)
        self.modalities = _modalities(path, self.description)
        self.image_channels = len(self.modalities)
        self.class_names = _one_class(self.description)
        self.declared_labels = tuple(sum(read_labels_of(path, self.description).values(), ()))
        self.reserved = reserved_label(path, self.description)
        task = str(self.description.get("name", "")).lower()
        self.window = self.ct_window or (LUNG if "lung" in task else SOFT_TISSUE)
        self.background = None if "CT" in self.modalities else 0.0
        self.volumes = VolumeReader(self._normalise())
        if "CT" in self.modalities:
            self.notes = (f"CT: {self.window[0]:g} to {self.window[1]:g} HU become -1 to 1 (--ct_window)",)
        found = self._find_volumes(path)
        cases = []
        for name, images, masks, raters in found:
            cases += self.volumes.cases(name, images, masks, raters=raters, check_masks=self.need_masks)
        task = self.description.get("name") or self.data_dir.resolve().name
        self.layout = f"Medical Segmentation Decathlon, {task}: {counted(len(found), 'volume')} of {self._channels()}"
        return cases

    def read_image(self, case):
        return self.volumes.image(case)

    def read_labels(self, case):
        return self.volumes.labels(case)

    def normalise(self, image):
        return image  # done for the whole volume when it is read

    def normalise_raw(self, raw):
        return normalised_channels(raw, self._normalise())

    def geometry(self, case):
        return self.volumes.geometry(case)

    def expected_layout(self):
        return "it must hold dataset.json, imagesTr/ and labelsTr/"

    def expected_mask(self, case):
        name = case.volume or case.name
        return f"{self.data_dir / 'labelsTr'}/{name}.nii.gz"

    def _normalise(self):
        return tuple(CTWindow(*self.window) if kind == "CT" else zscore for kind in self.modalities)

    def _channels(self):
        """ "2 channels (CT, PET)", for messages."""
        return f"{counted(self.image_channels, 'channel')} ({', '.join(self.modalities)})"

    def _find_volumes(self, path):
        """(name, image files, mask files, raters' names) of each volume of the split. path: dataset.json."""
        tests = list_files(self.data_dir / "imagesTs", NIFTI_SUFFIXES) if (self.data_dir / "imagesTs").is_dir() else []
        if self.split == "test" and tests:
            return self._volumes_in(path, tests, "labelsTs")
        listed = self.description.get("training")
        if listed is None or self._is_per_channel():
            found = self._volumes_in(path, list_files(self.data_dir / "imagesTr", NIFTI_SUFFIXES), "labelsTr")
        else:
            raters = RaterFolders(self.data_dir / "labelsTr", self.need_masks)
            found = [self._listed_volume(path, entry, raters) for entry in listed]
        if self.split is None and tests:
            found += self._volumes_in(path, tests, "labelsTs")
        return found

    def _is_per_channel(self):
        """Whether each channel is a file, as in nnU-Net's layout."""
        return "channel_names" in self.description

    def _listed_volume(self, path, entry, raters):
        """The volume of an entry in the list "training" of dataset.json (see `_find_volumes`)."""
        if not (isinstance(entry, dict) and isinstance(entry.get("image"), str)):
            raise UserError(f'{path}: "training" must list {{"image": ..., "label": ...}}, not {entry!r}; correct it')
        image = self.data_dir / entry["image"]
        if not image.is_file():
            raise UserError(f"{path}: lists {entry['image']}, but there is no such file; unpack it or correct the list")
        name = split_suffix(image)[0]
        masks = raters.masks_of(image.name, [split_suffix(str(entry.get("label", name)))[0]])
        return name, (image,), masks, raters.names_of(masks)

    def _volumes_in(self, path, files, labels):
        """The volumes of image files, with masks of the same name in the folder `labels` (see `_find_volumes`)."""
        raters = RaterFolders(self.data_dir / labels, self.need_masks)
        found = []
        if not self._is_per_channel():
            for file in files:
                name = split_suffix(file)[0]
                masks = raters.masks_of(file.name, [name])
                found.append((name, (file,), masks, raters.names_of(masks)))
            return found
        for name, channels in self._group_channels(path, files).items():
            masks = raters.masks_of(name, [name])
            found.append((name, channels, masks, raters.names_of(masks)))
        return found

    def _group_channels(self, path, files):
        """{volume: its files in the order of the channels} of nnU-Net's files NAME_0000."""
        volumes = {}
        for file in files:
            stem, suffix = split_suffix(file)
            match = re.fullmatch(r"(.+)_(\d{4})", stem)
            if not match:
                raise UserError(f"{file}: is not called NAME_0000{suffix}, as nnU-Net's channels are; rename it")
            volumes.setdefault(match[1], {})[int(match[2])] = file
        for name, channels in volumes.items():
            missing = [k for k in range(self.image_channels) if k not in channels]
            if missing or len(channels) > self.image_channels:
                have = ", ".join(f"{k:04d}" for k in sorted(channels))
                raise UserError(f"{path}: has {self._channels()}, but {name} has the files {have}; they must agree")
        return {name: tuple(channels[k] for k in sorted(channels)) for name, channels in volumes.items()}


def _read_description(path):
    """The dict in dataset.json."""
    description = read_json(path)
    if not isinstance(description, dict):
        raise UserError(f"{path}: holds no description of a data set; it needs modality and labels")
    return description


def _modalities(path, description):
    """The names of the channels in order; a name with the word CT becomes "CT"."""
    names = description.get("modality", description.get("channel_names"))
    if not (isinstance(names, dict) and names and all(str(key).isdigit() for key in names)):
        raise UserError(f'{path}: has no "modality" such as {{"0": "MRI"}}; add it')
    ordered = [str(names[key]) for key in sorted(names, key=int)]
    return tuple("CT" if re.search(r"\bCT\b", name.upper()) else name for name in ordered)


def _one_class(description):
    """The class name of masks without --classes: the only label's, or "foreground" for several labels."""
    labels = description.get("labels", {})
    names = [(key, value) if str(key).isdigit() else (value, key) for key, value in labels.items()]
    names = [str(name) for value, name in names if str(value) not in ("0", "")]
    return (names[0],) if len(names) == 1 else ("foreground",)
