"""ZIP archives of uncompressed records, as torch.save writes them: every byte that is read has a checksum.

A ZIP file holds the CRC-32 of each record, and torch.save writes each tensor as a record of its own. torch does not
check these sums when it maps a file to memory, so `check_records` does. CRC-32 finds every change of one or two bits
and every burst of up to 32. It costs 0.3 s per GB, and files of all earlier versions have it too. It is no protection
against forgery: whoever changes a file on purpose can write a new sum.
"""

import hashlib
import mmap
import struct
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ..runtime.threads import usable_cores

LOCAL_HEADER = struct.Struct("<4s5H3I2H")  # signature, ..., the lengths of the name and of the additional field
SUMMED_AT_ONCE = 1 << 24  # bytes that are summed at once
THREADS, LEAST_FOR_THREADS = 4, 1 << 26


class DamagedArchive(Exception):
    """An archive is damaged, or is none that torch.save writes. record: the name of the damaged record, or ""."""

    def __init__(self, reason, record=""):
        super().__init__(reason)
        self.record = record


@dataclass(frozen=True)
class ArchiveRecord:
    """A record of an archive: `size` bytes of the file from `start` on, with this CRC-32."""

    name: str
    start: int
    size: int
    crc: int


def check_records(path, largest=None):
    """Compare every record of an archive with its CRC-32. Returns the `ArchiveRecord`s in the order of their places.

    largest: {the last part of a record's name: its largest size in bytes}. Raises `DamagedArchive` for a wrong sum and
    for records that are compressed, overlap, lie beyond the file or share a name; OSError for an unreadable file.
    """
    with open(path, "rb") as file:
        entries = _directory(file)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
            records = sorted((_record(data, entry) for entry in entries), key=lambda record: record.start)
            _check_places(records, len(data), largest or {})
            sums = _sums(data, records)
    for record, crc in zip(records, sums, strict=True):
        if crc != record.crc:
            raise DamagedArchive("bytes differ from their checksum", record.name)
    return records


def checksum(data):
    """The CRC-32 of a buffer of bytes, of any size."""
    crc = 0
    with memoryview(data) as view, view.cast("B") as octets:
        for low in range(0, len(octets), SUMMED_AT_ONCE):
            with octets[low : low + SUMMED_AT_ONCE] as block:
                crc = zlib.crc32(block, crc)
    return crc


def _directory(file):
    """The entries of an archive's directory."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.infolist()
    except OSError:
        raise
    except Exception as error:  # damaged bytes raise nearly anything, UnicodeDecodeError for one
        raise DamagedArchive(f"its directory cannot be read ({error})") from error


def _record(data, entry):
    """The `ArchiveRecord` of a directory's entry; its bytes begin where the header that stands before them says."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise DamagedArchive("is compressed", entry.filename)
    try:
        signature, *_, name_length, more = LOCAL_HEADER.unpack_from(data, entry.header_offset)
    except struct.error as error:
        raise DamagedArchive("lies beyond the end of the file", entry.filename) from error
    low = entry.header_offset + LOCAL_HEADER.size
    name = bytes(data[low : low + name_length]).decode(errors="replace")
    if signature != b"PK\3\4" or name != entry.orig_filename:
        raise DamagedArchive("has another header than the directory says", entry.filename)
    return ArchiveRecord(entry.filename, low + name_length + more, entry.file_size, entry.CRC)


def _check_places(records, length, largest):
    end = 0
    for record in records:
        if record.start < end:  # a small file could claim to be large, and each byte be summed many times
            raise DamagedArchive("overlaps another record", record.name)
        end = record.start + record.size
        if end > length:
            raise DamagedArchive("lies beyond the end of the file", record.name)
        most = largest.get(record.name.rpartition("/")[2], record.size)
        if record.size > most:
            raise DamagedArchive(f"has {record.size / 1e6:.3g} MB, more than {most / 1e6:.3g}", record.name)
    if len({record.name for record in records}) < len(records):
        raise DamagedArchive("two records have one name")


def _sums(data, records):
    """The CRC-32 of each record. zlib leaves the interpreter's lock to others, so threads share the work."""

    def crc_of(record):
        with data[record.start : record.start + record.size] as part:
            return checksum(part)

    threads = min(THREADS, usable_cores()) if len(data) >= LEAST_FOR_THREADS else 1
    if threads == 1:
        return [crc_of(record) for record in records]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(crc_of, records))


def file_hash(path):
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
