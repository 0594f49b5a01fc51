#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Every kind of disk: how it was given, what lies below it, what it cannot do."""

import json
import os
import signal

from harness import Tidemark, Vm, assert_clean, image, note_baseline, run
from harness.base import HarnessError
from harness.cases import case, main
from harness.proxy import Proxy
from harness.vm import Disk

SIZE = 16 * image.MIB + 1024


class Rig:
    def __init__(self, scratch, disks, sizes=None, extra=()):
        self.scratch = scratch
        self.vm = Vm(scratch, disks, guest=False, extra=extra).start()
        self.shadows = {d.id: image.Shadow(scratch / f"{d.id}.shadow", (sizes or {}).get(d.id, SIZE))
                        for d in disks}
        note_baseline(self.vm)
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")
        self.pattern = 0

    def write(self, name, offset, length=65536):
        self.pattern += 1
        self.vm.write(name, offset, length, self.pattern, self.shadows[name])

    def backup(self, *options, expect=0):
        point = self.tidemark("backup", self.vm.target(), "--quiesce", "never", *options,
                              expect=expect).json
        assert_clean(self.vm)
        return point

    def assert_point(self, point, fmt="raw"):
        where = self.scratch.dir("restored")
        for disk in self.tidemark("restore", point["point"], "--to", where, "--format", fmt,
                                  "--force").json["disks"]:
            if found := image.difference(disk["to"], self.shadows[disk["disk"]].path, fmt, "raw"):
                raise HarnessError(f"{disk['disk']}: {found}")
            if fmt == "qcow2":
                image.check(disk["to"])

    def sources(self, point):
        return {d["disk"]: d["source"] for d in point["disks"]}

    def expect_sources(self, point, **wanted):
        if self.sources(point) != wanted:
            raise HarnessError(f"sources {point['disks']}, expected {wanted}")


def cycle(rig, name, wanted="bitmap"):
    """Full, incremental, incremental, each proved."""
    rig.write(name, 0)
    rig.assert_point(rig.backup())
    for offset in (1 << 20, SIZE - 1024):
        rig.write(name, offset, min(65536, SIZE - offset))
        point = rig.backup()
        rig.expect_sources(point, **{name: wanted})
        rig.assert_point(point)
        rig.assert_point(point, "qcow2")


@case
def a_backing_chain_keeps_its_shape(scratch):
    where = scratch.dir("disks")
    bottom = image.create(where / "bottom.qcow2", SIZE)
    middle = image.create(where / "middle.qcow2", SIZE, backing=bottom)
    top = image.create(where / "top.qcow2", SIZE, backing=middle)
    before = [image.sha256(p, scratch=scratch / "x") for p in (bottom, middle)]
    rig = Rig(scratch, [Disk(top, "vda")])
    cycle(rig, "vda")
    chain = rig.tidemark("status", rig.vm.target()).json["disks"][0]["chain"]
    if [layer["file"] for layer in chain] != [str(middle), str(bottom)]:
        raise HarnessError(f"status shows the chain {chain}")
    rig.vm.terminate()
    if [image.sha256(p, scratch=scratch / "x") for p in (bottom, middle)] != before:
        raise HarnessError("an image below the guest's own changed")
    if image.info(top)["backing-filename"] != str(middle):
        raise HarnessError("the guest's image has another backing file now")
    image.check(top)


@case
def a_throttle_filter_stays_on_top(scratch):
    path = image.create(scratch.dir("disks") / "vda.qcow2", SIZE)
    rig = Rig(scratch, [Disk(path, "vda", throttle=True)])
    cycle(rig, "vda")
    top = rig.vm.block("vda")["inserted"]
    if top["drv"] != "throttle":
        raise HarnessError(f"the top node is a {top['drv']} now")


@case
def a_scsi_disk_works(scratch):
    path = image.create(scratch.dir("disks") / "sda.qcow2", SIZE)
    cycle(Rig(scratch, [Disk(path, "sda", bus="virtio-scsi")]), "sda")


