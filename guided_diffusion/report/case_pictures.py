"""The pictures of one image or slice in a report, as small files: the image, outlines over it, and soft maps."""

import io
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..data.truth import on_grid, truths_of
from ..evaluation.statistics import mean_defined
from ..evaluation.uncertainty import SCORES, case_scores
from ..io.drawing import (
    CLASS_COLOURS,
    MASK_COLOUR,
    MEMBER_COLOURS,
    TRUTH_COLOUR,
    border,
    class_colour,
    dashes,
    displayed,
    enlarged,
    grey,
    heat,
    member_colour,
    radiological,
    resized,
    tinted,
)

SIDE = 512  # longest side of a picture, in pixels, which zooming enlarges
MAP_SIDE = 160  # longest side of a soft map, which is smooth
CARD_TILE = 132  # side of each picture of a card
MOST_SLICES = 64  # of a volume
MAP_COLOURS = 48  # of a soft map; more colours need more bytes without a visible difference
# Of an outline sheet; the first colour is transparent.
PALETTE = [(0, 0, 0), MASK_COLOUR, TRUTH_COLOUR, MEMBER_COLOURS[0], *CLASS_COLOURS]


@dataclass
class CaseView:
    """One image or slice for display; all arrays have the same H and W.

    image: RGB uint8 [H, W, 3]. masks: bool [K, H, W]. truths: bool [K, H, W], or None. members: a list of bool
    [K, H, W]. uncertainty: float in [0, 1] [H, W], or None. probability: float in [0, 1] [K, H, W], or None.
    """

    image: np.ndarray
    masks: np.ndarray
    truths: np.ndarray | None
    members: list
    uncertainty: np.ndarray | None
    probability: np.ndarray | None

    def layers(self):
        """The names of the tiles of `outlines`, in drawing order."""
        return [*([] if self.truths is None else ["truth"]), "mask", *(f"member {e}" for e in range(len(self.members)))]

    def card(self):
        """A card with up to four tiles side by side: image, mask and truth, members, uncertainty.

        Each member has its `member_colour`, with several classes those of the classes. Returns the JPEG and its
        (height, width).
        """
        image = resized(self.image, CARD_TILE)
        answer = image.copy()
        if self.truths is not None:
            _draw_outlines(answer, self.truths, TRUTH_COLOUR, width=2, dashed=len(self.truths) > 1)
        _draw_outlines(answer, self.masks, MASK_COLOUR, width=2)
        tiles = [image, answer]
        if self.members:
            tiles.append(image.copy())
            for e, member in enumerate(self.members):
                _draw_outlines(tiles[-1], member, member_colour(e))
        if self.uncertainty is not None:
            tiles.append(resized(heat(self.uncertainty), CARD_TILE))
        # Cut off the bars above and below a wide picture.
        height = max(CARD_TILE * min(1, self.image.shape[0] / self.image.shape[1]), CARD_TILE / 2)
        rows = slice(math.floor((CARD_TILE - height) / 2), math.ceil((CARD_TILE + height) / 2))
        gap = np.zeros((CARD_TILE, 2, 3), np.uint8)
        card = np.concatenate([part for tile in tiles for part in (gap, tile)][1:], axis=1)[rows]
        return _jpeg(card, 84), card.shape[:2]

    def picture(self):
        """The image as JPEG, its longer side at most `SIDE` pixels."""
        return _jpeg(_fitted(self.image, SIDE), 88)

    def outlines(self):
        """The outlines of `layers` side by side on a transparent ground: a PNG, and a tile's (height, width).

        With one class all members have the same colour: the page colours each anew.
        """
        tiles = []
        if self.truths is not None:
            tiles.append(_outlined(self._lines(self.truths), 2, dashed=len(self.truths) > 1))
        tiles.append(_outlined(self._lines(self.masks), 1))
        tiles += [_outlined(self._lines(member), 3) for member in self.members]
        return _palette_png(np.concatenate(tiles, axis=1)), tiles[0].shape

    def maps(self):
        """Uncertainty and probability side by side, as PNG; None where they were not saved."""
        if self.uncertainty is None:
            return None
        both = [_fitted(layer, MAP_SIDE) for layer in (heat(self.uncertainty), tinted(self.probability))]
        return _png(Image.fromarray(np.concatenate(both, axis=1)).quantize(MAP_COLOURS))

    def _lines(self, masks):
        """Masks in the size of the outline sheet; small masks are enlarged, so that lines are thin."""
        if max(masks.shape[1:]) > SIDE:
            return np.stack([_fitted(grey(mask), SIDE)[..., 0] > 127 for mask in masks])
        return np.stack([enlarged(mask) for mask in masks])


class CaseSlices(NamedTuple):
    """The slices of a case in a report.

    views: a list of (slice index, `CaseView`); a 2-D image has one view, without an index (None). scores: the defined
    `uncertainty.SCORES` of the case, means over classes. share: the share of the whole image or volume that lies in
    the mask of any class.
    """

    views: list
    scores: dict
    share: float


