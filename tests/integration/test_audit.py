#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The audit: a disk that changed behind its bitmap's back is caught, and the point is
right all the same."""

import json
import os
import shutil

from harness import HarnessError, Tidemark, Vm, assert_clean, image, make_rng, note_baseline, run
from harness.cases import case, main
from harness.vm import Disk

CLUSTER = 65536
SIZE = 40 * image.MIB + 512
DATA = 200  # clusters with data, from the disk's begin


def check(good, what):
    if not good:
        raise HarnessError(str(what))


def qemu_io(path, *commands):
    run(["qemu-io", "-f", "qcow2"] + [part for c in commands for part in ("-c", c)] + [path])


def fill(path):
    qemu_io(path, *[f"write -P {1 + n % 250} {n * CLUSTER} {CLUSTER}" for n in range(DATA)])


def setup(scratch, *init):
    path = image.create(scratch.dir("disks") / "disk.qcow2", SIZE)
    fill(path)
    tidemark = Tidemark(scratch)
    tidemark("init", *init)
    return path, tidemark


def host_offset(path, offset):
    """Where a guest's byte lies in the file."""
    for part in json.loads(run(["qemu-img", "map", "--output=json", "-f", "qcow2", path]).stdout):
        if part["start"] <= offset < part["start"] + part["length"]:
            return part["offset"] + offset - part["start"]
    raise HarnessError(f"{path}: nothing at {offset}")


def tamper(path, *clusters):
    """Changes a byte of each cluster in the file, as a broken storage would."""
    with open(path, "r+b") as file:
        for cluster in clusters:
            file.seek(host_offset(path, cluster * CLUSTER + 777))
            old = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([old[0] ^ 0xff]))


def same(scratch, tidemark, point, path):
    disk, = tidemark("restore", point["point"], "--to", scratch.dir("r"), "--force").json["disks"]
    image.assert_same(path, disk["to"])


def ours(path):
    return [n for n in image.bitmaps(path) if n.startswith("tidemark")]


def assert_caught(point, differed, first=None):
    disk, = point["disks"]
    check(disk["source"] == "hash-diff" and disk["audit"]["differed"] == differed, disk)
    check("audit found" in disk["reason"] and str(differed) in disk["reason"], disk)
    warnings = [w for w in point["warnings"] if "ITS BITMAP IS WRONG" in w]
    check(len(warnings) == 1, point)
    if first is not None:
        check(f"offset {first}:" in warnings[0], warnings)
    # Nothing of before counts any more.
    check(disk["audit"]["whole"] == point["created"] and not disk["audit"]["bound_percent_data"], disk)


