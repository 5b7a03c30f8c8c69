"""Images with a dataset.json, in the layouts of the Medical Segmentation Decathlon and of nnU-Net."""

import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from ...io.files import split_suffix
from ...io.folders import check_listed
from ...io.images import PICTURE_SUFFIXES, read_picture, read_picture_labels, stacked
from ...io.texts import shown
from ...io.volume_formats import NIFTI_SUFFIXES
from ...runtime.console import counted
from ...runtime.errors import UserError
from ..cases import Case
from ..classes import LABEL, RESERVED, read_classes, read_description, read_labels_of, reserved_values
from ..dataset import SegmentationDataset
from ..intensities import normalised_channels, normaliser, usual_window, zscore
from ..layouts import files_of
from ..truth import SUFFIXES, RaterFolders, near_notes
from ..volumes import VolumeReader

LEVELS = 3  # how deep below data_dir the task may lie, as in nnUNet_raw_data/Task500_X
MANY_FOLDERS = 100  # where there are so many, they are cases, and no task lies below
CHANNEL = re.compile(r"(.+)_(\d{4})")  # NAME_0000, the first channel's file without suffix


class DecathlonDataset(SegmentationDataset):
    """Slices [C, X, Y] of volumes, or pictures [C, H, W]; the mask is every label but 0, or the classes of --classes.

    data_dir, or the only such folder below it, holds dataset.json, imagesTr/, labelsTr/ and optionally imagesTs/ with
    NIfTI files. In the layout of the Decathlon a volume is a 3-D file, or a 4-D file with the channels last. In the
    layout of nnU-Net, version 1 or 2, each channel is a 3-D file: imagesTr/NAME_0000.nii.gz, NAME_0001.nii.gz and
    labelsTr/NAME.nii.gz. With a "file_ending" of pictures, such as ".png", channels are grey pictures, or one colour
    picture NAME_0000.png is all three.

    In dataset.json "modality" (or "channel_names") lists the channels and which of them are CT, and "labels" names the
    values of label maps. Where it has "training" (a list of image and label) or "dataset" (of version 2), these are
    the training cases. `split` "train" takes imagesTr, "val" the list "validation". "test" takes imagesTs, whose labels
    are not published, else the validation cases, else imagesTr. With several raters the masks are
    labelsTr/RATER/NAME.nii.gz.

    CT is clipped to `ct_window` in HU and mapped to [-1, 1]. The default window is -1000 to 400 for a task with "lung"
    in its name, else -160 to 240. Other channels are z-scores over a volume's non-zero voxels, clipped to +-5. Pictures
    are mapped from 0..255 to [-1, 1].
    """

    data_name = "MSD"
    cache_version = "1"
    kept = ("modalities", "window", "is_picture")
    finds_validation = True
    is_picture = False  # as in checkpoints that do not keep it
    left_right_axis = -2  # a slice is [X, Y]
    other_files = ("dataset.json", "dataset_fingerprint.json")

    @classmethod
    def recognises(cls, data_dir):
        """Whether the folder, or one a few levels below, holds dataset.json and imagesTr/."""
        return bool(_task_folders(data_dir))

    def find_cases(self):
        self.notes = ()
        tasks = _task_folders(self.data_dir)
        if len(tasks) > 1:
            raise UserError(
                f"{self.data_dir}: holds {len(tasks)} tasks, {tasks[0].name}, {tasks[1].name}"
                f"{', ...' if len(tasks) > 2 else ''}; name one of them with --data_dir"
            )
        if not tasks:
            return []
        self.task = tasks[0]
        path = self.task / "dataset.json"
        self.description = read_description(path)
        for text in _listed_files(self.description):
            check_listed(path, text, self.data_dir)
        self.modalities = _modalities(path, self.description)
        self.image_channels = len(self.modalities)
        self.class_names = _one_class(self.description)
        self.declared_labels = tuple(sum(read_labels_of(path, self.description).values(), ()))
        self.declared_labels = tuple(value for value in self.declared_labels if value not in self._take_reserved(path))
        self.suffixes = self._suffixes(path)
        self.is_picture = self.suffixes[0] in PICTURE_SUFFIXES
        task = shown(str(self.description.get("name") or self.task.resolve().name))
        self.window = usual_window(task) if self.ct_window is None else self.ct_window
        has_window = "CT" in self.modalities and bool(self.window)
        self.left_right_axis = -1 if self.is_picture else -2
        self.background = None if self.is_picture or has_window else 0.0
        self.volumes = VolumeReader(self._normalise(), is_chosen=self.ct_window == ())
        found = self._find_volumes(path)
        cases = []
        for name, images, masks, raters in found:
            if self.is_picture:
                cases.append(Case(name, images, masks, raters=raters))
            else:
                cases += self.volumes.cases(name, images, masks, raters=raters, check_masks=self.need_masks)
        kind = "nnU-Net" if self._is_per_channel else "Medical Segmentation Decathlon"
        number = counted(len(found), "picture" if self.is_picture else "volume")
        self.layout = f"{kind}, {task}: {number} of {self._channels()}"
        self.notes = tuple(filter(None, (self._ct_note(), *self.notes)))
        return cases

    def read_image(self, case):
        if not self.is_picture:
            return self.volumes.image(case)
        parts = [read_picture(path) for path in case.images]
        if len(parts) == 1:
            if len(parts[0]) == 3 and self.image_channels == 1:
                raise UserError(
                    f"{case.images[0]}: is in colour, but dataset.json names one channel; save it in grey, or name the "
                    'channels: "channel_names": {"0": "R", "1": "G", "2": "B"}'
                )
            is_grey = len(parts[0]) == 1 and self.image_channels == 3  # among pictures in colour
            return np.repeat(parts[0], 3, axis=0) if is_grey else parts[0]
        for path, part in zip(case.images, parts, strict=True):
            if len(part) > 1:
                raise UserError(f"{path}: is in colour, but is one channel of {len(parts)}; save it in grey")
        return stacked(case.images, [part[0] for part in parts])

    def read_labels(self, case):
        if not self.is_picture:
            return self.volumes.labels(case)
        return stacked(case.masks, [read_picture_labels(path) for path in case.masks])

    def named_classes(self, word):
        return read_classes(self.task / "dataset.json") if word == "auto" else super().named_classes(word)

    def normalise(self, image):
        return super().normalise(image) if self.is_picture else image  # volumes are normalised when they are read

    def normalise_raw(self, raw):
        return super().normalise_raw(raw) if self.is_picture else normalised_channels(raw, self._normalise())

    def geometry(self, case):
        return self.volumes.geometry(case)

    def expected_layout(self):
        return "it must hold dataset.json, imagesTr/ and labelsTr/"

    def expected_mask(self, case):
        name = case.volume or case.name
        folder = "labelsTs" if case.images[0].parent.name == "imagesTs" else "labelsTr"
        return f"{self.task / folder}/{name}{self.suffixes[0] if self.is_picture else '.nii.gz'}"

    def _take_reserved(self, path):
        """The values of a label that dataset.json, `path`, calls ignore, which become `ignore_label`."""
        values = reserved_values(path, self.description)
        if values and self.ignore_label in ((), values):
            self.ignore_label, self.has_reserved = values, True
            text = "+".join(map(str, values))
            self.notes = (f"the label {text} of dataset.json means pixels without truth, which are left out",)
        return values

    def _choose_classes(self, text):
        chosen = super()._choose_classes(text)
        if self.has_reserved and set(self.ignore_label).intersection(sum(chosen.values, ())):
            self.ignore_label = ()  # the user makes a class of it
        number = len(_label_names(self.description))
        if not text and number != 1:
            labels = f"{number} labels are joined as {chosen.names[0]}; --classes auto keeps them apart"
            without = f'{self.task / "dataset.json"}: has no "labels", which say what the values in masks mean'
            self.notes = (*self.notes, labels if number else without)
        return chosen

    def _normalise(self):
        return tuple(normaliser(self.window) if kind == "CT" else zscore for kind in self.modalities)

    def _ct_note(self):
        if self.is_picture:
            return "--ct_window is for volumes in HU; pictures keep their values" if self.ct_window else ""
        if "CT" in self.modalities and self.window:
            return f"CT: {self.window[0]:g} to {self.window[1]:g} HU become -1 to 1 (--ct_window)"
        return ""

    def _channels(self):
        """ "2 channels (CT, PET)", for messages."""
        return f"{counted(self.image_channels, 'channel')} ({', '.join(self.modalities)})"

    # ---- the files ----------------------------------------------------------------------------------------------

    def _suffixes(self, path):
        """The suffixes of the image files, by "file_ending". path: dataset.json."""
        folder = self.task / "imagesTr"
        have = Counter(split_suffix(file)[1].lower() for file in folder.iterdir()) if folder.is_dir() else Counter()
        ending = self.description.get("file_ending")
        if ending is None and not any(have[suffix] for suffix in NIFTI_SUFFIXES):
            other = next((suffix for suffix, _ in have.most_common() if suffix in PICTURE_SUFFIXES), None)
            if other:
                raise UserError(
                    f'{path}: has no "file_ending", but imagesTr/ holds {other} files; add "file_ending": "{other}"'
                )
        suffix = f".{str(ending or NIFTI_SUFFIXES[1]).lower().lstrip('.')}"
        if suffix not in SUFFIXES:
            raise UserError(
                f'{path}: has "file_ending": "{shown(str(ending))}", which is not read; convert the images and labels '
                'to .nii.gz and write "file_ending": ".nii.gz"'
            )
        alike = next((group for group in (NIFTI_SUFFIXES, (".tif", ".tiff")) if suffix in group), (suffix,))
        if ".tif" in alike and have[".json"] and _have_spacings(folder, alike):
            raise UserError(
                f"{folder}: holds 3-D TIFF files with their spacing in .json files, which are not read; convert the "
                'images and labels to .nii.gz and write "file_ending": ".nii.gz" in dataset.json'
            )
        if ending is not None and have and not any(have[one] for one in alike):
            raise UserError(
                f'{path}: has "file_ending": "{shown(str(ending))}", but imagesTr/ holds '
                f"{have.most_common(1)[0][0]} files; correct it"
            )
        return (suffix, *(other for other in alike if other != suffix))

    def _find_volumes(self, path):
        """(name, image files, mask files, raters' names) of each image or volume of the split. path: dataset.json."""
        training = files_of(self.task / "imagesTr", self.suffixes)
        tests = files_of(self.task / "imagesTs", self.suffixes)
        self._is_per_channel = self._channels_have_files([*training, *tests])
        validation = self._validation_volumes(path)
        if self.split == "val":
            return validation
        if self.split == "test" and (tests or validation):
            return self._volumes_in(path, tests, "labelsTs") if tests else validation
        if isinstance(self.description.get("dataset"), dict):
            found = [self._described_volume(path, *entry) for entry in sorted(self.description["dataset"].items())]
        elif self.description.get("training") and "channel_names" not in self.description:
            found = self._listed_volumes(path, training)
        else:
            found = self._volumes_in(path, training, "labelsTr")
        number = self.description.get("numTraining")
        if isinstance(number, int) and number != len(found):
            there = f"{counted(len(found), 'training case')} {'is' if len(found) == 1 else 'are'} there"
            self.notes = (*self.notes, f'{path}: has "numTraining": {number}, but {there}')
        if self.split is None:
            found += [*validation, *self._volumes_in(path, tests, "labelsTs")]
        return found

    def _channels_have_files(self, names):
        """Whether each channel is a file NAME_0000, as in nnU-Net's layouts. names: of the image files.

        Version 2 has "channel_names". Version 1 looks like the Decathlon, but for the names of the files.
        """
        if "channel_names" in self.description or isinstance(self.description.get("dataset"), dict):
            return True
        listed = [*self.description.get("training", ()), *self.description.get("test", ())]
        listed = {Path(_image_of(entry)).name for entry in listed}
        matches = [CHANNEL.fullmatch(split_suffix(name)[0]) for name in names]
        channels = defaultdict(set)
        for match in filter(None, matches):
            channels[match[1]].add(int(match[2]))
        if listed.intersection(names) or 2 * sum(map(bool, matches)) <= len(names):
            return False
        return bool(listed) or all(found == set(range(self.image_channels)) for found in channels.values())

    def _listed_volumes(self, path, files):
        """The volumes in the list "training" of dataset.json (see `_find_volumes`). files: {name: path} of imagesTr."""
        entries = self.description["training"]
        texts = [entry.get(key) for entry in entries if isinstance(entry, dict) for key in ("image", "label")]
        known = {split_suffix(text)[0] for text in texts if isinstance(text, str)}
        truth = _Truth(self.task / "labelsTr", self.need_masks, known)
        groups = self._group_channels(path, files) if self._is_per_channel else {}
        by_stem = {split_suffix(name)[0]: file for name, file in files.items()}
        found, seen = [], set()
        for entry in entries:
            text = _image_of(entry)
            if not (text and isinstance(entry, dict)):
                message = f'"training" must list {{"image": ..., "label": ...}}, not {shown(entry)}; correct it'
                raise UserError(f"{path}: {message}")
            if Path(text).name.startswith("._"):  # macOS's shadow of a file
                continue
            image = self._below(path, text)
            name = split_suffix(image)[0]
            images = groups.get(name, ())
            if not images and (os.path.isfile(image) or name in by_stem):
                images = (image,) if os.path.isfile(image) else (by_stem[name],)  # a.nii or a.nii/FILE for a.nii.gz
            if not images:
                raise UserError(
                    f"{path}: lists {shown(text)}, but there is no such file; unpack it or correct the list"
                )
            if images[0] in seen:  # before a header is read for each of thousands of repetitions
                raise UserError(f"{path}: lists {shown(text)} twice; keep one")
            seen.add(images[0])
            label = entry.get("label") if isinstance(entry.get("label"), str) else name
            masks, raters = truth.of(image.name, split_suffix(label)[0])
            found.append((name, images, masks, raters))
        self.notes = (*self.notes, *truth.notes())
        return found

    def _validation_volumes(self, path):
        """The volumes in the list "validation" of dataset.json, as AMOS has it with imagesVa/ and labelsVa/; [] if none
        of its files is there (see `_find_volumes`)."""
        entries = [entry for entry in self.description.get("validation", ()) if isinstance(entry, dict)]
        pairs = [(self._below(path, _image_of(entry)), entry.get("label")) for entry in entries if _image_of(entry)]
        there = [os.path.isfile(image) for image, _ in pairs]
        if any(there) and not all(there):
            lacking = pairs[there.index(False)][0]
            raise UserError(f"{path}: lists {lacking} for validation, but there is no such file; correct the list")
        found = []
        for image, text in pairs if any(there) else ():
            label = self._below(path, text) if isinstance(text, str) else None
            found.append((split_suffix(image)[0], (image,), (label,) if label and os.path.isfile(label) else (), ()))
        return found

    def _described_volume(self, path, name, entry):
        """The volume of an entry in "dataset" of dataset.json (see `_find_volumes`)."""
        images = entry.get("images") if isinstance(entry, dict) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        if not (isinstance(images, list) and images and all(isinstance(text, str) for text in images)):
            raise UserError(
                f'{path}: "dataset" must hold {{NAME: {{"images": [...], "label": ...}}}}; correct {name!r}'
            )
        files = tuple(self._below(path, text) for text in images)
        masks = (self._below(path, label),) if isinstance(label, str) else ()
        for file in (*files, *(masks if self.need_masks else ())):
            if not os.path.isfile(file):
                raise UserError(f"{path}: lists {file} for {name}, but there is no such file; correct it")
        return name, files, tuple(mask for mask in masks if os.path.isfile(mask)), ()

    def _below(self, path, text):
        """The file that dataset.json, `path`, names. Raises `UserError` for one outside of data_dir."""
        check_listed(path, text, self.data_dir)
        return self.task / os.path.normpath(text)

    def _volumes_in(self, path, files, labels):
        """The volumes of image files, with masks of the same name in the folder `labels` (see `_find_volumes`)."""
        if self._is_per_channel:
            groups = self._group_channels(path, files)
        else:
            groups = {split_suffix(name)[0]: (file,) for name, file in files.items()}
        truth = _Truth(self.task / labels, self.need_masks, groups)
        found = [(name, images, *truth.of(name, name)) for name, images in groups.items()]
        self.notes = (*self.notes, *truth.notes())
        return found

    def _group_channels(self, path, files):
        """{volume: its files in the order of the channels} of nnU-Net's files NAME_0000. files: {name: path}."""
        volumes = {}
        for name, file in files.items():
            stem, suffix = split_suffix(name)
            match = CHANNEL.fullmatch(stem)
            if not match and any(CHANNEL.fullmatch(split_suffix(other)[0]) for other in files):
                continue  # left over
            if not match:
                raise UserError(f"{file}: is not called NAME_0000{suffix}, as nnU-Net's channels are; rename it")
            other = volumes.setdefault(match[1], {}).setdefault(int(match[2]), file)
            if other != file:
                raise UserError(f"{file}: is a second file of this channel beside {other.name}; keep one")
        for name, channels in volumes.items():
            is_colour = self.is_picture and self.image_channels == 3 and list(channels) == [0]
            missing = [k for k in range(self.image_channels) if k not in channels and not is_colour]
            if missing or len(channels) > self.image_channels:
                have = ", ".join(f"{k:04d}" for k in sorted(channels))
                raise UserError(f"{path}: has {self._channels()}, but {name} has the files {have}; they must agree")
        return {name: tuple(channels[k] for k in sorted(channels)) for name, channels in volumes.items()}


