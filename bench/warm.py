# SPDX-License-Identifier: Apache-2.0
"""Memory whose first touch costs what it costs on a machine of one's own.

A hypervisor that is told of free pages takes them back, and the first touch of each then takes it
10 µs: a program that writes a gigabyte waits three seconds for that, or not, as it happens. So
nearly all free memory is held here, touched, and let go as fast as the programs that are measured
take it: no page is free for long. The figures below were found by trying.
"""

import mmap
import threading
from pathlib import Path

MIB = 1024 * 1024
CHUNK = 32 * MIB        # held and let go at once
LEFT = 512 * MIB        # free memory that nobody touches
AHEAD = 128 * MIB       # so much more is free, for what is taken between two looks
MOST = 64 * 1024 * MIB  # that is ever held
LOOK = 0.01             # seconds
MADV_POPULATE_WRITE = 23


def needed():
    """Whether a balloon tells the hypervisor of free pages: VIRTIO_BALLOON_F_REPORTING, bit 5."""
    return any(path.read_text()[5] == "1"
               for path in Path("/sys/bus/virtio/drivers/virtio_balloon").glob("virtio*/features"))


def free():
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("MemFree:")) * 1024


def chunk():
    held = mmap.mmap(-1, CHUNK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.madvise(mmap.MADV_HUGEPAGE)
    held.madvise(MADV_POPULATE_WRITE)
    return held


class Warm:
    """Lives as long as the process. empty() before what is not measured that way."""

    def __init__(self):
        self.held = []
        self.lock = threading.Lock()
        threading.Thread(target=self._let_go, daemon=True).start()

    def fill(self):
        """Before something is measured."""
        with self.lock:
            while free() > LEFT + CHUNK and len(self.held) * CHUNK < MOST:
                self.held.append(chunk())

    def empty(self):
        with self.lock:
            while self.held:
                self.held.pop().close()

    def _let_go(self):
        looks = threading.Event()   # never set
        while not looks.wait(LOOK):
            with self.lock:
                while self.held and free() < LEFT + AHEAD:
                    self.held.pop().close()
