"""What the pixels of a mask file mean: which are foreground, if exactly one reading is possible."""

from dataclasses import dataclass

import numpy as np

from ..runtime.errors import UserError

LOW, HIGH = 0.12, 0.88  # of the foreground's value: values beyond are the ringing of JPEG or of a smooth resizing
MOST_BETWEEN = 1 / 4  # of the pixels: edges take fewer, a photograph more
FLAT_SHARE = 1 / 20  # of the pixels between: more that equal their neighbours are regions of a value of their own
MOST_OTHER = 1 / 100  # of the pixels of a JPEG file: as many as edges may have another hue
FEW = 8  # values: a lossless file with no more may be a label map
FAINT = 32  # a foreground below this value is no different from JPEG's noise
VOID = (255, 65535)  # beside small label values: pixels that nobody annotated
SMALL = 64  # label values beside which `VOID` is void
SAME_HUE = {False: 3, True: 64}  # by is_lossy: how far colours of one hue may be apart
GREYISH = 40  # how far the channels of a grey JPEG picture may be apart
NEAR, BEYOND = {False: 0.02, True: 0.1}, {False: 1.12, True: 1.3}  # by is_lossy: how far one value spreads, in all
WHITE_8, LOSS = 255, 8  # white in 8 bits; the values that JPEG makes of an area of one colour
LISTED, NAMED = 6, 12  # values listed in a message; classes that a message suggests
WHITES = frozenset({1, 255, 1023, 4095, 16383, 65535})  # what "foreground" is written as, by bits


@dataclass(frozen=True)
class Reading:
    """A mask file as read. mask: bool [H, W]. foreground, is_soft, counts: see `pictures.MaskNote`."""

    mask: np.ndarray
    foreground: str | None = None
    is_soft: bool = False
    counts: dict | None = None


def read_as_mask(pixels):
    """The `Reading` of a file's `pictures.Pixels`.

    Grey: {0, v} for any v, white everywhere, or 0 and v with JPEG's ringing or smooth edges between, cut at half.
    Colours: black and one hue. Alpha: the mask, where the colour is constant.
    Raises `UserError` where there is another reading, with the values and their shares.
    """
    if pixels.alpha is None:
        return _by_colour(pixels)
    if (pixels.alpha == pixels.alpha.flat[0]).all():
        if not pixels.alpha.flat[0]:
            raise UserError(f"{pixels.path}: is transparent all over; save the mask without an alpha channel")
        return _by_colour(pixels)
    by_alpha = _by_grey(pixels.path, pixels.alpha, pixels.white, pixels.is_lossy, "alpha")
    if (pixels.values == pixels.values[:1, :1]).all():
        return Reading(by_alpha.mask, "transparency", by_alpha.is_soft, by_alpha.counts)
    by_colour = _by_colour(pixels)
    differs = float((by_colour.mask != by_alpha.mask).mean())
    if differs > 1e-3:
        raise UserError(
            f"{pixels.path}: its colours show one mask and its transparency another ({_percent(differs)} of the pixels "
            "differ); save the right one in grey, without an alpha channel"
        )
    return by_colour


def read_label_array(values, path):
    """The `Reading` of a label map, integers of any shape, as one class: {0, v}. Raises `UserError` for more values."""
    shares = counts_of_values(np.asarray(values))
    marked = [value for value in shares if value != 0]
    if len(marked) > 1 or (marked and marked[0] < 0):
        raise UserError(_not_one_class(path, shares))
    return Reading(values > 0, f"{marked[0]:g}" if marked else None, False, shares)


def check_whole(values, path):
    """Raise `UserError` unless label values are whole numbers from 0 up; they may be floats."""
    rounded = np.rint(values)
    wrong = ~(np.abs(values - rounded) <= 1e-3) | (rounded < 0)  # NaN too
    if not wrong.any():
        return
    found = ", ".join(f"{value:.4g}" for value in np.unique(values[wrong])[:LISTED])
    if (rounded[wrong] < 0).any():
        why = "labels are 0 (background) or more; save negative ones with values of their own, or as 0"
    else:
        why = "labels are whole numbers; resample label maps by nearest neighbour, and cut probabilities at a threshold"
    raise UserError(f"{path}: holds the label values {found} ({_percent(wrong.mean())} of the pixels); {why}")


def differ(one, other):
    """Whether two files write their foreground, `MaskNote.foreground`, in ways that one label map could hold both.

    0/1 and 0/255 masks agree, and so do colours that JPEG changed a little.
    """
    if one == other or None in (one, other):
        return False
    if "#" in one and "#" in other:
        a, b = (np.array([int(text[k : k + 2], 16) for k in (1, 3, 5)]) for text in (one, other))
        return bool(np.abs(a - b).max() > SAME_HUE[True])
    return not (_is_white(one) and _is_white(other))