class _Truth:
    """The masks in a folder of labels, as `RaterFolders` finds them, or in folders that stand for files.

    known: see `RaterFolders`.
    """

    def __init__(self, folder, complete, known):
        files = files_of(folder, NIFTI_SUFFIXES)
        are_unpacked = any(file.parent != folder for file in files.values())
        self.files = {split_suffix(name)[0]: file for name, file in files.items()} if are_unpacked else {}
        self.raters = None if are_unpacked else RaterFolders(folder, complete, known)

    def of(self, image, name):
        """(mask files, raters' names) of an image. name: the masks', without suffix."""
        if self.raters is None:
            return ((self.files[name],) if name in self.files else ()), ()
        masks = self.raters.masks_of(image, [name])
        return masks, self.raters.names_of(masks)

    def notes(self):
        """A line on masks whose names nearly fit, in a list (see `near_notes`)."""
        return [] if self.raters is None else near_notes([self.raters], self.raters.folder.parent)


def _task_folders(data_dir):
    """data_dir itself if it holds dataset.json and images, else the folders below it, on the first of `LEVELS` that has
    any, which do."""
    level = [Path(data_dir)]
    for _ in range(LEVELS + 1):
        found = [folder for folder in level if _is_task(folder)]
        if found or len(level) > MANY_FOLDERS:
            return found
        below = [path for folder in level for path in sorted(folder.iterdir()) if path.is_dir()]
        level = [path for path in below if not path.name.startswith((".", "__"))]
    return []


