"""Augmentation of training items, image and masks together, decided by the run's seed and the item's position alone."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

from ..runtime.errors import UserError
from ..runtime.seeds import seed_of
from .resizing import ROUNDING

ORIENTATIONS = ("any", "upright")
ELASTIC_POINTS = 5  # per side of the control grid of an elastic deformation: waves of half an image
BLUR_SIZE = 5  # of the kernel, pixels


@dataclass(frozen=True)
class Strength:
    """The bounds of an augmentation. A value is drawn uniformly in [-bound, bound], unless another range is given.

    warped: the share of items that are warped; the others stay as sharp as the images in sampling.
    rotation, shear: degrees. Images of any orientation rotate by up to 180 degrees instead.
    scale: a factor in [1 / scale, scale], uniform in its logarithm. translation: as a share of the image's longer side.
    elastic: the largest standard deviation of the control points' shifts, as a share of the longer side.
    gain, offset: contrast (a factor 1 +- gain) and brightness of the whole image. channel_gain, channel_offset: the
    same for each channel, in addition. Offsets and noise are in units of the image's standard deviation.
    noise, blur: the largest standard deviations (blur: pixels), each in a share `degraded` of the items.
    """

    warped: float
    rotation: float
    shear: float
    scale: float
    translation: float
    elastic: float
    gain: float
    offset: float
    channel_gain: float
    channel_offset: float
    noise: float = 0.0
    blur: float = 0.0
    degraded: float = 0.0


STRENGTHS = {
    "light": Strength(
        warped=0.8,
        rotation=10,
        shear=3,
        scale=1.1,
        translation=0.05,
        elastic=0.0,
        gain=0.1,
        offset=0.1,
        channel_gain=0.03,
        channel_offset=0.03,
    ),
    "strong": Strength(
        warped=0.9,
        rotation=20,
        shear=8,
        scale=1.3,
        translation=0.1,
        elastic=0.03,
        gain=0.25,
        offset=0.25,
        channel_gain=0.1,
        channel_offset=0.1,
        noise=0.15,
        blur=1.0,
        degraded=0.25,
    ),
}


class Augmentation:
    """Augments training items. (seed, position) alone decide, so neither resuming nor the workers change the result.

    augment, dataset: see `build_augmentation`. seed: the run's.
    """

    def __init__(self, augment, dataset, seed):
        self.transform, self.seed = build_augmentation(augment, dataset), seed

    def __call__(self, item, position):
        """The item (see `SegmentationDataset.__getitem__`) with its image and masks augmented.

        position: the item's place in the run (see `batches.TrainingOrder`). torchvision draws from torch's global
        generator, whose state is restored.
        """
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the GPU's generator, which fork_rng does not restore here.
            torch.default_generator.manual_seed(seed_of("augment", self.seed, position))
            masks = {key: tv_tensors.Mask(item[key]) for key in ("mask", "known") if key in item}
            changed = self.transform({"image": tv_tensors.Image(item["image"]), **masks})
        changed = {key: value.as_subclass(torch.Tensor) for key, value in changed.items()}
        if "known" in changed:
            changed["known"] = (changed["known"] > 1 - ROUNDING).float()  # a pixel is known only if all of it is
        return item | changed


def build_augmentation(augment, dataset):
    """The transform (image [C, S, S], mask [R, K, S, S] in [0, 1]) -> the same shapes and ranges.

    augment: a name in `STRENGTHS`. dataset: its `orientation`, `left_right_axis` and `background` decide what is
    plausible (see `SegmentationDataset`), and `view.soft_masks` how masks are warped. Raises `UserError` for unknown
    values of the first two.
    """
    strength = STRENGTHS[augment]
    if dataset.orientation not in ORIENTATIONS or dataset.left_right_axis not in (-1, -2):
        raise UserError(
            f"{type(dataset).__name__}: has orientation {dataset.orientation!r} and left_right_axis "
            f"{dataset.left_right_axis!r}; they must be 'any' or 'upright', and -1 or -2"
        )
    anyhow = dataset.orientation == "any"
    mirrors = {-1: v2.RandomHorizontalFlip(), -2: v2.RandomVerticalFlip()}
    steps = list(mirrors.values()) if anyhow else [mirrors[dataset.left_right_axis]]
    warp = Warp(strength, 180 if anyhow else strength.rotation, dataset.view.soft_masks)
    steps.append(v2.RandomApply([warp], strength.warped))
    if strength.blur and dataset.image_size > BLUR_SIZE // 2:  # blurring reflects so many pixels at the borders
        blur = v2.GaussianBlur(BLUR_SIZE, (0.2 * strength.blur, strength.blur))
        steps.append(v2.RandomApply([blur], strength.degraded))
    steps.append(Intensity(strength, dataset.background))
    if strength.noise:
        steps.append(v2.RandomApply([Noise(strength.noise, dataset.background)], strength.degraded))
    return v2.Compose(steps)


class Warp(v2.Transform):
    """Rotate, scale, shear, translate and deform elastically in one resampling, which is bilinear.

    The image is reflected beyond its borders. rotation: the largest angle, degrees. soft_masks: whether masks are
    resampled like images, into the share of each pixel that is marked; else by nearest neighbour.
    """

    def __init__(self, strength, rotation, soft_masks=True):
        super().__init__()
        self.strength, self.rotation, self.soft_masks = strength, rotation, soft_masks

    def make_params(self, flat_inputs):
        """displacement [1, H, W, 2]: from each pixel to its source (x, y), in halves of the image's sides."""
        height, width = flat_inputs[0].shape[-2:]
        extent = torch.tensor([width - 1.0, height - 1.0])
        side = extent.max()
        rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
        pixels = torch.stack([columns, rows], dim=-1)  # [H, W, 2]
        sources = (pixels - extent / 2) @ self._matrix().T + extent / 2
        sources = sources + side * _uniform(2, self.strength.translation)
        if self.strength.elastic:
            sources = sources + side * self._waves(height, width)
        return {"displacement": (reflect(sources, extent) - pixels)[None] * 2 / (extent + 1)}

    def transform(self, inpt, params):
        if self.soft_masks and isinstance(inpt, tv_tensors.Mask):
            warped = v2.functional.elastic(inpt.as_subclass(torch.Tensor), **params)
            return tv_tensors.Mask(warped.clamp(0, 1))
        return v2.functional.elastic(inpt, **params)

    def _matrix(self):
        """The matrix [2, 2] from a place in the warped image to its source, both relative to the centre."""
        angle = math.radians(_uniform(1, self.rotation).item())
        shear = math.tan(math.radians(_uniform(1, self.strength.shear).item()))
        scale = math.exp(_uniform(1, math.log(self.strength.scale)).item())
        cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
        return torch.tensor([[cos, -sin], [sin, cos]]) @ torch.tensor([[1.0, shear], [0.0, 1.0]])

    def _waves(self, height, width):
        """Smooth random shifts [H, W, 2], as a share of the image's longer side."""
        points = torch.randn(1, 2, ELASTIC_POINTS, ELASTIC_POINTS) * torch.rand(()) * self.strength.elastic
        shifts = F.interpolate(points, (height, width), mode="bicubic", align_corners=True)
        return shifts[0].permute(1, 2, 0)


