"""Any folder of images and masks paired by name, pictures or NIfTI files. Also the example for your own loader.

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
and NIfTI volumes.
"""

from ...io.files import list_files, read_csv, read_json, split_suffix
from ...io.images import read_picture, read_picture_labels, read_picture_mask, stacked
from ...io.nifti import is_nifti
from ...runtime.console import counted
from ...runtime.errors import NoSplitError, UserError
from ..cases import Case
from ..dataset import SegmentationDataset
from ..intensities import normalised_channels, normaliser, window_for
from ..splits import SPLIT_FOLDERS, split_folders, split_of
from ..truth import MASK_ENDINGS, SUFFIXES, RaterFolders
from ..volumes import VolumeReader

SPLIT_FORM = '{"train": [names], "test": [names]}, to which "val": [names] may be added'


class FolderDataset(SegmentationDataset):
    """`images/NAME.png` with `masks/NAME.png`: one foreground class, or with --classes label maps of several.

    Images are PNG, JPEG, TIFF or BMP files, grey or colour, in [-1, 1]; or NIfTI files as z-scores, or as CT with a
    `ct_window`. Each slice of a volume is a case, and the fourth axis holds its channels.
    A mask has its image's name, to which `_mask`, `_seg` or `_segmentation` may be added. With several raters the masks
    are masks/RATER/NAME.png. Sampling needs no masks/, and takes images from data_dir itself if there is no images/.
    Optional files:
    - `split.json`, {"train": [names], "val": [names], "test": [names]}: the images of each split. "val" may be left
      out, and replaces a missing "test". The alternative is sub-folders train/, val/ and test/, each with images/ and
      masks/.
    - `labels.csv` in data_dir, a line NAME,LABEL for every image: the class labels of a class-conditional model.
    """

    data_name = "FOLDER"
    class_names = ("foreground",)
    kept = ("is_nifti", "ct_window")
    finds_validation = True

    def find_cases(self):
        self.volumes = VolumeReader()
        found = self._find_images()
        if found:
            self._set_kind(found)
        labels = self._read_class_labels()
        cases = []
        for image, masks, raters in found:
            name = split_suffix(image)[0]
            label = self._label(name, labels) if labels else None
            if self.is_nifti:
                cases += self.volumes.cases(name, (image,), masks, label, raters=raters, check_masks=self.need_masks)
            else:
                cases.append(Case(name, (image,), masks, label, raters=raters))
        return cases

    def read_image(self, case):
        if self.is_nifti:
            return self.volumes.image(case)
        return read_picture(case.images[0])

    def read_mask(self, case):
        if self.is_nifti or not self.classes.is_binary:
            return super().read_mask(case)  # from label maps
        return stacked(case.masks, [read_picture_mask(path) for path in case.masks])[:, None]

    def read_labels(self, case):
        if self.is_nifti:
            return self.volumes.labels(case)
        return stacked(case.masks, [read_picture_labels(path) for path in case.masks])

    def normalise(self, image):
        return image if self.is_nifti else super().normalise(image)  # volumes are normalised when they are read

    def normalise_raw(self, raw):
        return normalised_channels(raw, normaliser(self.ct_window)) if self.is_nifti else super().normalise_raw(raw)

    def geometry(self, case):
        return self.volumes.geometry(case)

    @classmethod
    def recognises(cls, data_dir):
        """Whether the folder or a split's folder in it holds images/, or images themselves."""
        folders = [data_dir, *(path for path in sorted(data_dir.iterdir()) if split_of(path.name))]
        return any((folder / "images").is_dir() or list_files(folder, SUFFIXES) for folder in folders)

    def expected_layout(self):
        return "it must hold images/NAME.png and masks/NAME.png (or .jpg, .tif, .bmp, .nii, .nii.gz)"

    def expected_mask(self, case):
        image = case.images[0]
        return f"{split_suffix(image)[0]}{'.nii.gz' if self.is_nifti else '.png'} to masks/"

    # ---- this layout's own: splits, labels and kinds of files ------------------------------------------------------

    def _find_images(self):
        """(image, masks, raters' names) of each image of the split, in the order of their names."""
        found, path = [], self.data_dir / "split.json"
        is_listed = self.split is not None and path.is_file()
        for folder in split_folders(self.data_dir, None if is_listed else self.split):
            images = folder / "images"
            raters = RaterFolders(folder / "masks", self.need_masks)
            for image in list_files(images if images.is_dir() else folder, SUFFIXES):
                name = split_suffix(image)[0]
                masks = raters.masks_of(image.name, [name + ending for ending in MASK_ENDINGS])
                found.append((image, masks, raters.names_of(masks)))
        if not is_listed:
            return found
        chosen = self._chosen_names(path, {split_suffix(image)[0] for image, *_ in found})
        return [entry for entry in found if split_suffix(entry[0])[0] in chosen]

    def _chosen_names(self, path, names):
        """The names of the split in split.json. path: the file. names: those of all images."""
        lists = self._read_split_file(path)
        for split, chosen in lists.items():
            for name in chosen if self.split in ("train", split) else ():  # sampling works without the training images
                if name not in names:
                    raise UserError(f"{path}: names {name!r} in {split!r}, but there is no such image; correct it")
        left_out = len(names.difference(*lists.values()))
        if left_out:
            self.notes = (f"{path}: {counted(left_out, 'image')} in no list, left out",)
        if self.split == "test" and "test" not in lists and "val" in lists:
            return set(lists["val"])
        if self.split != "val" and self.split not in lists:
            raise NoSplitError(f'{path}: has no list "{self.split}"; write {SPLIT_FORM}')
        return set(lists.get(self.split, ()))

    def _read_split_file(self, path):
        """{split: names} of split.json. Raises `UserError` for a malformed list and for a name in two lists."""
        lists = read_json(path)
        if not isinstance(lists, dict):
            raise UserError(f"{path}: holds no lists of names; write {SPLIT_FORM}")
        lists = {split: lists[split] for split in SPLIT_FOLDERS if split in lists}
        seen = {}
        for split, names in lists.items():
            if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
                raise UserError(f'{path}: "{split}" is no list of names; write {SPLIT_FORM}')
            for name in names:
                if seen.setdefault(name, split) != split:
                    raise UserError(
                        f"{path}: names {name!r} in {seen[name]!r} and in {split!r}; keep it in one list: results "
                        "on training images mean nothing"
                    )
        return lists

    def _read_class_labels(self):
        """{image name: label text} of labels.csv, {} without the file; sets `label_names`, sorted."""
        path = self.data_dir / "labels.csv"
        if not path.is_file():
            return {}
        labels = {}
        for number, fields in read_csv(path):
            if len(fields) != 2:
                raise UserError(f"{path}: line {number} is not NAME,LABEL; correct it")
            if not (number == 1 and fields[0].lower() == "name"):  # the header
                labels[fields[0]] = fields[1]
        self.label_names = tuple(sorted(set(labels.values())))
        return labels

    def _label(self, name, labels):
        """The class label of an image, an index into `label_names`."""
        if name not in labels:
            raise UserError(f"{self.data_dir / 'labels.csv'}: has no line for the image {name}; add one")
        return self.label_names.index(labels[name])

    def _set_kind(self, found):
        """Set the attributes that depend on the kind of files, pictures or NIfTI, and on the first image's channels."""
        first = found[0][0]
        self.is_nifti = is_nifti(first)
        for image, masks, _ in found:
            for path in (image, *masks):
                if is_nifti(path) != self.is_nifti:
                    raise UserError(
                        f"{path}: cannot be mixed with {first.name}; keep pictures or NIfTI files, not both"
                    )
        self.layout = self._describe_layout(found)
        if self.is_nifti:
            images = [image for image, *_ in found]
            self._set_window(images)
            self.image_channels = self.volumes.channels(images)
        else:
            self.image_channels = self._picture_channels(found)
        self.left_right_axis = -2 if self.is_nifti else -1
        self.background = 0.0 if self.is_nifti and not self.ct_window else None

    def _set_window(self, images):
        """Set `ct_window`, by the images' values where --ct_window is empty, and the reader of volumes."""
        asked = vars(self).setdefault("asked_window", self.ct_window)  # each split is found in its turn
        window, notes = window_for(asked, images, self.data_dir, self.need_masks)
        self.ct_window = window or None
        self.notes = (*self.notes, *notes)
        self.volumes = VolumeReader(normaliser(window), is_chosen=asked == () or bool(notes))

    def _picture_channels(self, found):
        """The number of channels of the first picture, or in sampling of the first readable one."""
        failed = None
        for image, *_ in found:
            try:
                return read_picture(image).shape[0]
            except UserError as error:
                failed = failed or error
                if self.need_masks:
                    break
        raise failed

    def _describe_layout(self, found):
        """The text of `layout`."""
        parts = [f"folder of {counted(len(found), 'NIfTI file' if self.is_nifti else 'picture')}"]
        if (self.data_dir / "split.json").is_file():
            parts.append("divided by split.json")
        elif split_folders(self.data_dir, None) != [self.data_dir]:
            parts.append("divided into folders")
        else:
            parts.append("not divided")
        raters = max(len(masks) for _, masks, _ in found)
        return ", ".join([*parts, f"{raters} raters"] if raters > 1 else parts)
