"""Layers that work in the Fourier domain: the FF-Parser of MedSegDiff."""

import torch
from torch import nn

from .nn import without_autocast


class FFParser(nn.Module):
    """FF-Parser (MedSegDiff sec. 2.2): M = F[m], M' = A (x) M with a learned map A, m' = F^-1[M'].

    A is complex, per channel and frequency, and multiplies elementwise; it starts at 1, so that the layer starts
    as the identity. It is stored as a real parameter [C, size, size // 2 + 1, 2] (sharding and fused optimizers
    refuse complex ones), over the half plane of frequencies that a real image has; other image sizes read it at
    their own frequencies (cycles per pixel) by linear interpolation. The transform runs in float32 whatever
    autocast says: half precision would overflow in the sum over pixels.
    """

    def __init__(self, channels, size):
        super().__init__()
        self.size = size
        weight = torch.zeros(channels, size, size // 2 + 1, 2)
        weight[..., 0] = 1
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        """x: [N, C, H, W] real. Returns the filtered features, same shape and dtype."""
        height, width = x.shape[-2:]
        with without_autocast(x.device.type):
            weight = torch.view_as_complex(self._weight_for(height, width).float().contiguous())  # [C, H, W//2+1]
            spectrum = torch.fft.rfft2(x.float(), norm="ortho")  # [N, C, H, W//2+1]
            return torch.fft.irfft2(weight * spectrum, s=(height, width), norm="ortho").to(x.dtype)

    def _weight_for(self, height, width):
        if (height, width) == (self.size, self.size):
            return self.weight
        device = self.weight.device
        rows = torch.fft.fftfreq(height, device=device) * self.size  # in (-size/2, size/2), in units of map rows
        columns = torch.fft.rfftfreq(width, device=device) * self.size
        # Rows wrap round: the spectrum of a sampled image is periodic. Columns end at the Nyquist frequency.
        along_rows = _interpolate(self.weight, rows % self.size, dim=1, wrap=True)
        return _interpolate(along_rows, columns, dim=2, wrap=False)


def _interpolate(values, positions, dim, wrap):
    """Linear interpolation of `values` along `dim` at fractional positions, wrapping round or clamped at the end."""
    length = values.shape[dim]
    low = positions.floor().long()
    shape = [1] * values.ndim
    shape[dim] = -1
    fraction = (positions - low).reshape(shape).to(values.dtype)
    high = (low + 1) % length if wrap else (low + 1).clamp(max=length - 1)
    low = low.clamp(max=length - 1)
    return torch.lerp(values.index_select(dim, low), values.index_select(dim, high), fraction)
