#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A guest that leaves while it is backed up: migrated to another QEMU, or saved to
a file. QEMU lives, the backup is given up with a word about why, and whoever runs
the guest next has all that it wrote."""

from pathlib import Path

from harness import Tidemark, Vm, assert_clean, image, make_rng, note_baseline, wait_for
from harness.base import HarnessError
from harness.cases import case, main
from harness.vm import Disk

SIZE = 24 * image.MIB + 512
IOTHREAD = ["-object", "iothread,id=io0"]


class Rig:
    """A guest with a disk of each kind, one point, and a shadow of each disk."""

    def __init__(self, scratch, iothread=False):
        self.scratch = scratch
        self.rng = make_rng("migration")
        self.dir = scratch.dir("disks")
        low = image.create(self.dir / "low.qcow2", SIZE)
        device = {"iothread": "io0"} if iothread else {}
        self.disks = [
            Disk(image.create(self.dir / "new.qcow2", SIZE), "new", device=device),
            Disk(image.create(self.dir / "flat.raw", SIZE, "raw"), "flat", fmt="raw", device=device),
            Disk(image.create(self.dir / "old.qcow2", SIZE, options={"compat": "0.10"}), "old"),
            Disk(image.create(self.dir / "chain.qcow2", SIZE, backing=low), "chain")]
        self.shadows = {d.id: image.Shadow(scratch / f"{d.id}.shadow", SIZE) for d in self.disks}
        self.extra = IOTHREAD if iothread else []
        self.vm = self.qemu("vm").start()
        note_baseline(self.vm)
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")
        for expect in ((0, 3), 0):
            self.write()
            self.tidemark("backup", self.target, "--quiesce", "never", expect=expect)
        for _ in range(8):
            self.write()

    @property
    def target(self):
        return self.vm.target(name="guest")

    def qemu(self, name, *extra):
        return Vm(self.scratch, self.disks, guest=False, name=name, extra=[*self.extra, *extra])

    def write(self, vm=None):
        for disk in self.disks:
            offset = self.rng.randrange(0, SIZE // 512 - 2048) * 512
            length = self.rng.randrange(1, 2048) * 512
            (vm or self.vm).write(disk.id, offset, length, self.rng.randrange(1, 256),
                                  self.shadows[disk.id])

    def start_reading(self, *options):
        """A backup by bitmaps that reads when this returns; the guest has written meanwhile."""
        run = self.tidemark.start("backup", self.target, "--quiesce", "never", "--limit-rate", "512k",
                                  *options)
        wait_for("the freeze", lambda: not run.running or all(
            self.vm.active_file(d.id) != d.path for d in self.disks), 30)
        wait_for("the servers", lambda: not run.running or b"nbd3.sock" in children_of(run.process.pid), 30)
        if not run.running:
            raise HarnessError(f"it ended early: {run.err}")
        self.write()
        return run

    def migrate(self, uri):
        self.vm.qmp.execute("migrate", uri=uri)

    def migrated(self, status=("completed",)):
        state = wait_for("the migration", lambda: (lambda s: s if s["status"] in
                         ("completed", "failed", "cancelled") else None)
                         (self.vm.qmp.execute("query-migrate")), 30)
        if state["status"] not in status:
            raise HarnessError(f"{state}")

    def assert_files(self):
        for disk in self.disks:
            image.assert_same(disk.path, self.shadows[disk.id].path, disk.fmt, "raw")

    def go_on(self, sources=("bitmap",)):
        """Nothing is left, and a point of now has all that the guest wrote."""
        self.tidemark("recover", "--check", self.target)
        self.write()
        point = self.tidemark("backup", self.target, "--quiesce", "never", expect=(0, 3)).json
        for disk in point["disks"]:
            if disk["disk"] in ("new", "chain") and disk["source"] not in sources:
                raise HarnessError(f"{disk}")
        restored = self.tidemark("restore", point["point"], "--to", self.scratch.dir("restored"),
                                 "--force").json
        for disk in restored["disks"]:
            image.assert_same(disk["to"], self.shadows[disk["disk"]].path, "raw", "raw")


def children_of(pid):
    """The command lines of a process's children, as one text."""
    text = b""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                text += (stat.parent / "cmdline").read_bytes()
        except (OSError, IndexError):
            pass
    return text


def given_up(run, expect=(1, 5)):
    result = run.finish(expect)
    if "migrated or saved" not in result.err:
        raise HarnessError(f"it says: {result.err}")


def add(iothread):
    def saved(scratch):
        rig = Rig(scratch, iothread)
        run = rig.start_reading()
        rig.migrate("exec:cat >/dev/null")
        rig.migrated()
        given_up(run)
        # It did not go away after all.
        rig.vm.qmp.execute("cont")
        rig.tidemark("recover", rig.target)
        assert_clean(rig.vm)
        rig.go_on()
    saved.__name__ = "saved_while_disks_are_read" + ("_by_iothreads" if iothread else "")
    case(saved)


add(False)
add(True)


@case
def a_slow_migration_finds_the_guest_on_its_own_files(scratch):
    rig = Rig(scratch)
    run = rig.start_reading()
    there = rig.qemu("there", "-incoming", f"unix:{scratch}/there.in").start()
    rig.vm.qmp.execute("migrate-set-parameters", **{"max-bandwidth": 4096})
    rig.migrate(f"unix:{scratch}/there.in")
    given_up(run, 1)
    assert_clean(rig.vm)
    rig.write()
    result = rig.tidemark("backup", rig.target, expect=1)
    if "migrated or saved" not in result.err:
        raise HarnessError(f"it says: {result.err}")
    rig.vm.qmp.execute("migrate-set-parameters", **{"max-bandwidth": 1 << 30})
    rig.migrated()
    wait_for("the other side", lambda: there.qmp.execute("query-status")["running"], 10)
    result = rig.tidemark("backup", rig.target, expect=1)
    if "migrated or saved" not in result.err:
        raise HarnessError(f"it says: {result.err}")
    rig.vm.kill()
    rig.vm = there
    rig.write()
    rig.go_on()


@case
def a_quick_migration_does_not_start_the_guest_on_old_files(scratch):
    rig = Rig(scratch)
    there = rig.qemu("there", "-incoming", f"unix:{scratch}/there.in").start()
    run = rig.start_reading()
    rig.migrate(f"unix:{scratch}/there.in")
    rig.migrated(("completed", "failed"))
    if there.running and there.qmp.execute("query-status")["running"]:
        raise HarnessError("the guest runs on files that are not its newest")
    there.kill()
    given_up(run)
    rig.vm.qmp.execute("cont")
    rig.tidemark("recover", rig.target)
    assert_clean(rig.vm)
    rig.go_on()


@case
def saved_to_a_file_and_started_from_it(scratch):
    rig = Rig(scratch)
    run = rig.start_reading()
    rig.migrate(f"exec:cat >{scratch}/saved")
    rig.migrated()
    wait_for("the backup's end", lambda: not run.running, 30)
    rig.vm.quit()
    given_up(run)
    rig.tidemark("recover", "--before-start", "image:" + ",".join(str(d.path) for d in rig.disks))
    rig.assert_files()
    rig.vm = rig.qemu("again", "-incoming", f"exec:cat {scratch}/saved").start()
    wait_for("the guest", lambda: rig.vm.qmp.execute("query-status")["running"], 10)
    rig.go_on()


if __name__ == "__main__":
    main()
