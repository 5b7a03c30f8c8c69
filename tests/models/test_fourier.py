"""The FF-Parser and the Fourier affinity against transforms written out, and at sizes other than their own."""

import math

import numpy as np
import pytest
import torch

from guided_diffusion.models.fourier import FFParser, FourierAffinity, NBPFilter


def direct_filter(x, weight):
    """F^-1[A (x) F[x]] of a real image x [H, W] by sums of exponentials, in complex128.

    weight: A over the half plane [H, W // 2 + 1]. A frequency of the other half plane is the conjugate of its
    mirror's, so that each column between the first and the Nyquist frequency counts twice in the real part.
    """
    height, width = x.shape
    rows, columns = np.arange(height), np.arange(width)
    result = np.zeros((height, width))
    for u in range(height):
        for v in range(width // 2 + 1):
            wave = np.exp(2j * np.pi * (u * rows[:, None] / height + v * columns[None] / width))
            coefficient = (x * wave.conj()).sum() / (height * width)
            twice = 1 if v == 0 or 2 * v == width else 2
            result += twice * (weight[u, v] * coefficient * wave).real
    return result


def random_parser(channels, size, seed=0):
    parser = FFParser(channels, size)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        parser.weight.copy_(torch.randn(parser.weight.shape, generator=generator))
    return parser


def parser_of(response, size):
    """A one-channel parser whose map is `response(row frequency, column frequency)`, in cycles per pixel."""
    rows, columns = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]
    values = torch.from_numpy(np.array(response(rows, columns), dtype=np.complex64))
    parser = FFParser(1, size)
    with torch.no_grad():
        parser.weight.copy_(torch.view_as_real(values)[None])
    return parser


def filtered(x, response):
    """The filter applied at the image's own frequencies by NumPy: the oracle for other sizes."""
    height, width = x.shape[-2:]
    transfer = response(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    return torch.from_numpy(np.fft.irfft2(transfer * np.fft.rfft2(x.double().numpy()), s=(height, width)))


@pytest.mark.parametrize("size", [6, 7, 8])
def test_equals_the_transform_written_out(size):
    parser = random_parser(2, size)
    x = torch.randn(3, 2, size, size, generator=torch.Generator().manual_seed(1))
    out = parser(x).detach()
    for channel in range(2):
        weight = torch.view_as_complex(parser.weight.detach().double())[channel].numpy()
        for row in range(3):
            expected = direct_filter(x[row, channel].double().numpy(), weight)
            np.testing.assert_allclose(out[row, channel].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("shape", [(16, 16), (32, 32), (24, 40), (8, 8)])
def test_starts_as_the_identity_at_every_size(shape):
    x = torch.randn(2, 3, *shape)
    torch.testing.assert_close(FFParser(3, 16)(x), x, atol=1e-5, rtol=0)


def test_channels_and_rows_do_not_mix():
    parser = random_parser(3, 8)
    x = torch.randn(2, 3, 8, 8)
    changed = x.clone()
    changed[1, 2] += 1
    difference = (parser(changed) - parser(x)).abs().amax(dim=(2, 3))
    assert difference[1, 2] > 0.1
    difference[1, 2] = 0
    assert difference.max() < 1e-6


def test_its_own_size_reads_the_parameter_itself():
    parser = random_parser(2, 8)
    assert parser._weight_for(8, 8) is parser.weight


def gaussian_low_pass(rows, columns):
    return np.exp(-(rows**2) / (2 * 0.10**2) - columns**2 / (2 * 0.16**2))


def shift_down_and_right(rows, columns):
    return np.exp(-2j * np.pi * (rows + columns))


@pytest.mark.parametrize("shape", [(48, 48), (20, 20), (16, 40), (64, 64), (33, 21)])
@pytest.mark.parametrize(("response", "tolerance"), [(gaussian_low_pass, 0.01), (shift_down_and_right, 0.02)])
def test_other_sizes_get_the_same_filter_in_cycles_per_pixel(shape, response, tolerance):
    x = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(2))
    out = parser_of(response, 32)(x).detach().double()
    expected = filtered(x, response)
    error = (out - expected).norm() / expected.norm()
    assert error < tolerance
    # A map read by position instead of by frequency is another filter altogether.
    by_position = filtered(x, lambda u, v: response(u * shape[0] / 32, v * shape[1] / 32))
    assert (by_position - expected).norm() / expected.norm() > 5 * tolerance


def test_a_shift_moves_the_picture_by_one_pixel():
    x = torch.randn(1, 1, 16, 16)
    out = parser_of(shift_down_and_right, 16)(x)
    # At the Nyquist column a real image cannot hold the shift's phase, so compare without that frequency.
    smooth = torch.fft.irfft2(torch.fft.rfft2(x) * (torch.arange(9) < 8), s=(16, 16))
    moved = parser_of(shift_down_and_right, 16)(smooth)
    torch.testing.assert_close(moved, smooth.roll((1, 1), (2, 3)), atol=1e-5, rtol=0)
    assert out.shape == x.shape


@pytest.mark.parametrize("size", [8, 12])
def test_gradients_reach_every_entry_that_matters(size):
    parser = random_parser(2, 8)
    x = torch.randn(4, 2, size, size, requires_grad=True)
    parser(x).square().sum().backward()
    assert x.grad.abs().min() > 0
    assert (parser.weight.grad[..., 0].abs() > 0).all()
    if size == parser.size:  # the imaginary part of the constant has no meaning for a real image
        assert parser.weight.grad[:, 0, 0, 1].abs().max() < 1e-4
    assert (parser.weight.grad[:, :, 1:-1, 1].abs() > 0).all()


def test_autocast_changes_nothing_inside():
    parser, x = random_parser(2, 16), torch.randn(2, 2, 16, 16)
    plain = parser(x)
    with torch.autocast("cpu", torch.bfloat16):
        inside = parser(x)
        half = parser(x.bfloat16())
    torch.testing.assert_close(inside, plain, atol=0, rtol=0)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half, parser(x.bfloat16().float()).bfloat16(), atol=0, rtol=0)