@case
def a_disk_with_copy_on_read_is_refused_and_says_why(scratch):
    where = scratch.dir("disks")
    path = image.create(where / "cor.qcow2", SIZE)
    rig = Rig(scratch, [Disk(image.create(where / "vda.qcow2", SIZE), "vda")], extra=[
        "-drive", f"file={path},if=none,id=cor0,format=qcow2,copy-on-read=on",
        "-device", "virtio-blk-pci,drive=cor0,id=cor"])
    rig.write("vda", 0)
    result = rig.tidemark("backup", rig.vm.target(), "--quiesce", "never", expect=1)
    if "copy-on-read=on" not in result.err or "disk cor " not in result.err:
        raise HarnessError(f"it says: {result.err}")
    assert_clean(rig.vm)
    rig.tidemark("backup", rig.vm.target(), "--quiesce", "never", "--exclude-disk", "cor")
    assert_clean(rig.vm)


@case
def a_chain_that_only_the_command_line_tells_is_read_as_qemu_reads_it(scratch):
    where = scratch.dir("disks")
    image.create(where / "low.qcow2", SIZE)
    path = where / "vda.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "low.qcow2", "-F", "qcow2", path, str(SIZE)])
    rig = Rig(scratch, [Disk(path, "vda", options={
        "backing.driver": "qcow2", "backing.file.driver": "file",
        "backing.file.filename": where / "low.qcow2"})])
    # The name in the image is relative, so QEMU has a name of its own for the node.
    if not any(n["file"].startswith("json:") for n in rig.vm.nodes()):
        raise HarnessError("QEMU gives the node a plain name")
    cycle(rig, "vda")


@case
def images_that_are_opened_otherwise_than_they_say_are_left_out(scratch):
    where = scratch.dir("disks")
    low, other = (image.create(where / f"{n}.qcow2", SIZE) for n in ("low", "other"))
    flat = image.create(where / "flat.raw", SIZE, "raw")
    fine, alone = (image.create(where / f"{n}.qcow2", SIZE, backing=low) for n in ("fine", "alone"))
    moved = image.create(where / "moved.qcow2", SIZE, backing=low)
    extra = []
    for name, node in {
            "alone": {"driver": "qcow2", "file": str(alone), "backing": None},
            "moved": {"driver": "qcow2", "file": str(moved), "backing": {
                "driver": "qcow2", "file": {"driver": "file", "filename": str(other)}}},
            "part": {"driver": "raw", "file": str(flat), "offset": 65536, "size": 131072}}.items():
        node = {**node, "node-name": name, "file": {"driver": "file", "filename": node["file"]}}
        extra += ["-blockdev", json.dumps(node), "-device", f"virtio-blk-pci,drive={name},id={name}"]
    rig = Rig(scratch, [Disk(fine, "fine")], extra=extra)
    status = rig.tidemark("status", rig.vm.target()).json
    if (chosen := {d["disk"] for d in status["disks"] if d["chosen"]}) != {"fine"}:
        raise HarnessError(f"chosen are {chosen}")
    rig.write("fine", 0)
    rig.assert_point(rig.backup(expect=3))


@case
def a_disk_beside_the_hosts_cache_works(scratch):
    where = scratch.dir("disks")
    disks = [Disk(image.create(where / "vda.qcow2", SIZE), "vda", style="drive",
                  options={"cache.direct": "on"}),
             Disk(image.create(where / "vdb.raw", SIZE, fmt="raw"), "vdb", fmt="raw",
                  style="drive", options={"cache.direct": "on"})]
    rig = Rig(scratch, disks)
    for name in rig.shadows:
        if not rig.vm.block(name)["inserted"]["cache"]["direct"]:
            raise HarnessError(f"{name} goes through the cache")
        rig.write(name, 1 << 20)
    rig.assert_point(rig.backup(expect=(0, 3)))
    for offset in (0, SIZE - 1024):
        for name in rig.shadows:
            rig.write(name, offset, min(65536, SIZE - offset))
        point = rig.backup(expect=(0, 3))
        rig.expect_sources(point, vda="bitmap", vdb="bitmap")
        rig.assert_point(point)


