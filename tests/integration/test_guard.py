#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The agent dies or hangs, above all in the moment when the guest's writes stand:
its guard puts the guest in order, without any command being run."""

import os
import signal
import time
from pathlib import Path

from harness import Tidemark, Vm, assert_clean, image, make_rng, note_baseline, wait_for
from harness.base import HarnessError
from harness.cases import case, main
from harness.checks import leftovers
from harness.vm import Disk

SIZE = 24 * image.MIB + 512
NAMES = ("vda", "vdb")
SILENCE = 5.0       # of the agent, until its guard ends it


class Rig:
    def __init__(self, scratch):
        self.scratch = scratch
        self.rng = make_rng("guard")
        self.shadows = {n: image.Shadow(scratch / f"{n}.shadow", SIZE) for n in NAMES}
        disks = [Disk(image.create(scratch.dir("disks") / f"{n}.qcow2", SIZE), n) for n in NAMES]
        self.vm = Vm(scratch, disks, guest=False).start()
        note_baseline(self.vm)
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")
        self.write()
        self.tidemark("backup", self.vm.target(), "--quiesce", "never")
        self.write()

    def write(self, wait=True):
        for name in NAMES:
            offset = self.rng.randrange(0, SIZE // 512 - 2048) * 512
            length = self.rng.randrange(1, 2048) * 512
            pattern = self.rng.randrange(1, 256)
            self.vm.io(name, f"aio_write -f -P {pattern} {offset} {length}", wait)
            self.shadows[name].write(offset, length, pattern)

    def written(self):
        """How many writes QEMU has ended."""
        return self.vm.log_path.read_text(errors="replace").count("bytes at offset")

    def stop_at(self, phase):
        run = self.tidemark.start("backup", self.vm.target(), "--quiesce", "never",
                                  env={"TIDEMARK_DEBUG_STOP_AT": phase})
        stat = Path(f"/proc/{run.process.pid}/stat")
        wait_for(phase, lambda: not run.running or
                 stat.read_text().rsplit(")", 1)[1].split()[0] == "T", 60)
        if not run.running:
            raise HarnessError(f"it never came to '{phase}': {run.err}")
        return run

    def in_order(self, within):
        """No command is run, and all is as if there had been none."""
        # The bitmaps wait for the next backup, which knows the repository.
        wait_for("the guest on its own files", lambda: not [
            what for what in leftovers(self.vm, None) if "is not of use" not in what], within)
        wait_for("the journal's end", lambda: not self.journals(), within)
        wait_for("the guard's end", lambda: not guards(self.tidemark.state), within)

    def journals(self):
        return list((self.tidemark.state / "journal").glob("*.json"))

    def go_on(self):
        self.write()
        point = self.tidemark("backup", self.vm.target(), "--quiesce", "never").json
        if any(disk["source"] != "bitmap" for disk in point["disks"]):
            raise HarnessError(f"{point['disks']}")
        assert_clean(self.vm)
        restored = self.tidemark("restore", point["point"], "--to", self.scratch.dir("restored"),
                                 "--force").json
        for disk in restored["disks"]:
            image.assert_same(disk["to"], self.shadows[disk["disk"]].path, "raw", "raw")


def guards(state):
    """The guards that watch over runs with this state directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(state).encode() in (process / "cmdline").read_bytes() and \
                    (process / "comm").read_text().strip() == "tidemark-guard":
                found.append(process.name)
        except OSError:
            pass
    return found


def opened(pid):
    """The files that a process has open."""
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(fd.readlink())
        except OSError:
            pass
    return found


def pending(scratch, end, within):
    """The guest's writes stand; after `end` of the agent they go on by themselves."""
    rig = Rig(scratch)
    run = rig.stop_at("pivoting")
    if [job["status"] for job in rig.vm.jobs()] != ["pending"]:
        raise HarnessError(f"jobs: {rig.vm.jobs()}")
    before = rig.written()
    rig.write(wait=False)
    time.sleep(0.5)
    # One disk's, or both's, depending on what the drained nodes share.
    if rig.written() == before + 2:
        raise HarnessError("the guest's writes do not stand")
    end(run)
    began = time.monotonic()
    wait_for("the guest's writes", lambda: rig.written() == before + 2, within)
    print(f"# writes stood {time.monotonic() - began:.1f} s", flush=True)
    rig.in_order(10)
    run.finish(-signal.SIGKILL)
    rig.go_on()


