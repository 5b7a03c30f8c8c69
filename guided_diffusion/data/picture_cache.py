"""Decoded pictures on disk: the item of a picture is decoded, normalised and resized once for all epochs and runs."""

import shutil
from contextlib import suppress
from inspect import getsourcefile

import numpy as np
import PIL
import torch
from torch.utils.data import get_worker_info

from ..io.files import check_writable, remove_temporaries
from ..io.volume_formats import is_volume_path
from ..runtime.console import console, counted
from ..runtime.errors import UserError
from ..runtime.version import VERSION
from .loader_checks import is_ours
from .volume_cache import IDLE_SECONDS, CacheFull, array_name, fingerprint, read_array, size_text, write_array

LAYOUT = "1"  # the version of the files; a new one makes caches on disk stale
FREE_SHARE, FREE_BYTES = 0.1, 20e9  # of the disk, the smaller of which stays free


def use_picture_cache(dataset, folder, *, asked=True, show=True):
    """Let a data set of pictures keep its items in `folder`, each from its first use on.

    A data set of volumes stays unchanged, and one whose loader sets no `cache_version`.
    asked: whether the user named the folder, so that one which is not writable and holds nothing raises `UserError`;
    else a warning says that nothing more is kept. show: whether to print.
    """
    if not all(_is_picture(case) for case in dataset.cases):
        return
    if not version_of(dataset):
        if show and not is_ours(type(dataset)):
            where = "sets no cache_version (docs/custom_dataset.md)"
            console().info(f"cache: none; {dataset.shown_name()} {where}: its files are decoded at each use")
        return
    try:
        check_writable(folder, "--cache_dir")
    except UserError as error:
        is_filled = next(folder.glob("??/*.npy"), None) is not None  # by others, or before the disk was full
        if asked and not is_filled:
            raise
        dataset.pictures = PictureCache(folder, writes=False) if is_filled else None
        if show:
            which = "pictures that are not in it are" if is_filled else "each picture is"
            console().warning(f"warning: {error}; until then {which} decoded at each use")
        return
    dataset.pictures = PictureCache(folder)
    if show:
        for place in folder.glob("??"):
            remove_temporaries(place, idle=IDLE_SECONDS)
        size = "" if dataset.view.keep_size else f", up to {size_text(len(dataset) * item_bytes(dataset))}"
        number = counted(len(dataset), "picture")
        console().info(f"cache: {number}, each decoded once, at its first use, into {folder}{size} (--cache_dir)")


def item_bytes(dataset):
    """The size in bytes of an item [C, S, S] of this data set with one rater, in the cache."""
    side = dataset.image_size
    row_of_mask = 4 * side if dataset.view.soft_masks else -(-side // 8)
    return side * side * 4 * dataset.image_channels + len(dataset.class_names) * side * row_of_mask


def version_of(dataset):
    """The loader's own `cache_version`; "" for one that it inherits."""
    return vars(type(dataset)).get("cache_version", "")


def _is_picture(case):
    return case.volume is None and not any(map(is_volume_path, case.images))


class PictureCache:
    """The items of a data set of pictures, in `folder`, a file for each.

    A file is XX/NAME-PLACE-CONTENT.npy (see `volume_cache.array_name`). PLACE depends on the size and form of the item
    too, so that runs of several sizes share a folder, and CONTENT on all else that the item depends on. XX are the
    first digits of PLACE: a folder of 100,000 files would be slow to list. A missing or damaged file is made anew.
    Where none can be written, or the disk is nearly full, one warning says so and items are decoded at each use.

    Nothing is kept in memory: the system's file cache serves all processes, and gives memory back when it is needed.
    """

    def __init__(self, folder, writes=True):
        self.folder, self.writes = folder, writes
        self._paths, self._texts = {}, None

    def __getstate__(self):
        return {
            "folder": self.folder,
            "writes": self.writes,
        }  # a copy in another process computes the paths that it needs

    def __setstate__(self, state):
        self.__init__(**state)

    def get(self, dataset, case):
        """What `SegmentationDataset.show` gives for the case, to the bit."""
        path = self._path(dataset, case)
        record = read_array(path)
        if record is None or not may_be_record(record, dataset):
            record = record_of(dataset, case)
            if self.writes:
                self._write(path, record)
        return item_of(np.array(record)[0], dataset, case)

    def _write(self, path, record):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)  # the user may have removed the whole folder meanwhile
            usage = shutil.disk_usage(path.parent)
            if usage.free - record.nbytes < min(FREE_SHARE * usage.total, FREE_BYTES):
                raise CacheFull(f"{self.folder}: has only {size_text(usage.free)} free")
            write_array(path, record)
        except (UserError, OSError) as error:
            self.writes = False
            worker = get_worker_info()
            if worker is None or worker.id == 0:
                reason = str(error) if isinstance(error, UserError) else f"{path}: {error.strerror or error}"
                console().warning(
                    f"warning: {reason}; pictures that are not in the cache yet are decoded at each use (--cache_dir)"
                )

    def _path(self, dataset, case):
        if case.name not in self._paths:
            if self._texts is None:
                self._texts = form_text(dataset), settings_text(dataset)
            kind, settings = self._texts
            files = (*case.images, *case.masks, *dataset.further_files(case))
            name = array_name(case.name, files, kind, settings)
            self._paths[case.name] = self.folder / name.rsplit("-", 2)[1][:2] / name
        return self._paths[case.name]