def test_the_parameter_is_real_and_over_the_half_plane():
    parser = FFParser(3, 10)
    assert parser.weight.shape == (3, 10, 6, 2)
    assert parser.weight.dtype == torch.float32
    assert parser(torch.randn(1, 3, 10, 10)).dtype == torch.float32


def test_a_parser_carries_power_as_its_map_says():
    parser = parser_of(lambda u, v: np.full((16, 9), 3.0), 16)
    x = torch.randn(1, 1, 16, 16)
    assert math.isclose(parser(x).norm().item(), 3 * x.norm().item(), rel_tol=1e-5)


# ---- V2: the affinity in the Fourier domain and its filter -----------------------------------------------------------


def direct_transform(tokens, height, width):
    """The unitary 2-D DFT over positions, by sums of exponentials: [L, d] -> complex128 [L, d]."""
    result = np.zeros(tokens.shape, dtype=complex)
    for u in range(height):
        for v in range(width):
            for y in range(height):
                for x in range(width):
                    wave = np.exp(-2j * np.pi * (u * y / height + v * x / width))
                    result[u * width + v] += wave * tokens[y * width + x]
    return result / math.sqrt(height * width)


def direct_matrix(height, width):
    return direct_transform(np.eye(height * width), height, width)


def random_filter(heads=2, embedding_channels=6, seed=0):
    torch.manual_seed(seed)
    nbp = NBPFilter(heads, embedding_channels)
    with torch.no_grad():
        for parameter in nbp.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return nbp.double()


