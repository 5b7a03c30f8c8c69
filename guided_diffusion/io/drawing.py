"""Pictures for people: displayed images, outlines of masks, colour maps, mosaics and the denoising animation."""

import numpy as np
from PIL import Image, ImageDraw

MASK_COLOUR = (255, 64, 64)
TRUTH_COLOUR = (64, 255, 96)
MEMBER_COLOURS = (  # distinct on grey and skin, and from mask and truth
    (80, 190, 255),
    (255, 210, 0),
    (255, 130, 230),
    (255, 140, 30),
    (170, 130, 255),
    (0, 225, 200),
    (255, 255, 255),
)

CLASS_COLOURS = (  # distinct on grey
    (255, 64, 64),
    (64, 160, 255),
    (255, 210, 0),
    (200, 90, 255),
    (0, 220, 200),
    (255, 130, 0),
    (150, 255, 80),
    (255, 130, 190),
)

DASH = 3  # length of a dash and of a gap, pixels
CAPTION = 16  # height of a strip of captions, pixels


def displayed(image):
    """A raw image float32 [C, H, W] as RGB uint8 [H, W, 3].

    A photograph (3 channels in 0..255) stays unchanged. Of any other image the last channel (FLAIR in BraTS) is shown
    in grey, with the 1st to 99th percentile of its non-zero values from black to white. Zeros, the background of MRI,
    stay black.
    """
    if image.shape[0] == 3 and image.min() >= 0 and image.max() <= 255:
        return image.transpose(1, 2, 0).round().astype(np.uint8)
    channel = image[-1]
    inside = channel != 0
    low, high = np.percentile(channel[inside], (1, 99)) if inside.any() else (0, 1)
    return grey(np.where(inside, (channel - low) / max(high - low, 1e-6), 0))


def radiological(picture, affine):
    """The picture of a slice, [X, Y, ...], in radiological convention: the front (in other planes the head) is up, and
    the patient's left is on the right.

    affine: the volume's [4, 4]; None leaves the picture unchanged.
    """
    from nibabel.orientations import aff2axcodes

    if affine is None:
        return picture
    along_x, along_y, _ = aff2axcodes(affine)
    picture = picture.swapaxes(0, 1)
    picture = picture[::-1] if along_y in "AS" else picture
    return np.ascontiguousarray(picture[:, ::-1] if along_x == "R" else picture)


def grey(values):
    """Values [H, W] in [0, 1] as grey RGB uint8 [H, W, 3]."""
    return np.repeat((np.clip(values, 0, 1) * 255).round().astype(np.uint8)[..., None], 3, axis=2)


def heat(values):
    """Values [H, W] in [0, 1] as RGB uint8 [H, W, 3], from black through red and yellow to white."""
    ramps = np.stack([3 * values, 3 * values - 1, 3 * values - 2], axis=-1)
    return (np.clip(ramps, 0, 1) * 255).round().astype(np.uint8)


def border(mask, thickness=None):
    """The inner border of a mask: bool [H, W] -> bool [H, W]. thickness: in pixels; None: 1/200 of the shorter side."""
    from scipy.ndimage import binary_erosion
    from skimage.morphology import disk

    drawn = np.zeros_like(mask)
    if mask.any():
        box = tuple(slice(line[0], line[-1] + 1) for line in (np.flatnonzero(mask.any(axis=1 - a)) for a in (0, 1)))
        thickness = thickness or max(1, round(min(mask.shape) / 200))
        drawn[box] = mask[box] & ~binary_erosion(mask[box], disk(thickness))  # only in the box: erosion is slow
    return drawn


def dashes(shape):
    """The pixels of a picture of shape (H, W) on which dashed lines are drawn: bool [H, W]."""
    rows, columns = np.indices(shape)
    return (rows + columns) // DASH % 2 == 0


def outline(picture, mask, colour):
    """A copy of the picture uint8 [H, W, 3] with the inner border of a mask, bool [H, W], in a colour."""
    drawn = picture.copy()
    drawn[border(mask)] = colour
    return drawn


def dashed_outline(picture, mask, colour):
    """`outline`, dashed."""
    return np.where(dashes(mask.shape)[..., None], outline(picture, mask, colour), picture)


def overlay(picture, masks, truths=None):
    """The picture uint8 [H, W, 3] with the outlines of masks over those of truths, both bool [K, H, W].

    A single mask is red and its truth green. With several classes each has its `class_colour`, and the truth is dashed.
    """
    if len(masks) == 1:
        if truths is not None:
            picture = outline(picture, truths[0], TRUTH_COLOUR)
        return outline(picture, masks[0], MASK_COLOUR)
    for draw, group in ((dashed_outline, () if truths is None else truths), (outline, masks)):
        for k, mask in enumerate(group):
            picture = draw(picture, mask, class_colour(k))
    return picture


def class_colour(k):
    """The colour of class k, where there are several."""
    return CLASS_COLOURS[k % len(CLASS_COLOURS)]


def member_colour(e):
    """The colour of member e; they repeat from the eighth on."""
    return MEMBER_COLOURS[e % len(MEMBER_COLOURS)]


