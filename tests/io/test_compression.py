"""Gzip streams of several threads: any reader reads them, and equal data give equal files."""

import gzip
import io
import zlib

import numpy as np
import pytest

from guided_diffusion.io import compression
from guided_diffusion.io.compression import write_gzip

NOISE = np.random.default_rng(0).integers(0, 256, 5000, np.uint8).tobytes()


def compressed(parts):
    file = io.BytesIO()
    write_gzip(file, iter(parts))
    return file.getvalue()


@pytest.mark.parametrize("parts", [[], [b""], [b"a"], [NOISE], [NOISE, b"", bytes(9999), NOISE[:7]] * 9], ids=len)
@pytest.mark.parametrize("block", [1, 1000, 2**20])
def test_readers_give_the_bytes_back(parts, block, monkeypatch):
    monkeypatch.setattr(compression, "COMPRESSED_AT_ONCE", block)
    data = compressed(parts)
    assert gzip.decompress(data) == b"".join(parts) and data == compressed(parts)
    reader = zlib.decompressobj(zlib.MAX_WBITS | 16)  # reads one stream, as some programs do
    assert reader.decompress(data) == b"".join(parts) and not reader.unused_data


def test_damage_is_noticed():
    data = bytearray(compressed([NOISE] * 3))
    data[len(data) // 2] ^= 1
    with pytest.raises(Exception, match="CRC|decompressing"):
        gzip.decompress(bytes(data))


def test_what_a_thread_raises_is_raised(monkeypatch):
    monkeypatch.setattr(compression, "_deflated", lambda block: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compressed([NOISE])