def _is_white(foreground):
    return foreground in ("transparency", "#ffffff") or (foreground[0].isdigit() and float(foreground) in WHITES)


# ---- grey ----------------------------------------------------------------------------------------------------------


def _by_grey(path, values, white, is_lossy, what="grey"):
    """The `Reading` of grey values [H, W]. what: "alpha" for a channel of which no label map is made."""
    low, top = values.min(), values.max()
    if low == 0 and top == 0:
        return Reading(np.zeros(values.shape, bool), counts={0: values.size})
    if np.isfinite(top) and low >= 0 and ((values == 0) | (values == top)).all():
        marked = int(np.count_nonzero(values))
        counts = {value: count for value, count in ((0, values.size - marked), (_plain(top), marked)) if count}
        if is_lossy and top < FAINT:
            raise UserError(
                f"{path}: its values {listed_shares(counts)} lie so close together that lossy compression (JPEG) "
                "changes them; save the mask as PNG, from the original"
            )
        if low == 0:
            return Reading(values > 0, f"{_plain(top):g}", counts=counts)
        if top in (1, white):
            return Reading(np.ones(values.shape, bool), f"{_plain(top):g}", counts={_plain(top): values.size})
    if is_lossy and low >= HIGH * white:
        return Reading(np.ones(values.shape, bool), str(white), counts=counts_of_values(values))
    shares = counts_of_values(values)
    soft = _soft_top(values, is_lossy) if 0 <= low < top and values.dtype.kind in "iu" and top <= 65535 else None
    if soft is None:
        is_photograph = len(shares) > FAINT and not _has_regions(
            _is_flat(values, 0), (values > LOW * top) & (values < HIGH * top)
        )
        raise UserError(_not_one_class(path, shares, is_lossy, what, is_photograph))
    foreground = white if soft >= HIGH * white else soft
    return Reading(values > soft / 2, f"{foreground:g}", True, shares)


