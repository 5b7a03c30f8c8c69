"""Values that are decoded late, and the bytes behind a header's claim."""

import bz2
import gzip
import zlib

import numpy as np
import pytest

from guided_diffusion.io.stored_values import LazyValues, StoredBytes, affine_of, as_nifti, file_beside, header_numbers
from guided_diffusion.runtime.errors import UserError

CONTENT = bytes(range(200))
PACK = {"": lambda data: data, "zlib": zlib.compress, "gzip": gzip.compress, "bzip2": bz2.compress}


@pytest.mark.parametrize("compression", PACK)
def test_bytes_are_read_from_their_start_and_no_further(tmp_path, compression):
    path = tmp_path / "x"
    path.write_bytes(b"head" + PACK[compression](CONTENT) + (b"tail" if not compression else b""))
    stored = StoredBytes(path, path, 4, compression)
    assert stored.read(200) == CONTENT and stored.read(120) == CONTENT[:120]


@pytest.mark.parametrize("compression", PACK)
def test_a_file_that_is_cut_short_or_claims_too_much_is_an_error(tmp_path, compression):
    path = tmp_path / "x"
    path.write_bytes(PACK[compression](CONTENT)[:-3])
    with pytest.raises((ValueError, EOFError, OSError)):
        StoredBytes(path, path, 0, compression).read(200)
    path.write_bytes(PACK[compression](CONTENT))
    with pytest.raises(ValueError, match="claims 300 bytes of values, it holds 200"):
        StoredBytes(path, path, 0, compression).read(300)
    with pytest.raises(UserError, match="claims 1000000000 bytes of values, and it has"):
        StoredBytes(path, path, 0, compression).check_length(10**9)


@pytest.mark.parametrize("compression", ["zlib", "gzip"])
def test_a_wrong_checksum_is_an_error(tmp_path, compression):
    path, packed = tmp_path / "x", bytearray(PACK[compression](CONTENT))
    packed[-1 if compression == "zlib" else -5] ^= 1
    path.write_bytes(packed)
    with pytest.raises((zlib.error, OSError)):
        StoredBytes(path, path, 0, compression).read(200)


def test_values_at_the_end_of_a_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"of any length" + CONTENT)
    assert StoredBytes(path, path, None).read(200) == CONTENT


def test_lazy_values_are_decoded_when_asked_for_and_as_deep_as_asked():
    asked, values = [], np.arange(24.0).reshape(2, 3, 4)
    lazy = LazyValues(values.shape, values.dtype, lambda depth: asked.append(depth) or values)
    image = as_nifti(lazy, np.diag([2.0, 3, 4, 1]))
    assert not asked and image.shape == (2, 3, 4) and image.header.get_zooms() == (2, 3, 4)
    assert np.array_equal(image.get_fdata(dtype=np.float32), values) and asked == [None]
    assert np.array_equal(lazy[:, :, slice(2)], values[..., :2]) and asked == [None, 2]
    assert np.array_equal(lazy[0], values[0]) and asked[-1] is None


def test_a_sheared_affine_is_kept_as_sform_alone():
    sheared = np.eye(4)
    sheared[1, 2] = 0.3
    header = as_nifti(LazyValues((2, 3, 4), np.int16, None), sheared).header
    assert np.allclose(header.get_sform(), sheared) and header["qform_code"] == 0
    assert np.allclose(header.get_zooms(), np.linalg.norm(sheared[:3, :3], axis=0))
    assert as_nifti(LazyValues((40000, 3, 4), np.int16, None), np.eye(4)).shape == (40000, 3, 4)  # NIfTI-2


def test_two_axes_get_a_third_orthogonal_to_them():
    affine = affine_of(np.array([[0, 2.0], [3, 0], [0, 0]]), [7, 8, 9])
    assert np.allclose(affine, [[0, 2, 0, 7], [3, 0, 0, 8], [0, 0, -1, 9], [0, 0, 0, 1]])
    assert np.allclose(affine_of(np.diag([2.0, 3]), [7, 8]), [[2, 0, 0, 7], [0, 3, 0, 8], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("text", ["../x.raw", "/etc/passwd", "a/../../x", "..\\x", "C:/x", "http://x/y", "a\0b"])
def test_a_header_reaches_nothing_outside_of_its_folder(tmp_path, text):
    (tmp_path / "x.raw").write_bytes(b"secret")
    header = tmp_path / "data" / "x.mhd"
    header.parent.mkdir()
    with pytest.raises(UserError, match="not below its own folder"):
        file_beside(header, text)


def test_a_file_beside_a_header(tmp_path):
    (tmp_path / "x.raw").write_bytes(b"1")
    assert file_beside(tmp_path / "x.mhd", "x.raw") == tmp_path / "x.raw"
    with pytest.raises(UserError, match="its values are in y.raw, but there is no such file"):
        file_beside(tmp_path / "x.mhd", "y.raw")


@pytest.mark.parametrize("text", ["1 x", "nan", "inf 2", "1e999"])
def test_a_header_holds_finite_numbers(text):
    with pytest.raises(UserError, match="x.mha: its header is damaged: DimSize is"):
        header_numbers("x.mha", "DimSize", text)
    assert header_numbers("x.mha", "DimSize", "1 2.5") == [1, 2.5]
