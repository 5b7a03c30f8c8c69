"""Layers that work in the Fourier domain: MedSegDiff's FF-Parser; MedSegDiff-V2's NBP-filter and affinity."""

import torch
import torch.nn.functional as F
from torch import nn

from .layers import at_least_float32, without_autocast


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
            weight = at_least_float32(self._weight_for(height, width)).contiguous()
            spectrum = torch.fft.rfft2(at_least_float32(x), norm="ortho")  # [N, C, H, W//2+1]
            weight = torch.view_as_complex(weight)  # [C, H, W//2+1]
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


class NBPFilter(nn.Module):
    """Neural band-pass filter (MedSegDiff-V2): how much of each pair of frequencies an affinity map keeps.

    A stack of 1x1 convolutions over a map of frequency coordinates, whose features the time step scales and shifts
    after each layer, ends in one value a head for every pair (query frequency, key frequency). The coordinates are
    magnitudes, so that the filter is even and what it filters stays real; they are relative to the Nyquist
    frequency, so that it works for maps of any size. A sigmoid keeps the values in [0, 1], and the filter starts
    constant at about 1, where all frequencies pass.
    """

    def __init__(self, heads, embedding_channels, hidden=16, layers=2):
        super().__init__()
        widths = [4] + [hidden] * layers
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.modulations = nn.ModuleList(nn.Linear(embedding_channels, 2 * hidden) for _ in range(layers))
        self.out = nn.Conv2d(hidden, heads, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.constant_(self.out.bias, 3.0)

    def forward(self, height, width, embedding):
        """embedding: [N, D]. Returns [N, heads, L, L] over the L = height * width frequencies, row by row."""
        coordinates, place = self._frequencies(height, width, embedding.device)
        count = coordinates.shape[1]
        queries, keys = coordinates[:, :, None].expand(2, count, count), coordinates[:, None].expand(2, count, count)
        h = torch.cat([queries, keys]).to(embedding.dtype)[None]  # [1, 4, U, U]
        for layer, modulation in zip(self.layers, self.modulations, strict=True):
            scale, shift = modulation(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)  # [N, hidden, 1, 1]
            h = F.silu(layer(h) * (1 + scale) + shift)
        values = torch.sigmoid(self.out(h))  # [N, heads, U, U]
        return values.index_select(2, place).index_select(3, place)

    @staticmethod
    def _frequencies(height, width, device):
        """The U different frequencies by magnitude [2, U], each axis in 0..1, and which of them each of the L is [L].

        A filter that knows magnitudes alone has a quarter as many, so its map of pairs costs a sixteenth.
        """
        rows, columns = (torch.arange(n // 2 + 1, device=device) * 2 / n for n in (height, width))
        coordinates = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).flatten(1)
        row, column = (torch.minimum(i := torch.arange(n, device=device), n - i) for n in (height, width))
        return coordinates, (row[:, None] * (width // 2 + 1) + column).flatten()


class FourierAffinity(nn.Module):
    """Attention weights whose affinity map is built and filtered in the Fourier domain (MedSegDiff-V2's SS-Former).

        M = F(q) F(k)^H / sqrt(d),   M' = NBP(M, t),   weights = softmax(F^-1(M'))

    F is the unitary 2-D transform over the map's positions, so F^-1(F(q) F(k)^H) = q k^T: without a filter these
    are the weights of plain scaled dot-product attention. The softmax over keys is our choice; the paper leaves the
    scaling open. It runs in float32 outside autocast, as complex numbers need.

    filter: an `NBPFilter`, or None.
    """

    def __init__(self, filter=None):
        super().__init__()
        self.filter = filter

    def forward(self, q, k, size, embedding):
        """q, k: real [N, heads, L, d] over the L = height * width positions of `size`. Returns [N, heads, L, L]."""
        with without_autocast(q.device.type):
            q, k = at_least_float32(q), at_least_float32(k)
            affinity = self._transform(q, size) @ self._transform(k, size).mH / q.shape[-1] ** 0.5  # [N, heads, L, L]
            if self.filter is not None:
                affinity = affinity * self.filter(*size, embedding.to(q.dtype))
            height, width = size
            affinity = affinity.unflatten(3, size).unflatten(2, size)  # [N, heads, h, w, h, w]
            affinity = torch.fft.fft2(torch.fft.ifft2(affinity, dim=(2, 3), norm="ortho"), dim=(4, 5), norm="ortho")
            return affinity.real.reshape(*q.shape[:2], height * width, height * width).softmax(dim=-1)

    @staticmethod
    def _transform(tokens, size):
        return torch.fft.fft2(tokens.unflatten(2, size), dim=(2, 3), norm="ortho").flatten(2, 3)