def _soft_top(values, is_lossy):
    """The foreground's value if these greys are a mask with JPEG's ringing or smooth edges, else None.

    Nearly all pixels must lie near 0 or near one value. Pixels between must be edges: few, and without regions of one
    value. A file without loss must besides have greys as edges or ringing have them; a label map has few values.
    """
    counts = np.bincount(values.ravel())
    half = int(values.max()) // 2
    top = half + 1 + int(counts[half + 1 :].argmax())
    base = int(counts[: half + 1].argmax())  # a few values above 0 in a JPEG file of low quality
    if top < FAINT or base > LOW * top / 2:
        return None
    low, high = int(LOW * top), int(np.ceil(HIGH * top))  # the plateaus are 0..low and high..
    if low < values.min() < HIGH * WHITE_8:  # no background, and not white all over
        return None
    bright, plateau = counts[top // 2 + 1 :].sum(), counts[high:].sum()
    beyond = counts[int(BEYOND[is_lossy] * top) + 1 :].sum()
    near = int(NEAR[is_lossy] * top)
    alike = counts[max(top - near, 0) : top + near + 1].sum()
    if beyond > FLAT_SHARE * plateau or (alike < bright / 2 and top < HIGH * WHITE_8):
        return None
    between = (values > low) & (values < high)
    faint = (values > base + 1) & (values <= low)  # loss makes a background of two neighbouring values
    if between.mean() > MOST_BETWEEN:
        return None
    is_flat = _is_flat(values, 2 if is_lossy else 0)
    if _has_regions(is_flat, between) or np.count_nonzero(is_flat & faint) > plateau / 2 or _is_void(values, low):
        return None
    if is_lossy:
        return top
    others = np.flatnonzero(counts)
    others = others[(others != 0) & (others != top)]
    middle = np.count_nonzero((others > low) & (others < high))
    if not middle:  # values near 0 beside a large one are labels and void, unless JPEG's ringing is at both ends
        at_both = len(others) > FEW and np.count_nonzero(others >= high) >= 2
        return top if at_both or others.min() >= high else None
    if len(others) <= FEW and (middle == 1 or _has_regions(is_flat, (values != 0) & (values != top))):
        return None
    return top


def _is_void(values, low):
    """Whether bright rings enclose another dark value than that around them, as void encloses an object of value 1."""
    from scipy.ndimage import binary_fill_holes

    bright = values > low
    inside = binary_fill_holes(bright) & ~bright
    return inside.sum() > FEW and np.median(values[inside]) != np.median(values[~bright & ~inside])


def _is_flat(values, tolerance):
    """The pixels whose neighbours have the same value, up to a tolerance."""
    from scipy.ndimage import maximum_filter, minimum_filter

    wide = values.astype(np.int32)
    return maximum_filter(wide, 3) - minimum_filter(wide, 3) <= tolerance


def _has_regions(is_flat, where):
    return np.count_nonzero(is_flat & where) > max(FEW, FLAT_SHARE * np.count_nonzero(where))


def _plain(value):
    value = float(value)
    return int(value) if value.is_integer() else value


def counts_of_values(values):
    """{value: number of pixels}."""
    if values.dtype in (np.uint8, np.uint16):
        counts = np.bincount(values.ravel())
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    found, counts = np.unique(values, return_counts=True)
    return {
        _plain(value) if np.isfinite(value) else float(value): int(n) for value, n in zip(found, counts, strict=True)
    }


# ---- colours -------------------------------------------------------------------------------------------------------


def _by_colour(pixels):
    """The `Reading` of the values of `Pixels`, without their alpha channel."""
    values = pixels.values
    if values.ndim == 2:
        return _by_grey(pixels.path, values, pixels.white, pixels.is_lossy)
    spread = values.max(axis=-1) - values.min(axis=-1)  # of channels
    if not spread.any() or (pixels.is_lossy and spread.max() <= GREYISH):
        return _by_grey(pixels.path, values[..., 1], pixels.white, pixels.is_lossy)
    step = (pixels.white + 1) // 256  # colours are compared and named with 8 bits, unless they have small values
    eight = (values // step).astype(np.uint8) if values.max() > 255 and step > 1 else values.astype(np.uint8)
    packed = eight.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    colours, counts = np.unique(packed, return_counts=True)
    if len(colours) == 2 and colours[0] == 0:
        return Reading(packed > 0, f"#{colours[1]:06x}", counts=counts_of_values(eight.max(axis=-1)))
    brightness = eight.max(axis=-1)
    top = _bright_colour(colours, counts)
    predicted = brightness[..., None] * (top / top.max())
    is_other = np.abs(eight - predicted).max(axis=-1) > SAME_HUE[pixels.is_lossy]
    is_one_hue = not is_other.any() or (pixels.is_lossy and _are_edges(is_other, brightness))
    if is_one_hue and len(colours) > 2:
        soft = _soft_top(brightness, pixels.is_lossy)
        if soft is not None:
            name = "#" + "".join(f"{int(channel):02x}" for channel in top)
            return Reading(brightness > soft / 2, name, True, counts_of_values(brightness))
    raise UserError(_several_colours(pixels, colours, counts))


def _are_edges(is_other, brightness):
    """Whether the pixels of another hue are JPEG's edges, few and in no region or object of their own."""
    from scipy.ndimage import label

    if is_other.mean() > MOST_OTHER or _has_regions(_is_flat(brightness, LOSS), is_other):
        return False
    objects, count = label(brightness > brightness.max() / 2)
    sizes = np.bincount(objects.ravel(), minlength=count + 1)[1:]
    others = np.bincount(objects[is_other], minlength=count + 1)[1:]
    return not ((sizes > FEW) & (2 * others > sizes)).any()


def _bright_colour(colours, counts):
    """The most frequent colour of at least half of the largest brightness: float [3]."""
    channels = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=-1)
    brightness = channels.max(axis=-1)
    bright = brightness > brightness.max() / 2
    return channels[bright][counts[bright].argmax()].astype(float)


# ---- messages ------------------------------------------------------------------------------------------------------


def _percent(share):
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.3g} %"


def listed_shares(shares):
    """ "0 (94 %), 1 (5.1 %), 255 (0.9 %)" of {value: number of pixels}; with many values, the most frequent."""
    total = sum(shares.values())
    usual = sorted(sorted(shares, key=shares.get, reverse=True)[:LISTED])
    text = ", ".join(f"{value:.4g} ({_percent(shares[value] / total)})" for value in usual)
    return text + (f" and {len(shares) - LISTED} more" if len(shares) > LISTED else "")


def _not_one_class(path, shares, is_lossy=False, what="grey", is_photograph=False):
    """The message about grey values that are not 0 and one other. shares: {value: number of pixels}."""
    values = "its alpha values" if what == "alpha" else "its values"
    advice = _advice(shares, is_lossy, what, is_photograph)
    return f"{path}: {values} {listed_shares(shares)} are no mask of one class; {advice}"


