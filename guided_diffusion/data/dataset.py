"""The contract of a data set: what a loader provides, what is checked, and what an item is."""

import os
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from ..io.files import check_encodable
from ..io.masks import read_label_array
from ..io.pictures import MaskNote, note_mask, noted_masks
from ..runtime.console import counted
from ..runtime.errors import NoCasesError, NoTruthError, UserError
from ..runtime.program import command
from .accounting import account, links_without_target, unread_kinds
from .cases import group_cases
from .classes import KEYWORDS, Classes, found_classes, own_classes, parse_classes, read_classes
from .division import find_held_out
from .left_over import ORPHAN
from .loader_checks import (
    check_attributes,
    check_geometry,
    check_methods,
    check_volume_name,
    checked_cases,
    checked_image,
    checked_labels,
    checked_mask,
    is_ours,
    own_errors,
)
from .mask_checks import check_foreground, check_palettes, check_turns, find_foreground, find_palette
from .resizing import WHOLE
from .splits import SPLIT_FOLDERS


class SegmentationDataset(Dataset):
    """Base of every loader. A subclass finds the cases and reads one; this class does the rest.

    A subclass sets `image_channels` and `class_names` (the classes without the background) and overrides
    `find_cases`, `read_image` and `read_mask`. The rest of the program calls `load_image`, `load_mask` and the other
    `load_...` methods, which check what the subclass returns and name the case in their errors.

    A subclass may also override or set:
    - `normalise`: the default takes 8-bit photographs. A loader whose `read_image` normalises overrides
      `normalise_raw` too. `Segmenter` normalises images that lie in no folder, so `normalise` may use only those
      attributes that `kept` names (plain types, which the checkpoint stores), not what `find_cases` found.
    - `read_labels` instead of `read_mask`: the files are label maps, and --classes defines the values.
    - `declared_labels`: with one class, the label values besides 0 that are foreground. Without them a label map of one
      class may hold one value besides 0.
    - `class_values`: the label value of each class in the maps that sampling writes (default 1, 2, ...). A class with
      several values is a region, and regions may overlap: ((1, 2, 4), (1, 4), (4,)).
    - `label_names`: the names of class labels, for class-conditional models.
    - `geometry`: where a volume lies in space.
    - `orientation`, for --augment: "upright" (default) for images with a top, such as photographs of people or slices
      of heads; they are mirrored left to right and rotated a little. "any" for images without one, as in dermoscopy or
      microscopy; they are mirrored both ways and rotated by up to 180 degrees.
    - `left_right_axis`, for --augment: the axis of [C, H, W] along which an upright image is mirrored. -1 (default)
      for pictures, -2 for slices [X, Y] as NIfTI files hold them.
    - `background`, for --augment: the normalised value of pixels outside the object, such as the 0 around a
      skull-stripped head. Contrast, brightness and noise leave these pixels unchanged. None (default): no such value.
    - `cache_version`: a text, such as "1", allows training to keep decoded items on disk, in `--cache_dir`. Set it if
      an item depends on nothing but the loader's file, its options, `case.images`, `case.masks` and `further_files`.
      Change it when code outside the loader's file changes what is read. "" (default): each use reads the files anew.

    data_dir: the folder that holds the data.
    image_size: items are resized to image_size x image_size pixels.
    split: "train", "test", "val" or None (all), for layouts that keep the splits below one folder. `find_cases` sees
        "val", the validation cases, only where `finds_validation` is True; else there are none.
    need_masks: True for training: items have a mask, and a case without one is an error. False for sampling: items
        have no mask, and the truth may be partly or wholly absent. Evaluation then calls `load_mask`.
    ct_window: (low, high) in HU, to which a loader of CT volumes clips them; (): z-scores; None: the loader's default.
    hold_out: a `splits.HoldOut` that divides the training cases into "train", "val" and "test". Without a share for
        testing, "test" is the part for validation, if the data has no test cases of its own, that is, if `find_cases`
        gives the same for "test" as for "train" or "val".
    classes: the value of `--classes`; "": the loader's own classes. It becomes `self.classes`, a `classes.Classes`, and
        `class_names`.
    view: a `resizing.View`, which part of a case an item shows, and how its masks shrink.
    ignore_label: the label values of pixels without truth, which are of no class (see `load_ignored`).
    keep_unreadable: whether volumes with an unreadable header have a case too, which raises its `UserError` when it is
        read; else the first of them raises it here.
    """

    data_name = ""  # how --data_name calls the loaders of this package; a subclass of one does not inherit it
    image_channels = 3
    class_names = ("foreground",)
    class_values = ()
    label_names = ()
    orientation = "upright"
    left_right_axis = -1
    background = None
    kept = ()
    declared_labels = ()  # with one class: the label values besides 0 that are foreground; (): there may be only one
    ignore_label = ()  # the label values of pixels without truth
    has_reserved = False  # whether `ignore_label` is from the data's own description, as dataset.json
    volumes = None  # the loader's `volumes.VolumeReader`, if it has one
    cache_version = ""  # see above; a subclass does not inherit it
    pictures = None  # the `picture_cache.PictureCache` that keeps the items on disk, if one does
    finds_validation = False
    takes_a_file = False  # whether data_dir may be one image's file, where no masks are needed
    layout = ""  # one line that describes what was found
    notes = ()  # lines about the data that the commands print
    other_files = ("split.json", "labels.csv")  # patterns (fnmatch, any case) of the layout's files beside its cases

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
        keep_unreadable=False,
        ignore_label=(),
    ):
        if split not in (None, *SPLIT_FOLDERS):
            raise ValueError(f"split is {split!r}, not 'train', 'val', 'test' or None")
        self.data_dir = Path(data_dir)
        self.image_size = image_size
        self.split = split
        self.need_masks, self.hold_out = need_masks, hold_out
        self.ct_window = ct_window
        self.view = view
        self.ignore_label = tuple(ignore_label)
        if not self.data_dir.exists():
            raise UserError(f"{self.data_dir}: no such folder; --data_dir must name the folder that holds the data")
        if not self.data_dir.is_dir() and (need_masks or not self.takes_a_file):
            raise UserError(f"{self.data_dir}: is a file; --data_dir must name the folder that holds the data")
        reads = ("read_image", "read_mask") if need_masks else ()  # else only what is called need be there
        check_methods(type(self), SegmentationDataset, ("find_cases", *reads))
        with own_errors(type(self), "find_cases"):
            self.cases = self.find_split(split) if hold_out is None or split is None else find_held_out(self, hold_out)
        if not self.cases and split == "val":
            raise NoCasesError(f"{self.data_dir}: has no validation cases; hold some out with --val_fraction")
        if split == "val" and need_masks and not any(case.masks for case in self.cases):
            number = len(group_cases(self.cases))
            have = "have no masks and are" if number > 1 else "has no mask and is"
            raise NoTruthError(
                f"{self.data_dir}: its {counted(number, 'validation case')} {have} not used in training (challenges "
                "publish them so); hold cases out with --val_fraction"
            )
        if not self.cases:
            raise NoCasesError(
                f"{self.data_dir}: no cases found for {self.shown_name()}; {self.expected_layout()}"
                f"{unread_kinds(self.data_dir) if is_ours(type(self)) else links_without_target(self.data_dir)}"
            )
        if self.volumes is not None:
            if not keep_unreadable:
                self.volumes.check_readable()
            self.notes = tuple(dict.fromkeys((*self.notes, *self.volumes.notes())))
        check_attributes(self)
        with own_errors(type(self), "find_cases"):
            self._check_cases()
        self.classes = self._choose_classes(classes)
        self.class_names = self.classes.names
        self._check_ignored()

    # ---- what a subclass provides ------------------------------------------------------------------------------

    @classmethod
    def recognises(cls, data_dir):
        """Whether the folder, a `Path`, has this loader's layout, so that `--data_name AUTO` takes it. Default: no."""
        return False

    def find_cases(self):
        """Return the list of `Case`s below `self.data_dir`, in a fixed order."""
        check_methods(type(self), SegmentationDataset, ("find_cases",))

    def read_image(self, case):
        """Return the case's raw image as float32 [C, H, W], in the units of the file.

        A loader that normalises whole volumes returns normalised slices, and its `normalise` changes nothing.
        """
        check_methods(type(self), SegmentationDataset, ("read_image",))

    def read_mask(self, case):
        """Return the case's truth as bool [R, K, H, W] (R raters, K classes). Called only if `case.masks` is set."""
        check_methods(type(self), SegmentationDataset, ("read_mask",))
        labels = checked_labels(self.read_labels(case), case, type(self))
        if self.ignore_label:
            labels = np.where(np.isin(labels, self.ignore_label), 0, labels)
        if self.classes.is_binary and not self.declared_labels:
            for rater, values in enumerate(labels):
                path = case.masks[min(rater, len(case.masks) - 1)]
                found = read_label_array(values, path)
                note_mask(MaskNote(path, found.foreground, counts=found.counts))
        return self.classes.masks_of(labels).swapaxes(0, 1)

    def read_labels(self, case):
        """Return the case's label maps as integers [R, H, W]. Called only if `case.masks` is set."""
        raise TypeError(f"{type(self).__name__} has no read_labels(case)")

    def named_classes(self, word):
        """Return the `Classes` that "auto", or another of `classes.KEYWORDS`, means for this data."""
        if word != "auto":
            raise UserError(f"--classes {word}: belongs to --data_name BRATS; write NAME=VALUE,...")
        if os.path.lexists(self.data_dir / "dataset.json"):
            return read_classes(self.data_dir / "dataset.json")
        cases = [case for case in self.cases if case.masks]
        bar = tqdm(cases, desc="looking for classes", dynamic_ncols=True, disable=None)
        own = own_classes(self.class_names, self.class_values, self.shown_name())
        maps = (self.load_labels(case) for case in bar)
        maps = (np.where(np.isin(one, self.ignore_label), 0, one) for one in maps) if self.ignore_label else maps
        return found_classes(maps, f"--classes auto: {self.data_dir}", own)

    def normalise(self, image):
        """Map a raw image [C, H, W] to the network's range. Default: 0..255 to [-1, 1]."""
        return image / 127.5 - 1

    def normalise_raw(self, raw):
        """Map an image [C, H, W] or volume [C, X, Y, Z], with a file's own values, to the network's range.

        Default: `normalise`, which is right where `read_image` returns the file's own values.
        """
        return self.normalise(raw)

    def preload(self):
        """Read what all cases share. Called once before workers are forked, so that they share the memory."""

    def geometry(self, case):
        """Return the `Geometry` of the case's volume, or None for a 2-D image."""
        return None

    def expected_layout(self):
        """One sentence on the expected folder layout; it ends the message about an empty folder."""
        return "its find_cases returned none; does it look for the right names below that folder?"

    def expected_mask(self, case):
        """The mask file that a case should have; it is part of the message about an image without a mask."""
        return "a mask"

    def further_files(self, case):
        """Files that belong to a case beside its `images` and `masks`, such as the second part of a mask."""
        return ()

    def explain(self, path):
        """Why a file is in no case, a `left_over.Reason`, in the words of this layout; None for the usual reasons.

        path: from data_dir, a str. See `other_files` for files that belong to the layout without being in a case.
        """
        return None

    # ---- what the program calls --------------------------------------------------------------------------------

    def load_image(self, case):
        """`read_image`, checked: float32 [C, H, W] with `image_channels` channels and finite values.

        Raises `UserError` for anything else, and see `own_errors`, as do the other `load_...` methods.
        """
        with own_errors(type(self), "read_image", case):
            return checked_image(self.read_image(case), case, self.image_channels, type(self))

    def load_normalised(self, case):
        """The case's own image, normalised, at its own size: float32 [C, H, W]."""
        return self.normalised(self.load_image(case), case)

    def normalised(self, image, case):
        """`normalise`, checked, of a case's image as `load_image` gives it: float32 [C, H, W]."""
        raw = torch.from_numpy(np.ascontiguousarray(image))
        with own_errors(type(self), "normalise", case):
            image = self.normalise(raw)
            if image is None or tuple(image.shape) != tuple(raw.shape):
                given = None if image is None else tuple(image.shape)
                raise UserError(f"{case.images[0]}: normalise made {given} of the shape {tuple(raw.shape)}; keep it")
            image = torch.as_tensor(image, dtype=torch.float32)
            if not torch.isfinite(image).all():
                raise UserError(
                    f"{case.images[0]}: normalise made values that are not finite (NaN or infinite); does it divide by "
                    "0, as by the standard deviation of a blank image?"
                )
            return image

    def load_mask(self, case, image_size=None, compare=True):
        """`read_mask`, checked: bool [R, K, H, W], of the image's size (H, W) where that is given.

        Works only for a case with `masks`, whatever `need_masks` is.
        compare: whether the value of the foreground must be that of the other masks; see `foreground`.
        """
        with noted_masks() as notes, own_errors(type(self), "read_mask", case):
            mask = checked_mask(self.read_mask(case), case, len(self.class_names), type(self))
        ignored = self.load_ignored(case)
        if ignored is not None:
            mask = mask & ~ignored[:, None]
        for note in notes:
            check_turns(case, note, mask.shape[-2:])
        if compare and len(self.class_names) == 1:
            check_foreground(notes, self.foreground)
        if not self.classes.is_binary and any(note.colours for note in notes):
            check_palettes(notes, self.palette)
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
        return mask

    @cached_property
    def foreground(self):
        """See `mask_checks.find_foreground`."""
        return find_foreground(self)

    @cached_property
    def palette(self):
        """See `mask_checks.find_palette`."""
        return find_palette(self)

    def load_ignored(self, case):
        """The pixels of each rater's mask without truth, bool [R, H, W], by `ignore_label`; None without such values.

        Works only for a case with `masks`.
        """
        return np.isin(self.load_labels(case), self.ignore_label) if self.ignore_label else None

    def load_labels(self, case):
        """`read_labels`: integers [R, H, W]. Works only if `reads_labels`, and for a case with `masks`."""
        with own_errors(type(self), "read_labels", case):
            return checked_labels(self.read_labels(case), case, type(self))

    def load_geometry(self, case):
        """`geometry`: the `Geometry` of the case's volume, or None."""
        with own_errors(type(self), "geometry", case):
            geometry = self.geometry(case)
            check_geometry(geometry, case, type(self))
            return geometry

    def load_shared(self):
        """`preload`."""
        with own_errors(type(self), "preload"):
            self.preload()

    def load_item(self, index):
        """The item of case `index`, as `__getitem__` gives it."""
        with own_errors(type(self), "__getitem__", self.cases[index]):
            return self[index]

    def __len__(self):
        return len(self.cases)

    def __getitem__(self, index):
        """Return the item of case `index`, a dict:

        image: float32 [C, S, S], normalised, as `view` shows it (larger where the view keeps sizes).
        mask: float32 [R, K, S, S] of the image's size: the share of each pixel that is marked, in [0, 1], where the
            image shrinks, else in {0, 1} (see `View.mask`); only with `need_masks`.
        known: float32 [R, 1, S, S] in {0, 1}, the pixels with truth; only with `need_masks` and `ignore_label`.
        name: str. size: (H, W) of the original. label: int, if the case has one.
        volume: str, slice_index: int; only for a slice.
        """
        case = self.cases[index]
        item = self.show(case) if self.pictures is None else self.pictures.get(self, case)
        item["name"] = case.name
        if case.label is not None:
            item["label"] = case.label
        if case.volume is not None:
            item["volume"] = case.volume
            item["slice_index"] = case.slice_index
        return item

    def show(self, case):
        """What an item shows of a case: its image, size, mask and known pixels (see `__getitem__`), read now."""
        image = self.load_normalised(case)
        size = tuple(image.shape[-2:])
        return {"image": self.view.image(image, self.image_size), "size": size} | self.show_masks(case, size)

    def show_masks(self, case, size):
        """The part of `show` that comes from the masks; {} without `need_masks`. size: (H, W) of the original image."""
        if not self.need_masks:
            return {}
        mask = torch.from_numpy(np.ascontiguousarray(self.load_mask(case, size)))
        shown = {"mask": self.view.mask(mask.float(), self.image_size)}
        if self.ignore_label:
            known = torch.from_numpy(~self.load_ignored(case)[:, None])
            shown["known"] = self.view.known(known.float(), self.image_size)
        return shown

    # ---- what a checkpoint keeps -------------------------------------------------------------------------------

    def kept_values(self):
        """What a checkpoint keeps for `without_data`: a dict of plain types."""
        values = [list(group) for group in self.classes.values]
        return {name: getattr(self, name) for name in self.kept} | {"class_values": values}

    @classmethod
    def without_data(cls, kept, class_names):
        """An instance without cases, to normalise images that lie in no folder. kept: `kept_values()`."""
        dataset = cls.__new__(cls)
        values = kept.get("class_values", ())
        own = {name: value for name, value in kept.items() if name in cls.kept}  # a stranger's may name methods
        vars(dataset).update(own, classes=Classes(tuple(class_names), tuple(map(tuple, values))))
        return dataset

    # ---- which cases and which classes -------------------------------------------------------------------------

    def find_split(self, split):
        """The cases that `find_cases` finds for a split."""
        if split == "val" and not self.finds_validation:
            return []
        asked, self.split = self.split, split
        try:
            return checked_cases(self.find_cases(), type(self))
        finally:
            self.split = asked

    def _check_cases(self):
        """Raise `UserError` for a name that occurs twice or cannot be a file name, and for a mask that training needs
        and does not find."""
        seen = {}
        for case in self.cases:
            if not case.images:
                raise UserError(f"{self.data_dir}: case {case.name!r} has no image file; give one, or leave it out")
            check_encodable(*case.images, case.name)
            if case.name in seen and seen[case.name] == case.images[0]:
                raise UserError(f"{case.images[0]}: is given twice as case {case.name!r}; give it once")
            if case.name in seen:
                raise UserError(
                    f"{case.images[0]}: its case name {case.name!r} is also that of {seen[case.name]}; "
                    "rename one or keep only one of them"
                )
            if not case.name or Path(case.name).name != case.name or case.name.startswith("."):
                raise UserError(f"{case.images[0]}: its case name {case.name!r} cannot be a file name; rename it")
            check_volume_name(case)
            if self.need_masks and not case.masks:
                message = f"{case.images[0]}: has no mask; add {self.expected_mask(case)} or remove the image"
                raise UserError(message + self._count_without_mask() + links_without_target(self.data_dir))
            seen[case.name] = case.images[0]

    def _count_without_mask(self):
        """A hint for the message about a case without a mask, if there are more of them."""
        count, lacking = len(self.cases), sum(not case.masks for case in self.cases)
        if lacking == count > 1:
            orphans = account([self]).left_over.get(ORPHAN)
            if orphans:
                named = f"{counted(len(orphans), 'mask')} {'belongs' if len(orphans) == 1 else 'belong'} to no image"
                return f" (none of {count} has one, and {named}, as {orphans[0]}: their names must agree)"
            return f" (none of {count} has one: is {self.data_dir} the folder that holds the masks too?)"
        return f" ({lacking} of {count} have none; {command('check')} names them)" if lacking > 1 else ""

    @classmethod
    def shown_name(cls):
        """The loader's name in messages: its `--data_name` if it has one, else its class's name."""
        return vars(cls).get("data_name") or cls.__name__

    def _check_ignored(self):
        """Raise `UserError` for an `ignore_label` that is a class's, or where masks are no label maps."""
        if not self.ignore_label:
            return
        flag = f"--ignore_label {','.join(map(str, self.ignore_label))}"
        if not self.reads_labels:
            raise UserError(
                f"{flag}: {self.shown_name()} has no label maps; leave it out (a loader of your own has label maps "
                "where it defines read_labels)"
            )
        for name, values in zip(self.classes.names, self.classes.values, strict=False):
            both = sorted(set(values).intersection(self.ignore_label))
            if both:
                raise UserError(f"{flag}: {both[0]} is also a value of the class {name}; name it in one of the two")

    @property
    def reads_labels(self):
        """Whether the loader has `read_labels`, so that `--classes` can define the values."""
        return type(self).read_labels is not SegmentationDataset.read_labels

    def _choose_classes(self, text):
        """The `Classes` of `--classes`, or the loader's own."""
        if not text:
            return own_classes(self.class_names, self.class_values, self.shown_name())
        if not self.reads_labels:
            raise UserError(
                f"--classes {text}: {self.shown_name()} has masks of {', '.join(self.class_names)}, no label maps; "
                "leave it out (a loader of your own has label maps where it defines read_labels)"
            )
        return self.named_classes(text) if text in KEYWORDS else parse_classes(text)
