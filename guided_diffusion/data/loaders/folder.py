"""Any folder of images and masks paired by name, as pictures or NIfTI; also the example to copy for your own loader.

The smallest loader of your own is one class in one file, used with `--data_name path/to/my_loader.py:MyDataset`:

    from guided_diffusion.data import Case, SegmentationDataset
    from guided_diffusion.files import read_picture, read_picture_mask

    class MyDataset(SegmentationDataset):
        image_channels = 3        # of every image
        class_names = ("polyp",)  # without the background

        def find_cases(self):  # a Case for each image: a name of its own, its image files, its mask files
            cases = []
            for image in sorted(self.data_dir.glob("*/photo.png")):
                truth = image.parent / "truth.png"
                cases.append(Case(image.parent.name, (image,), (truth,) if truth.is_file() else ()))
            return cases

        def read_image(self, case):  # float32 [C, H, W]
            return read_picture(case.images[0])

        def read_mask(self, case):  # bool [R, K, H, W]: R raters, K classes
            return read_picture_mask(case.masks[0])[None, None]

A case without truth has no masks: sampling needs none. Override `normalise` as well unless your images have values
from 0 to 255. The rest, resizing, batches, checks and sampling, works for every loader. `FolderDataset` below does a
little more: splits, labels and NIfTI volumes.
"""

from ...io.files import list_files, read_csv, read_json, split_suffix
from ...io.images import read_picture, read_picture_labels, read_picture_mask, stacked
from ...io.nifti import is_nifti, nifti_channels
from ...runtime.console import counted
from ...runtime.errors import NoSplitError, UserError
from ..cases import Case
from ..dataset import SegmentationDataset
from ..splits import SPLIT_FOLDERS, split_folders, split_of
from ..truth import MASK_ENDINGS, SUFFIXES, RaterFolders
from ..volumes import VolumeReader, normalised_channels, normaliser

SPLIT_FORM = '{"train": [names], "test": [names]}, to which "val": [names] may be added'


