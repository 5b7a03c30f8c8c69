"""The data contract: what a loader gives and what an item is; and the data set that a name and a folder stand for."""

import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from ..io.files import check_encodable, split_suffix
from ..io.images import PICTURE_SUFFIXES, read_picture
from ..runtime.errors import NoCasesError, NoSplitError, UserError, in_one_line, innermost_place
from .classes import WORDS, Classes, described_classes, found_classes, own_classes, parse_classes
from .resizing import WHOLE
from .splits import SPLIT_FOLDERS

# ---- Whether the cases that a loader found can be told apart, written, and trained on, and their masks are masks ----


# Grey values well between background and foreground: beyond are a mask's own and the noise that JPEG adds to them. A
# photograph has nearly all of its pixels there (a head on black a third), a mask those at its smoothed edges, and one
# in grey instead of white has a value or two.
BETWEEN = (32, 223)


PHOTOGRAPH_PIXELS = 1 / 4


PHOTOGRAPH_VALUES = 32


def check_cases(dataset):
    """Raise `UserError` for a case of a `data.SegmentationDataset` whose name is another's or no file name, or, where
    masks are needed, which has none."""
    seen = {}
    for case in dataset.cases:
        check_encodable(*case.images, case.name)
        if case.name in seen:
            raise UserError(
                f"{case.images[0]}: its case name {case.name!r} is also that of {seen[case.name]}; "
                "rename one or keep only one of them"
            )
        if not case.name or Path(case.name).name != case.name or case.name.startswith("."):
            raise UserError(f"{case.images[0]}: its case name {case.name!r} cannot be a file name; rename it")
        if dataset.need_masks and not case.masks:
            told = f"{case.images[0]}: has no mask; add {dataset.expected_mask(case)} or remove the image"
            raise UserError(told + _others_lacking(dataset))
        seen[case.name] = case.images[0]


def _others_lacking(dataset):
    """What is to be added where more than one case has no mask."""
    count, lacking = len(dataset.cases), sum(not case.masks for case in dataset.cases)
    if lacking == count > 1:
        return f" (none of {count} has one: is {dataset.data_dir} the folder that holds the masks too?)"
    return f" ({lacking} of {count} have none; python scripts/check_data.py names them)" if lacking > 1 else ""


def mask_pictures(case):
    """The masks of a case that are picture files of their own, as `files.read_picture` gives them.

    One that cannot be read so is left out: a loader of the user's own may read its files otherwise.
    """
    pictures = []
    for path in case.masks:
        if split_suffix(path)[1].lower() in PICTURE_SUFFIXES and path not in case.images:
            with suppress(UserError):
                pictures.append(read_picture(path))
    return pictures


def like_photograph(picture):
    """Whether a picture [C, H, W] of 0 to 255 has the many grey values of a photograph rather than those of a mask."""
    grey = picture.mean(axis=0).round()
    between = grey[(grey > BETWEEN[0]) & (grey < BETWEEN[1])]
    return between.size >= PHOTOGRAPH_PIXELS * grey.size and len(np.unique(between)) >= PHOTOGRAPH_VALUES


# ---- What the framework calls on a loader instead of its methods: the results are checked, and what a loader of the -


REMEDY = "; python scripts/check_data.py tries every case"


