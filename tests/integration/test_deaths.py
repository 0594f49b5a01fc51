#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The agent dies after each phase it journals; `recover`, or simply the next
backup, puts everything right, and the guest never stops."""

import shutil
import signal
from pathlib import Path

from harness import Tidemark, Vm, assert_clean, image, make_rng, note_baseline, wait_for
from harness.base import HarnessError
from harness.cases import case, main
from harness.vm import Disk

PHASES = ["preparing", "freezing", "frozen", "committing", "pivoting", "pivoted", "settling"]
SIZE = 24 * image.MIB + 512
NAMES = ("vda", "vdb")


class Rig:
    def __init__(self, scratch, style="blockdev"):
        self.scratch = scratch
        self.rng = make_rng("deaths")
        self.shadows = {n: image.Shadow(scratch / f"{n}.shadow", SIZE) for n in NAMES}
        disks = [Disk(image.create(scratch.dir("disks") / f"{n}.qcow2", SIZE), n, style=style)
                 for n in NAMES]
        self.vm = Vm(scratch, disks, guest=False).start()
        note_baseline(self.vm)
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")

    def write(self, wait=True):
        for name in NAMES:
            offset = self.rng.randrange(0, SIZE // 512 - 256) * 512
            length = self.rng.randrange(1, 256) * 512
            pattern = self.rng.randrange(1, 256)
            self.vm.io(name, f"aio_write -f -P {pattern} {offset} {length}", wait)
            self.shadows[name].write(offset, length, pattern)

    def backup(self, *options, expect=0, env=None):
        return self.tidemark("backup", self.vm.target(), "--quiesce", "never", *options,
                             expect=expect, env=env)

    def start_slow(self, rate):
        """A backup that is reading when this returns."""
        run = self.tidemark.start("backup", self.vm.target(), "--quiesce", "never",
                                  "--limit-rate", rate)
        wait_for("the freeze", lambda: self.vm.active_file("vda") != self.vm.disk("vda").path, 30)
        return run

    def die(self, phase):
        self.backup(expect=-9, env={"TIDEMARK_DEBUG_KILL_AT": phase})

    def assert_newest(self, point):
        where = self.scratch.dir("restored")
        for disk in self.tidemark("restore", point, "--to", where, "--force").json["disks"]:
            if found := image.difference(disk["to"], self.shadows[disk["disk"]].path, "raw", "raw"):
                raise HarnessError(f"{disk['disk']} of {point}: {found}")

    def assert_incremental(self, point):
        for disk in point["disks"]:
            if disk["source"] != "bitmap":
                raise HarnessError(f"{disk['disk']} was read whole: {disk['reason']}")

    def go_on(self):
        """After all is right again: nothing was lost, and the next backup is incremental."""
        assert_clean(self.vm)
        self.write()
        point = self.backup().json
        self.assert_incremental(point)
        assert_clean(self.vm)
        self.assert_newest(point["point"])


@case
def in_the_middle_of_the_first_journal(scratch):
    rig = Rig(scratch)
    rig.backup()
    state = rig.tidemark.state / "journal"
    unborn = [state / f"{path.stem}.json.tmp" for path in state.glob("*.lock")
              if not path.name.startswith("disk-")]
    unborn += [Path(f"{disk.path}.tidemark-journal.tmp") for disk in rig.vm.disks]
    # Written and synced, and none has its name; strace ends when the guard has.
    rig.tidemark.wrapper = ["strace", "-f", "-qq", "-b", "execve", "-o", scratch / "strace.log",
                            "-e", "inject=/^rename:signal=SIGKILL:when=1",
                            *[word for path in unborn for word in ("-P", path)]]
    rig.backup(expect=-9, env={"ASAN_OPTIONS": "detect_leaks=0"})
    rig.tidemark.wrapper = []
    if not all(path.name in (scratch / "strace.log").read_text(errors="replace") for path in unborn):
        raise HarnessError("it did not die there")
    wait_for("the guard", lambda: not any(path.exists() for path in unborn), 30)
    rig.write()
    rig.go_on()


def check_recover(scratch, phase, style, lose_state=False):
    rig = Rig(scratch, style)
    rig.write()
    rig.backup()
    rig.write()
    rig.die(phase)
    # While a commit is pending the guest's writes wait; they must end all the same.
    rig.write(wait=phase != "pivoting")
    if lose_state:
        shutil.rmtree(rig.tidemark.state)
    target = rig.vm.target()
    if phase not in ("preparing",):
        report = rig.tidemark("recover", "--check", target, expect=5).json
        if not report["left"]:
            raise HarnessError(f"recover --check: {report}")
        rig.tidemark("status", target, expect=5)
    rig.tidemark("recover", target)
    assert_clean(rig.vm)
    rig.tidemark("recover", "--check", target)
    rig.go_on()


def check_backup_recovers(scratch, phase):
    rig = Rig(scratch)
    rig.write()
    rig.backup()
    rig.write()
    rig.die(phase)
    rig.write(wait=phase != "pivoting")
    point = rig.backup().json
    rig.assert_incremental(point)
    assert_clean(rig.vm)
    rig.assert_newest(point["point"])
    rig.go_on()


def add_cases():
    for phase in PHASES:
        def recovers(scratch, phase=phase):
            check_recover(scratch, phase, "blockdev")
        recovers.__name__ = f"recover_after_death_in_{phase}"
        case(recovers)

        def backs_up(scratch, phase=phase):
            check_backup_recovers(scratch, phase)
        backs_up.__name__ = f"next_backup_after_death_in_{phase}"
        case(backs_up)
    for phase in ("frozen", "committing", "pivoting"):
        def old_way(scratch, phase=phase):
            check_recover(scratch, phase, "drive")
        old_way.__name__ = f"recover_drives_given_the_old_way_after_death_in_{phase}"
        case(old_way)

        def lost(scratch, phase=phase):
            check_recover(scratch, phase, "blockdev", lose_state=True)
        lost.__name__ = f"recover_without_the_state_directory_after_death_in_{phase}"
        case(lost)


add_cases()


@case
def death_in_the_very_first_backup(scratch):
    rig = Rig(scratch)
    rig.write()
    rig.die("committing")
    rig.write()
    rig.tidemark("recover", rig.vm.target())
    assert_clean(rig.vm)
    rig.assert_newest(rig.backup().json["point"])
    rig.go_on()


@case
def an_interrupted_backup_ends_cleanly(scratch):
    rig = Rig(scratch)
    rig.backup()
    for number in (signal.SIGINT, signal.SIGTERM):
        for _ in range(8):
            rig.write()
        run = rig.start_slow("256K")
        run.signal(number)
        run.finish(130, timeout=30)
        assert_clean(rig.vm)
        rig.go_on()


@case
def two_agents_exclude_each_other(scratch):
    rig = Rig(scratch)
    for _ in range(8):
        rig.write()
    run = rig.start_slow("1M")
    other = rig.backup(expect=1)
    if "lock" not in other.err and "another" not in other.err:
        raise HarnessError(f"the second agent says: {other.err}")
    run.finish()
    assert_clean(rig.vm)
    rig.go_on()


if __name__ == "__main__":
    main()
