#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A disk that was made smaller and larger again between two backups: QEMU cuts the bits off its
bitmap and calls the new end clean. One cluster is compared for that, also without an audit; what
is restored is compared with a file that went the same way without QEMU."""

from harness import HarnessError, Tidemark, Vm, assert_clean, image, make_rng, note_baseline, run
from harness.cases import case, main
from harness.image import MIB, Shadow
from harness.vm import Disk

CLUSTER = 65536
SIZE = 16 * MIB + 512   # the last cluster is a ragged one


class AtRest:
    """An image that no QEMU has open."""

    def __init__(self, scratch):
        self.path = image.create(scratch.dir("disks") / "disk.qcow2", SIZE)
        self.target = f"image:{self.path},name=guest"

    def write(self, offset, length, pattern):
        run(["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {offset} {length}", self.path])

    def resize(self, size):
        run(["qemu-img", "resize", "-q", "-f", "qcow2", "--shrink", self.path, str(size)])

    def check(self):
        image.check(self.path)


class Online:
    """The same with block_resize."""

    def __init__(self, scratch):
        path = image.create(scratch.dir("disks") / "disk.qcow2", SIZE)
        self.vm = Vm(scratch, [Disk(path, "disk")], guest=False).start()
        note_baseline(self.vm)
        self.target = self.vm.target()

    def write(self, offset, length, pattern):
        self.vm.write("disk", offset, length, pattern)

    def resize(self, size):
        self.vm.qmp.execute("block_resize", {"node-name": self.vm.disk("disk").node, "size": size})

    def check(self):
        assert_clean(self.vm)


class Rig:
    def __init__(self, scratch, disk):
        self.scratch = scratch
        self.disk = disk(scratch)
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")
        self.shadow = Shadow(scratch / "shadow", SIZE)
        self.number = 0
        self.write(0, SIZE)
        self.backup("full")

    def write(self, offset, length):
        self.number += 1
        self.disk.write(offset, length, self.number)
        self.shadow.write(offset, length, self.number)

    def resize(self, *sizes):
        for size in sizes:
            self.disk.resize(size)
            self.shadow.resize(size)

    def backup(self, source, *options):
        """The disk in the point; what is restored is right."""
        point = self.tidemark("backup", self.disk.target, "--quiesce", "never",
                              *(options or ("--audit", "0")), expect=(0, 3)).json
        made, = point["disks"]
        to, = self.tidemark("restore", point["point"], "--to", self.scratch.dir("r"),
                            "--force").json["disks"]
        self.shadow.assert_equals(to["to"])
        wrong = [w for w in point["warnings"] if "ITS BITMAP IS WRONG" in w]
        if made["source"] != source or len(wrong) != (source == "hash-diff"):
            raise HarnessError(f"expected {source}: {point}")
        self.disk.check()
        return made

    def reads(self, more):
        """An incremental backup reads so many bytes beside those that are dirty."""
        made = self.backup("bitmap")
        if made["read_bytes"] - made["dirty_bytes"] != more or made["audit"]["data_clusters"]:
            raise HarnessError(f"expected {more} bytes more to be read: {made}")


def shrinks(scratch, disk):
    rig = Rig(scratch, disk)
    for end in (16 * MIB, 16 * MIB - CLUSTER, 15 * MIB, CLUSTER):
        rig.resize(end, SIZE)
        rig.backup("hash-diff")
        rig.write(0, SIZE)
        rig.backup("bitmap")
    # Written after that, but for some in the middle: the highest with data is dirty.
    rig.resize(8 * MIB, SIZE)
    rig.write(10 * MIB, SIZE - 10 * MIB)
    rig.backup("hash-diff")
    # Shrunk more than once, and grown further than it was.
    rig.resize(12 * MIB, SIZE, 13 * MIB, SIZE + MIB)
    rig.backup("hash-diff")


@case
def shrunk_and_grown_at_rest(scratch):
    shrinks(scratch, AtRest)


@case
def shrunk_and_grown_online(scratch):
    shrinks(scratch, Online)


@case
def the_new_end_inside_a_cluster(scratch):
    """QEMU keeps what is behind it in the cluster: the reference is the image as QEMU reads it."""
    rig = Rig(scratch, AtRest)
    for end in (16 * MIB - 512, 15 * MIB + 1024, 512):
        rig.resize(end, SIZE)
        image.to_raw(rig.disk.path, rig.shadow.path)
        rig.backup("hash-diff")
        rig.write(0, SIZE)
        rig.backup("bitmap")


def harmless(scratch, disk):
    rig = Rig(scratch, disk)
    rig.reads(512)      # the ragged one
    # All that was cut off is written again: the one that is compared is below it.
    rig.resize(12 * MIB + CLUSTER, SIZE)
    rig.write(12 * MIB + CLUSTER, SIZE - 12 * MIB - CLUSTER)
    rig.reads(CLUSTER)
    # All of the disk is dirty: nothing is left to compare.
    rig.write(0, SIZE)
    rig.reads(0)
    # The end is a hole: it may be cut off, and the disk may grow.
    rig.resize(12 * MIB, SIZE)
    rig.backup("hash-diff")
    rig.resize(13 * MIB, SIZE)
    rig.write(MIB, 512)
    rig.reads(CLUSTER)
    rig.resize(SIZE + MIB)
    rig.write(SIZE + MIB - 512, 512)
    rig.reads(CLUSTER)
    rig.reads(512)
    # It is not counted by an audit, for it is not chosen by chance.
    made = rig.backup("bitmap", "--audit", "100")
    if made["audit"]["data_clusters"] != 12 * MIB // CLUSTER + 1:
        raise HarnessError(f"{made}")


@case
def what_is_no_harm_costs_one_cluster_at_rest(scratch):
    harmless(scratch, AtRest)


@case
def what_is_no_harm_costs_one_cluster_online(scratch):
    harmless(scratch, Online)


@case
def at_random(scratch):
    """Writes and sizes in any order: what is restored is right, whatever it was read by."""
    rng = make_rng("shrink")
    rig = Rig(scratch, Online)
    sources = []
    for _ in range(12):
        for _ in range(rng.randrange(1, 6)):
            size = rig.shadow.size
            if rng.randrange(3):
                at = rng.randrange(size // 512) * 512
                rig.write(at, min(rng.choice([512, 3 * CLUSTER, 2 * MIB]), size - at))
            else:
                rig.resize(rng.randrange(1, size // CLUSTER + 1) * CLUSTER)
                if rng.randrange(2):
                    rig.write(rig.shadow.size - CLUSTER, 512)
                rig.resize(size + rng.choice([0, 0, 512, MIB]))
        point = rig.tidemark("backup", rig.disk.target, "--quiesce", "never", "--audit", "0",
                             expect=(0, 3)).json
        to, = rig.tidemark("restore", point["point"], "--to", scratch.dir("r"), "--force").json["disks"]
        rig.shadow.assert_equals(to["to"])
        sources.append(point["disks"][0]["source"])
    print(f"# {sources}", flush=True)


if __name__ == "__main__":
    main()
