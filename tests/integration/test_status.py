#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What status, show and dry runs say about bitmaps, and the manners of the command line
where others have written the names or the repository does not answer."""

import os
import time

from harness import HarnessError, Tidemark, Vm, assert_clean, image, note_baseline, run
from harness.cases import case, main
from harness.vm import Disk

SIZE = 24 * image.MIB
CLUSTER = 65536


def check(good, what):
    if not good:
        raise HarnessError(str(what))


def running(scratch, fmt="qcow2"):
    path = image.create(scratch.dir("disks") / f"vda.{fmt}", SIZE, fmt=fmt)
    vm = Vm(scratch, [Disk(path, "vda", fmt=fmt)] if fmt != "qcow2" else [Disk(path, "vda")],
            guest=False).start()
    note_baseline(vm)
    tidemark = Tidemark(scratch)
    tidemark("init")
    vm.write("vda", 0, 4 << 20, 1)
    return vm, tidemark


def outlook(tidemark, target, expect=0):
    disk, = tidemark("status", target, expect=expect).json["disks"]
    dry, = tidemark("backup", "--dry-run", target).json["disks"]
    check(dry["source"] == disk["source"] and dry["dirty_bytes"] == disk["would_read_bytes"],
          (dry, disk))
    return disk


@case
def status_and_dry_run_tell_what_a_backup_then_does(scratch):
    vm, tidemark = running(scratch)
    disk = outlook(tidemark, vm.target())
    check(disk["source"] == "full" and disk["would_read_bytes"] == SIZE, disk)
    check(not disk["epoch"]["usable"] and "no bitmap" in disk["epoch"]["reason"], disk)
    first = tidemark("backup", vm.target(), "--quiesce", "never").json
    for writes in (0, 1, 3):
        for n in range(writes):
            vm.write("vda", (5 + 2 * n) << 20, CLUSTER, 7)
        disk = outlook(tidemark, vm.target())
        epoch = disk["epoch"]
        check(disk["source"] == "bitmap" and disk["would_read_bytes"] == writes * CLUSTER, disk)
        check(epoch["point"] == first["point"] and epoch["since"] == first["created"] and
              epoch["name"] == first["name"] and epoch["dirty_bytes"] == writes * CLUSTER, disk)
        text = tidemark("status", vm.target(), json_output=False).out
        check("changed since point " + first["point"][:12] in text, text)
        first = tidemark("backup", vm.target(), "--quiesce", "never").json
        made, = first["disks"]
        check(made["source"] == "bitmap" and made["dirty_bytes"] == writes * CLUSTER, made)
    # The bound grows tighter with each run.
    audit = outlook(tidemark, vm.target())["epoch"]["audit"]
    runs = 3
    check(audit["data_clusters_since_whole"] == made["audit"]["data_clusters_since_whole"] >=
          runs * 30, audit)
    check(abs(audit["bound_percent_data"] - 300 / audit["data_clusters_since_whole"]) < 1e-3, audit)
    for text in (tidemark("status", vm.target(), json_output=False).out,
                 tidemark("show", first["point"], json_output=False).out):
        check("at most" in text and "clusters with data" in text, text)
    # Without its bitmap the disk is compared, and not stored a second time.
    node = vm.disk("vda").node
    for name in vm.bitmaps("vda"):
        vm.qmp.execute("block-dirty-bitmap-remove", {"node": node, "name": name})
    disk = outlook(tidemark, vm.target())
    check(disk["source"] == "hash-diff" and disk["would_read_bytes"] == SIZE, disk)
    text = tidemark("status", vm.target(), json_output=False).out
    check("stores what differs" in text, text)
    assert_clean(vm, epochs=0)


@case
def images_at_rest_are_counted_too(scratch):
    def write(cluster):
        run(["qemu-io", "-f", "qcow2", "-c", f"write {cluster * CLUSTER} 512", path])

    template = image.create(scratch.dir("disks") / "template.qcow2", SIZE)
    path = image.create(scratch.dir("disks") / "a, b.qcow2", SIZE, backing=template, backing_fmt="qcow2")
    tidemark = Tidemark(scratch)
    tidemark("init")
    target = f"image:{str(path).replace(',', ',,')},name=g"
    tidemark("backup", target)
    for clusters in (0, 1, 4):
        for n in range(clusters):
            write(7 * n)
        before = path.read_bytes()
        disk = outlook(tidemark, target)
        text = tidemark("status", target, json_output=False).out
        check(path.read_bytes() == before, "a status has written to the image")
        check(disk["epoch"]["dirty_bytes"] == disk["would_read_bytes"] == clusters * CLUSTER, disk)
        check(f"reads {clusters * 64}" in text, text)
        made, = tidemark("backup", target, "--audit", "0").json["disks"]
        check(made["source"] == "bitmap" and made["dirty_bytes"] == clusters * CLUSTER, made)
    # A run that failed leaves a second bitmap, which a backup merges: they may name the same.
    write(1)
    tidemark("backup", target, expect=-9, env={"TIDEMARK_DEBUG_KILL_AT": "frozen"})
    tidemark("recover", "--before-start", target)
    write(2)
    disk = outlook(tidemark, target)
    check(2 * CLUSTER <= disk["would_read_bytes"] <= 3 * CLUSTER, disk)
    made, = tidemark("backup", target, "--audit", "0").json["disks"]
    check(made["source"] == "bitmap" and made["dirty_bytes"] == 2 * CLUSTER, made)


@case
def two_repositories_have_a_cursor_each(scratch):
    vm, one = running(scratch)
    two = Tidemark(scratch, repo=scratch / "repo2", state=one.state)
    two("init")
    a = one("backup", vm.target(), "--quiesce", "never").json
    vm.write("vda", 6 << 20, CLUSTER, 2)
    b = two("backup", vm.target(), "--quiesce", "never").json
    vm.write("vda", 8 << 20, 2 * CLUSTER, 3)
    for tidemark, point, clusters in ((one, a, 3), (two, b, 2)):
        disk = outlook(tidemark, vm.target())
        check(disk["epoch"]["point"] == point["point"], disk)
        check(disk["would_read_bytes"] == clusters * CLUSTER, disk)
        made, = tidemark("backup", vm.target(), "--quiesce", "never", "--audit", "0").json["disks"]
        check(made["source"] == "bitmap" and made["dirty_bytes"] == clusters * CLUSTER, made)
    vm.terminate()
    for tidemark in (one, two):
        disk, = tidemark("restore", "latest", "--to", scratch.dir("r"), "--force").json["disks"]
        image.assert_same(vm.disk("vda").path, disk["to"])


@case
def status_speaks_of_the_guest_when_the_repository_is_gone(scratch):
    vm, tidemark = running(scratch)
    tidemark("backup", vm.target(), "--quiesce", "never")
    os.rename(tidemark.repo, scratch / "away")
    told = tidemark("status", vm.target(), expect=3).json
    disk, = told["disks"]
    check(disk["bitmaps"] and disk["epoch"] is None and disk["source"] is None, told)
    check(any("not known" in w for w in told["warnings"]), told)


@case
def a_repository_that_cannot_be_read_voids_no_bitmap(scratch):
    """The points of bitmaps cannot be looked up: nothing is removed, nothing is read whole."""
    vm, tidemark = running(scratch)
    point = tidemark("backup", vm.target(), "--quiesce", "never").json
    before = set(vm.bitmaps("vda"))
    points, = [p for p in tidemark.repo.rglob("p") if p.is_dir()]
    aside = scratch / "aside"
    os.rename(points, aside)
    os.symlink("p", points)  # ELOOP: an error, neither there nor gone
    for command in (("backup", "--quiesce", "never"), ("backup", "--dry-run")):
        result = tidemark(*command, vm.target(), expect=1)
        check("cannot be looked up" in result.err, result.err)
    told = tidemark("status", vm.target(), expect=3).json
    check(any("cannot be looked up" in w for w in told["warnings"]), told)
    check(set(vm.bitmaps("vda")) == before, vm.bitmaps("vda"))
    assert_clean(vm)
    os.unlink(points)
    os.rename(aside, points)
    made, = tidemark("backup", vm.target(), "--quiesce", "never").json["disks"]
    check(made["source"] == "bitmap" and made["epoch"] == point["point"], made)


@case
def what_others_wrote_does_not_command_the_terminal(scratch):
    evil = "\x1b[2Jred\x07\u009b31m\nfake line"
    path = image.create(scratch.dir("disks") / "disk\x1b[31m.qcow2", SIZE)
    tidemark = Tidemark(scratch)
    tidemark("init")
    target = f"image:{path},name=evil\x1b]0;title\x07"
    point = tidemark("backup", target, "--description", evil, "--tag", evil, "--name", evil).json
    check(point["description"] == evil, "JSON tells the truth")
    for args in (("list",), ("show", point["point"]), ("status", target), ("stats",),
                 ("protect", point["point"]), ("unprotect", point["point"]),
                 ("backup", target), ("backup", target, "--dry-run"),
                 ("backup", target, "--disk", "\x1b[5m"),
                 ("restore", point["point"], "--to", scratch.dir("r\x1b[7m")),
                 ("forget", "--keep-last", "1", "--dry-run"), ("show", "\x1bnone")):
        result = tidemark(*args, json_output=False, expect=None)
        text = result.out + result.err
        bad = [c for c in text if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160]
        check(not bad and "\nfake" not in text, (args, text))


@case
def wrong_disks_are_wrong_usage(scratch):
    vm, tidemark = running(scratch)
    for option in ("--disk", "--exclude-disk"):
        result = tidemark("backup", vm.target(), option, "vdz", expect=2)
        check("vdz" in result.err and "vda" in result.err, result.err)
    point = tidemark("backup", vm.target(), "--quiesce", "never", "--name", "n").json
    tidemark("restore", "n", "--disk", "vdz", "--to", scratch.dir("r"), expect=2)
    result = tidemark("backup", vm.target(), "--quiesce", "never", "--name", "n", expect=1)
    check("already" in result.err, result.err)
    tidemark("backup", vm.target(), "--name", "latest", expect=2)
    assert_clean(vm)
    # A name that may be taken by a point that cannot be read does not stop a backup.
    manifest, = [p for p in tidemark.repo.rglob("*") if p.is_file() and "/p/" in str(p)]
    data = bytearray(manifest.read_bytes())
    data[-1] ^= 1
    manifest.chmod(0o600)
    manifest.write_bytes(data)
    again = tidemark("backup", vm.target(), "--quiesce", "never", "--name", "other", expect=3).json
    check(any("cannot be read" in w for w in again["warnings"]), again)
    check(again["disks"][0]["source"] == "full" and point["point"] != again["point"], again)


@case
def times_are_local_or_have_a_zone(scratch):
    path = image.create(scratch.dir("disks") / "d.qcow2", SIZE)
    tidemark = Tidemark(scratch, env={"TZ": "XYZ-05:30"})  # five and a half hours ahead of UTC
    tidemark("init")
    point = tidemark("backup", f"image:{path},name=g").json
    utc = point["created"]
    check(utc.endswith("Z"), utc)
    local = run(["date", "-d", utc, "+%Y-%m-%dT%H:%M:%S"], env={**os.environ, "TZ": "XYZ-05:30"}
                ).stdout.strip()
    check(local[:16] != utc[:16], (local, utc))
    for text in (utc, local, local + "+05:30", local[:16], local.replace("T", " ")):
        check(tidemark("show", f"g@{text}").json["point"] == point["point"], text)
    tidemark("show", f"g@{utc[:-1]}", expect=1)  # that was hours before, here
    listed = tidemark("list", json_output=False).out
    check(local.replace("T", " ") in listed, listed)


if __name__ == "__main__":
    main()