@contextmanager
def own_errors(loader, method, case=None):
    """Turn what a loader of the user's own raises into a `UserError` that says where: the case or method, file, line.

    loader: the class; method: the name of what is called. `UserError`, what the system says (no permission, a failing
    disk) and whatever the program's own methods raise pass as they are: the former say it themselves, the last are bugs
    of ours.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # it may be anything
        if isinstance(error, OSError) and error.errno is not None:  # without: a decoder's, such as Pillow's
            raise
        own = [cls for cls in loader.__mro__ if issubclass(cls, CheckedLoading) and not _is_ours(cls)]
        place = innermost_place(error, {cls.__module__ for cls in own})
        if place is not None:
            told = "{}, line {}, {}".format(*place)
        else:  # what it gave could not be used
            definer = next(cls for cls in loader.__mro__ if method in vars(cls))
            if _is_ours(definer):
                raise
            told = f"{getattr(sys.modules.get(definer.__module__), '__file__', definer.__name__)}, {method}"
        told += f": {in_one_line(error)}"
        raise UserError(f"{method}: {told}" if case is None else f"case {case.name}: {told}{REMEDY}") from error


def _is_ours(cls):
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


class CheckedLoading:
    """The doors to a `data.SegmentationDataset`: each method `load_X` gives what its `read_X`, or the like, gives.

    All raise `UserError` for what is wrong with that, and see `own_errors`.
    """

    def load_item(self, index):
        """The item of case `index`."""
        with own_errors(type(self), "__getitem__", self.cases[index]):
            return self[index]

    def load_normalised(self, case):
        """The case's own image, normalised, at its own size: float32 [C, H, W]."""
        raw = torch.from_numpy(np.ascontiguousarray(self.load_image(case)))
        with own_errors(type(self), "normalise", case):
            return torch.as_tensor(self.normalise(raw), dtype=torch.float32)

    def load_image(self, case):
        """`read_image`, checked: float32 [C, H, W] with a case's `case_channels` and finite values."""
        with own_errors(type(self), "read_image", case):
            image = np.asarray(self.read_image(case), dtype=np.float32)
        if image.ndim != 3:
            raise UserError(f"{case.images[0]}: the loader gave an image of shape {image.shape}, not [C, H, W]")
        if image.shape[0] != self.case_channels:
            raise UserError(
                f"{case.images[0]}: has {image.shape[0]} channels, the data set has {self.case_channels}; "
                "convert it or leave it out"
            )
        if not np.isfinite(image).all():
            raise UserError(f"{case.images[0]}: holds values that are not finite; repair it or leave it out")
        return image

    def load_mask(self, case, image_size=None):
        """`read_mask`, checked: bool [R, K, H, W], of the image's size (H, W) when that is given.

        Only for a case whose `masks` are set, whatever `need_masks` is.
        """
        with own_errors(type(self), "read_mask", case):
            mask = np.asarray(self.read_mask(case))
        if mask.ndim != 4 or mask.shape[1] != len(self.class_names):
            raise UserError(
                f"{case.masks[0]}: the loader gave a mask of shape {mask.shape}, "
                f"not [raters, {len(self.class_names)}, H, W]"
            )
        if case.raters and len(set(case.raters)) != len(mask):
            names = ", ".join(case.raters)
            raise UserError(f"{case.masks[0]}: the loader gave {len(mask)} masks; the case names the raters {names}")
        if self.classes.is_exclusive and mask.shape[1] > 1 and (mask.sum(axis=1) > 1).any():
            raise UserError(
                f"{case.masks[0]}: the loader marked a pixel as two of {', '.join(self.class_names)}; where classes "
                "overlap, class_values must have a label value that both share"
            )
        if image_size is not None and tuple(mask.shape[-2:]) != tuple(image_size):
            raise UserError(
                f"{case.masks[0]}: the mask has {mask.shape[-2]}x{mask.shape[-1]} pixels, its image "
                f"{case.images[0].name} has {image_size[0]}x{image_size[1]}; they must agree"
            )
        return mask.astype(bool)

    def load_labels(self, case):
        """`read_labels`: integers [R, H, W]; only of loaders that have it, and of a case whose `masks` are set."""
        with own_errors(type(self), "read_labels", case):
            return np.asarray(self.read_labels(case))

    def load_geometry(self, case):
        """`geometry`: the `data.Geometry` of the case's volume, or None."""
        with own_errors(type(self), "geometry", case):
            return self.geometry(case)

    def load_shared(self):
        """`preload`."""
        with own_errors(type(self), "preload"):
            self.preload()


