#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What recover and status do, and tell, where the repository cannot be had, several guests are
named, or one that nobody knows."""

import os
import signal

from harness import HarnessError, Sub, Tidemark, Vm, assert_clean, image, note_baseline
from harness.cases import case, main
from harness.vm import Disk

SIZE = 8 * image.MIB
CLUSTER = 65536


def check(good, what):
    if not good:
        raise HarnessError(str(what))


class Rig:
    """A guest of one disk, one good point, and a second backup that was killed when it had frozen."""

    def __init__(self, scratch, tidemark, name="vm"):
        self.scratch, self.tidemark = scratch, tidemark
        self.path = image.create(scratch.dir("disks") / "vda.qcow2", SIZE)
        self.shadow = image.Shadow(scratch / "shadow", SIZE)
        self.vm = Vm(scratch, [Disk(self.path, "vda")], guest=False, name=name).start()
        note_baseline(self.vm)
        self.write(0)
        self.tidemark("backup", self.target, "--quiesce", "never")
        self.die()

    @property
    def target(self):
        return self.vm.target()

    def write(self, cluster):
        self.vm.write("vda", cluster * CLUSTER, CLUSTER, cluster + 1, self.shadow)

    def die(self):
        self.write(1)
        self.tidemark("backup", self.target, "--quiesce", "never", expect=-9,
                      env={"TIDEMARK_DEBUG_KILL_AT": "frozen"})
        self.write(2)
        check(self.vm.active_file("vda") != self.path, "it is not on an overlay")

    def assert_merged(self):
        check(self.vm.active_file("vda") == self.path, "it is on its overlay")

    def go_on(self):
        """The next backup is incremental, and what it restores and the guest has is what was written."""
        self.write(3)
        point = self.tidemark("backup", self.target, "--quiesce", "never").json
        check(point["disks"][0]["source"] == "bitmap", point)
        assert_clean(self.vm)
        disk, = self.tidemark("restore", point["point"], "--to", self.scratch.dir("restored"),
                              "--force").json["disks"]
        self.vm.terminate()
        image.assert_same(disk["to"], self.shadow.path, "raw", "raw")
        image.assert_same(self.path, self.shadow.path)


def initialized(scratch, *options, env=None):
    tidemark = Tidemark(scratch, env=env)
    tidemark("init", *options)
    return tidemark


def recovers(rig, expect_line, env=None):
    document = rig.tidemark("recover", "--check", rig.target, expect=5, env=env).json
    check(document["left"] and document["found"], document)
    document = rig.tidemark("recover", rig.target, env=env).json
    check(not document["left"] and document["found"], document)
    rig.assert_merged()
    said, = [line for line in document["actions"] if "left to the next backup" in line]
    check(expect_line in said, document)


@case
def recovery_without_a_repository(scratch):
    rig = Rig(scratch, initialized(scratch))
    os.rename(rig.tidemark.repo, scratch / "away")
    recovers(rig, "there is no repository")
    rig.tidemark("recover", rig.target)
    os.rename(scratch / "away", rig.tidemark.repo)
    rig.go_on()


@case
def recovery_without_the_right_password(scratch):
    key = {"TIDEMARK_KEY_FILE": str(scratch / "key")}   # for a password takes work on purpose
    rig = Rig(scratch, initialized(scratch, "--encrypt", env=key))
    recovers(rig, "wrong password", {"TIDEMARK_KEY_FILE": "", "TIDEMARK_PASSWORD": "wrong"})
    rig.die()
    recovers(rig, "is needed", {"TIDEMARK_KEY_FILE": ""})
    rig.go_on()


@case
def each_target_has_its_own_error(scratch):
    rig = Rig(scratch, initialized(scratch))
    missing = [f"image:{scratch}/none{n}.qcow2" for n in (1, 2)]
    rig.tidemark("recover", rig.target, "qmp:", expect=2)
    rig.tidemark("recover", "--check", rig.target, expect=5)    # nothing was done
    result = rig.tidemark("recover", missing[0], rig.target, missing[1], expect=1)
    for target in missing:
        line, = [line for line in result.err.splitlines() if target in line]
        check("there is no image" in line, result.err)
    check(result.json["warnings"] == [] and not result.json["left"], result)
    rig.assert_merged()
    rig.go_on()


@case
def a_guest_that_nobody_knows(scratch):
    tidemark = initialized(scratch)
    typo = f"qmp:{scratch}/typo.sock"
    for json_output in (True, False):
        result = tidemark("recover", typo, json_output=json_output)
        check("no QEMU listens" in result.out and f"{scratch}/typo.sock" in result.out, result.out)
    check("nothing is left" not in result.out, result.out)
    result = tidemark("recover", "--before-start", typo, json_output=False)
    check(not result.out and not result.err, result)    # as before each start
    # What keeps a backup from recovering is not an interrupted run where there was none.
    for target in (f"image:{scratch}/none2.qcow2", f"qmp:{scratch}/{'s' * 200}"):
        result = tidemark("backup", target, expect=1)
        check(target[-10:] in result.err and "interrupted" not in result.err, result.err)


@case
def a_backup_tells_what_it_put_right(scratch):
    rig = Rig(scratch, initialized(scratch))
    result = rig.tidemark("backup", rig.target, "--quiesce", "never")
    check(result.json["warnings"] == [] and "recover: guest vm: recovered" in result.err, result.err)
    rig.die()
    result = rig.tidemark("-q", "backup", rig.target, "--quiesce", "never")
    check(not result.err, result.err)
    rig.go_on()


@case
def status_of_a_disk_on_its_overlay(scratch):
    """In JSON as in text: what is known of the overlay is not told of the disk."""
    rig = Rig(scratch, initialized(scratch))
    status = rig.tidemark("status", rig.target, expect=5).json
    disk, = status["disks"]
    check(disk["file"] == str(rig.vm.active_file("vda")) and disk["overlay_of"] == str(rig.path) and
          disk["source"] is disk["would_read_bytes"] is disk["epoch"] is None, disk)
    rig.tidemark("recover", rig.target)
    disk, = rig.tidemark("status", rig.target).json["disks"]
    check(disk["file"] == str(rig.path) and disk["overlay_of"] is None and
          disk["source"] == "bitmap" and disk["epoch"]["usable"], disk)
    rig.go_on()


@case
def status_has_one_shape(scratch):
    rig = Rig(scratch, initialized(scratch))
    rig.tidemark("recover", rig.target)
    plain = rig.tidemark("status", rig.target).json
    run = rig.tidemark.start("backup", rig.target, "--quiesce", "never",
                             env={"TIDEMARK_DEBUG_STOP_AT": "frozen"})
    run.wait_stopped("frozen")
    beside = rig.tidemark("status", rig.target).json
    check(list(plain) == list(beside) and plain["running"] is None, (plain, beside))
    check(beside["running"]["process"] == run.process.pid and beside["warnings"] == [] and
          beside["disks"] == beside["leftovers"] == [] and beside["agent"] == plain["agent"] and
          beside["uuid"] is beside["state"] is None and beside["guest"] == plain["guest"], beside)
    run.signal(signal.SIGCONT)
    run.finish(0)
    rig.go_on()


def hangs(scratch):
    """A Tidemark, and the environment in which its repository is opened for ever: the key comes
    through a pipe that nobody writes to."""
    key, pipe = scratch / "key", scratch / "pipe"
    os.mkfifo(pipe)
    tidemark = initialized(scratch, "--encrypt", env={"TIDEMARK_KEY_FILE": str(key)})
    return tidemark, {"TIDEMARK_KEY_FILE": str(pipe), "TIDEMARK_DEBUG_STALL_MS": "1000"}


@case
def recovery_with_a_repository_that_hangs(scratch):
    tidemark, env = hangs(scratch)
    rigs = [Rig(Sub(scratch, name), tidemark, name) for name in ("one", "two")]
    for targets in ([rig.target for rig in rigs], []):
        document = tidemark("recover", *targets, env=env).json
        for rig in rigs:
            rig.assert_merged()
        said = [line for line in document["actions"] if "left to the next backup" in line]
        check(len(said) == 2 and "has not answered for 1 s" in said[0], document)
        check(not document["left"], document)
        if targets:
            for rig in rigs:
                rig.die()
    for rig in rigs:
        rig.go_on()


@case
def status_with_a_repository_that_hangs(scratch):
    tidemark, env = hangs(scratch)
    rig = Rig(scratch, tidemark)
    result = tidemark("status", rig.target, expect=5, env=env, json_output=False)
    check("has not answered for 1 s" in result.err and "disk vda" in result.out and
          "left over" in result.out, result)
    tidemark("recover", rig.target)
    told = tidemark("status", rig.target, expect=3, env=env).json
    disk, = told["disks"]
    check(disk["bitmaps"] and disk["epoch"] is None and len(told["warnings"]) == 1, told)
    rig.go_on()


if __name__ == "__main__":
    main()