@case
def disks_in_iothreads_work_whatever_their_kind(scratch):
    where = scratch.dir("disks")
    disks = [Disk(image.create(where / "vda.qcow2", SIZE), "vda", device={"iothread": "io0"}),
             Disk(image.create(where / "vdb.raw", SIZE, fmt="raw"), "vdb", fmt="raw",
                  device={"iothread": "io0"})]
    rig = Rig(scratch, disks, extra=["-object", "iothread,id=io0"])
    for round_ in range(3):
        rig.write("vda", round_ << 20)
        rig.write("vdb", round_ << 20)
        point = rig.backup(expect=(0, 3))
        if round_:
            rig.expect_sources(point, vda="bitmap", vdb="bitmap")
        rig.assert_point(point)


@case
def disks_that_swap_their_names_keep_their_histories(scratch):
    where = scratch.dir("disks")
    paths = [image.create(where / f"{n}.qcow2", SIZE) for n in ("a", "b")]
    rig = Rig(scratch, [Disk(paths[0], "vda"), Disk(paths[1], "vdb")])
    rig.write("vda", 0)
    rig.write("vdb", 1 << 20)
    rig.backup()
    rig.vm.terminate()
    rig.vm.disks = [Disk(paths[0], "vdb"), Disk(paths[1], "vda")]
    rig.shadows = {"vda": rig.shadows["vdb"], "vdb": rig.shadows["vda"]}
    rig.vm.start()
    rig.write("vda", 2 << 20)
    rig.write("vdb", 3 << 20)
    point = rig.backup()
    rig.expect_sources(point, vda="bitmap", vdb="bitmap")
    rig.assert_point(point)


@case
def a_rebased_disk_is_read_again(scratch):
    where = scratch.dir("disks")
    bases = [image.create(where / f"base{n}.qcow2", SIZE) for n in range(2)]
    run(["qemu-io", "-f", "qcow2", "-c", "write -P 9 4M 64k", bases[1]])
    top = image.create(where / "top.qcow2", SIZE, backing=bases[0])
    rig = Rig(scratch, [Disk(top, "vda")])
    rig.write("vda", 0)
    rig.backup()
    rig.vm.terminate()
    run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", bases[1], "-F", "qcow2", top])
    rig.shadows["vda"].write(4 << 20, 65536, 9)
    rig.vm.start()
    note_baseline(rig.vm)
    point = rig.backup(expect=3)
    rig.assert_point(point)


@case
def the_image_below_a_running_guest_is_exchanged_during_a_backup(scratch):
    """QEMU reads the former one, and qemu-nbd would read the one that has the name."""
    where = scratch.dir("disks")
    low = image.create(where / "low.qcow2", SIZE)
    other = image.create(scratch / "other.qcow2", SIZE)
    run(["qemu-io", "-f", "qcow2", "-c", "write -P 9 4M 64k", other])
    rig = Rig(scratch, [Disk(image.create(where / "top.qcow2", SIZE, backing=low), "vda")])
    rig.write("vda", 0)
    rig.backup()
    backup = rig.tidemark.start("backup", rig.vm.target(), "--quiesce", "never",
                                env={"TIDEMARK_DEBUG_STOP_AT": "frozen"})
    backup.wait_stopped("frozen")
    other.replace(low)
    backup.signal(signal.SIGCONT)
    refused = backup.finish(1)
    if f"disk vda: {low} below it was written or replaced" not in refused.err:
        raise HarnessError(refused.err)
    assert_clean(rig.vm)


@case
def a_raw_disk_is_incremental_until_qemu_ends(scratch):
    where = scratch.dir("disks")
    raw = image.create(where / "vda.raw", SIZE, fmt="raw")
    qcow2 = image.create(where / "vdb.qcow2", SIZE)
    rig = Rig(scratch, [Disk(raw, "vda", fmt="raw"), Disk(qcow2, "vdb")])
    rig.write("vda", 0)
    rig.write("vdb", 0)
    rig.backup()
    rig.write("vda", 1 << 20)
    point = rig.backup()
    rig.expect_sources(point, vda="bitmap", vdb="bitmap")
    rig.assert_point(point)
    rig.vm.terminate()
    rig.vm.start()
    rig.write("vda", 2 << 20)
    rig.write("vdb", 2 << 20)
    point = rig.backup(expect=3)
    rig.expect_sources(point, vda="hash-diff", vdb="bitmap")
    new = {d["disk"]: d["new_bytes"] for d in point["disks"]}
    if new != {"vda": 65536, "vdb": 65536}:
        raise HarnessError(f"the comparison stored more than what changed: {new}")
    if not any("vda" in w for w in point["warnings"]):
        raise HarnessError(f"the fall-back is not in the warnings: {point['warnings']}")
    rig.assert_point(point)


