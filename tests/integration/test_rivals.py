#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Two runs on one guest, by two sockets of its QEMU: whichever is late makes no point,
and harms none."""

import signal

from harness import HarnessError, Tidemark, Vm, assert_clean, image, note_baseline, wait_for
from harness.cases import case, main
from harness.proxy import Proxy
from harness.vm import Disk

SIZE = 8 * image.MIB


def check(good, what):
    if not good:
        raise HarnessError(str(what))


class Rig:
    """A guest with two sockets. The run that is late speaks to the second one, through `proxy`."""

    def __init__(self, scratch, late_state="late"):
        self.scratch = scratch
        self.path = image.create(scratch.dir("disks") / "vda.qcow2", SIZE)
        second = scratch / "second.sock"
        self.vm = Vm(scratch, [Disk(self.path, "vda")], guest=False,
                     extra=("-qmp", f"unix:{second},server=on,wait=off")).start()
        note_baseline(self.vm)
        self.shadow = image.Shadow(scratch / "vda.shadow", SIZE)
        self.tidemark = Tidemark(scratch)
        self.late = Tidemark(scratch, state=scratch.dir(late_state))
        self.overlays = scratch.dir("overlays")
        self.tidemark("init")
        self.vm.write("vda", 0, SIZE, 1, self.shadow)
        self.backup()
        self.proxy = Proxy(scratch / "late.sock", second)
        scratch.defer(self.proxy.close)

    def backup(self, **how):
        return self.tidemark("backup", self.vm.target(), "--quiesce", "never", "--audit", "0", **how)

    def start_late(self):
        return self.late.start("backup", f"qmp:{self.proxy.path},name={self.vm.name}", "--quiesce",
                               "never", "--audit", "0", "--overlay-dir", self.overlays)

    def hold(self, command, nth=1):
        """The late run, waiting for the answer to a command."""
        self.proxy.arm(command, nth, "held")
        run = self.start_late()
        wait_for(f"{command} is held", lambda: self.proxy.fired or not run.running, 30)
        check(self.proxy.fired, run.err)
        return run

    def hide_journal(self):
        """As if the late run's journal were where the other one does not see it."""
        for path in self.path.parent.glob("*.tidemark-journal"):
            path.unlink()

    def stop_at(self, phase):
        run = self.tidemark.start("backup", self.vm.target(), "--quiesce", "never", "--audit", "0",
                                  env={"TIDEMARK_DEBUG_STOP_AT": phase})
        run.wait_stopped(phase)
        return run

    def refused(self, run, *words, expect=(1, 5)):
        self.proxy.release()
        result = run.finish(expect)
        check(all(word in result.err for word in words), result.err)

    def assert_point(self, point):
        disk, = self.tidemark("restore", point["point"], "--to", self.scratch.dir("r"),
                              "--force").json["disks"]
        image.assert_same(self.shadow.path, disk["to"], "raw", "raw")

    def assert_next(self, source="bitmap"):
        """The base of what follows is right."""
        self.vm.write("vda", 5 * image.MIB, 65536, 9, self.shadow)
        point = self.backup(expect=(0, 3)).json
        check(point["disks"][0]["source"] == source, point)
        self.assert_point(point)
        assert_clean(self.vm)


def finish_first(rig, run):
    run.signal(signal.SIGCONT)
    return run.finish().json


def late_behind(scratch, phase, *words):
    """A run that has settled before another one froze, and goes on when that is in `phase`."""
    rig = Rig(scratch)
    late = rig.hold("block-dirty-bitmap-remove")
    rig.hide_journal()
    first = rig.stop_at(phase)
    rig.vm.write("vda", 2 * image.MIB, 65536, 7, rig.shadow)  # the first run's bitmap alone records it
    rig.refused(late, *words)
    finish_first(rig, first)
    rig.assert_next()


@case
def a_bitmap_that_another_run_has_ended_is_not_read(scratch):
    late_behind(scratch, "settling", "another tidemark", "Try again")


@case
def a_disk_that_another_run_has_frozen_is_not_frozen_again(scratch):
    late_behind(scratch, "frozen", "is not on its file", "Try again")


@case
def a_bitmap_that_ended_in_the_last_moment_is_seen_after_the_freeze(scratch):
    rig = Rig(scratch)
    rig.proxy.reset()
    rig.start_late().finish()
    rig.vm.write("vda", image.MIB, 65536, 6, rig.shadow)
    # The last look before the transaction that freezes, which is the last one with an overlay made.
    asked = rig.proxy.commands
    made = len(asked) - 1 - asked[::-1].index("blockdev-add")
    frozen = asked.index("transaction", made)
    late = rig.hold("x-debug-query-block-graph", asked[:frozen].count("x-debug-query-block-graph"))
    rig.hide_journal()
    first = rig.stop_at("settling")
    rig.vm.write("vda", 2 * image.MIB, 65536, 7, rig.shadow)
    rig.refused(late, "another tidemark", "Try again")
    check("transaction" in rig.proxy.commands, "nothing was frozen: the last look was another one")
    finish_first(rig, first)
    rig.assert_next()


@case
def the_journal_beside_a_base_is_not_taken_from_another_run(scratch):
    rig = Rig(scratch)
    late = rig.hold("query-migrate")
    first = rig.stop_at("settling")
    copy, = rig.path.parent.glob("*.tidemark-journal")
    text = copy.read_bytes()
    rig.refused(late, "another tidemark", str(first.process.pid))
    check(copy.read_bytes() == text, "the other run's journal was written over")
    finish_first(rig, first)
    rig.assert_next()


@case
def one_lock_for_all_sockets_of_a_guest(scratch):
    rig = Rig(scratch, late_state="state")
    late = rig.hold("query-migrate")
    result = rig.backup(expect=(1, 5))
    check("another tidemark" in result.err and str(late.process.pid) in result.err, result.err)
    rig.proxy.release()
    rig.assert_point(late.finish().json)
    rig.assert_next()


if __name__ == "__main__":
    main()
