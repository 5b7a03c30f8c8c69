"""Small files, large costs: what a file claims is compared with its length and with the free memory before decoding."""

import gzip
import io
import zipfile

import nibabel
import numpy as np
import pytest

from guided_diffusion.io import memory, nifti_header
from guided_diffusion.io.files import read_npz, read_npz_headers
from guided_diffusion.io.memory import check_room, free_memory
from guided_diffusion.io.nifti import read_nifti, read_nifti_header, read_nifti_labels
from guided_diffusion.runtime.control_groups import own_groups
from guided_diffusion.runtime.errors import UserError


def nifti(shape, values=bytes(12800), dtype=np.int16, start=352):
    """The bytes of a NIfTI file with a header that claims this shape."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(dtype)
    header["dim"][: len(shape) + 1] = [len(shape), *shape]
    header["pixdim"][:4], header["vox_offset"], header["magic"] = 1, start, b"n+1"
    header.set_sform(np.eye(4) * 2, 1)
    file = io.BytesIO()
    header.write_to(file)
    return file.getvalue().ljust(352, b"\0") + values


def npz(path, shape, kind="<f8", values=b""):
    """An .npz file with an array of this header."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", file.getvalue() + values)
    return path


def test_room(monkeypatch):
    assert free_memory() > 2**20
    check_room("a.png", "9x9 pixels", 2**20)
    with pytest.raises(UserError, match="^a.png: has 9x9 pixels, which need 1024.0 GB of memory, and .* GB are free; "):
        check_room("a.png", "9x9 pixels", 2**40)
    monkeypatch.setattr(memory, "free_memory", lambda: None)  # the system does not say
    check_room("a.png", "9x9 pixels", 2**40)


@pytest.mark.parametrize(
    ("files", "free"),
    [
        (
            {
                "job/memory.max": "9000",
                "job/memory.current": "5000",
                "job/memory.stat": "x 1\ninactive_file 200\nactive_file 100\n",
            },
            4300,
        ),
        ({"memory.max": "9000", "memory.current": "5000", "job/memory.max": "max", "job/memory.current": "9"}, 4000),
        ({"memory.max": "9000", "memory.current": "9500"}, 0),
        (
            {"memory/job/memory.limit_in_bytes": "9000", "memory/job/memory.usage_in_bytes": "5000"}
            | {"memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 200\n"},
            4200,
        ),
    ],
)
def test_the_limit_of_a_container_or_a_job(tmp_path, monkeypatch, files, free):
    """Of either version of control groups, and of a group around the process's own, as batch systems make them."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "own").write_text("4:memory:/job\n0::/job\n")
    monkeypatch.setattr(memory, "own_groups", lambda controller: own_groups(controller, tmp_path, tmp_path / "own"))
    assert free_memory() == free


@pytest.mark.parametrize("shape", [(512, 512, 10000), (1024, 1024, 2000), (30000, 30000, 30000), (40, 40, 5)], ids=str)
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_claims_more_than_the_file_has(tmp_path, shape, name, monkeypatch):
    monkeypatch.setattr(nifti_header, "UNCHECKED", 0)
    data = nifti(shape)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    monkeypatch.setattr(nibabel.Nifti1Image, "get_fdata", lambda *_, **__: pytest.fail("memory is taken for it"))
    with pytest.raises(UserError, match=f"{name}: is truncated or damaged.*its header claims .*; copy it again$"):
        read_nifti(tmp_path / name)
    if shape != (40, 40, 5) or name == "a.nii":  # what a compressed file holds, the values alone say
        with pytest.raises(UserError, match=f"{name}: is truncated or damaged"):
            read_nifti_header(tmp_path / name)


def test_files_of_several_gzip_streams_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti_header, "UNCHECKED", 0)
    data = nifti((40, 40, 4))
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(data[:9000]) + gzip.compress(data[9000:]))
    assert read_nifti(tmp_path / "a.nii.gz")[0].shape == (40, 40, 4)


def test_a_volume_that_does_not_fit_into_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "NEGLIGIBLE", 0)
    monkeypatch.setattr(memory, "free_memory", lambda: 10_000)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti((80, 80, 4), bytes(25600), np.uint8)))
    for read in (read_nifti, read_nifti_labels):
        with pytest.raises(UserError, match="a.nii.gz: has 80x80x4 voxels, which need .* make it smaller"):
            read(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match=r"a.npz: has an array a of the shape \[9000\], which need"):
        read_npz(npz(tmp_path / "a.npz", (9000,), values=np.random.default_rng(0).bytes(72000)), "a")


def test_much_after_the_values_and_before_them(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti_header, "LONGEST_TAIL", 2**20)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(nifti((40, 40, 4)) + bytes(2**22)))
    with pytest.raises(UserError, match="a.nii.gz: is truncated or damaged .more than 1 MB follow its values"):
        read_nifti(tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").write_bytes(gzip.compress(nifti((40, 40, 4), start=2e9)))
    with pytest.raises(UserError, match=r"b.nii.gz: its header is damaged: it has the values begin at byte 2e\+09"):
        read_nifti_header(tmp_path / "b.nii.gz")


WRONG = [((100000, 100000, 3), "<f8"), ((20000, 20000), "|u1"), ((-3, 4), "<f8"), ((-1,), "|u1")]


@pytest.mark.parametrize("shape, kind", WRONG, ids=str)
def test_an_npz_header_that_its_array_does_not_have(tmp_path, shape, kind):
    path = npz(tmp_path / "a.npz", shape, kind, bytes(100))
    for read in (read_npz_headers, lambda path: read_npz(path, "a")):
        with pytest.raises(UserError, match="a.npz: is truncated or damaged.*; copy it again$"):
            read(path)


def test_an_npz_file_with_a_place_that_is_not_in_it_is_named(tmp_path, monkeypatch):
    """Some damage makes the system say "Invalid argument" alone."""
    np.savez(tmp_path / "a.npz", a=np.arange(9))

    def fails(*_, **__):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(zipfile.ZipFile, "infolist", fails)
    with pytest.raises(
        UserError, match="a.npz: is truncated or damaged, or is no .npz file .*Invalid argument.*copy it"
    ):
        read_npz(tmp_path / "a.npz", "a")
