"""The truth of a case: the masks of its raters, their majority, and the folders that hold them."""

import os
import re
import unicodedata
from collections import defaultdict

import numpy as np

from ..io.files import folders_in, list_files, split_suffix
from ..io.images import PICTURE_SUFFIXES
from ..io.volume_formats import VOLUME_SUFFIXES, is_volume_path
from ..runtime.console import listed
from ..runtime.errors import UserError
from .left_over import SHOWN_FILES

SUFFIXES = PICTURE_SUFFIXES + VOLUME_SUFFIXES
# What a mask's name may add to its image's; 3D Slicer writes NAME.seg.nrrd.
MASK_ENDINGS = ("", "_mask", "_seg", "_segmentation", "_Segmentation", ".seg")


# ---- names that stand for one another ----------------------------------------------------------------------------


INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))  # characters without width


def in_one_form(name):
    """The name with composed letters, plain blanks and no invisible characters.

    macOS writes "ü" as "u" and two dots (NFD), most other systems as one (NFC); text from the web has other blanks.
    """
    return unicodedata.normalize("NFKC", name.translate(INVISIBLE))


def near_key(name):
    """A key in which names agree that differ in their Unicode form or in case."""
    return in_one_form(in_one_form(name).casefold())


class NearNames:
    """Finds a name among others: itself, else the one that differs in Unicode form alone, else in case too.

    names: {name: what it stands for}, or (name, what it stands for) pairs, where a name may stand for several things.
    """

    def __init__(self, names):
        self.names, self.keys = defaultdict(list), defaultdict(list)
        for name, value in names.items() if isinstance(names, dict) else names:
            self.names[name].append(value)
            self.keys[near_key(name)].append((name, value))

    def find(self, name):
        """The values that the name may stand for, without repetition; [] for an unknown name."""
        if name in self.names:
            return _without_repetition(self.names[name])
        near = self.keys.get(near_key(name), [])
        same = [value for other, value in near if in_one_form(other) == in_one_form(name)]
        return _without_repetition(same or [value for _, value in near])

    def find_listed(self, text):
        """`find` for a name in a list that a person wrote: also NAME.png, and folder/NAME.png."""
        readings = _readings_of(text)
        exact = next((name for name in readings if name in self.names), None)
        if exact is not None:
            return self.find(exact)
        return next((found for name in readings if (found := self.find(name))), [])

    def has_listed(self, text):
        """Whether such a name is exact, but for suffix and folder."""
        return any(name in self.names for name in _readings_of(text))


def _readings_of(text):
    """The names that a person may mean by NAME, NAME.png or folder/NAME.png, the most literal first."""
    text = text.strip().replace("\\", "/").removeprefix("./")
    base = text.rpartition("/")[2]
    return [text, _without_suffix(text), base, _without_suffix(base)]


def _without_repetition(values):
    return list(dict.fromkeys(values))


def _without_suffix(name):
    stem, suffix = split_suffix(name)
    return name[: -len(suffix)] if suffix.lower() in SUFFIXES else name


def stem_of(path):
    """The name of a picture or volume without its suffix. Another suffix is a part of the name, as in the folder of a
    series."""
    return _without_suffix(os.path.basename(path))


# ---- the masks of an image ---------------------------------------------------------------------------------------


