# SPDX-License-Identifier: Apache-2.0
"""Memory whose first touch costs what it costs on a machine of one's own.

A hypervisor that is told of free pages takes them back, and the first touch of each then takes it
10 µs: a program that writes four gigabytes takes 1.3 s or 10 s, as it happens. Only blocks of
2 MiB and more are told. So all free memory is touched once, and of each such block one page is kept
in a pipe, where compaction cannot move it: 1/512 of memory is held, the rest is free and stays
ours, and there is no free block to be told of.
"""

import array
import ctypes
import fcntl
import mmap
import os
from pathlib import Path

MIB = 1024 * 1024
PAGE = 4096
BLOCK = 512             # pages of a block that is told of
CHUNK = 32 * MIB        # taken at once
LEFT = 512 * MIB        # free memory that nobody touches
PINS = 256              # pages in a pipe: what everybody may have (/proc/sys/fs/pipe-max-size)
MOST = 48 * PINS        # pages in all pipes (pipe-user-pages-soft): enough for 24 GiB
PFN = (1 << 55) - 1     # of an entry of /proc/PID/pagemap
MADV_NOHUGEPAGE, MADV_POPULATE_WRITE = 15, 23
F_SETPIPE_SZ = 1031
SPLICE_F_NONBLOCK = 2


def needed():
    """Whether a balloon tells the hypervisor of free pages: VIRTIO_BALLOON_F_REPORTING, bit 5."""
    return any(path.read_text()[5] == "1"
               for path in Path("/sys/bus/virtio/drivers/virtio_balloon").glob("virtio*/features"))


def free():
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemFree:")) * 1024


def told():
    """Free memory in blocks that are told of, or that may have been."""
    with open("/proc/buddyinfo") as file:
        return sum(int(count) << order for line in file
                   for order, count in enumerate(line.split()[4:]) if 1 << order >= BLOCK) * PAGE


class _Chunk:
    """Touched memory that lies anywhere."""

    def __init__(self):
        self.map = mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.map.madvise(MADV_NOHUGEPAGE)
        self.map.madvise(MADV_POPULATE_WRITE)

    def address(self):
        return ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def frames(self, pagemap):
        """The page frame number of each of its pages: 0 for who may not know."""
        entries = os.pread(pagemap, CHUNK // PAGE * 8, self.address() // PAGE * 8)
        return [entry & PFN for entry in array.array("Q", entries)]


class _IoVec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


class Warm:
    """What it holds is held as long as the process lives."""

    def __init__(self):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.blocks = set()  # that have a page of ours
        self.pipes = []
        self.fill()

    def fill(self):
        """Before something is measured. Quick where no blocks have become free since the last time."""
        if told() <= LEFT or len(self.blocks) >= MOST:
            return
        chunks = []
        while free() > LEFT + CHUNK and len(chunks) * CHUNK < MOST * BLOCK * PAGE:
            chunks.append(_Chunk())
        pagemap = os.open("/proc/self/pagemap", os.O_RDONLY)
        pins = [page for chunk in chunks for page in self._one_of_each_block(chunk, pagemap)]
        os.close(pagemap)
        for first in range(0, len(pins), PINS):
            self._pin(pins[first:first + PINS])

    def _one_of_each_block(self, chunk, pagemap):
        for number, frame in enumerate(chunk.frames(pagemap)):
            if frame // BLOCK not in self.blocks and len(self.blocks) < MOST:
                self.blocks.add(frame // BLOCK)
                yield chunk.address() + number * PAGE

    def _pin(self, addresses):
        reader, writer = os.pipe()
        fcntl.fcntl(writer, F_SETPIPE_SZ, PINS * PAGE)
        pages = (_IoVec * len(addresses))(*((address, PAGE) for address in addresses))
        taken = self.libc.vmsplice(writer, pages, len(pages), SPLICE_F_NONBLOCK)
        if taken != len(pages) * PAGE:
            raise OSError(ctypes.get_errno(), f"vmsplice: {taken} of {len(pages)} pages")
        self.pipes.append((reader, writer))
