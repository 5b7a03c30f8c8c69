"""Squares cut from large images for training: where they lie, and how often they hold something marked."""

from collections import defaultdict

import torch

from ..runtime.seeds import seeded_generator

FOREGROUND_EVERY = 3  # one crop of so many holds something marked, since a small object is rarely hit by chance


class TrainingCrops:
    """The items of a data set whose view keeps sizes, each cropped to the network's size.

    (seed, position) alone decide which part an item shows; position is the item's place in the run, so that of every
    `FOREGROUND_EVERY` neighbouring items of a batch one holds something marked.

    foreground: see --crop_foreground. "class": these crops hold a pixel of a random class among those of the image.
    With volumes the class is one of the volume's, and where the slice lacks it another slice of the volume takes its
    place: most slices of a volume are empty. "pixel": as up to version 0.6.0, see `_crop_about_any_pixel`. "none":
    crops lie anywhere. With "class" and "none" the other crops hold a pixel whose truth is known, if there is one.
    """

    def __init__(self, dataset, seed, foreground="class"):
        self.dataset, self.seed, self.foreground = dataset, seed, foreground
        self._slices = defaultdict(list)  # the indices of each volume's cases
        for index, case in enumerate(dataset.cases):
            if case.volume is not None:
                self._slices[case.volume].append(index)
        self._marked = {}  # {volume: for each class, the indices of the slices that have it}

    def load(self, index, position):
        """The cropped item for case `index`: the case's own or, see above, that of another slice of its volume."""
        size = self.dataset.image_size
        if self.foreground == "pixel":
            return _crop_about_any_pixel(self.dataset.load_item(index), size, self.seed, position)
        wanted, about = None, "known"
        if self.foreground == "class" and position % FOREGROUND_EVERY == FOREGROUND_EVERY - 1:
            index, wanted = self._slice(index, position)
            about = "class"
        return crop(self.dataset.load_item(index), size, self.seed, position, about, wanted)

    def _slice(self, index, position):
        """(the index of a slice of the same volume, a class that it has); (index, None) where there is no choice."""
        case = self.dataset.cases[index]
        if case.volume is None or not self._is_cropped(case):
            return index, None
        if case.volume not in self._marked:
            self._marked[case.volume] = self._slices_of_classes(case.volume)
        found = [(k, slices) for k, slices in enumerate(self._marked[case.volume]) if slices]
        if not found:
            return index, None
        generator = seeded_generator("crop slice", self.seed, position)
        first, second = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        wanted, slices = found[int(first * len(found))]
        return index if index in slices else slices[int(second * len(slices))], wanted

    def _is_cropped(self, case):
        """Whether the case is larger than the network; else a crop is the whole image."""
        return self.dataset.view.keeps(self.dataset.load_mask(case).shape[-2:], self.dataset.image_size)

    def _slices_of_classes(self, volume):
        """For each class, the indices of the volume's slices that any rater marked so."""
        found = [[] for _ in self.dataset.class_names]
        for index in self._slices[volume]:
            for k in self.dataset.load_mask(self.dataset.cases[index]).any(axis=(0, 2, 3)).nonzero()[0]:
                found[k].append(index)
        return found


def crop(item, size, seed, position, about="class", wanted=None):
    """The item with its image and masks cropped to size x size pixels. (seed, position) alone decide on the place.

    about: "class": the crop holds a random pixel of a random rater's mask of a class: of the class number `wanted`, or
    of a random one that any rater marked. "known": it holds a random pixel whose truth is known, if the item has pixels
    without. Where there is no such pixel, the crop lies anywhere.
    """
    if tuple(item["image"].shape[-2:]) == (size, size):
        return item
    generator = seeded_generator("crop", seed, position)
    *choices, row, column = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    pixel = None
    if about == "class":
        pixel = _pixel_of_class(item["mask"], choices, wanted)
    elif "known" in item and not item["known"].all():
        pixel = _chosen(item["known"].flatten(0, -3).any(dim=0).nonzero().tolist(), choices[0])
    return _cut(item, size, (row, column), pixel)


def _pixel_of_class(mask, choices, wanted):
    """[row, column] of a marked pixel of [R, K, H, W], or None. choices: numbers from [0, 1) for class, rater, pixel.

    Each class is as likely, then each rater who marked it, then each of the rater's pixels.
    """
    marked = mask.flatten(2).any(dim=2)  # [R, K]
    classes = marked.any(dim=0).nonzero().flatten().tolist()
    k = wanted if wanted in classes else _chosen(classes, choices[0])
    if k is None:
        return None
    rater = _chosen(marked[:, k].nonzero().flatten().tolist(), choices[1])
    return _chosen(mask[rater, k].nonzero(), choices[2]).tolist()


def _chosen(values, number):
    """The value at this share, from [0, 1), of a list; None of an empty one."""
    return values[int(number * len(values))] if len(values) else None


def _crop_about_any_pixel(item, size, seed, position):
    """`crop` as up to version 0.6.0, which a resumed run goes on with: a third hold a random marked pixel of any class
    and rater, and chance decides which."""
    if tuple(item["image"].shape[-2:]) == (size, size):
        return item
    generator = seeded_generator("crop", seed, position)
    share, *places = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
    marked = item["mask"].flatten(0, -3).any(dim=0).nonzero() if share < 1 / FOREGROUND_EVERY else ()
    return _cut(item, size, places[:2], marked[int(places[2] * len(marked))].tolist() if len(marked) else None)


def _cut(item, size, places, pixel):
    """The item's window of size x size pixels, which holds `pixel`, (row, column) or None.

    places: for rows and columns, the window's place among those possible, a number from [0, 1).
    """
    sides = tuple(item["image"].shape[-2:])
    lowest, highest = ((0, 0), sides) if pixel is None else ([p + 1 - size for p in pixel], pixel)
    corner = []
    for place, low, high, side in zip(places, lowest, highest, sides, strict=True):
        low, high = max(0, low), min(high, side - size)
        corner.append(low + int(place * (high - low + 1)))
    window = (..., slice(corner[0], corner[0] + size), slice(corner[1], corner[1] + size))
    return item | {key: item[key][window].contiguous() for key in ("image", "mask", "known") if key in item}