class RaterFolders:
    """The mask files below `folder`: one rater's in the folder itself (masks/NAME.png), or several raters', each in a
    sub-folder (masks/RATER/NAME.png).

    The folder need not exist. complete: an image with one rater's mask needs every rater's, as in training.
    known: the exact names, without suffix, that masks of any image may have. Where it is given, a mask whose name
    differs from its image's in Unicode form, in case, or by the image's suffix (a.jpg.png) is taken too, and added to
    `near`; a name in `known` is never taken for another image's. leave_out: names of sub-folders that are no raters.
    below: the sub-folder of each rater's folder that holds the masks.
    Raises `UserError` if masks lie both in the folder and in its sub-folders.
    """

    def __init__(self, folder, complete=False, known=(), leave_out=(), below=""):
        self.folder, self.complete, self.known = folder, complete, frozenset(known)
        self.near = []  # (mask, how its name differs)
        self.united = {}  # {mask: the further files of it}
        own = files_by_name(folder) if not below else {}
        folders = [path for path in folders_in(folder) if path.name not in leave_out]
        self.raters = {path: masks for path in folders if (masks := files_by_name(path / below))}
        if self.known:  # else any folder of pictures below masks/, such as one of old files, would be a rater
            keys = set(map(near_key, self.known))
            self.raters = {
                path: masks for path, masks in self.raters.items() if not keys.isdisjoint(map(near_key, masks))
            }
        if own and self.raters:
            raise UserError(
                f"{folder}: holds masks and folders of masks ({min(self.raters).name}/); with several raters give "
                "each a folder"
            )
        self.is_one = not self.raters
        self.raters = self.raters or {folder: own}
        self._keys = {
            rater: NearNames([(stem, path) for stem, paths in masks.items() for path in paths])
            for rater, masks in self.raters.items()
        }
        self._parts = {rater: _numbered_parts(masks, self.known) for rater, masks in self.raters.items()}
        self._rater_of = {
            p: rater.name for rater, masks in self.raters.items() for paths in masks.values() for p in paths
        }
        self._image_of = {}

    def masks_of(self, image, names):
        """An image's mask files, at most one for each rater, in the order of the raters' names.

        image: its file name, for messages. names: the names, without suffix, that a mask may have.
        Raises `UserError` for two masks of one rater, for a mask that two images have, and with `complete` for a rater
        without one.
        """
        found = {folder: self._mask(folder, image, names) for folder in self.raters}
        marked = [path for path in found.values() if path]
        lacking = [folder for folder, path in found.items() if not path]
        if self.complete and marked and lacking:
            have = next(folder for folder, path in found.items() if path)
            raise UserError(
                f"{lacking[0]}: has no mask of {image}, which {have.name}/ has; training needs one of each "
                "rater: add it (empty if the rater saw nothing) or remove the image"
            )
        return tuple(marked)

    def names_of(self, masks):
        """The rater's name for each mask of an image (see `Case`); () if there is only one rater."""
        return () if self.is_one else tuple(self._rater_of[path] for path in masks)

    def _mask(self, folder, image, names):
        masks = [path for name in names for path in self.raters[folder].get(name, ())]
        if not masks and self.known:
            masks, how = self._near_masks(folder, image, names)
            self.near += [(path, how) for path in masks[:1]]
        if len(masks) > 1:
            raise UserError(f"{masks[1]}: is a second mask of {image} beside {masks[0].name}; keep one")
        if not masks:
            return None
        other = self._image_of.setdefault(masks[0], image)
        stems = {_without_suffix(name) for name in (image, other)}
        if self.known and len(stems) > 1:  # else their cases have one name
            raise UserError(f"{masks[0]}: may be the mask of {other} and of {image}; name each mask as its image")
        parts = self._parts[folder].get(stem_of(masks[0]), ())
        if parts:
            self.united[masks[0]] = tuple(parts)
        return masks[0]

    def _near_masks(self, folder, image, names):
        """(the masks that differ from these names a little, how), the closest kind alone."""
        full = [image + name.removeprefix(stem_of(image)) for name in names]
        for kind, candidates in (("", names), ("suffix", full)):
            exact = [path for name in candidates if kind for path in self.raters[folder].get(name, ())]
            near = exact or [path for name in candidates for path in self._keys[folder].find(name)]
            near = [path for path in dict.fromkeys(near) if stem_of(path) not in self.known]
            same = [path for path in near if in_one_form(stem_of(path)) in set(map(in_one_form, candidates))]
            if near:
                return same or near, kind or ("Unicode form" if same else "case")
        return [], ""