def slices_of(predictions, dataset, unit, read_raters):
    """The `CaseSlices` of a case, or None where it has no prediction.

    A volume shows the slices with mask, truth or high uncertainty and their neighbours, at most `MOST_SLICES` of them,
    evenly spaced.
    """
    name, is_volume, classes = unit.name, unit.is_volume, range(len(dataset.classes))
    if predictions.mask(name, is_volume) is None:
        return None

    def stacked(read):
        maps = [read(name, is_volume, k) for k in classes]
        return None if maps[0] is None else _stack(maps)

    reads = (predictions.mask, predictions.probability, predictions.uncertainty)
    with ThreadPoolExecutor(len(reads) if is_volume else 1) as pool:  # the files of a volume take seconds to unpack
        masks, probability, uncertainty = pool.map(stacked, reads)
    class_members = [predictions.members(name, is_volume, k) for k in classes]
    members = [_stack(member) for member in zip(*class_members, strict=True)]
    if uncertainty is not None:  # a standard deviation, at most 0.5
        uncertainty = None if probability is None else uncertainty.max(axis=0) if len(classes) > 1 else uncertainty[0]
    if uncertainty is not None:
        uncertainty *= 2  # in place, as a volume is large
    truths = truths_of(dataset, unit.cases, read_raters)
    if truths is not None:
        truths = np.stack([on_grid(truth, masks.shape[1:]) for truth in truths])
    layers = (masks, truths, members, uncertainty, probability)
    scores, share = _scores(masks, members, probability), float(masks.any(axis=0).mean())
    if not is_volume:
        image = displayed(dataset.load_image(unit.cases[0]))
        return CaseSlices([(None, _view(image, *layers))], scores, share)
    geometry = dataset.load_geometry(unit.cases[0])
    affine = None if geometry is None else geometry.affine
    views = []
    for k in _shown_slices(masks, truths, uncertainty):
        image = radiological(displayed(dataset.load_image(unit.cases[k])), affine)
        views.append((k, _view(image, *(_layer_slice(layer, k, affine) for layer in layers))))
    return CaseSlices(views, scores, share)


def _stack(maps):
    """The maps of all classes as one array [K, ...]; a single one is not copied."""
    return np.stack(maps) if len(maps) > 1 else maps[0][None]


def _scores(masks, members, probability):
    """The defined `uncertainty.SCORES` of a case, means over classes."""
    class_scores = [
        case_scores(mask, [member[k] for member in members], None if probability is None else probability[k])
        for k, mask in enumerate(masks)
    ]
    means = {name: mean_defined([scores[name] for scores in class_scores]) for name in SCORES}
    return {name: value for name, value in means.items() if not math.isnan(value)}


def _view(image, masks, truths, members, uncertainty, probability):
    """A `CaseView` on the grid of the masks; masks from another program may differ in size from the image."""
    if image.shape[:2] != masks.shape[1:]:
        image = np.stack([on_grid(channel, masks.shape[1:]) for channel in np.moveaxis(image, -1, 0)], axis=-1)
    return CaseView(image, masks, truths, members, uncertainty, probability)


def _layer_slice(layer, k, affine):
    """Slice k of a layer [..., X, Y, Z], or of a list of layers, in radiological orientation; None gives None."""
    if layer is None:
        return None
    if isinstance(layer, list):
        return [_layer_slice(part, k, affine) for part in layer]
    layer = layer[..., k]
    return radiological(layer, affine) if layer.ndim == 2 else np.stack([radiological(part, affine) for part in layer])


def _shown_slices(masks, truths, uncertainty):
    """The indices of a volume's slices in a report, see `slices_of`."""
    touched = masks.any(axis=(0, 1, 2))
    if truths is not None:
        touched = touched | truths.any(axis=(0, 1, 2))
    if uncertainty is not None:
        touched = touched | (uncertainty.max(axis=(0, 1)) > 0.25)
    if not touched.any():
        touched = np.ones_like(touched)
    beside = np.concatenate([[False], touched, [False]])
    indices = np.flatnonzero(beside[:-2] | touched | beside[2:])
    return indices[np.linspace(0, len(indices) - 1, min(MOST_SLICES, len(indices))).round().astype(int)].tolist()


def _outlined(masks, colour, dashed=False):
    """The outlines of masks bool [K, H, W] as indices of `PALETTE`, uint8 [H, W].

    A single class has this colour; with several classes each has its own.
    """
    drawn = np.zeros(masks.shape[1:], np.uint8)
    kept = dashes(masks.shape[1:]) if dashed else np.ones(masks.shape[1:], bool)
    for k, mask in enumerate(masks):
        drawn[border(mask) & kept] = colour if len(masks) == 1 else PALETTE.index(class_colour(k), 4)
    return drawn


def _draw_outlines(tile, masks, colour, width=1, dashed=False):
    """Draw the outlines of masks bool [K, H, W] on a card's tile, a single class in this colour."""
    for k, mask in enumerate(masks):
        line = border(resized(grey(mask), CARD_TILE)[..., 0] > 127, width)
        if dashed:
            line &= dashes(line.shape)
        tile[line] = colour if len(masks) == 1 else class_colour(k)


def _fitted(picture, side):
    """A picture uint8 [H, W, 3], reduced so that its longer side is at most `side`."""
    scale = side / max(picture.shape[:2])
    if scale >= 1:
        return picture
    size = tuple(max(1, round(length * scale)) for length in picture.shape[1::-1])
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _jpeg(picture, quality):
    image = Image.fromarray(picture)
    if (picture == picture[..., :1]).all():
        image = image.convert("L")
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=quality, subsampling=0)  # optimize fails on noise
    return data.getvalue()


def _palette_png(indices):
    image = Image.fromarray(indices)
    image.putpalette([value for colour in PALETTE for value in colour])
    return _png(image, transparency=0, bits=4)


def _png(image, **options):
    data = io.BytesIO()
    image.save(data, format="PNG", **options)
    return data.getvalue()
