"""Which folders of a data set hold images and which masks, and which mask belongs to which image."""

import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from ..io.dicom import is_series
from ..io.files import folders_in, is_hidden, is_listed, list_files
from ..io.folders import walk_folders
from ..io.volume_formats import is_volume_path
from ..runtime.console import counted, listed
from ..runtime.errors import UserError
from .left_over import SHOWN_FILES
from .splits import split_of
from .truth import MASK_ENDINGS, SUFFIXES, NearNames, RaterFolders, near_key, near_notes, stem_of

# Names of folders that are read where there is no images/ or masks/, without blanks, hyphens and underscores.
IMAGE_FOLDERS = {"images", "image", "imgs", "img", "original", "originals", "photos", "pictures", "inputs", "input"}
MASK_FOLDERS = {
    *("masks", "mask", "labels", "label", "annotations", "annotation", "groundtruth", "groundtruths", "gt", "gts"),
    *("segmentations", "segmentation", "segs", "seg", "truth", "truths"),
}
FIRST_READER, SECOND_READER = {"1stmanual", "manual1", "manual"}, {"2ndmanual", "manual2"}  # as in DRIVE and HRF
NOT_EXACT = MASK_FOLDERS | FIRST_READER | SECOND_READER
RETINA = re.compile(r"(\d+)_(?:training|test)", re.IGNORECASE)  # DRIVE: 21_training.tif has the truth 21_manual1.gif
FIELD_OF_VIEW = re.compile(r"\d+_(?:training|test)_mask", re.IGNORECASE)

BESIDE_ENDINGS = tuple(ending for ending in MASK_ENDINGS if ending)  # of a mask in its image's own folder


@dataclass(frozen=True)
class Pair:
    """An image with its masks. name: of the case. below: the image's sub-folder, "" in the folder itself. raters: see
    `Case`. further: {mask: further files that are united with it}. group: the patient, or None."""

    image: Path
    name: str
    below: str = ""
    masks: tuple = ()
    raters: tuple = ()
    further: dict = field(default_factory=dict)
    group: str | None = None


@dataclass
class Pairs:
    """What one folder of a data set holds. notes: lines on how it was read. set_aside: {folder: why it is not read}."""

    pairs: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    set_aside: dict = field(default_factory=dict)


# ---- folders -----------------------------------------------------------------------------------------------------


def unwrapped(folder, depth=3, is_part=False, seen=None):
    """The folder itself, or the one inside it that holds the layout, as archives often have it: DATA/DATA/images.

    A folder inside is taken if it alone holds images/ and the like, or if it has its parent's name and holds images.
    is_part: the folder is a split's, so that test/ in it is no other split. seen: the real folders looked into so far,
    so that links to each other end.
    """
    seen = set() if seen is None else seen
    seen.add(os.path.realpath(folder))
    below, name = folders_in(folder), Path(folder).absolute().name
    same = [one for one in below if near_key(one.name) == near_key(name) and (is_part or not split_of(one.name))]
    is_itself = _holds_layout(below, is_part) or bool(_pictures(folder))
    if depth == 0 or (is_itself and not same):
        return folder
    inner = {
        one: unwrapped(one, depth - 1, is_part, seen)
        for one in (same if is_itself else below)
        if os.path.realpath(one) not in seen
    }
    whole = {one: deeper for one, deeper in inner.items() if _holds_layout(folders_in(deeper), is_part)}
    if len(same) == 1 and same[0] in whole and 2 * count_data(whole[same[0]], 4) > count_data(folder, 8):
        return whole[same[0]]
    if is_itself or len(whole) > 1:
        return folder
    loose = [one for one in same if _pictures(one)]
    return next(iter(whole.values()), loose[0] if len(loose) == 1 else folder)


def layouts_inside(folder):
    """The folders inside that each hold a layout of their own."""
    return [one for one in folders_in(folder) if _holds_layout(folders_in(unwrapped(one, 2)), False)]


def _holds_layout(below, is_part):
    """Whether a folder's sub-folders are of images or of splits, or have images with masks beside them."""
    named = any(_letters(one.name) in IMAGE_FOLDERS or (split_of(one.name) and not is_part) for one in below)
    return named or any(map(_has_pairs, below))


