#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The random engine (tests/engine) in short. By hand: tests/engine/engine --cycles 500"""

import os
from collections import Counter

from harness import make_rng
from harness.base import HarnessError
from harness.cases import case, main
from engine.model import SECTOR, ZEROES, Model, tag
from engine.runs import run_worlds

CYCLES, SECONDS = 40, 110


@case
def random_operations_and_deaths(_scratch):
    seed = make_rng("engine").randrange(1 << 32)
    counts = Counter()
    run_worlds(os.environ.get("SEED", seed), CYCLES, SECONDS, counts)
    print(f"# seed {os.environ.get('SEED', seed)}: " + ", ".join(f"{n} {w}" for w, n in sorted(counts.items())))
    if counts["worlds that went wrong"]:
        raise HarnessError("see above")
    if not counts["points"]:
        raise HarnessError(f"no point in {counts['cycles']} cycles")


# --- the model itself -------------------------------------------------------------


class Disks:
    """Two disks of eight sectors, and what is on them."""

    def __init__(self):
        self.model = Model()
        self.contents = [self.model.new_disk(8 * SECTOR) for _ in range(2)]
        self.data = [bytearray(8 * SECTOR) for _ in range(2)]

    def write(self, disk, lba, answered=True, kind="w"):
        content = self.contents[disk]
        write = self.model.issue(content, lba, 1, kind)
        if answered:
            self.model.answer(content, lba, 1, write)
        data = tag(content.number, lba, write.generation) if kind == "w" else bytes(SECTOR)
        self.data[disk][lba * SECTOR:(lba + 1) * SECTOR] = data
        return self.copies()

    def copies(self):
        return [bytes(d) for d in self.data]

    def instant(self, copies, earliest=0):
        return self.model.instant(list(zip(self.contents, copies)), earliest, self.model.clock)


def refused(what, function, *args):
    try:
        function(*args)
    except HarnessError:
        return
    raise HarnessError(f"the model does not see {what}")


@case
def the_model_tells_wrong_copies_from_right_ones(_scratch):
    disks = Disks()
    first = disks.write(0, 1)
    second = disks.write(1, 2)
    third = disks.write(0, 1)
    for copies in (first, second, third):
        disks.instant(copies)
    refused("two instants", disks.instant, [third[0], first[1]])
    refused("an old copy", disks.instant, first, disks.model.clock)
    torn = bytearray(third[0])
    torn[SECTOR + 40] ^= 1
    refused("a torn sector", disks.instant, [bytes(torn), third[1]])
    moved = third[0][SECTOR:] + bytes(SECTOR)
    refused("sectors in other places", disks.instant, [moved, third[1]])
    # An open write may be there or not.
    fourth = disks.write(0, 5, answered=False)
    disks.instant(third)
    disks.instant(fourth)
    refused("a write of later", disks.instant, [fourth[0], second[1][:2 * SECTOR] + bytes(6 * SECTOR)])


@case
def the_model_knows_what_was_flushed(_scratch):
    disks = Disks()
    model, content = disks.model, disks.contents[0]
    before = disks.write(0, 1)[0]
    model.flushed(content, model.tick())
    after = disks.write(0, 1)[0]
    refused("a flushed write that is lost", model.settle, content, bytes(8 * SECTOR), False)
    refused("a write that was lost in an orderly end", model.settle, content, before, True)
    model.settle(content, before, False)
    refused("one that comes back", model.settle, content, after, False)


@case
def the_model_knows_what_a_discard_may_leave(_scratch):
    disks = Disks()
    model, rest = disks.model, bytes(8 * SECTOR)
    older, _ = disks.write(0, 1)
    newer, _ = disks.write(0, 1)
    zeroes, _ = disks.write(0, 1, kind="d")
    for data in (newer, zeroes):
        disks.instant([data, rest], model.clock)
    refused("what was before the last write", disks.instant, [older, rest], model.clock)
    refused("what had been discarded", model.settle, disks.contents[0], older, True)
    model.settle(disks.contents[0], newer, True)


@case
def the_model_knows_what_a_guest_may_read(_scratch):
    disks = Disks()
    model, content = disks.model, disks.contents[0]
    first, asked = model.generation + 1, model.tick()
    disks.write(0, 1)
    for found in (ZEROES, first):        # it was asked before the write, and answered after it
        model.read(content, 1, found, asked)
    asked = model.tick()
    model.read(content, 1, first, asked)
    model.read(content, 5, ZEROES, asked)
    refused("a read of what was there before", model.read, content, 1, ZEROES, asked)
    refused("a read of what is nowhere", model.read, content, 5, first, asked)
    refused("a tag of the first generation for zeroes", model.read, content, 5, 0, asked)
    refused("a read of neither zeroes nor a tag", model.read, content, 1, 0xffffffff, asked)
    disks.write(0, 1, answered=False)
    for found in (first, first + 1):
        model.read(content, 1, found, asked)


@case
def the_model_knows_copies_of_a_disk_that_grew(_scratch):
    disks = Disks()
    model, content = disks.model, disks.contents[0]
    older, rest = disks.write(0, 1)
    content.resize(10 * SECTOR)
    disks.instant([content.at_its_size(older), rest])
    since = model.clock
    disks.data[0] += bytes(2 * SECTOR)
    newer, rest = disks.write(0, 9)
    disks.instant([newer, rest])
    refused("a small copy of later", disks.instant, [content.at_its_size(older), rest], model.tick())
    disks.instant([content.at_its_size(older), rest], since)
    refused("a size it never had", disks.instant, [content.at_its_size(older[:-SECTOR]), rest])
    content.pending = 11 * SECTOR
    model.settle(content, newer + bytes(SECTOR), True)
    if content.size != 11 * SECTOR:
        raise HarnessError(f"it has {content.size} bytes")


@case
def the_model_forgives_what_qemu_does_to_qcow2_alone(_scratch):
    for reuses in (True, False):
        disks = Disks()
        model, content = disks.model, disks.contents[0]
        content.reuses = reuses
        disks.write(0, 1)
        disks.write(0, 1, kind="z")
        data = bytearray(disks.write(0, 5)[0])
        data[SECTOR:2 * SECTOR] = data[5 * SECTOR:6 * SECTOR]
        refused("the data of another sector after an orderly end", model.settle, content, bytes(data), True)
        if reuses:
            if model.settle(content, bytes(data), False) != 1:
                raise HarnessError("one sector was to be forgiven")
        else:
            refused("the data of another sector", model.settle, content, bytes(data), False)


if __name__ == "__main__":
    main()
