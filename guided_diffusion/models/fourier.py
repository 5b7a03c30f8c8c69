"""Layers in the Fourier domain: MedSegDiff's FF-Parser, the affinity and NBP-filter of MedSegDiff-V2's SS-Former."""

import torch
import torch.nn.functional as F
from torch import nn

from .layers import at_least_float32, is_channels_last, without_autocast

LAST_LAYER_DEVIATION = 0.1  # the deviation of a last layer's random weights


class FFParser(nn.Module):
    """FF-Parser (MedSegDiff, arXiv 2211.00611 sec. 2.2): M = F[m], M' = A (x) M, m' = F^-1[M'].

    A is learned, one complex factor per channel and frequency. It starts at 1, so the layer starts as the identity. It
    covers the half plane of frequencies that a real image has. Other sizes than `size` read it at their own
    frequencies, in cycles per pixel, by linear interpolation.
    A is the real parameter [C, size, size // 2 + 1, 2], because sharding and fused optimizers refuse complex ones. The
    transform runs in float32 under any autocast, because half precision would overflow in the sum over pixels.
    """

    def __init__(self, channels, size):
        super().__init__()
        self.size = size
        weight = torch.zeros(channels, size, size // 2 + 1, 2)
        weight[..., 0] = 1
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        """x: real features [N, C, H, W]. Returns the filtered features, of the same shape and dtype."""
        height, width = x.shape[-2:]
        with without_autocast(x.device.type):
            weight = at_least_float32(self._weight_for(height, width)).contiguous()
            spectrum = torch.fft.rfft2(at_least_float32(x), norm="ortho")  # [N, C, H, W//2+1]
            weight = torch.view_as_complex(weight)  # [C, H, W//2+1]
            filtered = torch.fft.irfft2(weight * spectrum, s=(height, width), norm="ortho")
        # The transform leaves the usual order of memory, and the layers that follow are slow where orders mix.
        order = torch.channels_last if is_channels_last(x) else torch.contiguous_format
        return filtered.to(dtype=x.dtype, memory_format=order)

    def _weight_for(self, height, width):
        if (height, width) == (self.size, self.size):
            return self.weight
        device = self.weight.device
        rows = torch.fft.fftfreq(height, device=device) * self.size  # in rows of A, from -size / 2 to size / 2
        columns = torch.fft.rfftfreq(width, device=device) * self.size
        # Rows wrap round: the spectrum of a sampled image is periodic. Columns end at the Nyquist frequency.
        along_rows = _interpolate(self.weight, rows % self.size, dim=1, wrap=True)
        return _interpolate(along_rows, columns, dim=2, wrap=False)


def _interpolate(values, positions, dim, wrap):
    """Linear interpolation of `values` along `dim` at fractional positions; past the end it wraps round or clamps."""
    length = values.shape[dim]
    low = positions.floor().long()
    shape = [1] * values.ndim
    shape[dim] = -1
    fraction = (positions - low).reshape(shape).to(values.dtype)
    high = (low + 1) % length if wrap else (low + 1).clamp(max=length - 1)
    low = low.clamp(max=length - 1)
    return torch.lerp(values.index_select(dim, low), values.index_select(dim, high), fraction)


class NBPFilter(nn.Module):
    """Neural band-pass filter (MedSegDiff-V2, arXiv 2301.11798): a factor for each entry of an affinity map.

    1x1 convolutions map the coordinates of a pair (query frequency, key frequency) to one value per head. The time
    embedding scales and shifts the features after each layer. The factor is 2 sigmoid(value), in (0, 2): it damps or
    amplifies, and it starts near 1, where the sigmoid is steepest.
    The coordinates are magnitudes, so the filter is even and the filtered map stays real. They are relative to the
    Nyquist frequency, so the filter works for maps of any size.

    largest: the upper end of the factor's range; 1.0 for the filters of versions up to 0.4.0.
    """

    def __init__(self, heads, embedding_channels, largest=2.0, hidden=16, layers=2):
        super().__init__()
        self.largest = largest
        widths = [4] + [hidden] * layers
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.modulations = nn.ModuleList(nn.Linear(embedding_channels, 2 * hidden) for _ in range(layers))
        self.out = nn.Conv2d(hidden, heads, 1)
        if not self.out.weight.is_meta:  # which has no values; there torch would import its compiler, for a second
            # Zeros would keep gradients from the layers before.
            nn.init.normal_(self.out.weight, std=LAST_LAYER_DEVIATION)
        nn.init.zeros_(self.out.bias)

    def forward(self, height, width, embedding):
        """embedding: [N, D]. Returns [N, heads, L, L] in (0, largest), L = height * width frequencies row by row."""
        coordinates, place = self._frequencies(height, width, embedding.device)
        count = coordinates.shape[1]
        queries, keys = coordinates[:, :, None].expand(2, count, count), coordinates[:, None].expand(2, count, count)
        h = torch.cat([queries, keys]).to(embedding.dtype)[None]  # [1, 4, U, U]
        for layer, modulation in zip(self.layers, self.modulations, strict=True):
            scale, shift = modulation(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)  # [N, hidden, 1, 1]
            h = F.silu(layer(h) * (1 + scale) + shift)
        values = self.largest * torch.sigmoid(self.out(h))  # [N, heads, U, U]
        return values.index_select(2, place).index_select(3, place)

    @staticmethod
    def _frequencies(height, width, device):
        """The U different pairs of magnitudes [2, U], in [0, 1], and the index into them of each of the L frequencies.

        U is about a quarter of L, so the map of pairs costs a sixteenth.
        """
        rows, columns = (torch.arange(n // 2 + 1, device=device) * 2 / n for n in (height, width))
        coordinates = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).flatten(1)
        row, column = (torch.minimum(i := torch.arange(n, device=device), n - i) for n in (height, width))
        return coordinates, (row[:, None] * (width // 2 + 1) + column).flatten()


class FourierAffinity(nn.Module):
    """Attention weights from an affinity map in the Fourier domain (the SS-Former of MedSegDiff-V2, arXiv 2301.11798):

        M = F(q) F(k)^H / sqrt(d),   M' = NBP(M, t),   weights = softmax(F^-1(M'))

    F is the unitary 2-D transform over the map's positions, so F^-1(F(q) F(k)^H) = q k^T: without a filter these are
    the weights of plain scaled dot-product attention. The paper leaves the scaling open; the softmax over keys is ours.
    Complex numbers need float32, outside autocast.

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
