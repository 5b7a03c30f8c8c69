"""A further encoder of the image by the library timm, whose weights may come from another task, as ImageNet's."""

import re
from functools import lru_cache

import torch
from torch import nn

from ..runtime.console import listed
from ..runtime.errors import UserError
from ..runtime.extras import optional

EXAMPLES = "resnet18, resnet50, convnext_tiny or efficientnet_b0"


class PretrainedEncoder(nn.Module):
    """A network of timm that gives feature maps of an image in several sizes; see --encoder.

    name: of timm's architecture. image_channels: C. size: the training size in pixels. shape: the `UNetShape` that the
    maps are joined with. The features of a level are those of the same number of image pixels for each of their own.
    Its batch norms always use their saved mean and variance, so that an image's features depend on no other image. The
    channels are scaled and shifted first, at the start as timm does for pictures in [-1, 1].

    levels: {level of `shape`: number of channels}. Raises `UserError` for a name that timm does not know and for a
    network without such maps. Nothing is downloaded: the weights start at random.
    """

    def __init__(self, name, image_channels, size, shape):
        super().__init__()
        indices, self.levels, mean, deviation = _found(name, image_channels, size, shape.patch, len(shape.widths))
        self.net = _timm_features(name, image_channels, indices)
        if image_channels != len(mean):
            mean, deviation = ([sum(values) / len(values)] * image_channels for values in (mean, deviation))
        mean, deviation = torch.tensor(mean), torch.tensor(deviation)
        self.scale, self.shift = nn.Parameter(0.5 / deviation), nn.Parameter((0.5 - mean) / deviation)

    def train(self, mode=True):
        """As of every module, but the network stays in evaluation mode."""
        super().train(mode)
        self.net.eval()
        return self

    def forward(self, image):
        """image: [N, C, H, W]. Returns {level: features [N, D_level, H_level, W_level]}."""
        image = image * self.scale[:, None, None] + self.shift[:, None, None]
        return dict(zip(self.levels, self.net(image), strict=True))

    @property
    def first_layers(self):
        """The names of the layers in `net` that see the image's channels."""
        names = self.net.model.pretrained_cfg.get("first_conv") or ()
        return [f"model.{name}" for name in ((names,) if isinstance(names, str) else names)]


def _timm_features(name, image_channels, indices=None):
    timm = optional("timm", "encoders", f"--encoder {name}")
    options = {} if indices is None else {"out_indices": indices}
    return timm.create_model(
        name, pretrained=False, features_only=True, feature_cls="getter", in_chans=image_channels, **options
    )


@lru_cache(maxsize=16)
def _found(name, image_channels, size, patch, count):
    """(timm's indices of the maps that fit a level, {level: channels}, ImageNet's mean, standard deviation)."""
    where = f"--encoder {name}"
    timm = optional("timm", "encoders", where)
    if not re.fullmatch(r"[a-z0-9_]{1,60}", name) or not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:5] if re.fullmatch(r"[a-z0-9_]{2,60}", name) else []
        known = f"it has {listed(near, 5)}" if near else f"write {EXAMPLES}"
        raise UserError(f"{where}: timm has no network of this name; {known}")
    strides = {patch * 2**level: level for level in range(count)}
    try:
        with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
            whole = _timm_features(name, image_channels)
            maps = list(zip(whole.feature_info.reduction(), whole.feature_info.channels(), strict=True))
            indices = tuple(index for index, (stride, _) in enumerate(maps) if stride in strides)
            levels = {strides[stride]: width for stride, width in maps if stride in strides}
            shapes, is_whole = [], False
            if indices:
                net = _timm_features(name, image_channels, indices).eval()
                found = net(torch.zeros(1, image_channels, size, size))
                shapes = [tuple(values.shape[1:]) for values in found]
                sum(values.sum() for values in found).backward()
                is_whole = all(parameter.grad is not None for parameter in net.parameters())
            config = whole.model.pretrained_cfg
    except Exception as error:  # of the library, for a network that gives no maps or not at this size
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
        raise UserError(f"{where}: gives no feature maps of {size} pixels ({reason}); take {EXAMPLES}") from error
    wanted = [(width, size // (patch * 2**level), size // (patch * 2**level)) for level, width in levels.items()]
    if not is_whole or shapes != wanted or config.get("fixed_input_size"):
        raise UserError(f"{where}: has no feature maps of the sizes of the network's levels; take {EXAMPLES}")
    return indices, levels, config["mean"], config["std"]
