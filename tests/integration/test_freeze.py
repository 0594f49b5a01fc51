#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The guard of the freeze: whatever happens to the agent, or to the guest agent,
the guest's writes go on within the bound."""

import os
import signal
import time
from pathlib import Path

from harness import HarnessError, Tidemark, Vm, assert_clean, image, journal, note_baseline, wait_for
from harness.cases import case, main
from harness.proxy import FAULTS, Proxy
from harness.vm import Disk

SIZE = 96 * image.MIB
MOUNT = "/mnt/data"
LIMIT = 5.0     # the bound on a freeze
SLACK = 3.0     # for an emulated guest on a busy machine


def guards(scratch):
    """The processes that hold a freeze of the guest in `scratch`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
            if b"__guard-freeze" in command and str(scratch).encode() in command:
                found.append(int(path.parent.name))
        except OSError:
            pass
    return found


def assert_quiesced(point):
    if not point["quiesced"]:
        raise HarnessError(f"{point}")


class Rig:
    def __init__(self, scratch):
        self.scratch = scratch
        path = image.create(scratch.dir("disks") / "data.qcow2", SIZE)
        self.vm = Vm(scratch, [Disk(path, "data")], name="guest").start()
        self.vm.console.sh(f"mkfs.ext4 -q -E nodiscard -J size=8 /dev/vda && mkdir {MOUNT} && "
                           f"mount -o discard /dev/vda {MOUNT}", timeout=120)
        self.probe()
        note_baseline(self.vm)
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")

    def probe(self, timeout=30.0):
        """A write in the guest; returns how long it took to end."""
        began = time.monotonic()
        self.vm.console.sh(f"dd if=/dev/urandom of={MOUNT}/probe bs=4k count=1 conv=fsync", timeout)
        return time.monotonic() - began

    def assert_writes_within(self, limit):
        if (took := self.probe()) > limit:
            raise HarnessError(f"a write took {took:.1f} s")

    def backup(self, *options, expect=0, env=None):
        return self.tidemark("backup", self.vm.target(), *options, expect=expect, env=env)

    def start_stopped(self, *options):
        """A backup that is stopped while the guest is frozen."""
        run = self.tidemark.start("backup", self.vm.target(), *options,
                                  env={"TIDEMARK_DEBUG_STOP_AT": "quiesced"})
        stat = Path(f"/proc/{run.process.pid}/stat")
        wait_for("the freeze", lambda: not run.running or
                 stat.read_text().rsplit(")", 1)[1].split()[0] == "T", 30)
        if not run.running:
            raise HarnessError(f"it did not come to the freeze: {run.err}")
        return run

    def assert_thawed(self):
        wait_for("the guards to end", lambda: not guards(self.scratch), 10)
        with self.vm.agent() as agent:
            if (state := agent.execute("guest-fsfreeze-status")) != "thawed":
                raise HarnessError(f"the guest is {state}")

    def go_on(self):
        """Nothing is left, and a backup works and restores to a sound file system."""
        assert_clean(self.vm)
        self.probe()
        point = self.backup("--quiesce", "require").json
        assert_quiesced(point)
        if point["freeze_ms"] > LIMIT * 1000:
            raise HarnessError(f"{point}")
        where = self.scratch.dir("restored")
        disk, = self.tidemark("restore", point["point"], "--to", where, "--force").json["disks"]
        journal.fsck(disk["to"])
        assert_clean(self.vm)
        if guards(self.scratch):
            raise HarnessError("a guard was left behind")


@case
def an_agent_killed_while_the_guest_is_frozen(scratch):
    rig = Rig(scratch)
    rig.backup("--quiesce", "require", expect=-9, env={"TIDEMARK_DEBUG_KILL_AT": "quiesced"})
    rig.assert_writes_within(SLACK)     # the guard sees the death at once
    rig.assert_thawed()
    rig.tidemark("recover", rig.vm.target())
    rig.go_on()


@case
def an_agent_stopped_while_the_guest_is_frozen(scratch):
    rig = Rig(scratch)
    for policy, expect in (("require", 1), ("if-possible", 3)):
        run = rig.start_stopped("--quiesce", policy)
        rig.assert_writes_within(LIMIT + SLACK)
        rig.assert_thawed()
        run.signal(signal.SIGCONT)
        result = run.finish(expect)
        if "thawed after" not in result.err + result.out:
            raise HarnessError(f"{policy} says: {result.err}")
        if policy == "require" and rig.tidemark("list").json:
            raise HarnessError("a point was made against the policy")
        if policy == "if-possible" and (result.json["quiesced"] or not result.json["warnings"]):
            raise HarnessError(f"{result.json}")
        assert_clean(rig.vm)
    rig.go_on()


@case
def a_stopped_guard_of_the_freeze_is_not_waited_for(scratch):
    rig = Rig(scratch)
    run = rig.start_stopped()
    for guard in guards(scratch):
        os.kill(guard, signal.SIGSTOP)
    run.signal(signal.SIGCONT)
    rig.assert_writes_within(SLACK)
    run.finish(3)
    rig.assert_thawed()
    rig.go_on()


@case
def the_guard_of_the_freeze_ends_with_the_guest(scratch):
    rig = Rig(scratch)
    run = rig.start_stopped()
    rig.vm.kill()
    run.signal(signal.SIGCONT)
    run.finish(None)
    wait_for("its end", lambda: not guards(scratch), 20)


@case
def a_guest_agent_killed_while_the_guest_is_frozen(scratch):
    rig = Rig(scratch)
    run = rig.start_stopped("--quiesce", "require")
    rig.vm.console.sh("killall -KILL qemu-ga")      # the guest starts it again
    run.signal(signal.SIGCONT)
    rig.assert_writes_within(LIMIT + SLACK)
    assert_quiesced(run.finish().json)
    rig.go_on()


@case
def a_guest_agent_stopped_for_a_while(scratch):
    rig = Rig(scratch)
    run = rig.start_stopped("--quiesce", "require")
    rig.vm.console.sh("killall -STOP qemu-ga")
    run.signal(signal.SIGCONT)
    time.sleep(2.5)
    rig.vm.console.sh("killall -CONT qemu-ga")
    rig.assert_writes_within(SLACK)
    point = run.finish().json
    assert_quiesced(point)
    if point["freeze_ms"] < 2500:
        raise HarnessError(f"{point}")
    rig.go_on()


@case
def a_guest_agent_stopped_for_longer_than_all_patience(scratch):
    rig = Rig(scratch)
    run = rig.start_stopped("--quiesce", "if-possible")
    rig.vm.console.sh("killall -STOP qemu-ga")
    run.signal(signal.SIGCONT)
    result = run.finish(1, timeout=60)
    if "goes on trying" not in result.err:
        raise HarnessError(f"it says: {result.err}")
    assert_clean(rig.vm)
    pid, = guards(scratch)
    os.kill(pid, 0)
    rig.vm.console.sh("killall -CONT qemu-ga")
    rig.assert_writes_within(LIMIT + SLACK)
    rig.assert_thawed()
    rig.go_on()


@case
def a_guest_paused_while_it_is_frozen(scratch):
    rig = Rig(scratch)
    run = rig.start_stopped("--quiesce", "if-possible")
    rig.vm.qmp.execute("stop")
    run.signal(signal.SIGCONT)
    result = run.finish(1, timeout=60)
    for words in ("paused", "continued", "goes on trying"):
        if words not in result.err:
            raise HarnessError(f"it says: {result.err}")
    if (state := rig.vm.qmp.execute("query-status")["status"]) != "paused":
        raise HarnessError(f"the guest is {state}")
    # And one that is paused from the start is not frozen at all.
    result = rig.backup("--quiesce", "require", expect=1)
    if "the guest is paused" not in result.err:
        raise HarnessError(f"it says: {result.err}")
    if (state := rig.vm.qmp.execute("query-status")["status"]) != "paused":
        raise HarnessError(f"the guest is {state}")
    rig.vm.qmp.execute("cont")
    rig.assert_writes_within(LIMIT + SLACK)
    rig.assert_thawed()
    rig.go_on()


@case
def each_word_to_the_guest_agent_spoilt_in_each_way(scratch):
    rig = Rig(scratch)
    proxy = Proxy(rig.vm.dir / "proxy.sock", rig.vm.agent_path, late=3.0, ids=False)
    scratch.defer(proxy.close)
    target = f"qmp:{rig.vm.qmp_path},agent={proxy.path},name=guest"
    for command in ("guest-sync-delimited", "guest-fsfreeze-freeze", "guest-fsfreeze-thaw"):
        for fault in FAULTS:
            proxy.arm(command, 1, fault)
            result = rig.tidemark("backup", target, "--quiesce", "require", expect=(0, 1))
            if not proxy.fired:
                raise HarnessError(f"{command} was not used")
            rig.assert_writes_within(SLACK)
            if result.status == 0 and result.json["freeze_ms"] > LIMIT * 1000:
                raise HarnessError(f"{command} {fault}: {result.json}")
            if result.status == 1 and "freeze" not in result.err and "frozen" not in result.err:
                raise HarnessError(f"{command} {fault} says: {result.err}")
            print(f"# {command} {fault}: exit {result.status}", flush=True)
            assert_clean(rig.vm)
            rig.assert_thawed()
    rig.go_on()


@case
def a_guest_agent_whose_answers_are_no_numbers(scratch):
    rig = Rig(scratch)
    proxy = Proxy(rig.vm.dir / "proxy.sock", rig.vm.agent_path, ids=False)
    scratch.defer(proxy.close)
    target = f"qmp:{rig.vm.qmp_path},agent={proxy.path},name=guest"

    def backup(command, answer, policy, expect):
        proxy.arm(command, 1, {"return": answer})
        result = rig.tidemark("backup", target, "--quiesce", policy, expect=expect)
        if not proxy.fired:
            raise HarnessError(f"{command} was not used")
        rig.assert_writes_within(SLACK)
        assert_clean(rig.vm)
        rig.assert_thawed()
        return result

    for answer in (-5, "abc", None, 1.5, {"count": 1}):
        result = backup("guest-fsfreeze-freeze", answer, "require", 1)
        if "no number of file systems" not in result.err:
            raise HarnessError(f"{answer} says: {result.err}")
    if points := rig.tidemark("list").json:
        raise HarnessError(f"points against the policy: {points}")
    result = backup("guest-fsfreeze-freeze", -5, "if-possible", 3)
    if result.json["quiesced"] or "not quiesced" not in result.err:
        raise HarnessError(f"{result.json}: {result.err}")
    for policy in ("require", "if-possible"):
        result = backup("guest-fsfreeze-freeze", 0, policy, 3)
        if not result.json["quiesced"] or "no file system to freeze" not in result.err:
            raise HarnessError(f"{policy}: {result.json}: {result.err}")
    for answer in (-5, "abc"):      # asked again, it says that it is thawed
        if not backup("guest-fsfreeze-thaw", answer, "require", 0).json["quiesced"]:
            raise HarnessError(f"a thaw answered with {answer}")
    rig.go_on()


if __name__ == "__main__":
    main()
