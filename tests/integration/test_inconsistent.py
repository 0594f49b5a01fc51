#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Bitmaps that were open when QEMU was killed are inconsistent for good, and QEMU
makes no image larger that has one: a guest whose disk grows during a backup has to
get its overlay merged all the same, whichever repository they belong to."""

import signal

from harness import HarnessError, Tidemark, Vm, assert_clean, image, note_baseline, run
from harness.cases import case, main
from harness.proxy import Proxy
from harness.vm import Disk

SIZE = 16 * image.MIB + 512
ZERO = "0" * 32


def bitmap_name(domain, point, parent=ZERO):
    return f"tidemark-1-{domain * 32}-{point * 32}-{parent}-0000-00000000"


class Rig:
    """A guest of one disk, backed up to two repositories, whose QEMU was killed. What goes
    through `proxy` is the agent's word to QEMU."""

    def __init__(self, scratch, repos=2, before=(), **kind):
        self.scratch = scratch
        self.path = image.create(scratch.dir("disks") / "vda.qcow2", SIZE)
        self.shadow = image.Shadow(scratch / "vda.shadow", SIZE)
        self.vm = Vm(scratch, [Disk(self.path, "vda", **kind)], guest=False).start()
        note_baseline(self.vm)
        self.repos = [Tidemark(scratch, repo=scratch / f"repo{i}") for i in range(repos)]
        self.pattern = 0
        for tidemark in self.repos:
            tidemark("init")
            self.write(0)
            self.backup(tidemark, "full")
        for name in before:
            self.add_bitmap(name)
        # What QEMU has not written to its bitmaps yet: they are flagged in the image already.
        self.vm.terminate()
        self.vm.start()
        self.write(image.MIB)
        self.vm.kill()
        self.vm.start()
        if not all(b["inconsistent"] for b in self.vm.bitmaps("vda").values()):
            raise HarnessError(f"a bitmap outlived the kill: {self.vm.bitmaps('vda')}")
        self.proxy = Proxy(self.vm.dir / "proxy.sock", self.vm.qmp_path)
        scratch.defer(self.proxy.close)

    @property
    def node(self):
        return self.vm.block("vda")["inserted"]["node-name"]

    def add_bitmap(self, name):
        self.vm.qmp.execute("block-dirty-bitmap-add",
                            {"node": self.node, "name": name, "persistent": True})

    def write(self, offset):
        self.pattern += 1
        self.vm.write("vda", offset, 65536, self.pattern, self.shadow)

    def grow(self):
        size = self.shadow.size + 3 * image.MIB + 512
        self.vm.qmp.execute("block_resize", {"node-name": self.node, "size": size})
        self.shadow.resize(size)
        self.write(size - 65536)

    def start(self, tidemark, env):
        return tidemark.start("backup", f"qmp:{self.proxy.path},name=vm", "--quiesce", "never",
                              env=env)

    def backup(self, tidemark, source, reason=""):
        point = tidemark("backup", self.vm.target(), "--quiesce", "never", expect=(0, 3)).json
        self.expect(tidemark, point, source, reason)
        assert_clean(self.vm, epochs=None)

    def expect(self, tidemark, point, source, reason="", content=None):
        disk, = point["disks"]
        if disk["source"] != source or reason not in disk["reason"]:
            raise HarnessError(f"expected {source} ({reason}): {disk}")
        to, = tidemark("restore", point["point"], "--to", self.scratch.dir("r"),
                       "--force").json["disks"]
        image.assert_same(to["to"], content or self.shadow.path, "raw", "raw")

    def assert_disk(self):
        self.vm.terminate()
        image.assert_same(self.path, self.shadow.path)
        image.check(self.path, leaks_ok=True)


def grows_while_it_is_read(rig, status, refused=False):
    """A backup to the first repository, during which the disk grows; its Result. `refused`:
    QEMU does not remove the first bitmap that it is asked to."""
    if refused:
        rig.proxy.arm("block-dirty-bitmap-remove", 1, "error")
    running = rig.start(rig.repos[0], {"TIDEMARK_DEBUG_STOP_AT": "frozen"})
    running.wait_stopped("frozen")
    before = rig.shadow.copy(rig.scratch / "before")
    rig.grow()
    running.signal(signal.SIGCONT)
    result = running.finish(status)
    if rig.proxy.fired != refused:
        raise HarnessError(f"nothing was to be removed: {rig.proxy.commands}")
    if result.out.strip():
        rig.expect(rig.repos[0], result.json, "hash-diff", "inconsistent", before)
    return result


