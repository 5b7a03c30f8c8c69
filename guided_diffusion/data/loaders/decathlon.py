"""Volumes as the Medical Segmentation Decathlon publishes them, and as nnU-Net stores them: dataset.json says what."""

import re

from ...io.files import list_files, read_json, split_suffix
from ...io.nifti import NIFTI_SUFFIXES
from ...runtime.console import counted
from ...runtime.errors import UserError
from ..dataset import SegmentationDataset
from ..truth import RaterFolders
from ..volumes import CTWindow, VolumeReader, normalised_channels, zscore

SOFT_TISSUE, LUNG = (-160, 240), (-1000, 400)  # HU: what a reader of abdominal or of lung CT would choose


class DecathlonDataset(SegmentationDataset):
    """Slices [C, X, Y] of volumes with what is not 0 in their label map as mask, or in --classes.

    data_dir holds dataset.json and imagesTr/, labelsTr/, imagesTs/ with NIfTI files, as a task of the Medical
    Segmentation Decathlon comes out of its archive: 3-D files, or 4-D with the channels last. Or as nnU-Net has it, a
    3-D file for each channel: imagesTr/NAME_0000.nii.gz, NAME_0001.nii.gz with labelsTr/NAME.nii.gz.

    dataset.json's "modality" (or "channel_names") says how many channels there are and which of them are CT, its
    "labels" what the values of label maps mean. `split` "train" takes imagesTr; "test" imagesTs, whose labels are not
    published, or imagesTr where there is no imagesTs. Several raters: labelsTr/RATER/NAME.nii.gz.

    CT is cut to a window of HU (`ct_window`; by default -1000 to 400 for a task whose name has "lung" in it, else
    -160 to 240) and mapped to [-1, 1]; other channels are z-scores over a volume's non-zero voxels, clipped to +-5.
    """

    kept = ("modalities", "window")
    left_right_axis = -2  # a slice is [X, Y]

    @classmethod
    def recognises(cls, data_dir):
        """Whether dataset.json and imagesTr/ lie there."""
        return (data_dir / "dataset.json").is_file() and (data_dir / "imagesTr").is_dir()

    def find_cases(self):
        path = self.data_dir / "dataset.json"
        if not path.is_file():
            return []
        self.description = _described(path)
        self.modalities = _modalities(path, self.description)
        self.image_channels = len(self.modalities)
        self.class_names = _one_class(self.description)
        about = str(self.description.get("name", "")).lower()
        self.window = self.ct_window or (LUNG if "lung" in about else SOFT_TISSUE)
        self.background = None if "CT" in self.modalities else 0.0
        self.volumes = VolumeReader(self._normalise())
        if "CT" in self.modalities:
            self.notes = (f"CT: {self.window[0]:g} to {self.window[1]:g} HU become -1 to 1 (--ct_window)",)
        pairs = self._pairs(path)
        cases = []
        for name, images, masks, names in pairs:
            cases += self.volumes.cases(name, images, masks, raters=names, check_masks=self.need_masks)
        said = self.description.get("name") or self.data_dir.resolve().name
        self.layout = f"Medical Segmentation Decathlon, {said}: {counted(len(pairs), 'volume')} of {self._channels()}"
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
        return "dataset.json with imagesTr/ and labelsTr/ beside it is looked for there"

    def expected_mask(self, case):
        name = case.volume or case.name
        return f"{self.data_dir / 'labelsTr'}/{name}.nii.gz"

    def _normalise(self):
        return tuple(CTWindow(*self.window) if kind == "CT" else zscore for kind in self.modalities)

    def _channels(self):
        return f"{counted(self.image_channels, 'channel')} ({', '.join(self.modalities)})"

    def _pairs(self, path):
        """(name, image files, mask files, their raters' names) of each volume of the split."""
        tests = list_files(self.data_dir / "imagesTs", NIFTI_SUFFIXES) if (self.data_dir / "imagesTs").is_dir() else []
        if self.split == "test" and tests:
            return self._grouped(path, tests, "labelsTs")
        listed = self.description.get("training")
        if listed is None or self._is_per_channel():
            found = list_files(self.data_dir / "imagesTr", NIFTI_SUFFIXES)
            pairs = self._grouped(path, found, "labelsTr")
        else:
            raters = RaterFolders(self.data_dir / "labelsTr", self.need_masks)
            pairs = [self._listed(path, entry, raters) for entry in listed]
        if self.split is None and tests:
            pairs += self._grouped(path, tests, "labelsTs")
        return pairs

    def _is_per_channel(self):
        """Whether each channel is a file of its own, as nnU-Net has it."""
        return "channel_names" in self.description

    def _listed(self, path, entry, raters):
        """The pair of an entry of "training"."""
        if not (isinstance(entry, dict) and isinstance(entry.get("image"), str)):
            raise UserError(f'{path}: "training" must list {{"image": ..., "label": ...}}, not {entry!r}; correct it')
        image = self.data_dir / entry["image"]
        if not image.is_file():
            raise UserError(f"{path}: lists {entry['image']}, but there is no such file; unpack it or correct the list")
        name = split_suffix(image)[0]
        masks = raters.masks_of(image.name, [split_suffix(str(entry.get("label", name)))[0]])
        return name, (image,), masks, raters.names_of(masks)

    def _grouped(self, path, files, labels):
        """Pairs of files by name; those of one volume's channels together. labels: the masks' folder."""
        raters = RaterFolders(self.data_dir / labels, self.need_masks)
        if not self._is_per_channel():
            stems = [split_suffix(file)[0] for file in files]
            masks = [raters.masks_of(file.name, [stem]) for stem, file in zip(stems, files, strict=True)]
            return [
                (stem, (file,), found, raters.names_of(found))
                for stem, file, found in zip(stems, files, masks, strict=True)
            ]
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
        pairs = []
        for name, channels in volumes.items():
            masks = raters.masks_of(name, [name])
            pairs.append((name, tuple(channels[k] for k in sorted(channels)), masks, raters.names_of(masks)))
        return pairs


def _described(path):
    description = read_json(path)
    if not isinstance(description, dict):
        raise UserError(f"{path}: holds no description of a data set; it needs modality and labels")
    return description


def _modalities(path, description):
    """The names of the channels in order; one that speaks of CT is "CT"."""
    names = description.get("modality", description.get("channel_names"))
    if not (isinstance(names, dict) and names and all(str(key).isdigit() for key in names)):
        raise UserError(f'{path}: has no "modality" such as {{"0": "MRI"}}; add it')
    ordered = [str(names[key]) for key in sorted(names, key=int)]
    return tuple("CT" if re.search(r"\bCT\b", name.upper()) else name for name in ordered)


def _one_class(description):
    """The only label's name, or "foreground" for several."""
    labels = description.get("labels", {})
    names = [(key, value) if str(key).isdigit() else (value, key) for key, value in labels.items()]
    names = [str(name) for value, name in names if str(value) not in ("0", "")]
    return (names[0],) if len(names) == 1 else ("foreground",)
