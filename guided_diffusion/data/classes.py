"""Classes: their names, their label values, and the conversion of label maps to masks and back."""

import re
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np

from ..io.masks import void_among
from ..io.texts import read_json, shown
from ..runtime.errors import UserError

KEYWORDS = ("auto", "regions", "labels")  # values of --classes other than NAME=VALUE,...
MAX_LABEL = 65535  # the largest value of a 16-bit picture
LABEL = re.compile("[0-9]{1,9}")  # a label value in text
SHORTENED = 4  # label values that follow each other and are written as a range
MAX_REGIONS = 62  # a pixel's regions are the bits of one int64
USUAL = 12  # values in one label map; where there are more, some may be those of smooth edges
MAX_FOUND = 256  # more values than this, with 0, are no label map for --classes auto
# Names in dataset.json of pixels that nobody annotated, which count neither in the loss nor in the figures.
RESERVED = ("ignore", "ignored", "ignore_label", "void", "unlabeled", "unlabelled", "unannotated", "not annotated")
MEAN = "mean"  # in tables, the row of all classes together; no class may have this name


@dataclass(frozen=True)
class Classes:
    """K classes without the background.

    names: K names. values: for each class its label values, from 1 up; () for a single class, which is every value
    but 0. Classes are exclusive if no two share a value; otherwise they are overlapping regions.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...] = ()

    def __len__(self):
        return len(self.names)

    def __str__(self):
        """The value of `--classes`: "liver=1,tumour=2", or "" for one class without values."""
        pairs = zip(self.names, self.values, strict=False)
        return ",".join(f"{name}={values_text(values)}" for name, values in pairs)

    def described(self):
        """The classes for a message: "liver=1, tumour=2 (one of many)"."""
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
        """Label maps as masks: integers [...] -> bool [K, ...]. A value of no class is background."""
        return np.stack([self.mask_of(labels, k) for k in range(len(self))])

    def mask_of(self, labels, k):
        """The mask of class k: integers [...] -> bool [...]."""
        return np.asarray(labels) > 0 if self.is_binary else np.isin(labels, self.values[k])

    def labels_of(self, masks):
        """Masks as one label map: bool [K, ...] -> uint8 [...], or uint16 if a label value is above 255.

        Exclusive classes: the first value of the pixel's class (of the first class, if two masks overlap).
        Regions: the value that belongs to exactly the pixel's regions. If there is none, take the pixel's smallest
        region (the one with the fewest values) and of its values the one whose regions differ least from the pixel's.
        So ET wins over TC over WT. Ties go to the first value.
        """
        masks = np.asarray(masks, dtype=bool)
        kind = np.uint8 if self.largest <= 255 else np.uint16
        if self.is_exclusive:
            labels = np.zeros(masks.shape[1:], kind)
            for mask, value in reversed(list(zip(masks, self._firsts, strict=True))):
                labels[mask] = value
            return labels
        members = np.zeros(masks.shape[1:], np.int64)  # bit k: the pixel is in region k
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
        """The label value of a pixel in these regions, a set of class indices (see `labels_of`)."""
        if not regions:
            return 0
        smallest = min(regions, key=lambda k: (len(self.values[k]), k))

        def difference(value):
            return len(regions ^ {k for k, values in enumerate(self.values) if value in values})

        return min(self.values[smallest], key=difference)

    def as_written(self, masks):
        """Masks bool [K, ...] after `labels_of` and `masks_of`: what a reader of the written label map gets."""
        return masks if self.is_binary else self.masks_of(self.labels_of(masks))


BINARY = Classes(("foreground",))


def parse_classes(text):
    """The `Classes` of `--classes NAME=VALUE,...`. Raises `UserError` where the text is malformed."""
    names, values, where = [], [], f"--classes {shown(text)}"
    items = [part.strip() for part in text.split(",")]
    if len(items) > MAX_LABEL:
        raise UserError(f"{where}: names more than {MAX_LABEL} classes, which no label map can hold")
    for item in items if text.strip() else ():
        name, found, numbers = (part.strip() for part in item.rpartition("="))
        spans = [number.strip().partition("-") for number in numbers.split("+")]
        bounds = [(low.strip(), high.strip() if dash else low.strip()) for low, dash, high in spans]
        if not found or not all(LABEL.fullmatch(bound) for pair in bounds for bound in pair):
            others = ", ".join(KEYWORDS)
            raise UserError(f"{where}: {shown(item)!r} is not NAME=VALUE; write liver=1,tumour=2, or one of {others}")
        bounds = [(int(low), int(high)) for low, high in bounds]
        if any(low > high or high > MAX_LABEL for low, high in bounds if low != high):
            raise UserError(f"{where}: {shown(item)!r} must go from the lower to the higher value, up to {MAX_LABEL}")
        names.append(name)
        values.append(tuple(dict.fromkeys(value for low, high in bounds for value in range(low, high + 1))))
    return checked_classes(names, values, where)


def values_text(values):
    """Label values as `--classes` writes them: "1+2+4", and "1-250" for four or more that follow each other."""
    text, values = [], list(values)
    while values:
        run = next((k for k in range(1, len(values)) if values[k] != values[0] + k), len(values))
        run = run if run >= SHORTENED else 1
        text.append(f"{values[0]}-{values[run - 1]}" if run > 1 else str(values[0]))
        values = values[run:]
    return "+".join(text)


def checked_classes(names, values, where):
    """The `Classes` with these names and label values. Raises `UserError` where they are invalid.

    where: the flag, loader or file that names the classes; messages begin with it.
    """
    for name, numbers in zip(names, values, strict=True):
        if not re.fullmatch(r"[\w+()-]([\w .+()-]*[\w+()-])?", name) or name == MEAN:
            raise UserError(
                f"{where}: {name!r} cannot be a class's name; use letters, digits, _, -, . and blanks"
                + (f" (and not {MEAN}, the row of all classes together)" if name == MEAN else "")
            )
        for number in numbers:
            if not 1 <= number <= MAX_LABEL:
                raise UserError(f"{where}: label values go from 1 to {MAX_LABEL}, not {number}; 0 is the background")
    for group, what in ((names, "name"), (values, "label value")):
        twice = next((item for i, item in enumerate(group) if item in group[:i]), None)
        if twice is not None:
            text = twice if what == "name" else values_text(twice)
            raise UserError(f"{where}: two classes have the {what} {text}; give each its own")
    if not names:
        raise UserError(f"{where}: names no class")
    classes = Classes(tuple(names), tuple(map(tuple, values)))
    if not classes.is_exclusive and len(classes) > MAX_REGIONS:
        raise UserError(f"{where}: {len(classes)} regions overlap; {MAX_REGIONS} are the most")
    return classes


def own_classes(names, values, where):
    """The `Classes` of a loader's `class_names` and `class_values` (see `SegmentationDataset`).

    where: see `checked_classes`, whose errors this raises too.
    """
    names = tuple(names)
    if len(names) == 1 and not len(values):
        return Classes(names)
    values = values if len(values) else range(1, len(names) + 1)
    values = [tuple(map(int, value if isinstance(value, (tuple, list)) else (value,))) for value in values]
    if len(values) != len(names):
        raise UserError(f"{where}: has {len(names)} class_names, but {len(values)} class_values")
    return checked_classes(names, values, where)


class DataDescription(TypedDict, total=False):
    """The parts of a dataset.json of the Medical Segmentation Decathlon or of nnU-Net that are read."""

    labels: dict[str, Any]  # {"1": "liver"}, {"liver": 1} or {"whole tumour": [1, 2]}
    modality: dict[str, Any] | list[Any]
    channel_names: dict[str, Any] | list[Any]
    training: list[Any]
    validation: list[Any]
    test: list[Any]


def read_description(path):
    """The dict in a dataset.json. Raises `UserError` for another type of it, of its labels, channels and lists."""
    return read_json(path, DataDescription, finite=False)  # what is not read may hold the NaN that pandas writes


def read_classes(path):
    """The `Classes` in a dataset.json of the Medical Segmentation Decathlon or of nnU-Net, without the background, 0.

    Its "labels" are {"1": "liver"}, {"liver": 1} or, for regions, {"whole tumour": [1, 2]}. Raises `UserError` where
    the file has none. A label that means "not annotated" is no class (see `reserved_values`).
    """
    description = read_description(path)
    labels = read_labels_of(path, description)
    if not labels:
        raise UserError(f'{path}: has no "labels" that name classes; write --classes NAME=VALUE,...')
    labels = {name: values for name, values in labels.items() if name.strip().lower() not in RESERVED}
    return checked_classes([re.sub(r"[^\w .+()-]", "-", name).strip() for name in labels], list(labels.values()), path)


def read_labels_of(path, description):
    """{name: label values} of the "labels" in a dataset.json, without the background; {} without them.

    path: the file, for messages. description: of `read_description`. Raises `UserError` for values that are no numbers.
    """
    found = {}
    for key, value in description.get("labels", {}).items():
        is_value_first = isinstance(value, str) and bool(LABEL.fullmatch(key) or not LABEL.fullmatch(value))
        name, numbers = (value, key) if is_value_first else (key, value)
        numbers = numbers if isinstance(numbers, list) else [numbers]
        if not all(_is_label_value(number) for number in numbers):
            entry = f"{shown(key)!r}: {shown(repr(value))}"
            raise UserError(f'{path}: {entry} in "labels" is no name with its label value; correct it')
        numbers = tuple(map(int, numbers))
        if numbers != (0,) and found.setdefault(name, numbers) != numbers:
            raise UserError(f'{path}: two "labels" have the name {shown(name)!r}; give each its own')
    return found


def _is_label_value(number):
    return not isinstance(number, bool) and LABEL.fullmatch(str(number)) is not None


def reserved_values(path, description):
    """The values of the label of a dataset.json that means "not annotated", () if there is none."""
    labels = read_labels_of(path, description)
    return next((values for name, values in labels.items() if name.strip().lower() in RESERVED), ())


def _is_inside(labels):
    """The pixels of label maps [..., H, W] that equal their neighbours in H and in W."""
    wide = np.pad(labels, [(0, 0)] * (labels.ndim - 2) + [(1, 1), (1, 1)], mode="edge")
    middle = wide[..., 1:-1, 1:-1]
    beside = (wide[..., :-2, 1:-1], wide[..., 2:, 1:-1], wide[..., 1:-1, :-2], wide[..., 1:-1, 2:])
    return np.logical_and.reduce([middle == other for other in beside])


def found_classes(label_maps, where, own=BINARY):
    """The `Classes` of the values in label maps (an iterable of integer arrays): `class_1` for 1 and so on.

    own: the loader's own `Classes`, whose names the values keep where one value is one class. where: see
    `checked_classes`. Raises `UserError` for more than `MAX_FOUND` values, or none but 0.
    """
    values, inner = set(), set()  # inner: those of more than edges
    for labels in label_maps:
        found = np.unique(labels).tolist()
        values.update(found)
        inner.update(found if len(found) <= USUAL else np.unique(labels[_is_inside(labels)]).tolist())
        if len(values) > MAX_FOUND:
            raise UserError(
                f"{where}: the masks hold more than {MAX_FOUND} values, so they seem to be no label maps; write "
                "--classes NAME=VALUE,..."
            )
    edges = sorted(values - inner)
    if len(edges) > len(inner):
        raise UserError(
            f"{where}: {len(edges)} of {len(values)} label values, as {edges[0]} and {edges[-1]}, lie at edges alone: "
            "resizing with smooth edges makes such values; resample label maps by nearest neighbour"
        )
    values = sorted(value for value in values if value > 0)
    if not values:
        raise UserError(f"{where}: the masks hold no value but 0; write --classes NAME=VALUE,...")
    void = void_among(values)
    if void:
        others = ",".join(f"class_{value}={value}" for value in values if value not in void)
        raise UserError(
            f"{where}: the masks hold {void[0]} beside small values, which usually means void (not annotated); add "
            f"--ignore_label {void[0]}, which leaves these pixels out, or write --classes {others}, which takes it as "
            f"background, or with class_{void[0]}={void[0]} as a class"
        )
    names = {group[0]: name for name, group in zip(own.names, own.values, strict=False) if len(group) == 1}
    return checked_classes([names.get(value, f"class_{value}") for value in values], [(v,) for v in values], where)
