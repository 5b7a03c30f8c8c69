"""Gzip streams that several threads compress."""

import struct
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor

from ..runtime.threads import usable_cores

COMPRESSED_AT_ONCE = 2**20  # bytes that a thread compresses at once
LEVEL = 1  # higher ones take several times as long, and save a few per cent of masks and probabilities
MOST_THREADS = 4  # the disk is then the slower part
HEADER = b"\x1f\x8b\x08\0\0\0\0\0\4\xff"  # deflate, without a name or a time, so that equal data give equal files
EMPTY_LAST_BLOCK = b"\x03\0"


def compression_pool():
    """Threads for `GzipStream`s; a context that ends them."""
    return ThreadPoolExecutor(min(usable_cores(), MOST_THREADS))


def write_gzip(file, parts):
    """Write the bytes of `parts`, an iterable, to an open file as one gzip stream."""
    with compression_pool() as pool:
        stream = GzipStream(pool)
        for part in parts:
            stream.add(part)
        stream.write_to(file)


class GzipStream:
    """A gzip stream that grows part by part and is kept compressed in memory, until `write_to` writes it to a file.

    Blocks of `COMPRESSED_AT_ONCE` bytes are compressed on their own, in the threads of `pool`, and joined: any reader
    of gzip reads the result. `add` waits where the threads do not keep up.
    """

    def __init__(self, pool):
        self.pool, self.checksum, self.size = pool, 0, 0
        self._parts, self._length = [], 0  # of the block that is not yet full
        self._blocks, self._waiting = [], deque()

    def add(self, part):
        """Add bytes to the end of the stream."""
        self.checksum, self.size = zlib.crc32(part, self.checksum), self.size + len(part)
        self._parts.append(part)
        self._length += len(part)
        if self._length >= COMPRESSED_AT_ONCE:
            self._begin_block()

    def _begin_block(self):
        block = self.pool.submit(_deflated, b"".join(self._parts))
        self._parts, self._length = [], 0
        self._blocks.append(block)
        self._waiting.append(block)
        if len(self._waiting) > MOST_THREADS:
            self._waiting.popleft().result()

    def write_to(self, file):
        """Write the whole stream to an open file."""
        if self._length:
            self._begin_block()
        file.write(HEADER)
        for block in self._blocks:
            file.write(block.result())
        file.write(EMPTY_LAST_BLOCK + struct.pack("<II", self.checksum, self.size % 2**32))


def _deflated(block):
    """A block as a part of a deflate stream, which ends at a whole byte and refers to nothing before it."""
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(block) + compressor.flush(zlib.Z_SYNC_FLUSH)
