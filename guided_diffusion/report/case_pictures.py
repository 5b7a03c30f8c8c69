"""What a report shows of one image or slice, as small files: the picture, outlines over it, and soft maps."""

import io
import math
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
    MEMBER_COLOUR,
    TRUTH_COLOUR,
    border,
    class_colour,
    dashes,
    displayed,
    enlarged,
    grey,
    heat,
    radiological,
    resized,
    tinted,
)

SIDE = 384  # longest side of a picture in the report, in pixels


MAP_SIDE = 160  # of a soft map, which is smooth


CARD_TILE = 132  # side of each picture of a card


MOST_SLICES = 64  # of a volume


MAP_COLOURS = 48  # of a soft map: more would take more bytes than eyes could tell


# The first colour of an outline sheet is none at all.
PALETTE = [(0, 0, 0), MASK_COLOUR, TRUTH_COLOUR, MEMBER_COLOUR, *CLASS_COLOURS]


@dataclass
class CaseView:
    """One image or slice as it is shown, all of it [..., H, W] of one size.

    image: RGB uint8 [H, W, 3]. masks: bool [K, H, W]. truths: the like, or None. members: a list of the like.
    doubt, probability: float in [0, 1] [H, W] and [K, H, W], or None where none was saved.
    """

    image: np.ndarray
    masks: np.ndarray
    truths: np.ndarray | None
    members: list
    doubt: np.ndarray | None
    probability: np.ndarray | None

    def layers(self):
        """What the tiles of `outlines` are, in the order in which they are drawn."""
        return [*([] if self.truths is None else ["truth"]), "mask", *(f"member {e}" for e in range(len(self.members)))]

    def card(self):
        """The tiles of a card side by side: image, mask and truth, members (if any), uncertainty (if any).

        Returns the JPEG and its (height, width).
        """
        image = resized(self.image, CARD_TILE)
        tiles = [image, image.copy()]
        for masks, colour in ((self.truths, TRUTH_COLOUR), (self.masks, MASK_COLOUR)):
            for k, mask in enumerate(() if masks is None else masks):
                line = border(_small(mask), 2)
                line &= True if len(masks) == 1 or masks is self.masks else dashes(line.shape)
                tiles[1][line] = colour if len(masks) == 1 else class_colour(k)
        if self.members:
            tiles.append(image.copy())
            for member in self.members:
                for k, mask in enumerate(member):
                    tiles[2][border(_small(mask))] = MEMBER_COLOUR if len(member) == 1 else class_colour(k)
        if self.doubt is not None:
            tiles.append(resized(heat(self.doubt), CARD_TILE))
        # Without the bars above and below the picture.
        height = max(CARD_TILE * min(1, self.image.shape[0] / self.image.shape[1]), CARD_TILE / 2)
        rows = slice(math.floor((CARD_TILE - height) / 2), math.ceil((CARD_TILE + height) / 2))
        gap = np.zeros((CARD_TILE, 2, 3), np.uint8)
        card = np.concatenate([part for tile in tiles for part in (gap, tile)][1:], axis=1)[rows]
        return _jpeg(card, 84), card.shape[:2]

    def picture(self):
        """The image, JPEG, at most `SIDE` pixels long."""
        return _jpeg(_fitted(self.image, SIDE), 88)

    def outlines(self):
        """The outlines of `layers` side by side on nothing: the PNG, and the (height, width) of each."""
        tiles = []
        if self.truths is not None:
            tiles.append(_outlined(self._lines(self.truths), 2, dashed=len(self.truths) > 1))
        tiles.append(_outlined(self._lines(self.masks), 1))
        tiles += [_outlined(self._lines(member), 3) for member in self.members]
        return _palette_png(np.concatenate(tiles, axis=1)), tiles[0].shape

    def maps(self):
        """Uncertainty and probability side by side, PNG; None where neither was saved."""
        if self.doubt is None:
            return None
        both = [_fitted(layer, MAP_SIDE) for layer in (heat(self.doubt), tinted(self.probability))]
        return _png(Image.fromarray(np.concatenate(both, axis=1)).quantize(MAP_COLOURS))

    def _lines(self, masks):
        """Masks in the size in which their outlines are drawn: small ones enlarged, so that a line is thin."""
        if max(masks.shape[1:]) > SIDE:
            return np.stack([_fitted(grey(mask), SIDE)[..., 0] > 127 for mask in masks])
        return np.stack([enlarged(mask) for mask in masks])


class CaseSlices(NamedTuple):
    """A case as a report shows it: views, a list of (index or None, `CaseView`), of one for a 2-D image.

    scores: each of `uncertainty.SCORES` that is defined, over all of the case, the mean over classes.
    """

    views: list
    scores: dict


