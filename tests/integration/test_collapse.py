#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How the overlays are merged back: at what rate, and what a full file system
does to it. Every point that is made meanwhile has what was there at its instant,
and every write of the guest is kept."""

import shutil
import signal
import time
from pathlib import Path

from harness import Tidemark, Vm, assert_clean, image, make_rng, note_baseline, run, wait_for
from harness.base import HarnessError
from harness.cases import case, main
from harness.vm import Disk

SIZE = 64 * image.MIB + 512
MIB = image.MIB


class Rig:
    """A guest without an operating system, and a shadow of each of its disks."""

    def __init__(self, scratch, disks, extra=()):
        self.scratch = scratch
        self.rng = make_rng("collapse")
        self.shadows = {d.id: image.Shadow(scratch / f"{d.id}.shadow", SIZE) for d in disks}
        self.overlays = scratch.dir("overlays")
        self.vm = Vm(scratch, disks, guest=False, extra=extra).start()
        note_baseline(self.vm, [self.overlays])
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")

    @property
    def names(self):
        return list(self.shadows)

    def write(self, name, offset, length):
        self.vm.write(name, offset, length, self.rng.randrange(1, 256), self.shadows[name])

    def write_all(self, count=3):
        for name in self.names:
            for _ in range(count):
                offset = self.rng.randrange(0, SIZE // 512 - 1024) * 512
                self.write(name, offset, self.rng.randrange(1, 1024) * 512)

    def start(self, *options, env=None):
        """A backup that reads when this returns."""
        running = self.tidemark.start("backup", self.vm.target(), "--quiesce", "never", *options,
                                      env=env)
        wait_for("the freeze", lambda: not running.running or all(
            self.vm.active_file(n) != self.vm.disk(n).path for n in self.names), 30)
        return running

    def start_stopped(self, phase, *options, env=None):
        """The same, stopped right after `phase` was journalled."""
        running = self.start(*options, env={"TIDEMARK_DEBUG_STOP_AT": phase, **(env or {})})
        wait_stopped(running, phase)
        return running

    def backup(self, *options, expect=0):
        return self.tidemark("backup", self.vm.target(), "--quiesce", "never", *options,
                             expect=expect).json

    def keep_shadows(self):
        """What a point that is frozen now must hold."""
        return {n: s.copy(self.scratch / f"{n}.frozen") for n, s in self.shadows.items()}

    def assert_point(self, point, shadows=None):
        where = self.scratch.dir("restored")
        for disk in self.tidemark("restore", point["point"], "--to", where, "--force").json["disks"]:
            wanted = (shadows or {n: s.path for n, s in self.shadows.items()})[disk["disk"]]
            if found := image.difference(disk["to"], wanted, "raw", "raw"):
                raise HarnessError(f"{disk['disk']} of {point['point']}: {found}")

    def go_on(self, source="bitmap"):
        """All is in order; the next backup is incremental and right."""
        self.write_all()
        point = self.backup(expect=(0, 3))
        for disk in point["disks"]:
            if disk["source"] != source:
                raise HarnessError(f"{disk['disk']} was read by {disk['source']}: {disk['reason']}")
        self.assert_point(point)
        return point


def wait_stopped(running, what):
    stat = Path(f"/proc/{running.process.pid}/stat")
    wait_for(what, lambda: not running.running or
             stat.read_text().rsplit(")", 1)[1].split()[0] == "T", 60)
    if not running.running:
        raise HarnessError(f"it never came to '{what}': {running.err}")


def small_file_system(path, size):
    path.mkdir(mode=0o700)
    run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tidemark-test", path])
    return path


def fill(path):
    """Fills a file system to the last page."""
    run(["dd", "if=/dev/zero", f"of={path}/filler", "bs=64K"], check=False)


class FullRig(Rig):
    """The disk's own file system is full when its overlay is to be merged."""

    def __init__(self, scratch):
        self.where = small_file_system(scratch / "small", "32M")
        scratch.defer(lambda: run(["umount", "-l", self.where]))
        super().__init__(scratch, [Disk(image.create(self.where / "vda.qcow2", SIZE), "vda")])
        self.write("vda", 0, 2 * MIB)
        self.backup("--overlay-dir", self.overlays)
        self.write("vda", MIB, 65536)

    def start_full(self):
        """A backup whose commit finds no room; the guest wrote 8 MiB meanwhile."""
        frozen = self.keep_shadows()
        running = self.start_stopped("frozen", "--overlay-dir", self.overlays)
        for number in range(8):
            self.write("vda", (8 + number) * MIB, MIB)
        fill(self.where)
        running.signal(signal.SIGCONT)
        wait_for("it to say so", lambda: "is full" in running.err or not running.running, 30)
        if str(self.where) not in running.err or "MiB are needed" not in running.err:
            raise HarnessError(f"it says: {running.err}")
        if self.vm.qmp.execute("query-status")["status"] != "running":
            raise HarnessError("the guest was stopped")
        return running, frozen


@case
def a_full_base_is_waited_for(scratch):
    rig = FullRig(scratch)
    running, frozen = rig.start_full()
    rig.write("vda", 20 * MIB, MIB)         # the guest goes on meanwhile
    (rig.where / "filler").unlink()
    point = running.finish(3).json
    if not any("is full" in text for text in point["warnings"]):
        raise HarnessError(f"warnings {point['warnings']}")
    assert_clean(rig.vm)
    rig.assert_point(point, frozen)
    rig.go_on()


@case
def a_base_that_stays_full_leaves_the_guest_on_its_overlay(scratch):
    rig = FullRig(scratch)
    running, frozen = rig.start_full()
    running.signal(signal.SIGINT)           # else it waits for half a minute
    running.finish((5, 130), timeout=60)
    if rig.vm.active_file("vda").parent != rig.overlays or rig.vm.jobs():
        raise HarnessError(f"the guest is on {rig.vm.active_file('vda')}, jobs {rig.vm.jobs()}")
    rig.write("vda", 20 * MIB, MIB)
    rig.tidemark("recover", "--check", rig.vm.target(), expect=5)
    (rig.where / "filler").unlink()
    rig.tidemark("recover", rig.vm.target())
    assert_clean(rig.vm)
    newest = rig.tidemark("list").json[-1]
    rig.assert_point(newest, frozen)
    rig.go_on()


@case
def the_rate_holds_for_the_commit_and_is_lifted_for_a_guest_that_outruns_it(scratch):
    where = scratch.dir("disks")
    rig = Rig(scratch, [Disk(image.create(where / "vda.qcow2", SIZE), "vda")])
    rig.backup()
    frozen = rig.keep_shadows()
    running = rig.start_stopped("frozen", "--limit-rate", "8M")
    for number in range(8):
        rig.write("vda", number * MIB, MIB)
    running.signal(signal.SIGCONT)
    wait_for("the commit", lambda: rig.vm.jobs() or not running.running, 20)
    speeds, began = set(), time.monotonic()
    while running.running:
        for job in rig.vm.qmp.execute("query-block-jobs"):
            speeds.add(job["speed"])
        if time.monotonic() - began < 20:   # 8 MiB/s are nothing to this guest
            rig.write("vda", rig.rng.randrange(60) * MIB, MIB)
    result = running.finish(0)
    phases = {event["phase"] for event in result.events}
    if not {0, 8 * MIB} <= speeds:
        raise HarnessError(f"the job's speed was {speeds}")
    if "commit" not in phases:
        raise HarnessError(f"progress told of {phases}")
    assert_clean(rig.vm)
    rig.assert_point(result.json, frozen)
    rig.go_on()


if __name__ == "__main__":
    main()