def form_text(dataset):
    """Text of the options that several runs may have in different ways: size, view and classes."""
    view = dataset.view.keep_size, dataset.view.soft_masks
    values = (dataset.image_size, view, dataset.need_masks, str(dataset.classes))
    return f"picture {values} {dataset.class_names} {dataset.ignore_label}"


def settings_text(dataset):
    """Text of all else that the items depend on, beside their files.

    Masks are compared with those of other cases, so their foreground and palette count. So do the versions of this
    program and of the decoders, whose rounding differs, and the files of a user's own loader and of its bases.
    """
    foreground = dataset.foreground.foreground if len(dataset.class_names) == 1 and dataset.foreground else None
    palette = None if dataset.classes.is_binary else {c: number for c, (number, _) in dataset.palette.items()}
    values = (LAYOUT, VERSION, version_of(dataset), dataset.kept_values(), dataset.image_channels)
    values += (dataset.declared_labels, foreground, palette)
    own = [cls for cls in type(dataset).__mro__ if not is_ours(cls)]
    files = [fingerprint(path) for path in sorted(set(filter(None, map(_file_of, own))))]
    return f"{values} {torch.__version__} {PIL.__version__} {files}"


def _file_of(cls):
    """The file of a class; None for a built-in class, a library's and one made in an interactive session."""
    if cls.__module__.partition(".")[0] in ("builtins", "typing", "torch"):
        return None
    with suppress(TypeError, OSError):
        return getsourcefile(cls)
    return None


# ---- an item as one array --------------------------------------------------------------------------------------------


def record_of(dataset, case):
    """A case, read now, as an array of one record for `item_of`.

    An image that is resized is kept normalised and resized, as float32. One that keeps its size is kept as it was read,
    in bytes where that loses nothing: a quarter of the room. Masks are bits, or float32 where they are soft.
    """
    raw = dataset.load_image(case)
    size = raw.shape[-2:]
    is_resized = size != (dataset.image_size,) * 2 and not dataset.view.keeps(size, dataset.image_size)
    if is_resized:
        parts = {"image": dataset.view.image(dataset.normalised(raw, case), dataset.image_size).numpy()}
    else:
        with np.errstate(invalid="ignore"):  # of values that no byte can hold
            small = raw.astype(np.uint8)
        parts = {"raw": small if (small == raw).all() else raw}
    parts["size"] = np.array(size, np.int32)
    for name, mask in dataset.show_masks(case, size).items():
        is_soft = bool(((mask != 0) & (mask != 1)).any())
        parts[name] = mask.numpy() if is_soft else np.packbits(mask.numpy() > 0, axis=-1)
    record = np.zeros(1, np.dtype([(name, part.dtype.str, part.shape) for name, part in parts.items()]))
    for name, part in parts.items():
        record[name][0] = part
    return record


def may_be_record(array, dataset):
    """Whether an array is one that `record_of` may have made for this data set. In a shared folder it may be anybody's,
    under this name."""
    if array.shape != (1,) or "size" not in (array.dtype.names or ()):
        return False
    parts = {name: (array.dtype[name].base, array.dtype[name].shape) for name in array.dtype.names}
    if parts.pop("size") != (np.int32, (2,)):
        return False
    side, channels, size = dataset.image_size, dataset.image_channels, array["size"][0].tolist()
    raw, image = parts.pop("raw", None), parts.pop("image", None)
    if raw is None:
        size, is_image = (side, side), image == (np.float32, (channels, side, side))
    else:
        is_image = image is None and raw in [(kind, (channels, *size)) for kind in (np.uint8, np.float32)]
    height, width = max(side, size[0]), max(side, size[1])
    raters = parts["mask"][1][:1] if "mask" in parts else ()
    masks = {"mask": len(dataset.class_names)} if dataset.need_masks else {}
    masks |= {"known": 1} if masks and dataset.ignore_label else {}
    expected = {name: (np.uint8, (*raters, count, height, -(-width // 8))) for name, count in masks.items()}  # bits
    if raw is None and dataset.view.soft_masks and masks.keys() <= parts.keys() and masks:
        soft = np.float32, (*raters, masks["mask"], height, width)
        expected["mask"] = soft if parts["mask"] == soft else expected["mask"]
    return is_image and parts == expected


def item_of(record, dataset, case):
    """What `SegmentationDataset.show` gives for a case. record: that of `record_of`."""
    if "raw" in record.dtype.names:
        raw = record["raw"].astype(np.float32)
        image = dataset.view.image(dataset.normalised(raw, case), dataset.image_size)
    else:
        image = torch.from_numpy(record["image"])
    item = {"image": image, "size": tuple(record["size"].tolist())}
    for name in ("mask", "known"):
        if name in record.dtype.names:
            values = record[name]
            if values.dtype == np.uint8:
                values = np.unpackbits(values, axis=-1, count=image.shape[-1])
            item[name] = torch.from_numpy(values).float()
    return item