def slices_of(predictions, dataset, unit, read_raters):
    """The `CaseSlices` of a case, or None where it was not predicted.

    Of a volume those that the mask or the truth touches, with one beside, and where the members disagree; spread out
    over them where they are more than `MOST_SLICES`.
    """
    name, volume, kinds = unit.name, unit.is_volume, range(len(dataset.classes))
    if predictions.mask(name, volume) is None:
        return None

    def of_classes(read):
        maps = [read(name, volume, k) for k in kinds]
        return None if maps[0] is None else np.stack(maps)

    masks = of_classes(predictions.mask)
    members = [np.stack(member) for member in zip(*(predictions.members(name, volume, k) for k in kinds), strict=True)]
    probability, doubt = of_classes(predictions.probability), of_classes(predictions.uncertainty)
    doubt = None if doubt is None or probability is None else doubt.max(axis=0) * 2
    truths = truths_of(dataset, unit.cases, read_raters)
    if truths is not None:
        truths = np.stack([on_grid(truth, masks.shape[1:]) for truth in truths])
    layers = (masks, truths, members, doubt, probability)
    scores = _scores(masks, members, probability)
    if not volume:
        image = displayed(dataset.load_image(unit.cases[0]))
        return CaseSlices([(None, _view(image, *layers))], scores)
    geometry = dataset.load_geometry(unit.cases[0])
    affine = None if geometry is None else geometry.affine
    views = []
    for k in _shown_slices(masks, truths, doubt):
        image = radiological(displayed(dataset.load_image(unit.cases[k])), affine)
        views.append((k, _view(image, *(_layer_slice(layer, k, affine) for layer in layers))))
    return CaseSlices(views, scores)


def _scores(masks, members, probability):
    of_classes = [
        case_scores(mask, [member[k] for member in members], None if probability is None else probability[k])
        for k, mask in enumerate(masks)
    ]
    means = {name: mean_defined([scores[name] for scores in of_classes]) for name in SCORES}
    return {name: value for name, value in means.items() if not math.isnan(value)}


def _view(image, masks, truths, members, doubt, probability):
    """A `CaseView` on the grid of the masks; where the image's is another (a mask of elsewhere), it follows."""
    if image.shape[:2] != masks.shape[1:]:
        image = np.stack([on_grid(channel, masks.shape[1:]) for channel in np.moveaxis(image, -1, 0)], axis=-1)
    return CaseView(image, masks, truths, members, doubt, probability)


def _layer_slice(layer, k, affine):
    """Slice k of a layer [..., X, Y, Z] (or of each of a list), as radiologists look at it; None is None."""
    if layer is None:
        return None
    if isinstance(layer, list):
        return [_layer_slice(part, k, affine) for part in layer]
    layer = layer[..., k]
    return radiological(layer, affine) if layer.ndim == 2 else np.stack([radiological(part, affine) for part in layer])


def _shown_slices(masks, truths, doubt):
    """The indices of the slices of a volume that are shown (see `views_of`)."""
    touched = masks.any(axis=(0, 1, 2))
    if truths is not None:
        touched = touched | truths.any(axis=(0, 1, 2))
    if doubt is not None:
        touched = touched | (doubt.max(axis=(0, 1)) > 0.25)
    if not touched.any():
        touched = np.ones_like(touched)
    beside = np.concatenate([[False], touched, [False]])
    indices = np.flatnonzero(beside[:-2] | touched | beside[2:])
    return indices[np.linspace(0, len(indices) - 1, min(MOST_SLICES, len(indices))).round().astype(int)].tolist()


def _outlined(masks, colour, dashed=False):
    """Masks bool [K, H, W] as indices of `PALETTE` [H, W]: a single class in this colour, of several each in its."""
    drawn = np.zeros(masks.shape[1:], np.uint8)
    kept = dashes(masks.shape[1:]) if dashed else np.ones(masks.shape[1:], bool)
    for k, mask in enumerate(masks):
        drawn[border(mask) & kept] = colour if len(masks) == 1 else PALETTE.index(class_colour(k), 4)
    return drawn


def _small(mask):
    return resized(grey(mask), CARD_TILE)[..., 0] > 127


def _fitted(picture, side):
    """A picture uint8 [H, W, 3] made smaller until its longer side is `side` at most."""
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
    image.save(data, format="JPEG", quality=quality, optimize=True, subsampling=0)
    return data.getvalue()


def _palette_png(indices):
    image = Image.fromarray(indices)
    image.putpalette([value for colour in PALETTE for value in colour])
    return _png(image, transparency=0, bits=4)


def _png(image, **options):
    data = io.BytesIO()
    image.save(data, format="PNG", **options)
    return data.getvalue()
