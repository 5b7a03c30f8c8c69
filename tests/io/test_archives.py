"""Archives of torch.save: every flipped bit that a reader could see is noticed."""

import random
import zipfile
import zlib

import pytest
import torch

from guided_diffusion.io import archives
from guided_diffusion.io.archives import DamagedArchive, check_records, checksum


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "x.pt"
    with open(path, "wb") as file:
        torch.save({"a": torch.arange(60.0), "b": torch.ones(3, dtype=torch.int64), "c": {"step": 3}}, file)
    return path


def refusal_of(path, **options):
    with pytest.raises(DamagedArchive) as error:
        check_records(path, **options)
    return f"{error.value.record}: {error.value}"


def test_records_are_listed_with_their_sums(saved):
    found = {record.name: record for record in check_records(saved)}
    first = found["archive/data/0"]
    assert first.size == 240 and first.crc == zlib.crc32(torch.arange(60.0).numpy().tobytes())
    assert saved.read_bytes()[first.start : first.start + 240] == torch.arange(60.0).numpy().tobytes()


def test_a_flipped_bit_is_refused_or_changes_nothing(saved):
    good, draw = saved.read_bytes(), random.Random(0)
    places = [draw.randrange(8 * len(good)) for _ in range(150)]
    refused = 0
    for place in places:
        data = bytearray(good)
        data[place // 8] ^= 1 << place % 8
        saved.write_bytes(data)
        try:
            check_records(saved)
            content = torch.load(saved, weights_only=True, mmap=True)
        except Exception:  # a header that only torch looks at
            refused += 1
            continue
        assert torch.equal(content["a"], torch.arange(60.0)) and content["b"].tolist() == [1, 1, 1]
        assert content["c"] == {"step": 3}
    assert refused > 60


def test_threads_find_the_same(saved, monkeypatch):
    monkeypatch.setattr(archives, "LEAST_FOR_THREADS", 0)
    check_records(saved)
    data = bytearray(saved.read_bytes())
    data[check_records(saved)[-4].start + 5] ^= 4
    saved.write_bytes(data)
    assert "bytes differ from their checksum" in refusal_of(saved)


def test_a_sum_does_not_depend_on_the_blocks(monkeypatch):
    monkeypatch.setattr(archives, "SUMMED_AT_ONCE", 7)
    assert checksum(b"0123456789" * 5) == zlib.crc32(b"0123456789" * 5) and checksum(b"") == 0
    assert checksum(torch.arange(5).numpy()) == zlib.crc32(torch.arange(5).numpy().tobytes())


def test_bombs_and_foreign_archives_are_refused_before_they_are_read(saved, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**7))
    assert refusal_of(tmp_path / "bomb") == "archive/data.pkl: is compressed"
    assert refusal_of(saved, largest={"data.pkl": 50}).startswith("archive/data.pkl: has ")
    saved.write_bytes(saved.read_bytes()[:-100])
    assert "directory cannot be read" in refusal_of(saved)


def test_records_may_not_overlap_or_share_a_name(tmp_path):
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(tmp_path / "twice", "w") as archive:
        archive.writestr("a", b"1")
        archive.writestr("a", b"2")
    assert "one name" in refusal_of(tmp_path / "twice")
    with zipfile.ZipFile(tmp_path / "over", "w") as archive:
        archive.writestr("a", b"1" * 50)
        archive.writestr("b", b"2" * 50)
        archive.infolist()[1].header_offset = 0
        archive.infolist()[1].filename = archive.infolist()[1].orig_filename = "a"
    assert "overlaps" in refusal_of(tmp_path / "over")