@case
def killed_while_the_guests_writes_stand(scratch):
    pending(scratch, lambda run: run.kill(), 3)


@case
def stopped_while_the_guests_writes_stand(scratch):
    pending(scratch, lambda run: None, SILENCE + 3)


@case
def an_agent_is_not_killed_for_time_in_which_its_guard_was_stopped_as_well(scratch):
    rig = Rig(scratch)
    for guard_first in (True, False):   # whoever wakes up first, as after a pause of the host
        rig.write()
        run = rig.stop_at("pivoting")
        processes = [run.process.pid, int(guards(rig.tidemark.state)[0])]
        os.kill(processes[1], signal.SIGSTOP)
        time.sleep(SILENCE + 2)
        for process in processes[::-1] if guard_first else processes:
            os.kill(process, signal.SIGCONT)
            time.sleep(0.05)
        run.finish(0)
        rig.in_order(0)
        rig.go_on()


@case
def killed_in_each_phase(scratch):
    rig = Rig(scratch)
    for phase in ("preparing", "freezing", "frozen", "committing", "pivoted", "settling"):
        rig.write()
        run = rig.stop_at(phase)
        rig.write(wait=phase != "committing")
        run.kill()
        rig.in_order(15)
        rig.go_on()


@case
def killed_and_the_state_is_lost(scratch):
    """The copies of the journal beside the bases are enough."""
    rig = Rig(scratch)
    for phase in ("frozen", "pivoting"):
        run = rig.stop_at(phase)
        rig.write(wait=phase == "frozen")
        for journal in rig.journals():
            journal.unlink()
        run.kill()
        rig.in_order(15)
        rig.go_on()
    # And with QEMU dead.
    run = rig.stop_at("frozen")
    rig.write()
    for journal in rig.journals():
        journal.unlink()
    rig.vm.kill()
    run.kill()
    wait_for("the guard's end", lambda: not guards(rig.tidemark.state), 15)
    for name in NAMES:
        path = rig.vm.disk(name).path
        image.assert_same(path, rig.shadows[name].path)
        if left := [p for p in path.parent.iterdir() if p.suffix != ".qcow2"]:
            raise HarnessError(f"left behind: {left}")
    rig.vm.start()
    rig.go_on()


@case
def a_stopped_agent_is_left_alone_while_the_guest_can_write(scratch):
    rig = Rig(scratch)
    run = rig.stop_at("frozen")
    rig.write()
    time.sleep(SILENCE + 2)
    run.signal(signal.SIGCONT)
    run.finish(0)
    rig.in_order(0)
    rig.go_on()


@case
def the_next_backup_waits_for_the_guard(scratch):
    rig = Rig(scratch)
    for _ in range(4):
        rig.write()
        run = rig.stop_at("frozen")
        for _ in range(4):
            rig.write()
        run.kill()
        rig.go_on()


@case
def who_waits_for_the_guard_can_be_interrupted(scratch):
    """QEMU does not answer, so the guard has long to do."""
    rig = Rig(scratch)
    run = rig.stop_at("frozen")
    os.kill(rig.vm.pid, signal.SIGSTOP)
    try:
        run.kill()
        lock, = (rig.tidemark.state / "journal").glob("qmp*.lock")
        wait_for("the guard's lock", lambda: lock.read_text().split() == guards(rig.tidemark.state), 20)
        waits = rig.tidemark.start("backup", rig.vm.target(), "--quiesce", "never")
        wait_for("the wait", lambda: not waits.running or lock in opened(waits.process.pid), 20)
        waits.signal(signal.SIGINT)
        waits.finish(130)
    finally:
        os.kill(rig.vm.pid, signal.SIGCONT)
    rig.go_on()


if __name__ == "__main__":
    main()