class FolderDataset(SegmentationDataset):
    """`images/NAME.png` with `masks/NAME.png`, one class of foreground, or with --classes label maps of several.

    Images are PNG, JPEG, TIFF or BMP (grey or colour, [-1, 1]), or NIfTI (z-scores, or CT as `ct_window` says; a
    volume is a case per slice, a fourth axis are its channels).
    A mask has its image's name, to which `_mask`, `_seg` or `_segmentation` may be added. Masks of several raters lie
    in a folder for each, masks/RATER/NAME.png. To sample, masks/ may be absent, and the images may lie in data_dir
    itself. Beside images/ there may be
    - `split.json`, {"train": [names], "val": [names], "test": [names]}: the images that `split` picks ("val" may be
      left out; it stands in where "test" is); or, instead, sub-folders train/, val/ and test/ that have images/ and
      masks/ each;
    - `labels.csv`, lines of NAME,LABEL for every image: the classes of a class-conditional model. It lies in
      data_dir also where there are sub-folders.
    """

    class_names = ("foreground",)
    kept = ("is_nifti", "ct_window")
    finds_validation = True

    def find_cases(self):
        self.volumes = VolumeReader(normaliser(self.ct_window))
        pairs = self._pairs()
        if pairs:
            self._inspect(pairs)
        labels = self._read_labels()
        cases = []
        for image, masks, raters in pairs:
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
        # A volume is normalised as a whole when it is read.
        return image if self.is_nifti else super().normalise(image)

    def normalise_raw(self, raw):
        return normalised_channels(raw, normaliser(self.ct_window)) if self.is_nifti else super().normalise_raw(raw)

    def geometry(self, case):
        return self.volumes.geometry(case)

    @classmethod
    def recognises(cls, data_dir):
        """Whether images/ lies there or in a folder of a split, or, to sample, images themselves."""
        folders = [data_dir, *(path for path in sorted(data_dir.iterdir()) if split_of(path.name))]
        return any((folder / "images").is_dir() or list_files(folder, SUFFIXES) for folder in folders)

    def expected_layout(self):
        return "images/NAME.png and masks/NAME.png (or .jpg, .tif, .bmp, .nii, .nii.gz) are looked for there"

    def expected_mask(self, case):
        image = case.images[0]
        return f"{split_suffix(image)[0]}{'.nii.gz' if self.is_nifti else '.png'} to masks/"

    # ---- what this layout needs, and yours may not ---------------------------------------------------------------

    def _pairs(self):
        """All (image, its masks, their raters' names) of the split, in the order of their names."""
        pairs, path = [], self.data_dir / "split.json"
        is_listed = self.split is not None and path.is_file()
        for folder in split_folders(self.data_dir, None if is_listed else self.split):
            images = folder / "images"
            raters = RaterFolders(folder / "masks", self.need_masks)
            for image in list_files(images if images.is_dir() else folder, SUFFIXES):
                name = split_suffix(image)[0]
                masks = raters.masks_of(image.name, [name + ending for ending in MASK_ENDINGS])
                pairs.append((image, masks, raters.names_of(masks)))
        if not is_listed:
            return pairs
        chosen = self._chosen_names(path, {split_suffix(image)[0] for image, *_ in pairs})
        return [pair for pair in pairs if split_suffix(pair[0])[0] in chosen]

    def _chosen_names(self, path, names):
        """The names that split.json has for the split."""
        lists = self._checked_lists(path)
        for split, chosen in lists.items():
            for name in chosen if self.split in ("train", split) else ():  # to sample, the training images may be gone
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

    def _checked_lists(self, path):
        """{split: names} as split.json has them. Raises `UserError` for a name in two lists and for what is none."""
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
                        f"{path}: names {name!r} in {seen[name]!r} and in {split!r}; keep it in one list, since images "
                        "that are trained on say nothing in a test"
                    )
        return lists

    def _read_labels(self):
        """{name: label text} from labels.csv, empty without one; sets `label_names`, sorted."""
        path = self.data_dir / "labels.csv"
        if not path.is_file():
            return {}
        labels = {}
        for number, fields in read_csv(path):
            if len(fields) != 2:
                raise UserError(f"{path}: line {number} is not NAME,LABEL; correct it")
            if not (number == 1 and fields[0].lower() == "name"):  # a heading
                labels[fields[0]] = fields[1]
        self.label_names = tuple(sorted(set(labels.values())))
        return labels

    def _label(self, name, labels):
        if name not in labels:
            raise UserError(f"{self.data_dir / 'labels.csv'}: has no line for the image {name}; add one")
        return self.label_names.index(labels[name])

    def _inspect(self, pairs):
        """Learn from the first image whether this is a folder of pictures or of NIfTI files, and the channels."""
        first = pairs[0][0]
        self.is_nifti = is_nifti(first)
        for image, masks, _ in pairs:
            for path in (image, *masks):
                if is_nifti(path) != self.is_nifti:
                    raise UserError(
                        f"{path}: cannot be mixed with {first.name}; keep pictures or NIfTI files, not both"
                    )
        self.layout = self._told_layout(pairs)
        self.image_channels = nifti_channels(first) if self.is_nifti else self._picture_channels(pairs)
        self.left_right_axis = -2 if self.is_nifti else -1
        self.background = 0.0 if self.is_nifti and not self.ct_window else None

    def _picture_channels(self, pairs):
        """The channels of the first picture or, where none is to be trained on, of the first that can be read."""
        failed = None
        for image, *_ in pairs:
            try:
                return read_picture(image).shape[0]
            except UserError as error:
                failed = failed or error
                if self.need_masks:
                    break
        raise failed

    def _told_layout(self, pairs):
        """What was found, in words."""
        told = [f"folder of {counted(len(pairs), 'NIfTI file' if self.is_nifti else 'picture')}"]
        if (self.data_dir / "split.json").is_file():
            told.append("divided by split.json")
        elif split_folders(self.data_dir, None) != [self.data_dir]:
            told.append("divided into folders")
        else:
            told.append("not divided")
        raters = max(len(masks) for _, masks, _ in pairs)
        return ", ".join([*told, f"{raters} raters"] if raters > 1 else told)
