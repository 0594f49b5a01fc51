# SPDX-License-Identifier: Apache-2.0
"""What disks must contain. Every sector that is written holds its own tag: which
disk, which sector, which generation. A clock counts issues and answers of writes
over all disks, so that any copy of the disks can be asked for its instant: the times
at which just those writes could have been there and no others."""

import struct
import threading
import zlib
from dataclasses import dataclass, field

from harness.base import HarnessError

SECTOR = 512
_ZERO = bytes(SECTOR)
_MAGIC = 0x4b4d4454
_NEVER = float("inf")
ZEROES = 0xfffffffe     # what a guest says that it read instead of a generation


def tag(disk, lba, generation):
    """The content of a sector, as guest.c makes it."""
    head = struct.pack("<IIII", _MAGIC, disk, lba, generation)
    rest = struct.pack("<IIII", zlib.crc32(head), ~generation & 0xffffffff,
                       generation * 0x9e3779b1 & 0xffffffff,
                       (generation * 0x85ebca6b + lba) & 0xffffffff)
    return (head + rest) * (SECTOR // 32)


def say_sector(data):
    """A sector in words, for messages."""
    if data == _ZERO:
        return "zeroes"
    magic, disk, lba, generation = struct.unpack_from("<IIII", data)
    if magic != _MAGIC:
        return "neither zeroes nor a tag"
    whole = "" if data == tag(disk, lba, generation) else ", torn"
    return f"generation {generation} of sector {lba} of disk {disk}{whole}"


@dataclass
class Write:
    """`kind`: "w"rite, "z"ero, or "d"iscard, after which a sector is zero or as before."""
    generation: int
    kind: str
    issued: float
    answered: float = _NEVER


@dataclass
class Content:
    """One disk. `settled` is what it held when it was last looked at, `changes` has
    for each sector what was written since, in order."""
    number: int                  # what the tags say; never used again
    settled: bytearray
    changes: dict = field(default_factory=dict)     # sector: [Write, ...]
    busy: set = field(default_factory=set)          # sectors with an open write
    durable: float = 0           # what was answered before is on the disk
    reuses: bool = False         # in qcow2, what one sector gave up is soon another's
    former: set = field(default_factory=set)        # sizes since it was looked at
    pending: int = 0             # a size it may have got, as far as is known

    @property
    def size(self):
        return len(self.settled)

    def resize(self, size):
        self.former.add(self.size)
        del self.settled[size:]
        self.settled.extend(bytes(size - len(self.settled)))
        self.changes = {s: w for s, w in self.changes.items() if (s + 1) * SECTOR <= size}

    def copy(self):
        if self.changes:
            raise HarnessError("a copy of a disk that changes")
        return Content(self.number, bytearray(self.settled), reuses=self.reuses)

    def at_its_size(self, data):
        """A copy that was made before the disk grew, or after it did and nobody heard."""
        if len(data) in self.former:
            return data.ljust(self.size, b"\0")
        if len(data) == self.pending and not any(data[self.size:]):
            return data[:self.size]
        return data

    def sector_of(self, lba, index):
        """The content of version `index`; 0 is what was settled."""
        if not index:
            return bytes(self.settled[lba * SECTOR:(lba + 1) * SECTOR])
        write = self.changes[lba][index - 1]
        return tag(self.number, lba, write.generation) if write.kind == "w" else _ZERO

    def fits(self, lba, found):
        """The indices of the versions of a sector that can look like this, last first."""
        generation, = struct.unpack_from("<12xI", found)
        if found != tag(self.number, lba, generation):
            generation = None
        looks = self.sector_of(lba, 0) == found
        fits = [0] * looks
        for index, write in enumerate(self.changes[lba], 1):
            if write.kind == "w":
                looks = write.generation == generation
            else:
                looks = found == _ZERO or (write.kind == "d" and looks)
            if looks:
                fits.append(index)
        return fits[::-1]

    def versions(self, data):
        """Yields (sector, writes, indices of the versions it may be); raises when
        a sector is none of them."""
        if len(data) != len(self.settled):
            raise HarnessError(f"disk {self.number} has {len(data)} bytes instead of {self.size}")
        rest = bytearray(self.settled)
        for lba in self.changes:
            rest[lba * SECTOR:(lba + 1) * SECTOR] = data[lba * SECTOR:(lba + 1) * SECTOR]
        if rest != data:
            self._complain(rest, data)
        for lba, writes in self.changes.items():
            found = data[lba * SECTOR:(lba + 1) * SECTOR]
            if not (fits := self.fits(lba, found)):
                raise HarnessError(f"disk {self.number}: sector {lba} has {say_sector(found)}; "
                                   f"expected {say_sector(self.sector_of(lba, 0))} or generations "
                                   f"{[w.generation for w in writes]}")
            yield lba, writes, fits

    def forgive(self, data):
        """(`data`, n): n sectors had the data of other ones of this disk, because QEMU
        was killed after what they gave up had been given to those, and before its table
        was written. It is so with any qcow2 image, but with no other."""
        if not self.reuses or not any(w.kind != "w" and w.answered > self.durable
                                      for writes in self.changes.values() for w in writes):
            return data, 0
        rest, found = bytearray(data), 0
        for lba in range(len(data) // SECTOR):
            sector = data[lba * SECTOR:(lba + 1) * SECTOR]
            magic, disk, place, generation = struct.unpack_from("<IIII", sector)
            if (magic, disk) == (_MAGIC, self.number) and place != lba and sector == tag(disk, place, generation):
                rest[lba * SECTOR:(lba + 1) * SECTOR] = self.sector_of(lba, len(self.changes.get(lba, ())))
                found += 1
        return bytes(rest), found

    def _complain(self, expected, data):
        bad = [s for s in range(len(data) // SECTOR)
               if data[s * SECTOR:(s + 1) * SECTOR] != expected[s * SECTOR:(s + 1) * SECTOR]]
        lba = bad[0]
        raise HarnessError(
            f"disk {self.number}: {len(bad)} sectors are wrong, of {lba} to {bad[-1]}: sector {lba} "
            f"has {say_sector(data[lba * SECTOR:(lba + 1) * SECTOR])} instead of "
            f"{say_sector(bytes(expected[lba * SECTOR:(lba + 1) * SECTOR]))}")


class Model:
    """The clock, and the contents of all disks."""

    def __init__(self):
        self.lock = threading.Lock()
        self.clock = 0
        self.generation = 0
        self.numbers = 0

    def new_disk(self, size):
        self.numbers += 1
        return Content(self.numbers, bytearray(size))

    def tick(self):
        self.clock += 1
        return self.clock

    def issue(self, content, lba, count, kind="w"):
        """A write that is about to be asked for; None when one on its sectors is open."""
        with self.lock:
            span = range(lba, lba + count)
            if not content.busy.isdisjoint(span):
                return None
            content.busy.update(span)
            self.generation += 1
            write = Write(self.generation, kind, self.tick())
            for sector in span:
                content.changes.setdefault(sector, []).append(write)
            return write

    def answer(self, content, lba, count, write):
        with self.lock:
            write.answered = self.tick()
            content.busy.difference_update(range(lba, lba + count))

    def link(self, write):
        """The end of a write in a chain, as seen by what comes after it in the chain: that
        it has a place in their order is known before it has ended."""
        with self.lock:
            write.answered = self.tick()

    def linked(self, content, lba, count, _write):
        """It has ended indeed."""
        with self.lock:
            content.busy.difference_update(range(lba, lba + count))

    def broken(self, write):
        """Nobody will hear whether it has ended."""
        with self.lock:
            write.answered = _NEVER

    def flushed(self, content, issued):
        """A flush asked for at `issued` was answered."""
        with self.lock:
            content.durable = max(content.durable, issued)

    def read(self, content, lba, found, issued):
        """The guest read a generation, or ZEROES, in a sector; it asked at `issued`."""
        with self.lock:
            answered, writes = self.tick(), content.changes.get(lba, ())
            data = _ZERO if found == ZEROES else tag(content.number, lba, found)
            fits = content.fits(lba, data) if writes else [0] * (content.sector_of(lba, 0) == data)
            if not any((writes[i - 1].issued if i else 0) <= answered and
                       (writes[i].answered if i < len(writes) else _NEVER) >= issued for i in fits):
                raise HarnessError(
                    f"the guest read generation {found:#x} in sector {lba} of disk {content.number} between {issued} "
                    f"and {answered}; there was {say_sector(content.sector_of(lba, 0))}, then "
                    f"{[(w.generation, w.kind, w.issued, w.answered) for w in writes]}")

    # --- judging ------------------------------------------------------------------

    def instant(self, copies, earliest, latest):
        """(first, last) moment of the clock at which all the disks looked so.
        `copies`: [(Content, bytes)]. Raises when there is none within the bounds."""
        low, high, open_questions = earliest, latest, []
        low_by = high_by = "the bounds"
        for content, data in copies:
            for lba, writes, fits in content.versions(data):
                spans = [(writes[i - 1].issued if i else 0,
                          writes[i].answered if i < len(writes) else _NEVER) for i in fits]
                if len(spans) > 1:
                    open_questions.append((content.number, lba, spans))
                    continue
                (first, last), where = spans[0], f"disk {content.number} sector {lba}"
                if first > low:
                    low, low_by = first, where
                if last < high:
                    high, high_by = last, where
        if low > high:
            raise HarnessError(f"no single instant: {low_by} is of {low} or later, {high_by} of {high} "
                               f"or earlier (asked for {earliest} to {latest})")
        for number, lba, spans in open_questions:
            if not any(first <= high and last >= low for first, last in spans):
                raise HarnessError(f"no single instant: disk {number} sector {lba} is of none of "
                                   f"{spans}, the rest of {low} to {high}")
        return low, high

    def settle(self, content, data, all_answered):
        """The disk's content is `data` from now on. It must have all that was flushed,
        or all that was answered. Returns how many sectors were forgiven."""
        with self.lock:
            if len(data) == content.pending:
                content.resize(content.pending)
            durable = self.clock if all_answered else content.durable
            seen, forgiven = (data, 0) if all_answered else content.forgive(data)
            for lba, writes, fits in content.versions(seen):
                must = max((i for i, w in enumerate(writes, 1) if w.answered <= durable), default=0)
                if fits[0] < must:
                    raise HarnessError(
                        f"disk {content.number}: sector {lba} has {say_sector(content.sector_of(lba, fits[0]))}; "
                        f"lost is generation {writes[must - 1].generation}, which had been flushed")
            content.settled = bytearray(data)
            content.changes, content.busy, content.durable = {}, set(), 0
            content.former, content.pending = set(), 0
            return forgiven