@case
def a_raw_disk_that_grows_over_old_data_is_read_again(scratch):
    """QEMU's bitmaps call the new end of a disk clean, whatever is there."""
    path = image.create(scratch.dir("disks") / "vda.raw", SIZE, fmt="raw")
    size = os.stat(path).st_size
    vm = Vm(scratch, [Disk(path, "vda", fmt="raw")], guest=False).start()
    note_baseline(vm)
    tidemark = Tidemark(scratch)
    tidemark("init")
    vm.write("vda", 0, 65536, 1)
    tidemark("backup", vm.target(), "--quiesce", "never")
    with open(path, "ab") as file:  # as a volume does that is made larger
        file.write(b"old data" * 131072)
    vm.qmp.execute("block_resize", {"node-name": vm.disk("vda").node, "size": size + (1 << 20)})
    point = tidemark("backup", vm.target(), "--quiesce", "never", "--audit", "0", expect=3).json
    if point["disks"][0]["source"] != "hash-diff" or "larger" not in point["disks"][0]["reason"]:
        raise HarnessError(f"{point}")
    vm.write("vda", 1 << 20, 65536, 2)
    point = tidemark("backup", vm.target(), "--quiesce", "never").json
    if point["disks"][0]["source"] != "bitmap":
        raise HarnessError(f"{point}")
    vm.terminate()
    disk, = tidemark("restore", point["point"], "--to", scratch.dir("r")).json["disks"]
    image.assert_same(path, disk["to"], "raw", "raw")


@case
def an_old_qcow2_disk_does_not_roll_the_others_back(scratch):
    where = scratch.dir("disks")
    old = image.create(where / "vda.qcow2", SIZE, options={"compat": "0.10"})
    new = image.create(where / "vdb.qcow2", SIZE)
    rig = Rig(scratch, [Disk(old, "vda"), Disk(new, "vdb")])
    for offset in (0, 1 << 20):
        rig.write("vda", offset)
        rig.write("vdb", offset)
        rig.assert_point(rig.backup())


@case
def drives_without_data_of_their_own_are_left_out_and_named(scratch):
    where = scratch.dir("disks")
    disk = image.create(where / "vda.qcow2", SIZE)
    fixed = image.create(where / "ro.qcow2", SIZE)
    rig = Rig(scratch, [Disk(disk, "vda")], extra=[
        "-drive", "if=none,id=cd0", "-device", "ide-cd,drive=cd0,id=cd",
        "-drive", f"file={fixed},if=none,id=ro0,format=qcow2,read-only=on",
        "-device", "virtio-blk-pci,drive=ro0,id=ro"])
    rig.write("vda", 0)
    result = rig.tidemark("backup", rig.vm.target(), "--quiesce", "never", json_output=False)
    for name in ("cd", "ro"):
        if not any("left out" in line and name in line for line in result.err.splitlines()):
            raise HarnessError(f"{name} is not named as left out: {result.err}")
    status = rig.tidemark("status", rig.vm.target()).json
    chosen = {d["disk"] for d in status["disks"] if d["chosen"]}
    if chosen != {"vda"} or len(status["disks"]) != 3:
        raise HarnessError(f"status: {status['disks']}")


@case
def sizes_of_every_kind_keep_every_byte(scratch):
    where = scratch.dir("disks")
    sizes = {"a": 512, "b": 65536 - 512, "c": 65536 + 512, "d": 8 * image.MIB + 1536}
    disks = [Disk(image.create(where / f"{n}.qcow2", s), n) for n, s in sizes.items()]
    rig = Rig(scratch, disks, sizes)
    for round_ in range(2):
        for name, size in sizes.items():
            rig.write(name, size - 512, 512)
        rig.assert_point(rig.backup())