class SegmentationDataset(CheckedLoading, Dataset):
    """Base of every loader. A subclass says where the cases are and how one is read; the rest is done here.

    The framework calls what a subclass overrides through the methods of `CheckedLoading` alone.

    A subclass sets `image_channels` and `class_names` (the classes without the background) and overrides
    `find_cases`, `read_image` and `read_mask`. It may override `normalise` (default: photographs) and `geometry`.
    A loader of label maps overrides `read_labels` instead of `read_mask`; --classes then says what they are read as.
    With several classes of its own it may set `class_values`, the label value of each in the maps that sampling writes
    (default: 1, 2, ...), or several values of each where classes are regions that overlap: ((1, 2, 4), (1, 4), (4,)).
    With class labels it also sets `label_names`. For --augment it may set
    - `orientation`: "upright" (default) where an image has a top, as a photograph of a person or a slice of a head
      has: augmentation mirrors left and right and rotates a little; "any" where none is more likely than another, as
      in dermoscopy or microscopy: it mirrors both ways and rotates by up to 180 degrees;
    - `left_right_axis`: the axis of [C, H, W] along which an upright image is mirrored: -1 (default) of pictures, -2
      of slices [X, Y] as NIfTI files hold them;
    - `background`: the value, after normalising, of what is not part of the image, such as the 0 around a head in
      skull-stripped MRI: contrast, brightness and noise leave it as it is. None (default): there is no such value.

    `Segmenter` normalises images that lie in no folder: `normalise` must do without what `find_cases` has found, but
    for the attributes (plain types) that `kept` names, which a checkpoint keeps. A loader whose `read_image` normalises
    overrides `normalise_raw` too.

    data_dir: the folder that holds the data.
    image_size: items are resized to image_size x image_size pixels.
    split: "train", "test" or None (all there is), for layouts that keep both below one folder. "val", the cases that
        watch over training, reaches `find_cases` only where `finds_validation` says that the layout knows it (no
        cases: it has none).
    need_masks: True for training: items carry a mask, and a case without one is an error. With False (sampling) no
        item carries a mask, so truth may be there, partly there or absent; evaluation asks `load_mask` for it.
    ct_window: (low, high) in HU that CT volumes are cut to, for loaders that heed it; None: as the loader thinks fit.
    hold_out: a `split.HoldOut` that divides the training cases into those of "train" and of "val". "test" is the
        latter too where the data has no test cases of its own, that is, where "test" finds those of "train".
    classes: what `--classes` says; "": the loader's own. Sets `self.classes`, a `classes.Classes`, and `class_names`.
    view: what an item shows of a case, a `views.View`. With neighbours `image_channels` becomes that of so many slices;
        `read_image` and `load_image` give a case's own.
    """

    image_channels = 3
    class_names = ("foreground",)
    class_values = ()
    label_names = ()
    orientation = "upright"
    left_right_axis = -1
    background = None
    kept = ()
    volumes = None  # the `volumes.VolumeReader` of a loader that reads volumes by one
    finds_validation = False
    layout = ""  # what was found there, in words
    notes = ()  # lines that the scripts say about the data

    def __init__(
        self,
        data_dir,
        image_size,
        *,
        split=None,
        need_masks=False,
        hold_out=None,
        ct_window=None,
        classes="",
        view=WHOLE,
    ):
        if split not in (None, *SPLIT_FOLDERS):
            raise ValueError(f"split is {split!r}, not 'train', 'val', 'test' or None")
        self.data_dir = Path(data_dir)
        self.image_size = image_size
        self.split = split
        self.need_masks, self.hold_out = need_masks, hold_out
        self.ct_window = ct_window
        self.view = view
        if not self.data_dir.exists():
            raise UserError(f"{self.data_dir}: no such folder; --data_dir must name the folder that holds the data")
        if not self.data_dir.is_dir():
            raise UserError(f"{self.data_dir}: is a file; --data_dir must name the folder that holds the data")
        with own_errors(type(self), "find_cases"):
            self.cases = self._find_split(split) if hold_out is None or split is None else self._find_divided(hold_out)
        if not self.cases and split == "val":
            raise NoCasesError(f"{self.data_dir}: has no validation cases; hold some out with --val_fraction")
        if not self.cases:
            raise NoCasesError(f"{self.data_dir}: no cases found for {type(self).__name__}; {self.expected_layout()}")
        with own_errors(type(self), "find_cases"):
            check_cases(self)
        self.classes = self._settled_classes(classes)
        self.class_names = self.classes.names
        self.case_channels, self.image_channels = self.image_channels, self.image_channels * view.slices
        self._slices = view.slices_of(self.cases)

    # ---- what a subclass provides ------------------------------------------------------------------------------

    @classmethod
    def recognises(cls, data_dir):
        """Whether the folder, a `Path`, is in this loader's layout, so that `--data_name AUTO` takes it; by default
        never."""
        return False

    def find_cases(self):
        """Return the list of `Case`s below `self.data_dir`, in a fixed order."""
        raise TypeError(f"{type(self).__name__} must define find_cases()")

    def read_image(self, case):
        """Return the case's raw image as float32 [C, H, W], in the units of the file.

        A loader that normalises whole volumes returns its slices normalised and lets `normalise` change nothing.
        """
        raise TypeError(f"{type(self).__name__} must define read_image(case)")

    def read_mask(self, case):
        """Return the case's truth as bool [R, K, H, W] (R raters, K classes). Called only if `case.masks` is set."""
        if not self.reads_labels:
            raise TypeError(f"{type(self).__name__} must define read_mask(case)")
        return self.classes.masks_of(self.read_labels(case)).swapaxes(0, 1)

    def read_labels(self, case):
        """Return the case's label maps as integers [R, H, W], where the data has such. Called as `read_mask` is."""
        raise TypeError(f"{type(self).__name__} has no read_labels(case)")

    def named_classes(self, word):
        """The `Classes` that `--classes auto`, or another of `classes.WORDS`, stands for in this data."""
        if word != "auto":
            raise UserError(f"--classes {word}: belongs to --data_name BRATS; write NAME=VALUE,...")
        if (self.data_dir / "dataset.json").is_file():
            return described_classes(self.data_dir / "dataset.json")
        cases = [case for case in self.cases if case.masks]
        bar = tqdm(cases, desc="looking for classes", dynamic_ncols=True, disable=None)
        return found_classes((self.load_labels(case) for case in bar), f"--classes auto: {self.data_dir}")

    def normalise(self, image):
        """Map a raw image [C, H, W] to the network's range; by default 8-bit values to [-1, 1]."""
        return image / 127.5 - 1

    def normalise_raw(self, raw):
        """Map an image from elsewhere to the network's range: [C, H, W], or a volume [C, X, Y, Z], as a file has it.

        By default what `normalise` does, for loaders whose `read_image` gives what the file has.
        """
        return self.normalise(raw)

    def preload(self):
        """Read what all cases share. Called once before workers are forked, which then have it without a copy."""

    def geometry(self, case):
        """Return the `Geometry` of the case's volume, or None for a 2-D image."""
        return None

    def expected_layout(self):
        """One sentence on the folder layout that is looked for; it ends the message about an empty folder."""
        return "see its documentation for the layout"

    def expected_mask(self, case):
        """The mask file that would belong to a case; it ends the message about an image without one."""
        return "a mask"

    # ---- what the framework does with it -----------------------------------------------------------------------

    def kept_values(self):
        """What a checkpoint keeps of the data set for `without_data`: plain types."""
        values = [list(group) for group in self.classes.values]
        return {name: getattr(self, name) for name in self.kept} | {"class_values": values}

    @classmethod
    def without_data(cls, kept, class_names):
        """An instance without cases, to normalise images that lie in no folder. kept: `kept_values()`."""
        dataset = cls.__new__(cls)
        values = kept.get("class_values", ())
        vars(dataset).update(kept, classes=Classes(tuple(class_names), tuple(map(tuple, values))))
        return dataset

    def _find_split(self, split):
        """What `find_cases` finds for a split."""
        if split == "val" and not self.finds_validation:
            return []
        asked, self.split = self.split, split
        try:
            return list(self.find_cases())
        finally:
            self.split = asked

    def _find_divided(self, hold_out):
        """The cases of `self.split` where training cases are held out."""
        if self._find_split("val"):
            raise UserError(f"{self.data_dir}: has validation cases of its own; leave out --val_fraction")
        if self.split == "test":
            try:
                tests = self._find_split("test")
            except NoSplitError:  # it has training cases alone
                tests = []
        training = self._find_split("train")
        if self.split == "test" and tests and tests != training:  # an empty part holds no test cases either
            return tests
        if not training:
            return []
        kept, held = hold_out.divide(training)
        self.notes = (
            *self.notes,
            f"--val_fraction {hold_out.fraction:g}: {len(held)} of {len(training)} cases are held out of training",
        )
        return kept if self.split == "train" else held

    @property
    def reads_labels(self):
        """Whether the loader has `read_labels`, so that `--classes` can say what the values are."""
        return type(self).read_labels is not SegmentationDataset.read_labels

    def _settled_classes(self, text):
        """The `Classes` that `--classes` says, or the loader's own."""
        if not text:
            return own_classes(self.class_names, self.class_values, type(self).__name__)
        if not self.reads_labels:
            raise UserError(
                f"--classes {text}: {type(self).__name__} has masks of {', '.join(self.class_names)}, no label maps; "
                "leave it out (a loader of your own has label maps where it defines read_labels)"
            )
        return self.named_classes(text) if text in WORDS else parse_classes(text)

    def __len__(self):
        return len(self.cases)

    def __getitem__(self, index):
        """Return the item of case `index` (design contract).

        image: float32 [C, S, S], normalised, of `view` (larger if that keeps sizes). mask: float32 [R, K, S, S] in
        {0, 1}, of the image's size, only if `need_masks`.
        name: str. size: (H, W) of the original. label: int, where the case has one.
        volume, slice_index: of a slice.
        """
        case = self.cases[index]
        images = [self.load_normalised(near) for near in self.view.around(case, self._slices)]
        size = tuple(images[0].shape[-2:])
        image = torch.cat([self.view.image(image, self.image_size) for image in images])
        item = {"image": image, "name": case.name, "size": size}
        if self.need_masks:
            mask = torch.from_numpy(np.ascontiguousarray(self.load_mask(case, size)))
            item["mask"] = self.view.mask(mask.float(), self.image_size)
        if case.label is not None:
            item["label"] = case.label
        if case.volume is not None:
            item["volume"] = case.volume
            item["slice_index"] = case.slice_index
        return item
