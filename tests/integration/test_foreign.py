#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Another program takes a snapshot while a backup has its overlay in place. Nothing
is merged below it; what the person is told to do works, and one recovery heals the rest."""

import re

from harness import Tidemark, Vm, assert_clean, image, make_rng, note_baseline, wait_for
from harness.base import HarnessError, run as run_program
from harness.cases import case, main
from harness.vm import Disk

SIZE = 8 * image.MIB


class Rig:
    def __init__(self, scratch):
        self.scratch = scratch
        self.rng = make_rng("foreign")
        self.shadow = image.Shadow(scratch / "shadow", SIZE)
        self.path = image.create(scratch.dir("disks") / "vda.qcow2", SIZE)
        self.vm = Vm(scratch, [Disk(self.path, "vda")], guest=False).start()
        note_baseline(self.vm)
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")
        self.write()
        self.backup()
        self.write()

    def write(self):
        for _ in range(4):
            offset = self.rng.randrange(0, SIZE // 512 - 512) * 512
            self.vm.write("vda", offset, 512 * self.rng.randrange(1, 512), self.rng.randrange(1, 256),
                          self.shadow)

    def backup(self, **options):
        return self.tidemark("backup", self.vm.target(), "--quiesce", "never", **options)

    def snapshot_during_backup(self):
        """Returns the file of the snapshot, which the guest has written to."""
        self.backup(expect=-9, env={"TIDEMARK_DEBUG_KILL_AT": "frozen"})
        self.write()
        active, = (entry["inserted"]["node-name"] for entry in self.vm.qmp.execute("query-block")
                   if entry.get("inserted"))
        top = self.path.with_name("foreign.qcow2")
        self.vm.qmp.execute("blockdev-snapshot-sync", {
            "node-name": active, "snapshot-file": str(top), "snapshot-node-name": "foreign"})
        self.write()
        return top

    def go_on(self):
        self.write()
        point = self.backup().json
        assert_clean(self.vm)
        if point["disks"][0]["source"] != "bitmap":
            raise HarnessError(f"{point}")
        where = self.scratch.dir("restored")
        disk, = self.tidemark("restore", point["point"], "--to", where, "--force").json["disks"]
        image.assert_same(disk["to"], self.shadow.path, "raw", "raw")
        self.vm.terminate()
        image.assert_same(self.path, self.shadow.path)


@case
def a_snapshot_of_another_program_over_our_overlay(scratch):
    rig = Rig(scratch)
    top = rig.snapshot_during_backup()
    for result in (rig.tidemark("recover", rig.vm.target(), expect=5), rig.backup(expect=5)):
        if str(top) not in result.err or "node foreign" not in result.err:
            raise HarnessError(f"it says: {result.err}")
    rig.write()
    base, = re.findall(r'"base-node": "([^"]+)"', result.err)
    rig.vm.qmp.execute("block-commit", {"job-id": "merge", "device": "foreign", "base-node": base})
    wait_for("the merge", lambda: any(job["status"] == "ready" for job in rig.vm.jobs()), 30)
    rig.vm.qmp.execute("job-complete", {"id": "merge"})
    wait_for("its end", lambda: not rig.vm.jobs(), 30)
    rig.write()
    rig.tidemark("recover", rig.vm.target())
    top.unlink()
    rig.go_on()


@case
def a_snapshot_of_another_program_and_the_death_of_qemu(scratch):
    rig = Rig(scratch)
    top = rig.snapshot_during_backup()
    rig.vm.kill()
    files = {path: path.read_bytes() for path in rig.path.parent.iterdir()}
    for options in (["--before-start", f"image:{rig.path}"], []):
        result = rig.tidemark("recover", *options, expect=5)
        if str(top) not in result.err:
            raise HarnessError(f"it says: {result.err}")
    if files != {path: path.read_bytes() for path in rig.path.parent.iterdir()}:
        raise HarnessError("something was touched")
    run_program(["qemu-img", "commit", "-q", top])
    top.unlink()
    rig.tidemark("recover", "--before-start", f"image:{rig.path}")
    image.assert_same(rig.path, rig.shadow.path)
    rig.vm.start()
    rig.go_on()


if __name__ == "__main__":
    main()