def near_notes(several, folder):
    """A line on the masks of these `RaterFolders` whose names differ a little from their images', in a list; [] if
    there are none. folder: that the masks' paths in it start from."""
    near = [found for raters in several for found in raters.near]
    if not near:
        return []
    names = listed([os.path.relpath(path, folder) for path, _ in near], SHOWN_FILES)
    kinds = " or ".join(dict.fromkeys(how for _, how in near))
    verb = "differs from its image's name" if len(near) == 1 else "differ from their images' names"
    return [f"{names} {verb} in {kinds}: taken"]


NUMBERED_PART = re.compile(r"(.+_(?:mask|seg|segmentation))[-_]?\d+", re.IGNORECASE)


def _numbered_parts(masks, known):
    """{NAME_mask: the pictures NAME_mask_1, NAME_mask_2, ...} of a folder. known: names that masks of images have."""
    parts = defaultdict(list)
    for stem, paths in masks.items() if known else ():
        match = NUMBERED_PART.fullmatch(stem)
        if match and match[1] in masks and stem not in known and not any(map(is_volume_path, paths)):
            parts[match[1]] += paths
    return parts


# ---- the raters' masks as arrays ---------------------------------------------------------------------------------


def raters_of(dataset, cases, k=0):
    """Each rater's mask of class k: bool [R, H, W], or [R, X, Y, Z] for the slices of a volume; None if a case has no
    mask."""
    if not all(case.masks for case in cases):
        return None
    slices = [dataset.load_mask(case)[:, k] for case in cases]  # [R, K, H, W] -> [R, H, W]
    return slices[0] if cases[0].volume is None else np.stack(slices, axis=-1)


def known_of(dataset, cases):
    """The pixels that every rater labelled, bool [H, W], or [X, Y, Z] for the slices of a volume; None without an
    `ignore_label`, when all are."""
    if not dataset.ignore_label:
        return None
    slices = [~dataset.load_ignored(case).any(axis=0) for case in cases]
    return slices[0] if cases[0].volume is None else np.stack(slices, axis=-1)


def majority(raters):
    """The pixels that more than half of the raters marked: bool [R, ...] -> bool [...]; None -> None."""
    if raters is None or len(raters) == 1:
        return None if raters is None else raters[0]
    return raters.mean(axis=0) > 0.5


def truths_of(dataset, cases, read_raters=raters_of):
    """The raters' majority in each class: bool [K, ...], or None without masks. read_raters: a stand-in for
    `raters_of`."""
    truths = []
    for k in range(len(dataset.classes)):
        raters = read_raters(dataset, cases, k)
        if raters is None:
            return None
        truths.append(majority(raters))
    return np.stack(truths)


def on_grid(mask, shape):
    """The mask resampled to this shape by nearest neighbour. Raises `UserError` for another number of axes."""
    if mask.ndim != len(shape):
        raise UserError(f"a mask of shape {mask.shape} cannot be compared with one of shape {tuple(shape)}")
    for axis, (have, want) in enumerate(zip(mask.shape, shape, strict=True)):
        if have != want:
            mask = mask.take(((np.arange(want) + 0.5) * have / want).astype(int), axis=axis)
    return mask


def rater_names(cases):
    """The names of all raters of these `Case`s, "rater2" before "rater10"; () if a case with masks names no raters."""
    named = [case.raters for case in cases if case.masks]
    return tuple(sorted(set().union(*named), key=_by_number)) if all(named) else ()


def _by_number(name):
    return [int(part) if k % 2 else part for k, part in enumerate(re.split(r"(\d+)", name))]


def files_by_name(folder):
    """{name without suffix: list of pictures and volumes} of a folder; {} if it does not exist."""
    files = {}
    for path in list_files(folder, SUFFIXES) if folder.is_dir() else ():
        files.setdefault(stem_of(path), []).append(path)
    return files
