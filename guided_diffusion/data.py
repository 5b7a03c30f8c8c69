"""The data contract: what a loader gives and what an item is; and the data set that a name and a folder stand for."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from .case_checks import check_cases
from .checked_loading import CheckedLoading, own_errors
from .classes import WORDS, Classes, described_classes, found_classes, own_classes, parse_classes
from .io.nifti import STILL, reoriented_back
from .registry import AUTO, named_object, registered_loaders
from .runtime.errors import NoCasesError, NoSplitError, UserError
from .split import SPLIT_FOLDERS
from .views import WHOLE

RECOGNISED = ("MSD", "ISIC", "LIDC", "BRATS", "FOLDER")  # in this order: a FOLDER of NIfTI files is the last guess


@dataclass(frozen=True)
class Case:
    """One image to segment: its name, the files it is read from and, for a slice, its place in a volume.

    name: unique in the data set and safe as a file name.
    images: the image's files (one photograph, or one file per MRI modality).
    masks: one file per rater; empty when there is no truth.
    raters: a name for each mask, by which a rater is known in all cases; () where he is by the mask's position.
    label: the class for class-conditional models, or None.
    volume, slice_index: the volume's name and the index along its last axis, or None for a 2-D image.
    group: what must stay on one side of a split, such as the patient, or None.
    """

    name: str
    images: tuple[Path, ...]
    masks: tuple[Path, ...] = ()
    label: int | None = None
    volume: str | None = None
    slice_index: int | None = None
    group: str | None = None
    raters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Geometry:
    """Where a volume lies in space: `affine` [4, 4] (NIfTI, mm), `spacing` (mm per axis) and `shape` [X, Y, Z].

    If the volume is turned against its file (see `orientation`), `file_affine` is the file's own and `turn` leads from
    there to here. has_codes: False where the file has lost its affine and tells the size of its voxels alone.
    """

    affine: np.ndarray
    spacing: tuple[float, ...]
    shape: tuple[int, ...]
    file_affine: np.ndarray | None = None
    turn: np.ndarray | None = None
    has_codes: bool = True

    @property
    def in_file(self):
        """(the file's affine, the turn from there to here, an array [3, 2])."""
        return (self.affine, STILL) if self.turn is None else (self.file_affine, self.turn)

    def as_in_file(self, array):
        """(an array [X, Y, Z] of this volume as its file would hold it, the file's affine)."""
        return (array, self.affine) if self.turn is None else (reoriented_back(array, self.turn), self.file_affine)


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


def build_dataset(data_name, data_dir, image_size, *, split=None, need_masks=False, **settings):
    """Return the data set `data_name` over `data_dir`.

    data_name: a name in `registry.LOADERS` (any case), one that an installed package registers,
    `path/to/file.py:ClassName` of a loader of your own, or AUTO.
    split, need_masks, settings (view, and hold_out, ct_window, classes: those of `split.loading_of`): see
    `SegmentationDataset`.
    Raises `UserError` for an unknown name, a file that does not load, and whatever the loader finds wrong.
    """
    loader = find_loader(recognised(data_name, data_dir))
    with own_errors(loader, "__init__"):
        return loader(data_dir, image_size, split=split, need_masks=need_masks, **settings)


def recognised(data_name, data_dir):
    """The data name itself, or for AUTO that of the first loader which recognises the folder.

    Raises `UserError` where none does.
    """
    if data_name.upper() != AUTO:
        return data_name
    if not Path(data_dir).is_dir():
        raise UserError(f"{data_dir}: no such folder; --data_dir must name the folder that holds the data")
    for name in [*RECOGNISED, *registered_loaders()]:
        loader = find_loader(name)
        with own_errors(loader, "recognises"):
            if loader.recognises(Path(data_dir)):
                return name
    raise UserError(f"{data_dir}: is in none of the layouts {', '.join(RECOGNISED)}; name a loader with --data_name")


def find_loader(data_name):
    """Return the `SegmentationDataset` subclass that `data_name` stands for (see `build_dataset`)."""
    path, class_name, loader = named_object(data_name)
    if not (isinstance(loader, type) and issubclass(loader, SegmentationDataset)):
        raise UserError(f"--data_name {data_name}: {path} has no class {class_name} that extends SegmentationDataset")
    return loader
