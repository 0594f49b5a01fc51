#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""QEMU and the agent have died during a backup, and the guest is started on its
bases, without the overlays, before or while recovery merges them: what it writes
there is never merged over, and recovery claims nothing that it cannot know."""

import os
import stat

from harness import Sub, Tidemark, Vm, image, note_baseline, run
from harness.base import HarnessError
from harness.cases import case, main
from harness.vm import Disk

SIZE = 8 * image.MIB
NAMES = ("vda", "vdb")
AT, LENGTH = 1 << 20, 65536
POINT, NEWEST, ALONE = 1, 5, 9      # what is written before the freeze, to overlays, to bases


def has(path, pattern, fmt="qcow2"):
    """Is this what the guest would read from the file?"""
    done = run(["qemu-io", "-r", "-f", fmt, "-c", f"read -P {pattern} {AT} {LENGTH}", path], check=False)
    return done.returncode == 0 and "verification failed" not in done.stdout


def write_alone(path):
    """As the guest does that was started on its base."""
    run(["qemu-io", "-f", "qcow2", "-c", f"write -P {ALONE} {AT} {LENGTH}", path])


class Rig:
    """A guest of two disks without an operating system that died while they were frozen."""

    def __init__(self, scratch, crash="frozen"):
        self.scratch = scratch
        self.paths = {n: image.create(scratch.dir("disks") / f"{n}.qcow2", SIZE) for n in NAMES}
        vm = Vm(scratch, [Disk(p, n) for n, p in self.paths.items()], guest=False).start()
        note_baseline(vm)
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")
        for name in NAMES:
            vm.write(name, 0, SIZE, POINT)
        self.tidemark("backup", vm.target(), "--quiesce", "never")
        self.tidemark("backup", vm.target(), "--quiesce", "never", expect=-9,
                      env={"TIDEMARK_DEBUG_KILL_AT": crash})
        for name in NAMES:
            vm.write(name, AT, LENGTH, NEWEST)
        vm.kill()

    def recover(self, expect=0, env=None):
        images = "image:" + ",".join(map(str, self.paths.values())) + ",name=vm"
        return self.tidemark("recover", "--before-start", images, expect=expect, env=env)

    def while_merging(self, script):
        """An environment in which this runs before each merge; $N is its number."""
        where = self.scratch.dir("bin")
        count = where / "count"
        count.write_text("")
        program = where / "qemu-img"
        real = run(["which", "qemu-img"]).stdout.strip()
        program.write_text(f'#!/bin/sh\nif [ "$1" = commit ]; then\necho >>{count}\nN=$(wc -l <{count})\n'
                           f'{script}\nfi\nexec {real} "$@"\n')
        program.chmod(0o755)
        return {"PATH": f"{where}:{os.environ['PATH']}"}


@case
def a_guest_cannot_be_started_on_a_base_while_it_is_merged(scratch):
    for crash in ("frozen", "switched"):
        rig = Rig(Sub(scratch, crash), crash)
        log = scratch / f"{crash}.log"
        # With two disks that are not merged yet, then with the last one.
        tries = "\n".join(f"[ $N -gt {number} ] || qemu-io -f qcow2 -c 'write -P {ALONE} {AT} {LENGTH}' {path} >>{log} 2>&1"
                          for number, path in enumerate(rig.paths.values(), 1))
        rig.recover(env=rig.while_merging(tries))
        if log.read_text().count("Failed to get") != 3:
            raise HarnessError(f"what was started says: {log.read_text()}")
        if not all(has(path, NEWEST) for path in rig.paths.values()):
            raise HarnessError("a base has not its newest data")


@case
def what_was_written_after_a_merge_that_failed_is_kept(scratch):
    for crash in ("frozen", "switched"):
        for failed, name in enumerate(NAMES, 1):
            rig = Rig(Sub(scratch, f"{crash}-{name}"), crash)
            rig.recover(expect=5, env=rig.while_merging(f'[ "$N" = {failed} ] && exit 1'))
            write_alone(rig.paths[name])
            said = rig.recover(expect=5)
            if not has(rig.paths[name], ALONE):
                raise HarnessError(f"{name}: its overlay was merged over what was written since")
            if "was changed after it was frozen" not in said.err:
                raise HarnessError(f"it says: {said.err}")


@case
def a_merge_that_failed_is_tried_again(scratch):
    rig = Rig(scratch)
    rig.recover(expect=5, env=rig.while_merging("exit 1"))
    rig.recover()
    if not all(has(path, NEWEST) for path in rig.paths.values()):
        raise HarnessError("a base has not its newest data")


# --- bases on devices -------------------------------------------------------------


class DeviceDisk(Disk):
    def arguments(self, scsi_bus):
        return [a.replace("driver=file,", "driver=host_device,") for a in super().arguments(scsi_bus)]


class DeviceRig:
    """The same of a guest of one disk on a device, the node of which is in a directory of
    the test."""

    def __init__(self, scratch, device, fmt="raw"):
        self.fmt = fmt
        self.path = scratch.dir("it's a dev") / "disk"
        self.number = os.stat(device).st_rdev
        self.make_node()
        if fmt == "qcow2":
            run(["qemu-img", "create", "-q", "-f", fmt, self.path, str(SIZE)])
        self.overlays = scratch.dir("overlays")
        vm = Vm(scratch, [DeviceDisk(self.path, "vda", fmt=fmt)], guest=False).start()
        note_baseline(vm)
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")
        vm.write("vda", 0, SIZE, POINT)
        self.tidemark("backup", vm.target(), "--quiesce", "never", "--overlay-dir", self.overlays,
                      expect=-9, env={"TIDEMARK_DEBUG_KILL_AT": "frozen"})
        vm.write("vda", AT, LENGTH, NEWEST)
        vm.kill()

    def make_node(self):
        """Anew, as the start of a host does."""
        self.path.unlink(missing_ok=True)
        os.mknod(self.path, 0o600 | stat.S_IFBLK, self.number)

    def recover(self, expect=0):
        return self.tidemark("recover", "--before-start", f"image:{self.path},format={self.fmt},name=vm", expect=expect)

    def refused(self):
        """Recovery is, and claims nothing. Returns the commands for either decision."""
        before = [p.read_bytes() for p in sorted(self.overlays.iterdir())]
        said = self.recover(expect=5)
        if "cannot be told" not in said.err or "was changed" in said.err:
            raise HarnessError(f"it says: {said.err}")
        if not before or before != [p.read_bytes() for p in sorted(self.overlays.iterdir())]:
            raise HarnessError("an overlay was touched")
        lines = said.json["actions"]
        merge, = (line.split(": ", 1)[1] for line in lines if ": qemu-img commit" in line)
        without, = (line.split(": ", 1)[1] for line in lines if ": rm -f" in line)
        return merge, without

    def expect(self, pattern):
        """This is what the disk has, and nothing is left."""
        if not has(self.path, pattern, self.fmt):
            raise HarnessError(f"the device has not what was written as {pattern}")
        self.recover()
        if left := [*self.overlays.iterdir(), *self.path.parent.glob("?*.*"),
                    *(self.tidemark.state / "journal").glob("*.json")]:
            raise HarnessError(f"left behind: {left}")


def rigs_on_a_device(scratch, *names):
    backing = scratch / "backing"
    with open(backing, "wb") as file:
        file.truncate(2 * SIZE)
    done = run(["losetup", "-f", "--show", backing], check=False)
    if done.returncode:
        print("  (no loop devices here: not run)")
        return
    scratch.defer(run, ["losetup", "-d", done.stdout.strip()])
    for name in names:
        yield name, DeviceRig(Sub(scratch, name), done.stdout.strip(), "qcow2" if name == "qcow2" else "raw")


@case
def a_device_that_nobody_wrote_to_is_merged_into(scratch):
    for _, rig in rigs_on_a_device(scratch, "raw", "qcow2"):
        rig.recover()
        rig.expect(NEWEST)


@case
def of_a_device_that_was_written_to_nothing_is_merged_into(scratch):
    for _, rig in rigs_on_a_device(scratch, "written"):
        # Through a node of its own, as libvirt gives to each QEMU.
        other = scratch / "other"
        os.mknod(other, 0o600 | stat.S_IFBLK, rig.number)
        run(["qemu-io", "-f", "raw", "-c", f"write -P {ALONE} {AT} {LENGTH}", other])
        _, without = rig.refused()
        run(["sh", "-c", without])
        rig.expect(ALONE)


@case
def of_a_device_after_the_host_was_started_anew_a_person_decides(scratch):
    for name, rig in rigs_on_a_device(scratch, "merge", "without"):
        rig.make_node()
        merge, without = rig.refused()
        run(["sh", "-c", merge if name == "merge" else without])
        rig.expect(NEWEST if name == "merge" else POINT)


if __name__ == "__main__":
    main()