class Intensity(v2.Transform):
    """Change contrast and brightness of the whole image and, slightly, of each channel; masks stay unchanged.

        image = mean + gain (image - mean) + offset std

    The mean is the channel's, the standard deviation the image's, so the effect does not depend on the normalisation.
    Values are not clipped. Pixels of the value `background` stay unchanged and do not count in mean and deviation.
    """

    def __init__(self, strength, background=None):
        super().__init__()
        self.strength, self.background = strength, background

    def make_params(self, flat_inputs):
        """gain and offset, each [C, 1, 1]."""
        by, channels = self.strength, flat_inputs[0].shape[-3]
        gain = (1 + _uniform(1, by.gain)) * (1 + _uniform(channels, by.channel_gain))
        offset = _uniform(1, by.offset) + _uniform(channels, by.channel_offset)
        return {"gain": gain[:, None, None], "offset": offset[:, None, None]}

    def transform(self, inpt, params):
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        image = inpt.as_subclass(torch.Tensor)
        inside, unit = _inside(image, self.background)
        mean = (image * inside).sum(dim=(-2, -1), keepdim=True) / inside.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
        changed = mean + (image - mean) * params["gain"] + unit * params["offset"]
        return tv_tensors.Image(torch.where(inside, changed, image))


class Noise(v2.Transform):
    """Add Gaussian noise to images, except to pixels of the value `background`; masks stay unchanged.

    sigma: the largest standard deviation, in units of the image's own.
    """

    def __init__(self, sigma, background=None):
        super().__init__()
        self.sigma, self.background = sigma, background

    def transform(self, inpt, params):
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        image = inpt.as_subclass(torch.Tensor)
        inside, unit = _inside(image, self.background)
        sigma = (unit * torch.rand(()) * self.sigma).item()
        noisy = v2.functional.gaussian_noise(image, sigma=sigma, clip=False)
        return tv_tensors.Image(torch.where(inside, noisy, image))


def reflect(places, extent):
    """Places [..., 2] in pixels, folded into [0, extent] by reflection at the outermost pixels."""
    extent = extent.clamp(min=0.5)  # a single pixel has extent 0
    return extent - (places.remainder(2 * extent) - extent).abs()


def _inside(image, background):
    """The values of an image [C, H, W] that are not background, as a bool [C, H, W], and their standard deviation."""
    inside = torch.ones_like(image, dtype=torch.bool) if background is None else image != background
    return inside, image[inside].std(correction=0) if inside.any() else image.new_zeros(())


def _uniform(count, bound):
    """Uniform values [count] in [-bound, bound]."""
    return torch.empty(count).uniform_(-bound, bound)