def holds_pairs(folder):
    """Whether `pairs_in` finds images in the folder; it looks at no more than their names."""
    below = folders_in(folder)
    named = [one for one in below if _letters(one.name) in IMAGE_FOLDERS]
    return bool(named or _pictures(folder) or any(map(_has_pairs, below)))


def _pictures(folder):
    """The pictures and volumes in a folder that may not matter; [] where it cannot be listed."""
    try:
        return _data_in(folder)
    except OSError:  # named by `accounting`
        return []


def _data_in(folder):
    """The pictures and volumes in a folder, sorted by name; a folder of DICOM slices is one volume, as is `folder`
    itself if it holds such slices."""
    if is_series(folder):
        return [folder if folder.name else folder.absolute()]
    return sorted([*list_files(folder, SUFFIXES), *filter(_is_image, folders_in(folder))])


def _is_image(folder):
    """Whether a folder is a volume of its parent: a series, and no images/ or train/."""
    is_named = _letters(folder.name) in IMAGE_FOLDERS | MASK_FOLDERS or split_of(folder.name)
    return not is_named and is_series(folder)


def _letters(name):
    return re.sub(r"[\s_-]+", "", near_key(name))


def _has_pairs(folder):
    """Whether a picture NAME_mask lies beside its image NAME."""
    stems = {stem_of(path) for path in _pictures(folder)}
    return any(stem.endswith(BESIDE_ENDINGS) and image_of(stem) in stems for stem in stems)


def image_of(stem):
    """NAME of NAME_mask; the stem itself without such an ending."""
    ending = next((ending for ending in BESIDE_ENDINGS if stem.endswith(ending)), "")
    return stem.removesuffix(ending)


def count_data(folder, depth=2):
    """The number of pictures and volumes in a folder and its sub-folders; a series of slices is one volume."""
    count = 0
    for visited in walk_folders(folder, depth):
        visited.enter = [entry for entry in visited.enter if not is_hidden(entry.name)]
        if is_series(Path(folder, visited.below)):
            count += 1
        else:
            count += sum(is_listed(entry, SUFFIXES) for entry in visited.entries)
    return count


def has_reader(folder):
    """Whether the folder has the truth of a reader as DRIVE and HRF name it, so that mask/ is the field of view."""
    return any(_letters(one.name) in FIRST_READER | SECOND_READER for one in folders_in(folder))


def _near_keys(image):
    """The `near_key`s of names that a mask of the image may have."""
    stem = stem_of(image)
    return [near_key(name) for name in (*_mask_names(stem, ()), *(image.name + ending for ending in MASK_ENDINGS))]