@pytest.mark.parametrize(("height", "width"), [(3, 4), (4, 4), (5, 2)])
def test_the_affinity_equals_its_formula_by_direct_transforms(height, width):
    nbp, generator = random_filter(), torch.Generator().manual_seed(1)
    q, k = (torch.randn(2, 2, height * width, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    embedding = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    weights = FourierAffinity(nbp)(q, k, (height, width), embedding).detach().numpy()
    matrix, passed = direct_matrix(height, width), nbp(height, width, embedding).detach().numpy()
    for n in range(2):
        for head in range(2):
            spectra = [direct_transform(x[n, head].numpy(), height, width) for x in (q, k)]
            affinity = spectra[0] @ spectra[1].conj().T / math.sqrt(3) * passed[n, head]
            spatial = matrix.conj().T @ affinity @ matrix  # the inverse over both of its axes
            assert np.abs(spatial.imag).max() < 1e-9  # an even filter keeps what it filters real
            expected = np.exp(spatial.real) / np.exp(spatial.real).sum(axis=1, keepdims=True)
            np.testing.assert_allclose(weights[n, head], expected, atol=1e-9)


def test_without_a_filter_the_transforms_cancel_and_plain_attention_is_left():
    q, k, v = (torch.randn(2, 3, 20, 4, dtype=torch.float64) for _ in range(3))
    attended = FourierAffinity()(q, k, (4, 5), torch.zeros(2, 6)) @ v
    torch.testing.assert_close(attended, torch.nn.functional.scaled_dot_product_attention(q, k, v))


def test_the_filter_starts_near_1_and_stays_in_its_range():
    fresh = NBPFilter(2, 6)(4, 4, torch.randn(3, 6))
    assert fresh.shape == (3, 2, 16, 16) and (fresh - 1).abs().max() < 0.2 and fresh.std() > 1e-3
    values = random_filter()(4, 4, torch.randn(3, 6, dtype=torch.float64))
    assert values.max() <= 2 and values.min() >= 0 and values.max() > 1
    assert values.std() > 0.01 and (values[0] - values[1]).abs().max() > 0.01  # it knows frequency and time step


def test_no_values_are_drawn_for_a_filter_on_the_meta_device(monkeypatch):
    """There torch imports its compiler to draw them, which a command's first line would wait for."""
    normal = torch.nn.init.normal_

    def drawn(tensor, **options):
        assert not tensor.is_meta
        return normal(tensor, **options)

    monkeypatch.setattr(torch.nn.init, "normal_", drawn)
    with torch.device("meta"):
        NBPFilter(2, 4)
    assert NBPFilter(2, 4).out.weight.std() > 0


def test_the_filter_knows_the_magnitude_of_each_frequency_and_reads_it_at_any_size():
    nbp, embedding = random_filter(heads=1), torch.randn(1, 6, dtype=torch.float64)

    def response(height, width):
        return nbp(height, width, embedding)[0, 0].reshape(height, width, height, width)

    small, large = response(4, 6), response(8, 12)
    torch.testing.assert_close(small[3, 5, 1, 2], small[1, 1, 3, 4])  # -1 and 1 are one magnitude
    # Frequency 2u of a map twice as large is the same number of cycles over the map's extent relative to Nyquist.
    torch.testing.assert_close(large[::2, ::2, ::2, ::2], small)
    assert (small[1, 0, 0, 0] - small[0, 1, 0, 0]).abs() > 1e-4 and (small[1, 0, 0, 0] - small[0, 0, 1, 0]).abs() > 1e-4


def test_the_affinity_stays_in_full_precision_under_autocast_and_every_parameter_learns():
    nbp = random_filter().float()
    q, k = (torch.randn(2, 2, 16, 4, requires_grad=True) for _ in range(2))
    embedding = torch.randn(2, 6, requires_grad=True)
    plain = FourierAffinity(nbp)(q, k, (4, 4), embedding)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = FourierAffinity(nbp)(q, k, (4, 4), embedding)
    torch.testing.assert_close(mixed, plain, atol=0, rtol=0)
    plain.square().sum().backward()
    for x in (q, k, embedding, *nbp.parameters()):
        assert x.grad.norm() > 1e-6
