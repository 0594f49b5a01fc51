#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Another program takes a snapshot while a backup has its overlay in place. Nothing
is merged below it; what the person is told to do works, and one recovery heals the rest."""

import re

from harness import Tidemark, Vm, assert_clean, image, make_rng, note_baseline, wait_for
from harness.base import HarnessError
from harness.cases import case, main
from harness.vm import Disk

SIZE = 8 * image.MIB


@case
def a_snapshot_of_another_program_over_our_overlay(scratch):
    rng = make_rng("foreign")
    shadow = image.Shadow(scratch / "shadow", SIZE)
    path = image.create(scratch.dir("disks") / "vda.qcow2", SIZE)
    vm = Vm(scratch, [Disk(path, "vda")], guest=False).start()
    note_baseline(vm)
    tidemark = Tidemark(scratch)
    tidemark("init")

    def write():
        for _ in range(4):
            offset = rng.randrange(0, SIZE // 512 - 512) * 512
            vm.write("vda", offset, 512 * rng.randrange(1, 512), rng.randrange(1, 256), shadow)

    def backup(**options):
        return tidemark("backup", vm.target(), "--quiesce", "never", **options)

    def active():
        return next(entry["inserted"]["node-name"] for entry in vm.qmp.execute("query-block")
                    if entry.get("inserted"))

    write()
    backup()
    write()
    backup(expect=-9, env={"TIDEMARK_DEBUG_KILL_AT": "frozen"})
    write()
    top = path.with_name("foreign.qcow2")
    vm.qmp.execute("blockdev-snapshot-sync", {
        "node-name": active(), "snapshot-file": str(top), "snapshot-node-name": "foreign"})
    write()
    for result in (tidemark("recover", vm.target(), expect=5), backup(expect=5)):
        if str(top) not in result.err or "node foreign" not in result.err:
            raise HarnessError(f"it says: {result.err}")
    write()
    base, = re.findall(r'"base-node": "([^"]+)"', result.err)
    vm.qmp.execute("block-commit", {"job-id": "merge", "device": "foreign", "base-node": base})
    wait_for("the merge", lambda: any(job["status"] == "ready" for job in vm.jobs()), 30)
    vm.qmp.execute("job-complete", {"id": "merge"})
    wait_for("its end", lambda: not vm.jobs(), 30)
    write()
    tidemark("recover", vm.target())
    top.unlink()
    assert_clean(vm)
    write()
    point = backup().json
    if point["disks"][0]["source"] != "bitmap":
        raise HarnessError(f"{point}")
    disk, = tidemark("restore", point["point"], "--to", scratch.dir("restored"), "--force").json["disks"]
    image.assert_same(disk["to"], shadow.path, "raw", "raw")
    vm.terminate()
    image.assert_same(path, shadow.path)


if __name__ == "__main__":
    main()