class _Folders:
    """The folder of images and that of masks in `folder`; `masks` is None where there is none.

    is_retina: mask/ is the field of view. complete: masks are needed, so that two candidates are an error.
    """

    def __init__(self, folder, is_retina, complete):
        self.folder, self.notes, self.set_aside = folder, [], {}
        self.below = folders_in(folder)
        self.images = self._choose_images()
        self.masks = self._choose_masks(is_retina, complete)
        near = [
            one for one in (self.images, self.masks) if one not in (None, folder, folder / "images", folder / "masks")
        ]
        if near:
            names = " and ".join(f"{one.name}/ for {'images' if one is self.images else 'masks'}/" for one in near)
            self.notes.append(f"{folder}: {names} is taken" if len(near) == 1 else f"{folder}: {names} are taken")
        self.images, self.masks = self._doubled(self.images), self.masks and self._doubled(self.masks)

    def _choose_images(self):
        """images/, else the only folder of a name near to that, else the folder itself."""
        exact = self.folder / "images"
        named = [one for one in self.below if _letters(one.name) in IMAGE_FOLDERS]
        others = [one for one in self.below if one not in named and _letters(one.name) not in MASK_FOLDERS]
        paired = sum(len(_pictures(one)) for one in (self.folder, *others) if _has_pairs(one))
        if named == [exact] and not paired:
            return exact
        held = {one: number for one in named if (number := count_data(one)) or one == exact}
        if not held:
            return self.folder
        filled = [one for one, number in held.items() if number]
        if held.get(exact) == max(held.values()):
            chosen, loose = exact, paired
        elif len(filled) == 1:
            chosen, loose = filled[0], max(paired, len(_pictures(self.folder)))
        else:
            names = " and ".join(f"{one.name}/" for one in filled)
            raise UserError(f"{self.folder}: {names} may both hold the images; keep one, called images/")
        return chosen if held[chosen] >= loose else self.folder

    def _choose_masks(self, is_retina, complete):
        """masks/, or another folder whose files have more of the images' names; None where they lie beside images."""
        exact = self.folder / "masks"
        below = [one for one in self.below if one != self.images]
        if not self._beside and not any(_letters(one.name) in NOT_EXACT and one != exact for one in below):
            return exact if exact in below else None
        named = {one: self._matches(one) for one in below if _letters(one.name) in MASK_FOLDERS}
        first = {one: number for one in below if _letters(one.name) in FIRST_READER and (number := self._matches(one))}
        views = [one for one in named if _letters(one.name) == "mask" and (is_retina or first or _holds_views(one))]
        self.set_aside |= dict.fromkeys(views, "field of view")
        if first:
            second = [one for one in below if _letters(one.name) in SECOND_READER]
            self.set_aside |= dict.fromkeys(second, "second reader")
        matches = {one: number for one, number in (named | first).items() if one not in views}
        most = max(matches.values(), default=0)
        if most < self._beside or not matches:
            return None
        best = [one for one, number in matches.items() if number == most]
        if most == 0:
            return exact if exact in best else None
        if len(best) > 1 and (exact not in best or first):
            self._ambiguous(best, complete)
            return None
        return exact if exact in best else best[0]

    @cached_property
    def _image_files(self):
        files = [_pictures(one) for one in (self.images, *folders_in(self.images))]
        return [path for some in (files[:1] if self.images == self.folder else files) for path in some]

    @cached_property
    def _beside(self):
        """The number of masks beside their images."""
        folders = [one for one in self.below if one != self.images and _letters(one.name) not in MASK_FOLDERS]
        folders = folders if self.images == self.folder else []
        return sum(len(_pictures(one)) for one in (self.images, *folders) if _has_pairs(one)) // 2

    def _matches(self, folder):
        """The number of images that have a mask in the folder or its sub-folders, by names that nearly fit."""
        folders = [folder, *folders_in(folder)]
        folders += [deeper for one in folders[1:] for deeper in folders_in(one)]
        keys = {near_key(stem_of(path)) for one in folders for path in _pictures(one)}
        return sum(any(key in keys for key in _near_keys(path)) for path in self._image_files) if keys else 0

    def _ambiguous(self, folders, complete):
        names = " and ".join(f"{one.name}/" for one in folders)
        text = f"{self.folder}: {names} may both hold the masks; keep one of them there, called masks/"
        if complete:
            raise UserError(text)
        self.notes.append(text)

    def _doubled(self, folder):
        """images/images for images/, where nothing else is in it."""
        below = folders_in(folder)
        same = [one for one in below if near_key(one.name) == near_key(folder.name)]
        if folder != self.folder and len(same) == 1 and not _pictures(folder):
            if all(one in same or not count_data(one) for one in below):
                self.notes.append(f"{folder}: the folder of the same name inside it is read")
                return same[0]
        return folder


def _holds_views(folder):
    """Whether all pictures of a folder are called as DRIVE's fields of view."""
    stems = [stem_of(path) for path in _pictures(folder)]
    return bool(stems) and all(map(FIELD_OF_VIEW.fullmatch, stems))


# ---- pairs -------------------------------------------------------------------------------------------------------


def pairs_in(folder, complete=False, is_retina=False):
    """The `Pairs` of a folder: images/NAME with masks/NAME, or what is near to that.

    complete: see `RaterFolders`. is_retina: mask/ holds fields of view (see `has_reader`).
    Raises `UserError` where two folders may hold the images, with `complete` also for two that may hold the masks.
    """
    folders = _Folders(folder, is_retina, complete)
    found = Pairs(notes=folders.notes, set_aside=folders.set_aside)
    images = _images_below(folders, found)
    if folders.masks is None:
        found.pairs = _pairs_beside(images, found)
    else:
        found.pairs = _pairs_with(folders.masks, images, complete, found)
    return found


