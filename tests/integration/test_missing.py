#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Both QEMU and the agent have died during a backup, and somebody has moved or
deleted files of the run by hand. The disks stay of one instant, nothing that may
be needed is removed, and what recovery tells a person to do works."""

import os
import shutil
import subprocess
from pathlib import Path

from harness import Tidemark, Vm, assert_clean, image, make_rng, note_baseline, wait_for
from harness.base import HarnessError
from harness.cases import case, main
from harness.vm import Disk

SIZE = 8 * image.MIB
NAMES = ("vda", "vdb")


class Rig:
    """A guest of two disks without an operating system, with a point, that died
    while its disks were frozen; it wrote to those of `written` since."""

    def __init__(self, scratch, written=NAMES, crash="frozen"):
        self.scratch = scratch
        self.rng = make_rng("missing")
        self.dir = scratch.dir("it's a guest")      # words for a shell
        self.shadows = {n: image.Shadow(scratch / f"{n}.shadow", SIZE) for n in NAMES}
        self.paths = {n: image.create(self.dir / f"{n}.qcow2", SIZE) for n in NAMES}
        self.vm = Vm(scratch, [Disk(p, n) for n, p in self.paths.items()], guest=False).start()
        note_baseline(self.vm)
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")
        self.write(*NAMES)
        self.backup()
        self.write(*NAMES)
        self.backup(expect=-9, env={"TIDEMARK_DEBUG_KILL_AT": crash})
        self.frozen = {n: self.keep(s.path) for n, s in self.shadows.items()}
        self.write(*written)
        self.vm.kill()
        self.overlays = {n: next(self.dir.glob(f"{n}.*.tidemark-overlay")) for n in NAMES}
        self.data = {n: Path(f"{p}-data") for n, p in self.overlays.items()}

    def keep(self, path):
        return shutil.copy(path, f"{path}.frozen")

    @property
    def images(self):
        return "image:" + ",".join(map(str, self.paths.values())) + ",name=vm"

    def write(self, *names):
        for name in names:
            for _ in range(3):
                offset = self.rng.randrange(0, SIZE // 512 - 512) * 512
                self.vm.write(name, offset, 512 * self.rng.randrange(1, 512),
                              self.rng.randrange(1, 256), self.shadows[name])

    def backup(self, expect=0, env=None):
        return self.tidemark("backup", self.vm.target(), "--quiesce", "never", expect=expect, env=env)

    def recover(self, *options, expect=0, env=None):
        return self.tidemark("recover", *options or ["--before-start"], self.images, expect=expect, env=env)

    def forget_journal(self):
        for path in (*(self.tidemark.state / "journal").glob("*.json"), *self.dir.glob("*-journal")):
            path.unlink()

    def files(self):
        return {path: path.read_bytes() for path in self.dir.iterdir()}

    def refused(self, *words):
        """Recovery is, and touches nothing; so does a status, which says why. Returns what it said."""
        before = self.files()
        for options in (["--before-start"], []):
            result = self.recover(*options, expect=5)
            if missing := [str(word) for word in words if str(word) not in result.err]:
                raise HarnessError(f"{missing} is not in: {result.err}")
            if self.files() != before:
                raise HarnessError("something was touched")
        self.tidemark("status", self.images, expect=5)
        if self.files() != before:
            raise HarnessError("a status touched something")
        return result

    def assert_recovered(self, content=None):
        for name, path in self.paths.items():
            image.assert_same(path, content[name] if content else self.shadows[name].path)
            image.check(path, leaks_ok=True)
        if surplus := set(self.dir.iterdir()) - set(self.paths.values()):
            raise HarnessError(f"left behind: {surplus}")
        if content:
            for name, shadow in self.shadows.items():
                shutil.copy(content[name], shadow.path)
        self.vm.start()
        self.write(*NAMES)
        point = self.tidemark("backup", self.vm.target(), "--quiesce", "never", expect=(0, 3)).json
        assert_clean(self.vm)
        where = self.scratch.dir("restored")
        for disk in self.tidemark("restore", point["point"], "--to", where, "--force").json["disks"]:
            image.assert_same(disk["to"], self.shadows[disk["disk"]].path, "raw", "raw")
        self.vm.kill()
        return point


def move(path, scratch):
    """Somewhere else; returns what undoes it."""
    return lambda aside=path.rename(scratch / f"{path.name}.aside"): aside.rename(path)


@case
def no_disk_is_merged_while_an_overlay_is_missing(scratch):
    rig = Rig(scratch)
    for name in NAMES:
        for files in ([rig.overlays[name]], [rig.data[name]], [rig.overlays[name], rig.data[name]],
                      list(rig.overlays.values())):
            undo = [move(path, scratch) for path in files]
            said = rig.refused(files[0], "is gone", "no overlay of the guest is merged")
            said = "".join(said.json["actions"])
            if str(files[0]) not in said:
                raise HarnessError(f"not in the report: {said}")
            if len(files) == 1 and files[0] == rig.overlays[name] and str(rig.data[name]) not in said:
                raise HarnessError(f"the data are not in the report: {said}")
            for put_back in undo:
                put_back()
    rig.recover()
    if any(disk["source"] != "bitmap" for disk in rig.assert_recovered()["disks"]):
        raise HarnessError("a bitmap was lost")


@case
def what_recovery_says_does_without_an_overlay(scratch):
    rig = Rig(scratch)
    rig.overlays["vdb"].rename(scratch / "aside")
    result = rig.refused(rig.overlays["vdb"])
    command, = (line for line in result.json["actions"] if ": rm -f --" in line)
    subprocess.run(["sh", "-c", command.split(": ", 1)[1]], check=True)
    rig.recover()
    point = rig.assert_recovered(rig.frozen)
    if any(disk["source"] != "bitmap" for disk in point["disks"]):
        raise HarnessError(f"a bitmap was lost: {point}")


@case
def a_merge_that_had_begun_is_mentioned(scratch):
    rig = Rig(scratch)
    for expect in (-9, 5):
        result = rig.recover(expect=expect, env={"TIDEMARK_DEBUG_KILL_AT": "frozen"})
        if expect == -9:        # the merge of vda is to begin
            put_back = move(rig.overlays["vda"], scratch)
    said = "".join(result.json["actions"])
    if "disk vda: the merge of its overlay had begun" not in said:
        raise HarnessError(f"it says: {said}")
    put_back()
    rig.recover()
    rig.assert_recovered()


@case
def who_removes_one_overlay_of_two_has_not_chosen_the_bases(scratch):
    rig = Rig(scratch)
    times = rig.paths["vdb"].stat()
    rig.vm.start()
    rig.vm.write("vda", 1 << 20, 65536, 77)
    rig.vm.terminate()
    # As with a disk that the guest does not write to and QEMU has nothing to note in.
    os.utime(rig.paths["vdb"], ns=(times.st_atime_ns, times.st_mtime_ns))
    for path in (rig.overlays["vda"], rig.data["vda"]):
        path.unlink()
    rig.refused(rig.overlays["vda"])
    for path in (rig.overlays["vdb"], rig.data["vdb"]):
        path.unlink()
    rig.recover()
    image.to_raw(rig.paths["vda"], rig.frozen["vda"])
    rig.assert_recovered(rig.frozen)


@case
def an_empty_overlay_that_recovery_removed_is_not_missed(scratch):
    rig = Rig(scratch, written=["vdb"])
    rig.recover(expect=-9, env={"TIDEMARK_DEBUG_KILL_AT": "frozen"})
    for path in (rig.overlays["vda"], rig.data["vda"]):     # or it died a moment later
        path.unlink(missing_ok=True)
    rig.recover()
    rig.assert_recovered()


@case
def an_empty_overlay_without_a_journal_is_removed(scratch):
    rig = Rig(scratch, written=["vdb"])
    rig.forget_journal()
    rig.overlays["vdb"].rename(scratch / "overlay")
    rig.data["vdb"].rename(scratch / "data")
    before = rig.files()
    result = rig.recover("--check", expect=5)
    if str(rig.overlays["vda"]) not in str(result.json["actions"]) or rig.files() != before:
        raise HarnessError(f"{result.json}")
    # Whoever has it open for writing may write to it.
    socket = scratch / "nbd.sock"
    with subprocess.Popen(["qemu-nbd", "-t", "-f", "qcow2", "-k", socket, rig.overlays["vda"]]) as server:
        wait_for("the server", socket.exists, 10)
        try:
            rig.refused(rig.overlays["vda"])
        finally:
            server.terminate()
    result = rig.recover()
    if f"removed the overlay {rig.overlays['vda']}" not in str(result.json["actions"]):
        raise HarnessError(f"{result.json}")
    # The other one holds data: that is for a person to decide.
    (scratch / "overlay").rename(rig.overlays["vdb"])
    (scratch / "data").rename(rig.data["vdb"])
    rig.refused(rig.overlays["vdb"], "'qemu-img commit' of it")
    subprocess.run(["qemu-img", "commit", "-q", rig.overlays["vdb"]], check=True)
    for path in (rig.overlays["vdb"], rig.data["vdb"]):
        path.unlink()
    rig.recover()
    rig.assert_recovered()


@case
def data_whose_overlay_is_gone_are_named(scratch):
    rig = Rig(scratch, written=["vdb"])
    rig.forget_journal()
    for path in (rig.overlays["vda"], rig.data["vda"]):
        path.unlink()
    put_back = move(rig.overlays["vdb"], scratch)
    rig.refused(rig.data["vdb"], rig.overlays["vdb"], "remove the file")
    put_back()
    rig.refused(rig.overlays["vdb"], "'qemu-img commit' of it")
    rig.overlays["vdb"].unlink()
    rig.refused(rig.data["vdb"])
    rig.data["vdb"].unlink()
    rig.recover()
    rig.assert_recovered(rig.frozen)


if __name__ == "__main__":
    main()