@case
def a_disk_that_grows_while_it_is_read(scratch):
    rig = Rig(scratch)
    grows_while_it_is_read(rig, 3)
    assert_clean(rig.vm)
    rig.write(2 * image.MIB)
    rig.backup(rig.repos[1], "hash-diff", "no bitmap of this repository")
    rig.write(3 * image.MIB)
    for tidemark in rig.repos:
        rig.backup(tidemark, "bitmap")
    rig.assert_disk()


@case
def a_disk_at_rest_can_grow_after_a_backup(scratch):
    rig = Rig(scratch)
    rig.vm.terminate()
    rig.repos[0]("backup", f"image:{rig.path},name=vm", expect=3)
    left = image.bitmaps(rig.path)
    if len(left) != 1:
        raise HarnessError(f"{left}")
    rig.vm.start()
    rig.grow()
    rig.backup(rig.repos[1], "hash-diff", "no bitmap of this repository")
    rig.assert_disk()


@case
def what_is_of_use_to_somebody_is_left_alone(scratch):
    parent, child, others = bitmap_name("a", "1"), bitmap_name("a", "2", "1" * 32), "another-program"
    rig = Rig(scratch, before=(child, others))
    sound = bitmap_name("b", "3")
    for name in (parent, sound):
        rig.add_bitmap(name)
    rig.repos[0]("backup", rig.vm.target(), "--quiesce", "never", expect=3)
    left = rig.vm.bitmaps("vda")
    # That its child is inconsistent tells its repository not to trust the parent.
    if not {parent, child, sound, others} < set(left) or len(left) != 5:
        raise HarnessError(f"{left}")
    if not left[sound]["recording"] or not left[others]["inconsistent"]:
        raise HarnessError(f"{left}")


@case
def one_that_cannot_be_removed_before_is_removed_when_it_is_in_the_way(scratch):
    rig = Rig(scratch, style="drive")
    result = grows_while_it_is_read(rig, 3, refused=True)
    if "cannot be removed" not in result.err:
        raise HarnessError(f"not a word of it: {result.err}")
    assert_clean(rig.vm)
    rig.assert_disk()


@case
def one_of_another_program_is_named(scratch):
    rig = Rig(scratch, before=("another-program",))
    result = grows_while_it_is_read(rig, 5)
    if "'another-program'" not in result.err or "block-dirty-bitmap-remove" not in result.err:
        raise HarnessError(f"not what to do: {result.err}")
    base = next(n for n in rig.vm.nodes() if n["file"] == str(rig.path) and n["drv"] == "qcow2")
    rig.vm.qmp.execute("block-dirty-bitmap-remove",
                       {"node": base["node-name"], "name": "another-program"})
    rig.repos[0]("recover", rig.vm.target())
    assert_clean(rig.vm)
    rig.assert_disk()


def found_with_an_overlay(rig):
    """The host dies when the disk has grown, with the other repository's bitmap still there."""
    rig.proxy.arm("block-dirty-bitmap-remove", 1, "error")
    running = rig.start(rig.repos[0], {"TIDEMARK_DEBUG_KILL_AT": "frozen"})
    running.finish(-signal.SIGKILL)
    if not rig.proxy.fired:
        raise HarnessError(f"nothing was to be removed: {rig.proxy.commands}")
    rig.grow()
    rig.proxy.close()
    rig.proxy.path.unlink()


@case
def a_guest_that_is_found_with_an_overlay(scratch):
    rig = Rig(scratch)
    found_with_an_overlay(rig)
    rig.repos[0]("recover", rig.vm.target())
    assert_clean(rig.vm)
    rig.backup(rig.repos[1], "hash-diff", "no bitmap of this repository")
    rig.assert_disk()


@case
def an_overlay_that_is_found_when_qemu_is_gone(scratch):
    rig = Rig(scratch)
    found_with_an_overlay(rig)
    rig.vm.kill()
    rig.repos[0]("recover", "--before-start", f"image:{rig.path},name=vm", json_output=False)
    rig.vm.start()
    rig.backup(rig.repos[1], "hash-diff", "no bitmap of this repository")
    rig.assert_disk()


@case
def one_of_another_program_is_named_when_qemu_is_gone(scratch):
    rig = Rig(scratch, before=("another-program",))
    found_with_an_overlay(rig)
    rig.vm.kill()
    target = f"image:{rig.path},name=vm"
    result = rig.repos[0]("recover", "--before-start", target, json_output=False, expect=5)
    if "'another-program'" not in result.err or "qemu-img bitmap --remove" not in result.err:
        raise HarnessError(f"not what to do: {result.err}")
    run(["qemu-img", "bitmap", "--remove", rig.path, "another-program"])
    rig.repos[0]("recover", "--before-start", target, json_output=False)
    rig.vm.start()
    rig.assert_disk()


main()