def _images_below(folders, found):
    """{sub-folder, "" for the folder itself: image files}. Sub-folders count if they have masks or most images."""
    root = folders.images
    images = {"": _data_in(root)}
    below = {one.name: files for one in folders_in(root) if not _is_image(one) and (files := _pictures(one))}
    below = {name: files for name, files in below.items() if _letters(name) not in MASK_FOLDERS | FIRST_READER}
    if root == folders.folder:  # beside other folders: only those with masks in them
        below = {name: files for name, files in below.items() if folders.masks is None and _has_pairs(root / name)}
    elif _is_divided(images[""], below):
        below = {name: files for name, files in below.items() if split_of(name)}
    elif sum(map(len, below.values())) <= len(images[""]):
        with_masks = {near_key(one.name) for one in folders_in(folders.masks)} if folders.masks else set()
        below = {
            name: files for name, files in below.items() if near_key(name) in with_masks or _has_pairs(root / name)
        }
    if not _is_divided(images[""], below):
        below = {name: files for name, files in below.items() if not split_of(name)}
    if below and not any(map(split_of, below)):
        names = listed([f"{name}/" for name in below], SHOWN_FILES)
        how = "each taken as one patient" if _are_patients(below) else "not taken as patients"
        found.notes.append(f"{root}: {counted(len(below), 'sub-folder')} ({names}), {how}; --group_key overrides that")
    return images | below


def _is_divided(loose, below):
    """Whether most images lie in sub-folders of splits. loose: the others. below: {sub-folder: files}."""
    inside = sum(len(files) for name, files in below.items() if split_of(name))
    return inside > len(loose) + sum(map(len, below.values())) - inside


def _are_patients(names):
    """Whether sub-folders of these names are patients (P07, TCGA_CS_4941), not kinds (benign, malignant)."""
    return sum(any(map(str.isdigit, name)) for name in names) * 2 > len(names)


def case_name(stem, below):
    """The name of a case in a sub-folder: PATIENT_NAME, or NAME where that begins with the folder's name."""
    return stem if not below or split_of(below) or stem.startswith(below) else f"{below}_{stem}"


def _pair(image, below, groups, **values):
    group = below if groups and below else None
    return Pair(image, case_name(stem_of(image), below), below, group=group, **values)


def _groups(images):
    names = [name for name in images if name]
    return bool(names) and _are_patients(names) and not any(map(split_of, names))


def _mask_names(stem, stems):
    """The exact names that the mask of an image may have. stems: of all images, which keep their own names."""
    match = RETINA.fullmatch(stem)
    names = [stem + ending for ending in MASK_ENDINGS if not ending or stem + ending not in stems]
    return [*names, f"{match[1]}_manual1"] if match else names


def _pairs_with(masks, images, complete, found):
    """The pairs with a folder of masks. images: from `_images_below`."""
    groups, pairs, seen = _groups(images), [], []
    folders = [one.name for one in folders_in(masks)]
    near, flat = NearNames({name: name for name in folders}), None
    no_raters = {name for below in images if below for name in near.find(below)}
    for below, files in images.items():
        stems = {stem_of(path) for path in files}
        known = {name for stem in stems for name in _mask_names(stem, stems)}
        same = near.find(below) if below else []
        if len(same) > 1:
            raise UserError(f"{masks}: {same[0]}/ and {same[1]}/ may both have the masks of {below}/; keep one")
        if same:
            raters = RaterFolders(masks / same[0], complete, known)
        elif below and any((masks / rater / below).is_dir() for rater in folders):
            raters = RaterFolders(masks, complete, known, no_raters, below)
        elif below and flat is not None:
            raters = flat
        else:
            every = {stem_of(path) for paths in images.values() for path in paths}
            known = {name for stem in every for name in _mask_names(stem, every)}
            raters = flat = RaterFolders(masks, complete, known, no_raters)
            _check_no_splits(raters)
        for image in files:
            stem = stem_of(image)
            shown = image.name if not below else f"{below}/{image.name}"
            own = raters.masks_of(image.name if raters is not flat else shown, _mask_names(stem, stems))
            further = {mask: raters.united[mask] for mask in own if mask in raters.united}
            pairs.append(_pair(image, below, groups, masks=own, raters=raters.names_of(own), further=further))
        if raters not in seen:
            seen.append(raters)
    found.notes += near_notes(seen, masks.parent)
    _note_united(pairs, found)
    return pairs


