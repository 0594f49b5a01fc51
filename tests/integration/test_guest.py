#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A real Linux guest that writes all the time: quiesced points, agents that die,
policies that cannot be met. The guest must never notice more than a short freeze."""

from harness import (HarnessError, Tidemark, Vm, assert_clean, image, journal, note_baseline,
                     wait_for)
from harness.cases import case, main
from harness.vm import Disk

SIZE = 256 * image.MIB
MOUNT = "/mnt/data"


class Rig:
    def __init__(self, scratch):
        self.scratch = scratch
        path = image.create(scratch.dir("disks") / "data.qcow2", SIZE)
        self.vm = Vm(scratch, [Disk(path, "data")], name="guest").start()
        self.vm.console.sh(f"mkfs.ext4 -q -E nodiscard -J size=8 /dev/vda && mkdir {MOUNT} && "
                           f"mount -o discard /dev/vda {MOUNT}", timeout=120)
        self.vm.console.background(f"exec writer {MOUNT} 4711")
        note_baseline(self.vm)
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")
        self.wait_for_writes()

    def done(self):
        """How many operations the guest's writer has completed."""
        words = self.vm.console.sh(f"tail -n 1 {MOUNT}/log").split()
        return int(words[0]) - (words[1] == "begin") if words else 0

    def wait_for_writes(self, count=4):
        """The guest lives and its writes end."""
        def writes():
            try:
                return self.done() >= since + count
            except (HarnessError, IndexError, ValueError):
                return False
        since = self.done() if self.vm.console.run(f"test -s {MOUNT}/log")[0] == 0 else 0
        wait_for("the guest to go on writing", writes, 60, 0.3)

    def backup(self, *options, expect=0, env=None):
        return self.tidemark("backup", self.vm.target(), *options, expect=expect, env=env)

    def judge(self, point, at_least, quiesced=True):
        """Restores a point; its file system is sound and of the right moment."""
        where = self.scratch.dir("restored")
        disk, = self.tidemark("restore", point["point"], "--to", where, "--force").json["disks"]
        if quiesced:
            journal.fsck(disk["to"])
        tree = journal.extract(disk["to"], self.scratch.dir(f"tree-{point['point']}"))
        journal.judge_tree(tree, at_least=at_least)


@case
def agents_that_die_do_not_stop_the_guest(scratch):
    rig = Rig(scratch)
    rig.backup("--quiesce", "require")
    for phase in ("freezing", "frozen", "committing", "pivoting", "pivoted", "settling"):
        rig.wait_for_writes()
        rig.backup("--quiesce", "require", expect=-9, env={"TIDEMARK_DEBUG_KILL_AT": phase})
        rig.tidemark("recover", rig.vm.target())
        assert_clean(rig.vm)
        rig.wait_for_writes()
        before = rig.done()
        point = rig.backup("--quiesce", "require").json
        if point["disks"][0]["source"] != "bitmap" or not point["quiesced"]:
            raise HarnessError(f"after death in {phase}: {point}")
        assert_clean(rig.vm)
        rig.judge(point, before)
    rig.vm.poweroff()
    image.check(rig.vm.disk("data").path)


@case
def quiesce_policies_are_kept(scratch):
    rig = Rig(scratch)
    without_agent = rig.vm.target(agent=False)
    point = rig.tidemark("backup", without_agent, "--quiesce", "if-possible", expect=(0, 3)).json
    if point["quiesced"]:
        raise HarnessError("quiesced without an agent")
    result = rig.tidemark("backup", without_agent, "--quiesce", "require", expect=1)
    if "agent" not in result.err:
        raise HarnessError(f"require without an agent says: {result.err}")
    if len(rig.tidemark("list").json) != 1:
        raise HarnessError("a point was made against the policy")
    assert_clean(rig.vm)
    rig.wait_for_writes()
    point = rig.backup("--quiesce", "never").json
    if point["quiesced"]:
        raise HarnessError("quiesced against the policy")
    point = rig.backup("--quiesce", "if-possible").json
    if not point["quiesced"] or point["freeze_ms"] > 5000:
        raise HarnessError(f"if-possible with an agent: {point}")
    rig.judge(point, 0)
    assert_clean(rig.vm)


@case
def an_agent_socket_that_does_not_answer(scratch):
    rig = Rig(scratch)
    rig.vm.console.sh("killall -STOP qemu-ga")
    result = rig.backup("--quiesce", "require", expect=1)
    if "agent" not in result.err:
        raise HarnessError(f"a dead agent: {result.err}")
    assert_clean(rig.vm)
    if rig.tidemark("list").json:
        raise HarnessError("a point was made against the policy")
    point = rig.backup("--quiesce", "if-possible", expect=3).json
    if point["quiesced"] or not point["warnings"]:
        raise HarnessError(f"if-possible with a dead agent: {point}")
    rig.vm.console.sh("killall -CONT qemu-ga")
    rig.wait_for_writes()
    point = rig.backup("--quiesce", "require").json
    if not point["quiesced"]:
        raise HarnessError(f"an agent that came back: {point}")
    assert_clean(rig.vm)


if __name__ == "__main__":
    main()
