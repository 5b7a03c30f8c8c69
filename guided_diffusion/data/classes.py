"""Classes: their names, the label values that stand for them, and the way from label maps to masks and back."""

import re
from dataclasses import dataclass

import numpy as np

from ..io.files import read_json
from ..runtime.errors import UserError

WORDS = ("auto", "regions", "labels")  # what --classes may say instead of names and values


LARGEST = 65535  # label value, of a 16-bit picture


MOST = 62  # overlapping classes: a pixel's memberships are the bits of one integer


MOST_FOUND = 256  # values in the masks, 0 among them, that --classes auto takes for classes


MEAN = "mean"  # the row of all classes together in tables, so no class's name


@dataclass(frozen=True)
class Classes:
    """K classes without the background.

    names: [K]. values: for each class the label values that belong to it, from 1 on; or (), for one class that is
    whatever is not 0. Where no value belongs to two classes they exclude one another, one of many; else they are
    regions that overlap.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...] = ()

    def __len__(self):
        return len(self.names)

    def __str__(self):
        """As `--classes` takes it: "liver=1,tumour=2", or "" for one class without values."""
        pairs = zip(self.names, self.values, strict=False)
        return ",".join(f"{name}={'+'.join(map(str, values))}" for name, values in pairs)

    def described(self):
        """In words, for people."""
        if self.is_binary:
            return self.names[0]
        kind = "one of many" if self.is_exclusive else "regions that overlap"
        return f"{str(self).replace(',', ', ')}" + (f" ({kind})" if len(self) > 1 else "")

    @property
    def is_binary(self):
        """Whether masks are 0 and 255 (volumes: 0 and 1) rather than maps of label values."""
        return not self.values

    @property
    def is_exclusive(self):
        """Whether a pixel belongs to one class at most."""
        flat = [value for values in self.values for value in values]
        return len(set(flat)) == len(flat)

    def masks_of(self, labels):
        """Label maps as masks: integers [...] -> bool [K, ...]. A value that no class has is background."""
        return np.stack([self.mask_of(labels, k) for k in range(len(self))])

    def mask_of(self, labels, k):
        """The mask of class k alone, bool [...]."""
        return np.asarray(labels) > 0 if self.is_binary else np.isin(labels, self.values[k])

    def labels_of(self, masks):
        """Masks as one label map: bool [K, ...] -> uint8 [...], or uint16 where values are above 255.

        One of many: the first value of the pixel's class (of the first of two, which `masks_of` never gives).
        Regions: the value whose regions are the pixel's. Where none has just those, the pixel's smallest region (of
        the fewest values) decides, among its values the one whose regions differ least from the pixel's: ET over TC
        over WT. Of several such values the first.
        """
        masks = np.asarray(masks, dtype=bool)
        kind = np.uint8 if self.largest <= 255 else np.uint16
        if self.is_exclusive:
            labels = np.zeros(masks.shape[1:], kind)
            for mask, value in reversed(list(zip(masks, self._firsts, strict=True))):
                labels[mask] = value
            return labels
        members = np.zeros(masks.shape[1:], np.int64)  # bit k: whether the pixel is in region k
        for k, mask in enumerate(masks):
            members |= mask.astype(np.int64) << k
        sets, which = np.unique(members, return_inverse=True)
        table = [self._value_of({k for k in range(len(self)) if code >> k & 1}) for code in sets.tolist()]
        return np.array(table, kind)[which].reshape(members.shape)

    @property
    def largest(self):
        """The largest label value."""
        return max((value for values in self.values for value in values), default=1)

    @property
    def _firsts(self):
        return [values[0] for values in self.values] or [1]

    def _value_of(self, regions):
        """The label value of a pixel in these regions, a set of indices (see `labels_of`)."""
        if not regions:
            return 0
        smallest = min(regions, key=lambda k: (len(self.values[k]), k))

        def difference(value):
            return len(regions ^ {k for k, values in enumerate(self.values) if value in values})

        return min(self.values[smallest], key=difference)

    def as_written(self, masks):
        """bool [K, ...] as `labels_of` writes it and `masks_of` reads it back."""
        return masks if self.is_binary else self.masks_of(self.labels_of(masks))


BINARY = Classes(("foreground",))


def parse_classes(text):
    """The `Classes` that `--classes NAME=VALUE,...` stands for. Raises `UserError` that says what is wrong with it."""
    names, values = [], []
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, found, numbers = (part.strip() for part in item.rpartition("="))
        numbers = [number.strip() for number in numbers.split("+")]
        if not found or not all(number.isdecimal() for number in numbers):
            words = ", ".join(WORDS)
            raise UserError(f"--classes {text}: {item!r} is not NAME=VALUE; write liver=1,tumour=2, or one of {words}")
        names.append(name)
        values.append(tuple(dict.fromkeys(map(int, numbers))))
    return checked_classes(names, values, f"--classes {text}")


def checked_classes(names, values, where):
    """The `Classes` with these names and label values; `UserError`, which begins with `where`, if they make none."""
    for name, numbers in zip(names, values, strict=True):
        if not re.fullmatch(r"[\w+()-]([\w .+()-]*[\w+()-])?", name) or name == MEAN:
            raise UserError(
                f"{where}: {name!r} cannot be a class's name; use letters, digits, _, -, . and blanks"
                + (f" (and not {MEAN}, which is that of all together)" if name == MEAN else "")
            )
        for number in numbers:
            if not 1 <= number <= LARGEST:
                raise UserError(f"{where}: label values go from 1 to {LARGEST}, not {number}; 0 is the background")
    for group, what in ((names, "name"), (values, "label value")):
        twice = next((item for i, item in enumerate(group) if item in group[:i]), None)
        if twice is not None:
            said = twice if what == "name" else "+".join(map(str, twice))
            raise UserError(f"{where}: two classes have the {what} {said}; give each its own")
    if not names:
        raise UserError(f"{where}: names no class")
    classes = Classes(tuple(names), tuple(map(tuple, values)))
    if not classes.is_exclusive and len(classes) > MOST:
        raise UserError(f"{where}: {len(classes)} regions overlap; {MOST} are the most")
    return classes


def own_classes(names, values, where):
    """The `Classes` that a loader's `class_names` and `class_values` stand for (see `data.SegmentationDataset`).

    Raises `UserError`, which begins with `where`, if they make none.
    """
    names = tuple(names)
    if len(names) == 1 and not values:
        return Classes(names)
    values = values or range(1, len(names) + 1)
    values = [tuple(value) if isinstance(value, (tuple, list)) else (value,) for value in values]
    if len(values) != len(names):
        raise UserError(f"{where}: has {len(names)} class_names, but {len(values)} class_values")
    return checked_classes(names, values, where)


def described_classes(path):
    """The `Classes` that a dataset.json of the Medical Segmentation Decathlon or of nnU-Net names.

    Its "labels" are {"1": "liver"} or {"liver": 1}, or with regions {"whole tumour": [1, 2]}; the background, 0, is
    left out. Raises `UserError` where there are none.
    """
    labels = read_json(path)
    labels = labels.get("labels") if isinstance(labels, dict) else None
    names, values = [], []
    for key, value in labels.items() if isinstance(labels, dict) else ():
        name, numbers = (value, key) if isinstance(value, str) else (key, value)
        numbers = numbers if isinstance(numbers, list) else [numbers]
        if not all(str(number).isdecimal() for number in numbers):
            raise UserError(f'{path}: {key!r}: {value!r} in "labels" is no name with its label value; correct it')
        numbers = tuple(map(int, numbers))
        if numbers != (0,):
            names.append(re.sub(r"[^\w .+()-]", "-", name).strip())
            values.append(numbers)
    if not names:
        raise UserError(f'{path}: has no "labels" that name classes; write --classes NAME=VALUE,...')
    return checked_classes(names, values, path)


def found_classes(label_maps, where):
    """The `Classes` of the values in label maps (an iterable of integer arrays): `class_1` for 1 and so on."""
    values = set()
    for labels in label_maps:
        values.update(np.unique(labels).tolist())
        if len(values) > MOST_FOUND:
            raise UserError(
                f"{where}: the masks hold more than {MOST_FOUND} values, so they seem to be no label maps; write "
                "--classes NAME=VALUE,..."
            )
    values = sorted(value for value in values if value > 0)
    if not values:
        raise UserError(f"{where}: the masks hold no value but 0; write --classes NAME=VALUE,...")
    return checked_classes([f"class_{value}" for value in values], [(value,) for value in values], where)
