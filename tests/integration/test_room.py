#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What the guest writes during a backup needs room. When that ends, the backup
does: the guest goes on, with every write kept."""

import signal
from pathlib import Path

from harness import HarnessError, Tidemark, Vm, assert_clean, image, note_baseline, run, wait_for
from harness.cases import case, main
from harness.vm import Disk

SIZE = 128 * image.MIB


class Rig:
    """A guest that writes to its bare disk, and a small file system for overlays."""

    def __init__(self, scratch, room="24M"):
        self.scratch = scratch
        self.overlays = scratch.dir("overlays")
        run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tidemark-test", self.overlays])
        scratch.defer(lambda: run(["umount", "-l", self.overlays]))
        path = image.create(scratch.dir("disks") / "data.qcow2", SIZE)
        self.vm = Vm(scratch, [Disk(path, "data")], name="guest").start()
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")
        self.fill(0, 32)
        note_baseline(self.vm, [self.overlays])

    def fill(self, start, count, timeout=60):
        """MiB of noise in the guest, on its disk when this returns."""
        self.vm.console.sh("dd if=/dev/urandom of=/tmp/noise bs=1M count=1 2>/dev/null; "
                           f"i=0; while [ $i -lt {count} ]; do dd if=/tmp/noise of=/dev/vda bs=1M "
                           f"seek=$(({start} + i)) conv=notrunc 2>/dev/null || exit 1; "
                           "i=$((i + 1)); done; sync", timeout)

    def start(self, *options, env=None):
        run_ = self.tidemark.start("backup", self.vm.target(agent=False), "--quiesce", "never",
                                   "--overlay-dir", self.overlays, *options, env=env)
        wait_for("the freeze", lambda: not run_.running or
                 self.vm.active_file("data") != self.vm.disk("data").path, 30)
        if not run_.running:
            raise HarnessError(f"it ended early: {run_.err}")
        return run_

    def write_until_stopped(self):
        """QEMU stops the guest while it writes, because its overlay finds no room."""
        self.vm.console.background("dd if=/dev/urandom of=/dev/vda bs=1M seek=40 count=40 "
                                   "conv=notrunc; sync; echo $? >/tmp/status")
        wait_for("the guest to be stopped",
                 lambda: self.vm.qmp.execute("query-status")["status"] == "io-error", 60)

    def assert_written(self):
        """The guest's write ends, and was not told of the stop."""
        wait_for("the guest's write", lambda: self.vm.console.run("cat /tmp/status")[0] == 0, 60,
                 0.5)
        if self.vm.console.sh("cat /tmp/status").strip() != "0":
            raise HarnessError("the guest saw an error")

    def md5(self):
        return self.vm.console.sh("md5sum </dev/vda", 60).split()[0]

    def go_on(self):
        """All is in order, and a backup has what the guest reads."""
        assert_clean(self.vm)
        md5 = self.md5()
        point = self.tidemark("backup", self.vm.target(agent=False), "--quiesce", "never").json
        disk, = self.tidemark("restore", point["point"], "--to",
                              self.scratch.dir("restored"), "--force").json["disks"]
        if run(["md5sum", disk["to"]]).stdout.split()[0] != md5:
            raise HarnessError("what was restored is not what the guest reads")
        assert_clean(self.vm)


@case
def the_backup_is_given_up_before_the_room_ends(scratch):
    rig = Rig(scratch, "96M")
    for number, options in enumerate(([], ["--overlay-limit", "8M"])):
        running = rig.start("--full", "--limit-rate", "512K", *options)
        rig.fill(32, 90 if not options else 16)
        if rig.vm.qmp.execute("query-status")["status"] != "running":
            raise HarnessError("the guest was stopped")
        result = running.finish(1, timeout=60)
        wanted = "--overlay-limit" if options else "has"
        if str(rig.overlays) not in result.err and wanted not in result.err:
            raise HarnessError(f"it says: {result.err}")
        if len(rig.tidemark("list").json) != number:
            raise HarnessError("a point was made all the same")
        rig.go_on()


@case
def no_room_to_begin_with(scratch):
    rig = Rig(scratch, "16M")
    run(["dd", "if=/dev/zero", f"of={rig.overlays}/other", "bs=1M", "count=15"])
    result = rig.tidemark("backup", rig.vm.target(agent=False), "--quiesce", "never",
                          "--overlay-dir", rig.overlays, expect=1)
    if "MiB" not in result.err:
        raise HarnessError(f"it says: {result.err}")
    Path(rig.overlays / "other").unlink()
    rig.go_on()


@case
def a_guest_that_was_stopped_for_lack_of_room_goes_on(scratch):
    rig = Rig(scratch, "16M")
    # An agent that does not look gives the guest the time to fill the file system.
    running = rig.start("--limit-rate", "512K", env={"TIDEMARK_DEBUG_STOP_AT": "frozen"})
    rig.write_until_stopped()
    running.signal(signal.SIGCONT)
    running.finish(1, timeout=60)
    if rig.vm.qmp.execute("query-status")["status"] != "running":
        raise HarnessError("the guest was not continued")
    rig.assert_written()
    if "I/O error" in rig.vm.console.sh("dmesg"):
        raise HarnessError("the guest's kernel saw an error")
    rig.go_on()


@case
def a_guest_that_is_stopped_while_its_overlay_is_merged_goes_on(scratch):
    rig = Rig(scratch, "16M")
    running = rig.start(env={"TIDEMARK_DEBUG_STOP_AT": "committing"})
    rig.write_until_stopped()
    running.signal(signal.SIGCONT)
    running.finish(0, timeout=60)
    rig.assert_written()
    rig.go_on()


@case
def recovery_continues_a_guest_that_was_stopped_for_lack_of_room(scratch):
    rig = Rig(scratch, "16M")
    running = rig.start("--limit-rate", "512K", env={"TIDEMARK_DEBUG_STOP_AT": "frozen"})
    rig.write_until_stopped()
    running.kill()
    rig.tidemark("recover", rig.vm.target(agent=False))
    rig.assert_written()
    rig.go_on()


if __name__ == "__main__":
    main()