def _advice(shares, is_lossy, what, is_photograph):
    """What to do about these values."""
    save = "save the mask with 0 for background and 255 for foreground"
    marked = sorted(value for value in shares if value != 0)
    if is_photograph:
        return f"they are the many greys of a photograph: are images/ and masks/ swapped, or the wrong file? {save}"
    if any(value < 0 for value in marked):
        return f"negative values mean nothing here; {save}"
    if any(value != value for value in marked):
        return f"NaN means nothing here; {save}"
    if any(value != value // 1 for value in marked):
        return f"fractions may be probabilities, or come from resampling; {save}"
    if len(marked) == 1:
        return f"one value everywhere is background or foreground; {save}"
    if what == "alpha":
        return save
    if is_lossy:
        return f"some are regions, not edges, and JPEG changes label values; {save}, as PNG"
    return _values_advice(shares, marked, save)


def _values_advice(shares, marked, save):
    """What to do about a lossless label map, also where its background seems to be another value than 0."""
    usual = max(shares, key=shares.get)
    others = [value for value in marked if value != usual]
    if 0 not in shares:
        reads = f"--classes foreground={others[0]} reads {others[0]} as foreground"
        reads = reads if len(others) == 1 else classes_advice(others)
        return f"none is 0, the background; if {usual} is: {reads}, or {save}"
    if usual and shares[0] < FLAT_SHARE * shares[usual]:
        return (
            f"0 always means background here; if {usual} is the background, save it as 0 and what is 0 as another "
            f"value, else {classes_advice(marked)}"
        )
    return classes_advice(marked) + f", or {save}"


def void_among(marked):
    """[255] (or [65535]) if it lies beside small label values alone, and so means void, else [].

    marked: the values besides 0.
    """
    void = [value for value in marked if value in VOID]
    others = [value for value in marked if value not in VOID]
    return void if others and max(others) <= SMALL else []


def classes_advice(marked):
    """Which --classes would read a label map with these values besides 0, as the beginning of a sentence."""
    void = void_among(marked)
    inner = [value for value in marked if value not in void]
    if void and len(inner) == 1:
        reads = f"--ignore_label {void[0]} leaves it out, --classes foreground={inner[0]} takes it as background"
        return f"{void[0]} beside small values is void (not annotated): {reads}"
    if len(inner) > NAMED:
        span = f"{inner[0]}-{inner[-1]}"
        return (
            f"if they number {len(inner)} instances of one class: --classes object={span} (or up to the most in a file)"
        )
    together = "+".join(map(str, inner))
    apart = ",".join(f"class_{value}={value}" for value in inner)
    text = f"--classes object={together} reads them as one class (instances), --classes {apart} as {len(inner)}"
    if not void:
        return text
    return f"{text}; {_void_advice(void[0])}"


def _void_advice(value):
    return f"{value} is void (not annotated): background then, unless --ignore_label {value} leaves it out"


def _several_colours(pixels, colours, counts):
    """The message about colours that are not black and one hue."""
    total, order = counts.sum(), np.argsort(-counts, kind="stable")
    packed = dict(zip(colours.tolist(), counts.tolist(), strict=True))
    names = {}
    if pixels.indices is not None:
        for value in np.unique(pixels.indices).tolist():
            colour = pixels.values[pixels.indices == value][0].astype(int)
            names.setdefault(int(colour @ (65536, 256, 1)), value)
    shown = []
    for place in order[:LISTED]:
        colour = int(colours[place])
        index = f"{names[colour]}: " if colour in names else ""
        shown.append(f"{index}#{colour:06x} ({_percent(packed[colour] / total)})")
    more = f" and {len(colours) - LISTED} more" if len(colours) > LISTED else ""
    text = f"{pixels.path}: its colours {', '.join(shown)}{more} are no mask of one class, black and one other colour; "
    if len(colours) > 256:
        is_drawn = _is_flat(pixels.values.max(axis=-1), LOSS).mean() > 0.5 and counts.max() > total / 10
        if is_drawn and pixels.is_lossy:
            return text + "JPEG changes colours; save a grey or palette PNG with a number for each class"
        return text + "are images/ and masks/ swapped, or is it the wrong file?"
    marked = sorted(value for value in set(names.values()) if value != 0)
    if pixels.indices is not None and 0 < len(marked) <= NAMED:
        void = void_among(marked)
        apart = ",".join(f"class_{value}={value}" for value in marked if value not in void)
        text += f"--classes {apart} reads the numbers in the palette as classes, and 0 as background"
        return text + (f"; {_void_advice(void[0])}" if void else "")
    remedy = "save one class as white on black, or several as a grey or palette PNG with a number for each"
    return f"{text}{remedy}, which --classes names"
