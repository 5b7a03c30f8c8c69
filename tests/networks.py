"""Small networks, data sets and inputs in memory, for tests of several modules."""

import numpy as np
import torch

from guided_diffusion.config.options import ModelOptions, build
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