def companions(pairs):
    """{"_1stHO": {image: the image NAME_1stHO, without a mask, that is named after it}}, for each such ending that at
    least half of the other images have."""
    stems = {(pair.below, stem_of(pair.image)): pair.image for pair in pairs}
    found, named_after = {}, set()
    for pair in pairs:
        stem = stem_of(pair.image)
        for match in re.finditer(r"[-_. ](?=.*[^\W\d])", stem) if not pair.masks else ():
            owner, ending = stems.get((pair.below, stem[: match.start()])), stem[match.start() :]
            if owner and ending not in MASK_ENDINGS:
                found.setdefault(ending, {})[owner] = pair.image
                named_after.add(pair.image)
    others = len(stems) - len(named_after)
    return {ending: files for ending, files in found.items() if 2 * len(files) >= max(others, 2)}


BESIDE = re.compile(rf"(?P<base>(?P<name>.+)(?:{'|'.join(BESIDE_ENDINGS)}))(?P<number>[-_]?\d+)?", re.IGNORECASE)


def _pairs_beside(images, found):
    """The pairs where masks, if any, lie beside their images as NAME_mask; NAME_mask_1 is a further part of such."""
    groups, pairs = _groups(images), []
    for below, files in images.items():
        stems = {near_key(stem_of(path)) for path in files}
        marks = {path: match for path in files if (match := BESIDE.fullmatch(stem_of(path)))}
        marks = {path: match for path, match in marks.items() if near_key(match["name"]) in stems}
        others = [path for path in files if path not in marks]
        masks, numbered = _owned(marks, others)
        for image in others:
            own = masks.get(image, [])
            if len(own) > 1:
                raise UserError(f"{own[1]}: is a second mask of {image.name} beside {own[0].name}; keep one")
            further = {own[0]: tuple(numbered[image])} if own and numbered.get(image) else {}
            pairs.append(_pair(image, below, groups, masks=tuple(own), further=further))
    beside = sum(len(pair.masks) for pair in pairs)
    if beside:
        found.notes.append(f"{counted(beside, 'mask')} as NAME_mask beside the image NAME")
    _note_united(pairs, found)
    return pairs


def _owned(marks, images):
    """({image: its masks}, {image: further parts of its mask}). marks: {mask: match of `BESIDE`}."""
    names = NearNames([(stem_of(path), path) for path in images])
    masks, numbered = {}, {}
    for path, match in marks.items():
        owners = names.find(match["name"])
        if len(owners) > 1:
            raise UserError(f"{path}: may be the mask of {owners[0].name} and of {owners[1].name}; rename it")
        if owners and not is_volume_path(path):
            (numbered if match["number"] else masks).setdefault(owners[0], []).append(path)
        elif owners and not match["number"]:
            masks.setdefault(owners[0], []).append(path)
    return masks, numbered


def _check_no_splits(raters):
    """Raise `UserError` where the folders of raters are called as those of splits, which the images are not in."""
    named = sorted(folder for folder in raters.raters if split_of(folder.name) and not raters.is_one)
    if named:
        names = " and ".join(f"{folder.name}/" for folder in named)
        raise UserError(
            f"{named[0].parent}: has {names}, but the images lie in no such folders; divide the images in the same "
            "way, or put all masks into one folder"
        )


def _note_united(pairs, found):
    """Add a note on masks of several files."""
    united = {mask: parts for pair in pairs for mask, parts in pair.further.items()}
    if united:
        names = listed(
            [" + ".join(path.name for path in (mask, *parts)) for mask, parts in united.items()], SHOWN_FILES
        )
        found.notes.append(f"{counted(len(united), 'mask')} united from several files: {names}")
