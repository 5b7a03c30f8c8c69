"""Small networks, data sets and inputs in memory, for tests of several modules."""

import numpy as np
import torch

from guided_diffusion.config.fields import build
from guided_diffusion.config.options import ModelOptions
from guided_diffusion.data.cases import Case
from guided_diffusion.data.dataset import SegmentationDataset
from guided_diffusion.models.medsegdiff import build_model


class Blobs(SegmentationDataset):
    """Six random images of 16 pixels in memory, each marked by `raters` raters."""

    image_channels = 2
    raters = 1

    def find_cases(self):
        return [Case(f"c{i}", (self.data_dir / str(i),), (self.data_dir / "m",)) for i in range(6)]

    def read_image(self, case):
        return np.random.default_rng(int(case.name[1:])).uniform(0, 255, (2, 16, 16))

    def read_mask(self, case):
        rater = np.arange(self.raters)[:, None, None, None]
        return np.arange(16)[:, None] * np.ones((self.raters, 1, 16, 16)) > 4 + 2 * rater + int(case.name[1:])

    def normalise(self, image):
        return image / 127.5 - 1


class Remembered(Blobs):
    """`Blobs` of some `dtype` and two class labels, which remember what was read."""

    dtype = torch.float32
    read = ()

    def __getitem__(self, index):
        item = super().__getitem__(index)
        self.read = (*self.read, index)
        item |= {name: item[name].to(self.dtype) for name in ("image", "mask")}
        return {**item, "label": torch.tensor(index % 2)}


def options_of(**values):
    small = {"image_size": 16, "num_channels": 8, "channel_mult": "1,2", "num_res_blocks": 1}
    return build(ModelOptions, {**small, "attention_resolutions": "", **values})


def model_of(image_channels=3, mask_channels=1, num_labels=0, scale=0.1, **values):
    """A small model whose layers that start at zero have been moved off it."""
    torch.manual_seed(0)
    model = build_model(options_of(**values), image_channels, mask_channels, num_labels)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return model.eval()


def inputs(height=16, width=None, image_channels=3, mask_channels=1, n=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = (height, width or height)
    image = torch.randn(n, image_channels, *size, generator=generator)
    x_t = torch.randn(n, mask_channels, *size, generator=generator)
    return image, x_t, torch.randint(0, 1000, (n,), generator=generator)


def run_model(model, image, x_t, t, label=None):
    return model(x_t, t, model.encode(image, label))


class ArrayDataset(SegmentationDataset):
    """Cases from arrays in memory, to test the base class alone."""

    image_channels = 2
    class_names = ("a", "b")
    images = {f"c{i}": np.full((2, 20, 30), 10.0 * i) for i in range(5)}
    masks = {name: np.arange(2 * 2 * 20 * 30).reshape(2, 2, 20, 30) % 7 == 0 for name in images}
    names = tuple(images)
    extra = {}

    def find_cases(self):
        return [Case(name, (self.data_dir / name,), (self.data_dir / "m",), **self.extra) for name in self.names]

    def read_image(self, case):
        return self.images[case.name]

    def read_mask(self, case):
        return self.masks[case.name]


def array_dataset(tmp_path, need_masks=True, **attributes):
    return type("Made", (ArrayDataset,), attributes)(tmp_path, 16, need_masks=need_masks)


class Stack(SegmentationDataset):
    """Slices [2, 8, 8] of two volumes whose values tell volume, slice and channel; slice 3 of b is missing."""

    image_channels = 2
    places = {"a": range(4), "b": (0, 1, 2, 4, 5)}
    marked = {("a", 1), ("a", 2), ("b", 4)}

    def find_cases(self):
        path = self.data_dir / "f"
        return [Case(f"{v}{k}", (path,), (path,), volume=v, slice_index=k) for v in self.places for k in self.places[v]]

    def read_image(self, case):
        value = 100 * (case.volume == "b") + 10 * case.slice_index
        return np.stack([np.full((8, 8), value + channel) for channel in range(2)])

    def read_mask(self, case):
        mask = np.zeros((1, 1, 8, 8), bool)
        mask[..., 2, 3] = (case.volume, case.slice_index) in self.marked
        return mask

    def normalise(self, image):
        return image