def _have_spacings(folder, suffixes):
    """Whether an image in the folder has a file of its spacing beside it, NAME.json for NAME_0000.tif."""
    stems = {split_suffix(name)[0] for name in files_of(folder, (".json",))}
    return any(
        stems & {stem, stem[: -len("_0000")]} for stem in (split_suffix(n)[0] for n in files_of(folder, suffixes))
    )


def _is_task(folder):
    images = ("imagesTr", "imagesTs")
    return (folder / "dataset.json").is_file() and any((folder / name).is_dir() for name in images)


# ---- dataset.json ------------------------------------------------------------------------------------------------


def _modalities(path, description):
    """The names of the channels in order; a name with the word CT becomes "CT"."""
    names = description.get("modality", description.get("channel_names"))
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not (isinstance(names, dict) and names and all(LABEL.fullmatch(str(key)) for key in names)):
        raise UserError(
            f'{path}: has no "modality" such as {{"0": "MRI"}}; add it (nnU-Net\'s version 2 calls it "channel_names")'
        )
    ordered = [str(names[key]) for key in sorted(names, key=int)]
    return tuple("CT" if re.search(r"\bCT\b", name.upper()) else shown(name) for name in ordered)


def _one_class(description):
    """The class name of masks without --classes: the only label's, or "foreground" for several labels."""
    names = _label_names(description)
    return (shown(names[0]),) if len(names) == 1 else ("foreground",)


def _label_names(description):
    """The names of the labels in dataset.json, without the background."""
    labels = description.get("labels", {})
    names = [(key, value) if LABEL.fullmatch(key) else (value, key) for key, value in labels.items()]
    names = [str(name) for value, name in names if str(value) not in ("0", "[0]", "")]
    return [name for name in names if name.strip().lower() not in RESERVED]


def _listed_files(description):
    """The images and labels that the lists of dataset.json name."""
    for key in ("training", "validation", "test"):
        for entry in description.get(key) or ():
            texts = (entry.get("image"), entry.get("label")) if isinstance(entry, dict) else (entry,)
            yield from (text for text in texts if isinstance(text, str))


def _image_of(entry):
    """The image that an entry of "training" or "test" names; "" if it names none."""
    text = entry.get("image") if isinstance(entry, dict) else entry if isinstance(entry, str) else None
    return text if isinstance(text, str) else ""
