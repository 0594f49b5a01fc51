#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A backup gives way while the guest's own writes are slow."""

import time

from harness import HarnessError, Tidemark, Vm, assert_clean, image, note_baseline
from harness.cases import case, main
from harness.vm import Disk

SIZE = 128 * image.MIB
MIBS = 32           # that a backup has to read
RATE = "16M"        # so that without the guest's writes it takes MIBS / 16 seconds


class Rig:
    """A guest that writes a block again and again, to a disk whose writes can be made slow."""

    def __init__(self, scratch):
        self.scratch = scratch
        path = image.create(scratch.dir("disks") / "data.qcow2", SIZE)
        self.vm = Vm(scratch, [Disk(path, "data")], name="guest").start()
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")
        self.vm.console.sh("dd if=/dev/urandom of=/tmp/noise bs=1M count=1 2>/dev/null; i=0; "
                           f"while [ $i -lt {MIBS} ]; do dd if=/tmp/noise of=/dev/vda bs=1M seek=$i "
                           "conv=notrunc 2>/dev/null || exit 1; i=$((i + 1)); done; sync", 60)
        self.vm.console.background("while :; do dd if=/tmp/noise of=/dev/vda bs=4k count=1 seek=30000 "
                                   "conv=notrunc,fsync 2>/dev/null; done")
        note_baseline(self.vm)

    def throttle(self, writes_a_second):
        limits = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd"), 0)
        self.vm.qmp.execute("block_set_io_throttle", id=self.qdev(), iops_wr=writes_a_second, **limits)

    def qdev(self):
        return self.vm.block("data")["qdev"]

    def histogram(self):
        stats = [entry["stats"] for entry in self.vm.qmp.execute("query-blockstats")
                 if entry.get("qdev") == self.qdev()]
        return stats[0].get("wr_latency_histogram")

    def start(self, *options):
        return self.tidemark.start("backup", self.vm.target(agent=False), "--quiesce", "never", "--full",
                                   "--limit-rate", RATE, *options)


@case
def slow_writes_hold_the_backup_back(scratch):
    rig = Rig(scratch)
    rig.throttle(10)
    running = rig.start("--latency-limit", "20")
    time.sleep(MIBS / 16 + 4)
    if not running.running:
        raise HarnessError(f"it did not slow down: {running.err}")
    if not rig.histogram():
        raise HarnessError("nobody counts the guest's writes")
    rig.throttle(0)
    result = running.finish(timeout=90)
    if result.json["slowed_ms"] < 1000 * MIBS / 16:
        raise HarnessError(f"it says: {result.json}")
    if rig.histogram():
        raise HarnessError("the histogram was left behind")
    assert_clean(rig.vm)


@case
def quick_writes_cost_nothing_and_others_histograms_stay(scratch):
    rig = Rig(scratch)
    rig.vm.qmp.execute("block-latency-histogram-set", id=rig.qdev(), **{"boundaries-write": [1000, 50000000]})
    result = rig.start("--latency-limit", "10000").finish(timeout=60)
    if result.json["slowed_ms"]:
        raise HarnessError(f"it says: {result.json}")
    if rig.histogram()["boundaries"] != [1000, 50000000]:
        raise HarnessError(f"the histogram is now {rig.histogram()}")
    assert_clean(rig.vm)


if __name__ == "__main__":
    main()
