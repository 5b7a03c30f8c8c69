"""Any folder of images and masks paired by name, pictures or volumes. Also the example for your own loader.

The smallest loader is one class in one file, used with `--data_name path/to/my_loader.py:MyDataset`:

    from guided_diffusion.data import Case, SegmentationDataset
    from guided_diffusion.io import read_picture, read_picture_mask

    class MyDataset(SegmentationDataset):
        image_channels = 3        # of every image
        class_names = ("polyp",)  # without the background

        def find_cases(self):  # a Case for each image: a unique name, its image files, its mask files
            cases = []
            for image in sorted(self.data_dir.glob("*/photo.png")):
                truth = image.parent / "truth.png"
                cases.append(Case(image.parent.name, (image,), (truth,) if truth.is_file() else ()))
            return cases

        def read_image(self, case):  # float32 [C, H, W]
            return read_picture(case.images[0])

        def read_mask(self, case):  # bool [R, K, H, W]: R raters, K classes
            return read_picture_mask(case.masks[0])[None, None]

A case without truth has no masks: sampling needs none. Override `normalise` too if your images have other values than
0 to 255. Resizing, batches, checks and sampling work for every loader. `FolderDataset` below also has splits, labels
and volumes.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from ...io.files import folders_in
from ...io.folders import check_listed
from ...io.images import read_picture, read_picture_labels, read_picture_mask, stacked
from ...io.texts import read_csv, read_json, shown
from ...io.volume_formats import data_files, is_nifti, is_volume_path
from ...runtime.console import counted, listed
from ...runtime.errors import NoCasesError, NoSplitError, UserError
from ..cases import Case
from ..dataset import SegmentationDataset
from ..intensities import first_like_ct, normalised_channels, normaliser, window_for
from ..left_over import SHOWN_FILES, Reason
from ..pairing import Pair, companions, count_data, has_reader, holds_pairs, layouts_inside, pairs_in, unwrapped
from ..splits import SPLIT_FOLDERS, split_folders, split_of
from ..truth import SUFFIXES, NearNames, stem_of
from ..volumes import FILES_ONLY, VolumeReader

SET_ASIDE = {  # folders that no case has files of
    "field of view": Reason("is a field of view", "are fields of view", is_data=False),
    "second reader": Reason("is of a second reader", "are of a second reader", is_data=False),
}
# What the first column of a table of labels is called.
COLUMN_NAMES = set("image images imageid imagename img imgname id file filename path case caseid slide patch".split())
SPLIT_FORM = '{"train": [names], "test": [names]}, to which "val": [names] may be added'


class FolderDataset(SegmentationDataset):
    """`images/NAME.png` with `masks/NAME.png`: one foreground class, or with --classes label maps of several.

    Images are PNG, JPEG, TIFF or BMP files, grey or colour, in [-1, 1]; or volumes (NIfTI, NRRD, MetaImage, DICOM) as
    z-scores, or as CT with a `ct_window`. Each slice of a volume is a case, and the fourth axis holds its channels. A
    folder of DICOM slices, images/NAME/, is one volume.
    A mask has its image's name, to which `_mask`, `_seg` or `_segmentation` may be added. With several raters the masks
    are masks/RATER/NAME.png. Sampling needs no masks/, and takes images from data_dir itself if there is no images/.
    What is near to this is read too, with a note (see `pairing`): names that differ in Unicode form or case, folders
    such as imgs/ and labels/, a folder inside one of the same name, sub-folders of patients, masks beside their images,
    NAME_mask_1.png as a part of NAME_mask.png, and DRIVE with its fields of view left out.
    For sampling data_dir may also be the file of one image.
    Optional files:
    - `split.json`, {"train": [names], "val": [names], "test": [names]}: the images of each split. "val" may be left
      out, and replaces a missing "test". The alternative is sub-folders train/, val/ and test/, each with images/ and
      masks/.
    - `labels.csv` in data_dir, a line NAME,LABEL for every image: the class labels of a class-conditional model.
    """

    data_name = "FOLDER"
    cache_version = "1"
    class_names = ("foreground",)
    kept = ("is_nifti", "ct_window")
    finds_validation = True
    takes_a_file = True
    further = {}  # {mask: files that are united with it}
    set_aside = {}  # {folder, from data_dir: why it is not read, a key of SET_ASIDE}

    def find_cases(self):
        self.volumes = VolumeReader()
        found = self._find_pairs()
        if FILES_ONLY.get():
            return [Case(pair.name, (pair.image,), pair.masks) for pair in found]
        if found:
            self._set_kind(found)
            self._check_no_masks_among(found)
        labels = self._labels_of(found)
        cases = []
        for pair in found:
            label = labels.get(pair.image)
            if self.is_nifti:
                checked = {"check_masks": self.need_masks}
                new = self.volumes.cases(pair.name, (pair.image,), pair.masks, label, raters=pair.raters, **checked)
                cases += [replace(case, group=pair.group) for case in new] if pair.group else new
            else:
                cases.append(Case(pair.name, (pair.image,), pair.masks, label, group=pair.group, raters=pair.raters))
        return cases

    def read_image(self, case):
        if self.is_nifti:
            return self.volumes.image(case)
        return read_picture(case.images[0])

    def read_mask(self, case):
        if self.is_nifti or self.ignore_label or not self.classes.is_binary:
            return super().read_mask(case)  # from label maps
        return stacked(case.masks, [self._read_united(path) for path in case.masks])[:, None]

    def read_labels(self, case):
        if self.is_nifti:
            return self.volumes.labels(case)
        self._check_not_united(case)
        return stacked(case.masks, [read_picture_labels(path) for path in case.masks])

    def normalise(self, image):
        return image if self.is_nifti else super().normalise(image)  # volumes are normalised when they are read

    def normalise_raw(self, raw):
        return normalised_channels(raw, normaliser(self.ct_window)) if self.is_nifti else super().normalise_raw(raw)

    def geometry(self, case):
        return self.volumes.geometry(case)

    def further_files(self, case):
        united = [path for mask in case.masks for path in self.further.get(mask, ())]
        return (*united, *(file for path in (*case.images, *case.masks) for file in data_files(path)))

    def explain(self, path):
        """Fields of view and second readers are known, and not needed."""
        places = [str(Path(path).parent), *map(str, Path(path).parent.parents)]
        return next((SET_ASIDE[self.set_aside[place]] for place in places if place in self.set_aside), None)

    @classmethod
    def recognises(cls, data_dir):
        """Whether the folder or a split's folder in it holds images/ or the like, or images themselves."""
        root = unwrapped(data_dir)
        parts = (unwrapped(path, is_part=True) for path in folders_in(root) if split_of(path.name))
        return any(map(holds_pairs, (root, *parts)))

    def expected_layout(self):
        return (
            "it must hold images/NAME.png and masks/NAME.png (or .jpg, .tif, .bmp, .nii, .nii.gz, .nrrd, .mha; images "
            "also as .dcm or as folders of DICOM slices)"
        )

    def expected_mask(self, case):
        image = case.images[0]
        return f"{stem_of(image)}{'.nii.gz' if self.is_nifti else '.png'} to masks/"

    def _choose_classes(self, text):
        classes = super()._choose_classes(text)
        if not classes.is_binary:
            for case in self.cases:
                self._check_not_united(case)
        return classes

    def _check_not_united(self, case):
        """Raise `UserError` for a label map of several files: a later one would hide the values of another."""
        if further := self.further_files(case):
            raise UserError(
                f"{further[0]}: is a second label map of {case.images[0].name}; label maps cannot be united: keep one"
            )

    def _read_united(self, path):
        """A mask file, with further files of the same mask: bool [H, W]."""
        paths = (path, *self.further.get(path, ()))
        return stacked(paths, [read_picture_mask(one) for one in paths]).any(axis=0)

    # ---- this layout's own: splits, labels and kinds of files ------------------------------------------------------

    def _find_pairs(self):
        """The `Pair`s of the split, in the order of their files."""
        if self.data_dir.is_file():
            return [self._single_pair()]
        self.root = unwrapped(self.data_dir)
        self.notes = () if self.root == self.data_dir else (f"{self.root}: is read, the folder inside {self.data_dir}",)
        path = self._beside_images("split.json")
        is_listed = self.split is not None and os.path.lexists(path)  # a folder of that name is refused when read
        every = self._split_folders()
        is_undivided = every == [self.root] and not is_listed
        # In undivided data images/val/ may hold the validation cases.
        parts = every if is_listed or is_undivided else split_folders(self.root, self.split)
        is_retina = any(map(has_reader, every))
        found = []
        for folder in parts:
            inner = unwrapped(folder, is_part=folder != self.root)
            if inner != folder:
                self.notes += (f"{inner}: is read, the folder inside {folder}",)
            pairs = pairs_in(inner, self.need_masks, is_retina)
            self.notes += tuple(pairs.notes)
            self._remember(pairs)
            found += pairs.pairs
        self.notes = tuple(dict.fromkeys(self.notes))  # parts may share one
        if not found and is_undivided and len(inside := layouts_inside(self.root)) > 1:
            names = listed([f"{one.name}/" for one in inside], SHOWN_FILES)
            raise NoCasesError(
                f"{self.root}: no cases found for FOLDER; {names} each hold data of their own: name one with "
                "--data_dir, or put all images into one images/ and all masks into one masks/"
            )
        if any(split_of(pair.below) for pair in found):
            return self._of_split(found, is_listed)
        if self.split == "val" and is_undivided:
            return []
        return self._listed_pairs(path, found) if is_listed else found

    def _single_pair(self):
        """The `Pair` of data_dir itself, an image's file. Raises `UserError` for a file that is none."""
        self.root = self.data_dir
        if not self.data_dir.name.lower().endswith(SUFFIXES):
            raise UserError(f"{self.data_dir}: is no image; name one that ends in {', '.join(SUFFIXES)}, or a folder")
        return Pair(self.data_dir, stem_of(self.data_dir))

    def _split_folders(self):
        """The folders of all splits, or the root alone if these hold no images.

        Raises `UserError` where images lie both in them and, most of them, beside them.
        """
        every = split_folders(self.root, None)
        if every == [self.root]:
            return every
        inside = sum(count_data(folder, 4) for folder in every)
        if not inside:
            return [self.root]
        if holds_pairs(self.root) and count_data(self.root, 5) > 2 * inside:
            names = " and ".join(f"{folder.name}/" for folder in every)
            raise UserError(
                f"{self.root}: holds images and {names}, so that their split is unclear; move the images into train/, "
                f"or {names} away"
            )
        return every

    def _beside_images(self, name):
        """The path of a file that may lie in data_dir, or in the folder of the same name inside it."""
        path = self.data_dir / name
        return path if os.path.lexists(path) else self.root / name

    def _remember(self, pairs):
        """Keep what later calls need of the `Pairs` of any split."""
        for folder, why in pairs.set_aside.items():
            self.set_aside = self.set_aside | {str(folder.relative_to(self.data_dir)): why}
        if pairs.set_aside:
            why = {name: [f"{f.name}/" for f, w in pairs.set_aside.items() if w == name] for name in SET_ASIDE}
            self.notes += tuple(f"{', '.join(f)}: not read, the {name}" for name, f in why.items() if f)
        self.further = self.further | {mask: parts for pair in pairs.pairs for mask, parts in pair.further.items()}

    def _of_split(self, found, is_listed):
        """The pairs of the split where images/ has sub-folders train, val and test."""
        if is_listed:
            raise UserError(f"{self.root}: has split.json and images/ in sub-folders of splits; keep one of them")
        splits = {split_of(pair.below) for pair in found}
        wanted = "val" if self.split == "test" and "test" not in splits and "val" in splits else self.split
        if wanted not in (*splits, None, "val"):
            raise NoSplitError(
                f"{self.root}: images/ has no sub-folder {wanted}/; name the folder to use with --data_dir"
            )
        return [pair for pair in found if wanted in (None, split_of(pair.below))]

    def _listed_pairs(self, path, found):
        """The pairs of the split in split.json, the file `path`."""
        lists = self._read_split_file(path)
        names = _names_of(found)
        seen, chosen, near = {}, {split: set() for split in lists}, []
        for split, entries in lists.items():
            for entry in entries:
                images = names.find_listed(entry)
                if len(images) > 1:
                    raise UserError(f"{path}: {shown(entry)!r} may be {images[0]} and {images[1]}; write one of them")
                if not images and self.split in ("train", split):  # sampling works without the training images
                    raise UserError(
                        f"{path}: names {shown(entry)!r} in {split!r}, but there is no such image; correct it"
                    )
                for name in images:
                    chosen[split].add(name)
                    near += [] if names.has_listed(entry) else [entry]
                    if seen.setdefault(name, split) != split:
                        self._raise_twice(path, entry, seen[name], split)
        self._note_near_entries(path, near)
        left_out = len(found) - len(set().union(*chosen.values()))
        if left_out:
            self.notes += (f"{path}: {counted(left_out, 'image')} in no list, left out",)
        split = "val" if self.split == "test" and "test" not in lists and "val" in lists else self.split
        if split != "val" and split not in lists:
            raise NoSplitError(f'{path}: has no list "{split}", or an empty one; write {SPLIT_FORM}')
        return [pair for pair in found if pair.image in chosen.get(split, ())]

    def _note_near_entries(self, path, entries):
        """Add a note on names in a file that differ from those of their images in Unicode form or case."""
        if entries:
            verb = "differs from its image" if len(entries) == 1 else "differ from their images"
            self.notes += (f"{path}: {listed(entries, SHOWN_FILES)} {verb} in Unicode form or case: taken",)

    def _raise_twice(self, path, entry, one, other):
        raise UserError(
            f"{path}: names {shown(entry)!r} in {one!r} and in {other!r}; keep it in one list: results on training "
            "images mean nothing"
        )

    def _read_split_file(self, path):
        """{split: names} of split.json, whose lists may be called as folders may ("valid", "Training").

        Raises `UserError` for a malformed list, for two lists of a split, and for a name in two lists.
        """
        lists = read_json(path, finite=False)
        if not isinstance(lists, dict):
            raise UserError(f"{path}: holds no lists of names; write {SPLIT_FORM}")
        splits, keys = {key: split_of(key) for key in lists}, {}
        for key, split in splits.items():
            if split and lists[key] != [] and keys.setdefault(split, key) != key:  # an empty list is none
                raise UserError(f"{path}: has the lists {keys[split]!r} and {key!r}, both of one split; keep one")
        if not any(splits.values()):
            raise UserError(f'{path}: has no list "train", "val" or "test"; write {SPLIT_FORM}')
        others = [repr(key) for key, split in splits.items() if split is None and isinstance(lists[key], list)]
        if others:
            verb = "is no split's" if len(others) == 1 else "are no splits'"
            self.notes += (f"{path}: the list {listed(others, SHOWN_FILES)} {verb}: not read",)
        lists = {split: lists[keys[split]] for split in SPLIT_FOLDERS if split in keys}
        seen = {}
        for split, names in lists.items():
            if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise UserError(f'{path}: "{keys[split]}" is no list of names; write {SPLIT_FORM}')
            for name in names:
                check_listed(path, name, self.data_dir)
                if seen.setdefault(name, split) != split:
                    self._raise_twice(path, name, seen[name], split)
        return lists

    def _read_class_labels(self):
        """{name: label} of labels.csv as written there, {} without the file; sets `label_names`, sorted."""
        path = self._beside_images("labels.csv")
        if not os.path.lexists(path):
            return {}
        lines = []
        for number, fields in read_csv(path):
            if len(fields) != 2:
                raise UserError(f"{path}: line {number} is not NAME,LABEL; correct it")
            check_listed(path, fields[0], self.data_dir)
            lines.append((number, *fields))
        if lines and _is_header(*lines[0][1:], [label for *_, label in lines]):
            del lines[0]
        labels = {}
        for number, name, label in lines:
            if labels.setdefault(name, label) != label:
                raise UserError(
                    f"{path}: line {number} gives {name} the label {label!r}, an earlier line {labels[name]!r}"
                )
        self.label_names = tuple(sorted(set(labels.values())))
        return labels

    def _labels_of(self, found):
        """{image: its class label, an index into `label_names`} by labels.csv, {} without the file."""
        labels, names, entries = self._read_class_labels(), _names_of(found), {}
        if not labels:
            return {}
        path = self._beside_images("labels.csv")
        own = {pair.name for pair in found}
        for name in labels:
            images = names.find_listed(name)
            if len(images) > 1:
                raise UserError(f"{path}: {name!r} may be {images[0]} and {images[1]}; write one of them")
            for image in images:
                is_near = not names.has_listed(name)
                fit = (not _is_in_folders_of(name, image.relative_to(self.data_dir)), is_near, name not in own)
                entries.setdefault(image, []).append((fit, name))
        chosen = {}
        for image, some in entries.items():
            best = min(some)
            others = [name for fit, name in some if fit[:2] == best[0][:2] and labels[name] != labels[best[1]]]
            if others:
                raise UserError(f"{path}: {best[1]!r} and {others[0]!r} give one image two labels; keep one line")
            chosen[image] = best
        self._note_near_entries(path, [name for fit, name in chosen.values() if fit[1]])
        for pair in found:
            if pair.image not in chosen:
                raise UserError(f"{path}: has no line for the image {pair.name}; add one")
        return {image: self.label_names.index(labels[name]) for image, (_, name) in chosen.items()}

    def _set_kind(self, found):
        """Set the attributes that depend on the files, pictures or volumes, and on the first image's channels."""
        first = found[0].image
        self.is_nifti = is_volume_path(first)  # its name in checkpoints
        for pair in found:
            for path in (pair.image, *pair.masks):
                if is_volume_path(path) != self.is_nifti:
                    raise UserError(f"{path}: cannot be mixed with {first.name}; keep pictures or volumes, not both")
        self.layout = self._describe_layout(found)
        if self.is_nifti:
            images = [pair.image for pair in found]
            self._set_window(images)
            self.image_channels = self.volumes.channels(images)
        else:
            self.image_channels = self._picture_channels(found)
        self.left_right_axis = -2 if self.is_nifti else -1
        self.background = 0.0 if self.is_nifti and not self.ct_window else None

    def _check_no_masks_among(self, found):
        """Raise `UserError` where images are masks of others, by their names and their values, as NAME_1stHO.png."""
        for ending, files in companions(found).items() if not self.is_nifti else ():
            if all(map(_marks_something, list(files.values())[:SHOWN_FILES])):
                image, mask = next(iter(files.items()))
                raise UserError(
                    f"{mask}: is a mask of {image.name} by its name and its values, and is read as an image; rename "
                    f"*{ending} to *_mask, or move these {len(files)} files to masks/ as NAME (several raters: "
                    "masks/RATER/NAME)"
                )

    def _set_window(self, images):
        """Set `ct_window`, by the images' values where --ct_window is empty, and the reader of volumes.

        Without a window it becomes () for CT, None for other volumes."""
        asked = vars(self).setdefault("asked_window", self.ct_window)  # each split is found in its turn
        window, notes = window_for(asked, images, self.data_dir, self.need_masks)
        self.ct_window = window or (() if asked == () and first_like_ct(images) else None)
        self.notes = (*self.notes, *notes)
        self.volumes = VolumeReader(normaliser(window), is_chosen=asked == () or bool(notes))

    def _picture_channels(self, found):
        """The number of channels of the first picture, or in sampling of the first readable one."""
        failed = None
        for pair in found:
            try:
                return read_picture(pair.image).shape[0]
            except UserError as error:
                failed = failed or error
                if self.need_masks:
                    break
        raise failed

    def _describe_layout(self, found):
        """The text of `layout`."""
        kind = "picture" if not self.is_nifti else "NIfTI file" if is_nifti(found[0].image) else "volume"
        if self.root == found[0].image:
            return f"one {kind}"
        parts = [f"folder of {counted(len(found), kind)}"]
        if os.path.lexists(self._beside_images("split.json")):
            parts.append("divided by split.json")
        elif split_folders(self.root, None) != [self.root] or any(split_of(pair.below) for pair in found):
            parts.append("divided into folders")
        else:
            parts.append("not divided")
        raters = max(len(pair.masks) for pair in found)
        return ", ".join([*parts, f"{raters} raters"] if raters > 1 else parts)


def _marks_something(path):
    """Whether a picture is a mask of one class that marks some of its pixels."""
    try:
        mask = read_picture_mask(path)
    except UserError:
        return False
    return bool(mask.any() and not mask.all())


def _is_header(name, label, labels):
    """Whether the first line of labels.csv names its columns. labels: of all lines."""
    word = re.sub(r"[^a-z]", "", name.lower())
    return name.lower() == "name" or (word in COLUMN_NAMES and labels.count(label) == 1)


def _is_in_folders_of(text, image):
    """Whether the folders in a name that a person wrote, if any, are those of an image."""
    folders = text.replace("\\", "/").lower().removeprefix("./").split("/")[:-1]
    return set(folders) <= {part.lower() for part in image.parts[:-1]}


def _names_of(pairs):
    """`NearNames` of images: by their cases' names, and by their files' with and without a sub-folder."""
    names = []
    for pair in pairs:
        stem = stem_of(pair.image)
        names += [(name, pair.image) for name in {pair.name, stem, f"{pair.below}/{stem}"}]
    return NearNames(names)