@case
def every_changed_cluster_is_caught_when_all_are_compared(scratch):
    path, tidemark = setup(scratch)
    target = f"image:{path},name=off"
    tidemark("backup", target)
    qemu_io(path, "write -P 77 3M 200k", f"write -P 78 {DATA * CLUSTER + (5 << 20)} 100")
    tamper(path, 7, 100, 150)
    qemu_io(path, f"write -P 9 {150 * CLUSTER} 512")  # a dirty one is not audited
    point = tidemark("backup", target, "--audit", "100", expect=3).json
    assert_caught(point, 2, 7 * CLUSTER)
    same(scratch, tidemark, point, path)
    # The bitmap that begins here is a good one, and there is no other.
    check(len(ours(path)) == 1, ours(path))
    qemu_io(path, "write -P 5 9M 512")
    point = tidemark("backup", target, "--audit", "100").json
    disk, = point["disks"]
    check(disk["source"] == "bitmap" and disk["audit"]["differed"] == 0, disk)
    check(disk["audit"]["data_clusters"] + disk["audit"]["empty_clusters"] ==
          -(-SIZE // CLUSTER) - 1, disk)
    same(scratch, tidemark, point, path)


@case
def without_an_audit_it_would_not_be_noticed(scratch):
    """The negative control, and what --audit 0 reads."""
    path, tidemark = setup(scratch)
    target = f"image:{path},name=off"
    tidemark("backup", target)
    qemu_io(path, "write -P 77 3M 128k")
    tamper(path, 7)
    disk, = tidemark("backup", target, "--audit", "0").json["disks"]
    check(disk["source"] == "bitmap" and disk["dirty_bytes"] == 2 * CLUSTER, disk)
    check(disk["read_bytes"] == 3 * CLUSTER, disk)  # one proves the bitmap's end (test_shrink)
    check(disk["audit"]["data_clusters"] == disk["audit"]["empty_clusters"] == 0, disk)
    # It does not heal by itself: a later audit finds it.
    point = tidemark("backup", target, "--audit", "100", expect=3).json
    assert_caught(point, 1, 7 * CLUSTER)
    same(scratch, tidemark, point, path)


@case
def the_default_finds_what_is_widespread_in_data_and_in_holes(scratch):
    path, tidemark = setup(scratch)
    target = f"image:{path},name=off"
    tidemark("backup", target)
    name, = ours(path)
    disk, = tidemark("backup", target).json["disks"]
    audit = disk["audit"]
    check(audit["data_clusters"] == 48 and audit["empty_clusters"] == 16, disk)
    check(disk["read_bytes"] <= 65 * CLUSTER, disk)
    # Restored from elsewhere, with a bitmap that knows nothing of it.
    qemu_io(path, *[f"write -P 201 {n * CLUSTER} 512" for n in range(0, DATA, 3)])
    name, = ours(path)
    run(["qemu-img", "bitmap", "--clear", path, name])
    point = tidemark("backup", target, expect=3).json
    assert_caught(point, point["disks"][0]["audit"]["differed"])
    same(scratch, tidemark, point, path)
    # Writes into holes.
    qemu_io(path, f"write -P 202 {DATA * CLUSTER} 20M")
    name, = ours(path)
    run(["qemu-img", "bitmap", "--clear", path, name])
    point = tidemark("backup", target, expect=3).json
    assert_caught(point, point["disks"][0]["audit"]["differed"])
    same(scratch, tidemark, point, path)


@case
def a_running_guest_is_audited_and_only_the_wrong_disk_is_read_whole(scratch):
    rng = make_rng("audit")
    sizes = {"vda": SIZE, "vdb": SIZE}
    disks = []
    for name, size in sizes.items():
        path = image.create(scratch.dir("disks") / f"{name}.qcow2", size)
        fill(path)
        disks.append(Disk(path, name))
    vm = Vm(scratch, disks, guest=False).start()
    note_baseline(vm)
    tidemark = Tidemark(scratch)
    tidemark("init")
    tidemark("backup", vm.target(), "--quiesce", "never")
    vm.write("vda", 5 << 20, CLUSTER, 3)
    vm.terminate()
    clusters = sorted(rng.sample(range(DATA), 3))
    tamper(disks[1].path, *clusters)
    vm.start()
    vm.write("vdb", 30 << 20, CLUSTER, 4)
    point = tidemark("backup", vm.target(), "--quiesce", "never", "--audit", "100", expect=3).json
    assert_clean(vm)
    by = {d["disk"]: d for d in point["disks"]}
    check(by["vda"]["source"] == "bitmap" and by["vda"]["audit"]["differed"] == 0, by)
    check(by["vdb"]["source"] == "hash-diff" and by["vdb"]["audit"]["differed"] == 3, by)
    point = tidemark("backup", vm.target(), "--quiesce", "never", "--audit", "50").json
    check({d["source"] for d in point["disks"]} == {"bitmap"}, point)
    vm.terminate()
    for disk in tidemark("restore", point["point"], "--to", scratch.dir("r")).json["disks"]:
        image.assert_same(vm.disk(disk["disk"]).path, disk["to"])


def killed(scratch, phase, online):
    """A run that found the bitmap wrong, and died before its point was there."""
    path, tidemark = setup(scratch)
    vm = None
    tidemark("backup", f"image:{path},name=vm")
    tamper(path, 9)
    target = f"image:{path},name=vm"
    if online:
        vm = Vm(scratch, [Disk(path, "disk")], guest=False, name="vm").start()
        target = vm.target()
    tidemark.start("backup", target, "--audit", "100", "--quiesce", "never",
                   env={"TIDEMARK_DEBUG_KILL_AT": phase}).finish(-9)
    return path, tidemark, vm, target


@case
def a_bitmap_that_was_caught_is_not_used_by_the_run_after_a_death(scratch):
    path, tidemark, vm, target = killed(scratch, "committing", True)
    point = tidemark("backup", target, "--audit", "0", "--quiesce", "never", expect=3).json
    check(point["disks"][0]["source"] == "hash-diff", point)
    vm.terminate()
    same(scratch, tidemark, point, path)


@case
def nor_when_the_guest_died_as_well(scratch):
    path, tidemark, vm, _ = killed(scratch, "committing", True)
    vm.kill()
    tidemark("recover", f"image:{path}", "--before-start")
    point = tidemark("backup", f"image:{path},name=vm", "--audit", "0", expect=3).json
    check(point["disks"][0]["source"] == "hash-diff", point)
    same(scratch, tidemark, point, path)


@case
def a_bitmap_that_was_caught_is_not_used_when_it_could_not_be_removed(scratch):
    path, tidemark = setup(scratch)
    target = f"image:{path},name=off"
    tidemark("backup", target)
    tamper(path, 9)
    tool = scratch.dir("bin") / "qemu-img"
    tool.write_text('#!/bin/sh\ncase " $* " in *" --remove "*) echo "Failed to get lock" >&2; exit 1;; esac\n'
                    f'exec {shutil.which("qemu-img")} "$@"\n')
    tool.chmod(0o755)
    env = {"PATH": f"{tool.parent}:{os.environ['PATH']}"}
    result = tidemark("backup", target, "--audit", "100", expect=5, env=env)
    check("the point is stored" in result.err, result.err)
    # As if the point had never come to be: nothing but the journal knows that the bitmap is wrong.
    tidemark("forget", result.json["point"])
    result = tidemark("backup", target, "--audit", "0", expect=5, env=env)
    check("found to be wrong" in result.err, result.err)
    point = tidemark("backup", target, "--audit", "0", expect=(0, 3)).json
    check(point["disks"][0]["source"] == "hash-diff", point)
    same(scratch, tidemark, point, path)


@case
def the_bitmap_that_began_with_the_point_is_used_after_a_death(scratch):
    path, tidemark, _, target = killed(scratch, "settling", False)
    point = tidemark("backup", target, "--audit", "100").json
    check(point["disks"][0]["source"] == "bitmap", point)
    same(scratch, tidemark, point, path)


@case
def a_key_that_makes_backups_audits(scratch):
    key = scratch / "full.key"
    path, tidemark = setup(scratch, "--encrypt", "--key-file", key)
    agent = scratch / "agent.key"
    tidemark("--key-file", key, "key", "add", "--role", "backup", "--new-key-file", agent)
    target = f"image:{path},name=off"
    tidemark("--key-file", agent, "backup", target)
    point = tidemark("--key-file", agent, "backup", target).json
    check(point["disks"][0]["audit"]["data_clusters"] == 48, point)
    tamper(path, 3)
    point = tidemark("--key-file", agent, "backup", target, "--audit", "100", expect=3).json
    assert_caught(point, 1, 3 * CLUSTER)
    disk, = tidemark("--key-file", key, "restore", point["point"], "--to",
                     scratch.dir("r")).json["disks"]
    image.assert_same(path, disk["to"])


if __name__ == "__main__":
    main()