def tinted(values):
    """Values [K, H, W] in [0, 1] of K classes as RGB uint8 [H, W, 3].

    A single class is grey. Several classes have their `class_colour`s, the later ones drawn over the earlier.
    """
    if len(values) == 1:
        return grey(values[0])
    picture = np.zeros((*values.shape[1:], 3))
    for k, value in enumerate(np.clip(values, 0, 1)[..., None]):
        picture = picture * (1 - value) + value * np.array(class_colour(k))
    return picture.round().astype(np.uint8)


def enlarged(array, least=256):
    """An array [H, W, ...] with each pixel repeated by the smallest integer factor that brings the longer side to at
    least `least` pixels."""
    factor = -(-least // max(array.shape[:2]))
    return array.repeat(factor, axis=0).repeat(factor, axis=1)


def resized(picture, size, proportions=None):
    """The picture uint8 [H, W, 3] scaled to fit a black square of `size` pixels: uint8 [size, size, 3].

    proportions: (height, width) to show it in, where they are not its own.
    """
    height, width = proportions or picture.shape[:2]
    scale = size / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = Image.Resampling.BOX if shape[0] < picture.shape[1] else Image.Resampling.NEAREST
    canvas = Image.new("RGB", (size, size))
    canvas.paste(Image.fromarray(picture).resize(shape, method), ((size - shape[0]) // 2, (size - shape[1]) // 2))
    return np.asarray(canvas)


def mosaic(rows, gap=2):
    """Rows of pictures uint8 [H, W, 3] of one size, as one picture on white. Rows may differ in length."""
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, dtype=np.uint8)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            canvas[i * (height + gap) :, j * (width + gap) :][:height, :width] = picture
    return canvas


def overlaid_tile(image, masks, size, truths=None):
    """`overlay` scaled to a square of `size` pixels. Outlines are drawn after scaling, so that they stay visible."""

    def small(group):
        return None if group is None else np.stack([resized(grey(mask), size)[..., 0] > 127 for mask in group])

    return overlay(resized(image, size), small(masks), small(truths))


def captions(texts, width, gap=2):
    """A white strip of captions for a row of pictures of `width` pixels: uint8 [CAPTION, W, 3].

    A caption that is wider than its picture lacks its middle: names of one data set often differ only at their ends.
    """
    most = width // 6 - 1  # a character is 6 pixels wide
    texts = [text if len(text) <= most else f"{text[: most // 2 - 1]}..{text[-(most // 2) :]}" for text in texts]
    strip = Image.new("RGB", (len(texts) * (width + gap) - gap, CAPTION), "white")
    for i, text in enumerate(texts):
        ImageDraw.Draw(strip).text((i * (width + gap) + 3, 2), text, fill="black")
    return np.asarray(strip)


def volume_montage(image_of, masks, affine, truths=None, count=16, size=160):
    """Overlays of up to `count` evenly spaced slices, of those with a mask or truth, or of all if there are none.

    image_of: the function k -> raw image [C, X, Y] of slice k. masks, truths: bool [K, X, Y, Z]. affine: see
    `radiological`. size: of a tile, in pixels.
    """
    touched = masks.any(axis=(0, 1, 2)) | (truths.any(axis=(0, 1, 2)) if truths is not None else False)
    indices = np.flatnonzero(touched) if touched.any() else np.arange(masks.shape[-1])
    chosen = indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)]
    tiles = []

    def turned(group, k):
        return None if group is None else np.stack([radiological(mask, affine) for mask in group[..., k]])

    for k in chosen:
        image = radiological(displayed(image_of(k)), affine)
        tiles.append(overlaid_tile(image, turned(masks, k), size, turned(truths, k)))
    columns = int(np.ceil(np.sqrt(len(tiles))))
    return mosaic([tiles[i : i + columns] for i in range(0, len(tiles), columns)])


def denoising_frames(image, states, predictions, size=96):
    """Frames of the denoising of one image's members, a list of pictures: x_t in the upper row, predicted x_0 below.

    image: RGB uint8 [H, W, 3], the first tile of each row. states, predictions: for each step an array [E, K, h, w] in
    about [-1, 1], shown in the image's proportions (see `tinted`). The last frame shows the last prediction in both
    rows.
    """
    lead = resized(image, size)

    def tile(values):
        return resized(tinted(values), size, image.shape[:2])

    frames = []
    for state, prediction in zip([*states, predictions[-1]], [*predictions, predictions[-1]], strict=True):
        # x_t has at most unit variance around +-1. A window of +-3 shows the noise and keeps the mask visible.
        noisy = [tile(x / 6 + 0.5) for x in state]
        clean = [tile((x + 1) / 2) for x in prediction]
        frames.append(mosaic([[lead, *noisy], [lead, *clean]]))
    return frames


def save_animation(path, frames, milliseconds=180):
    """Write pictures as an endless GIF that pauses on its last frame. path: a temporary of `files.atomic_path`."""
    pictures = [Image.fromarray(frame).quantize(128) for frame in frames]
    durations = [milliseconds] * (len(pictures) - 1) + [2000]
    pictures[0].save(path, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