@case
def a_disk_longer_than_files_can_be_works(scratch):
    size = 17 << 40                    # ext4 has files of 16 TiB
    path = image.create(scratch.dir("disks") / "vda.qcow2", size)
    vm = Vm(scratch, [Disk(path, "vda")], guest=False).start()
    note_baseline(vm)
    tidemark = Tidemark(scratch)
    tidemark("init")
    places = (0, size // 2, size - 65536)
    for pattern, offset in enumerate(places, 1):
        vm.write("vda", offset, 65536, pattern)
        point = tidemark("backup", vm.target(), "--quiesce", "never").json
        assert_clean(vm)
    to = tidemark("restore", point["point"], "--to", scratch.dir("restored"), "--format",
                  "qcow2").json["disks"][0]["to"]
    for pattern, offset in enumerate(places, 1):
        text = run(["qemu-io", "-f", "qcow2", "-c", f"read -P {pattern} {offset} 64k", to]).stdout
        if "verification failed" in text or "65536/65536" not in text:
            raise HarnessError(f"at {offset}: {text}")


@case
def a_grown_disk_goes_on(scratch):
    path = image.create(scratch.dir("disks") / "vda.qcow2", SIZE)
    rig = Rig(scratch, [Disk(path, "vda")])
    rig.write("vda", SIZE - 65536 - 512)
    rig.backup()
    rig.vm.qmp.execute("block_resize", {"node-name": "vda-node", "size": SIZE + 5 * image.MIB + 512})
    rig.shadows["vda"].resize(SIZE + 5 * image.MIB + 512)
    rig.write("vda", SIZE + 3 * image.MIB)
    rig.assert_point(rig.backup(expect=(0, 3)))
    rig.write("vda", SIZE)
    point = rig.backup()
    rig.expect_sources(point, vda="bitmap")
    rig.assert_point(point)


def grow(rig, bytes_more):
    shadow = rig.shadows["vda"]
    node = rig.vm.block("vda")["inserted"]["node-name"]
    size = shadow.size + bytes_more
    rig.vm.qmp.execute("block_resize", {"node-name": node, "size": size})
    shadow.resize(size)
    return size


@case
def a_disk_that_grows_right_before_the_freeze(scratch):
    rig = Rig(scratch, [Disk(image.create(scratch.dir("disks") / "vda.qcow2", SIZE), "vda")])
    rig.backup()
    proxy = Proxy(rig.vm.dir / "proxy.sock", rig.vm.qmp_path)
    scratch.defer(proxy.close)
    running = rig.tidemark.start("backup", f"qmp:{proxy.path},name=vm", "--quiesce", "never",
                                 env={"TIDEMARK_DEBUG_STOP_AT": "freezing"})
    running.wait_stopped("freezing")
    size = grow(rig, 1 << 20)
    proxy.reset()
    running.signal(signal.SIGCONT)
    result = running.finish(1)
    # With an overlay of the old size the guest's disk would have shrunk for a moment.
    if "has just been resized" not in result.err or "block-commit" in proxy.commands:
        raise HarnessError(f"{proxy.commands}: {result.err}")
    assert_clean(rig.vm)
    rig.write("vda", size - 512, 512)
    point = rig.backup(expect=(0, 3))
    rig.expect_sources(point, vda="bitmap")
    rig.assert_point(point)


@case
def a_disk_that_grows_while_it_is_read(scratch):
    rig = Rig(scratch, [Disk(image.create(scratch.dir("disks") / "vda.qcow2", SIZE), "vda")])
    rig.write("vda", SIZE - 512, 512)
    rig.backup()
    rig.write("vda", SIZE - 1024, 512)
    before = rig.shadows["vda"].copy(scratch / "before")
    running = rig.tidemark.start("backup", rig.vm.target(), "--quiesce", "never",
                                 env={"TIDEMARK_DEBUG_STOP_AT": "frozen"})
    running.wait_stopped("frozen")
    size = grow(rig, 3 * image.MIB + 512)
    rig.write("vda", size - 512, 512)
    running.signal(signal.SIGCONT)
    point = running.finish(0).json
    assert_clean(rig.vm)
    disk, = rig.tidemark("restore", point["point"], "--to", scratch.dir("old")).json["disks"]
    image.assert_same(disk["to"], before, "raw", "raw")
    rig.write("vda", SIZE)
    point = rig.backup()
    rig.expect_sources(point, vda="bitmap")
    rig.assert_point(point)
    rig.vm.terminate()
    image.assert_same(rig.vm.disk("vda").path, rig.shadows["vda"].path)


@case
def disks_can_be_chosen_and_each_keeps_its_own_epoch(scratch):
    where = scratch.dir("disks")
    disks = [Disk(image.create(where / f"{n}.qcow2", SIZE), n) for n in ("vda", "vdb")]
    rig = Rig(scratch, disks)
    rig.write("vda", 0)
    rig.write("vdb", 0)
    rig.backup()
    rig.write("vda", 65536)
    rig.write("vdb", 65536)
    point = rig.backup("--disk", "vda")
    rig.expect_sources(point, vda="bitmap")
    rig.write("vda", 1 << 20)
    point = rig.backup("--exclude-disk", "vda")
    rig.expect_sources(point, vdb="bitmap")
    rig.write("vdb", 2 << 20)
    point = rig.backup()
    rig.expect_sources(point, vda="bitmap", vdb="bitmap")
    rig.assert_point(point)


@case
def full_on_request_reads_everything_and_the_next_is_incremental(scratch):
    path = image.create(scratch.dir("disks") / "vda.qcow2", SIZE)
    rig = Rig(scratch, [Disk(path, "vda")])
    rig.write("vda", 0)
    rig.backup()
    rig.write("vda", 1 << 20)
    point = rig.backup("--full")
    rig.expect_sources(point, vda="full")
    rig.assert_point(point)
    rig.write("vda", 2 << 20)
    point = rig.backup()
    rig.expect_sources(point, vda="bitmap")
    rig.assert_point(point)


@case
def two_repositories_are_both_incremental(scratch):
    path = image.create(scratch.dir("disks") / "vda.qcow2", SIZE)
    rig = Rig(scratch, [Disk(path, "vda")])
    other = Tidemark(scratch, repo=scratch / "repo2", state=rig.tidemark.state)
    other("init")
    rig.write("vda", 0)
    for tidemark in (rig.tidemark, other):
        tidemark("backup", rig.vm.target(), "--quiesce", "never")
    for offset in (1 << 20, 2 << 20):
        rig.write("vda", offset)
        for tidemark in (rig.tidemark, other):
            point = tidemark("backup", rig.vm.target(), "--quiesce", "never").json
            rig.expect_sources(point, vda="bitmap")
        assert_clean(rig.vm, epochs=2)


@case
def overlays_go_where_they_are_told(scratch):
    path = image.create(scratch.dir("disks") / "vda.qcow2", SIZE)
    rig = Rig(scratch, [Disk(path, "vda")])
    overlays = scratch.dir("overlays")
    rig.write("vda", 0)
    run = rig.tidemark.start("backup", rig.vm.target(), "--quiesce", "never", "--overlay-dir",
                             overlays, "--limit-rate", "64K")
    seen = False
    while run.running:
        seen = seen or rig.vm.active_file("vda").parent == overlays
    point = run.finish().json
    if not seen:
        raise HarnessError("the overlay was never in its directory")
    assert_clean(rig.vm)
    if list(overlays.iterdir()):
        raise HarnessError(f"left behind: {list(overlays.iterdir())}")
    rig.assert_point(point)


@case
def a_dry_run_changes_nothing(scratch):
    path = image.create(scratch.dir("disks") / "vda.qcow2", SIZE)
    rig = Rig(scratch, [Disk(path, "vda")])
    rig.write("vda", 0)
    rig.tidemark("backup", rig.vm.target(), "--dry-run")
    if rig.vm.bitmaps("vda") or rig.tidemark("list").json:
        raise HarnessError("a dry run left something")
    rig.backup()
    rig.write("vda", 1 << 20)
    disk, = rig.tidemark("backup", rig.vm.target(), "--dry-run").json["disks"]
    if disk["source"] != "bitmap" or disk["dirty_bytes"] != 65536:
        raise HarnessError(f"dry run: {disk}")


if __name__ == "__main__":
    main()
