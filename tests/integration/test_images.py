#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Guests that are off, by their image files; and restores to every kind of target."""

import os
import re
import resource
import signal
import subprocess

from harness import HarnessError, Tidemark, Vm, assert_clean, image, make_rng, note_baseline, run, wait_for
from harness.base import reap, spawn
from harness.cases import case, main
from harness.vm import Disk

SIZE = 24 * image.MIB + 512


def qemu_io(path, *commands, fmt="qcow2"):
    run(["qemu-io", "-f", fmt] + [part for c in commands for part in ("-c", c)] + [path])


def setup(scratch, fmt="qcow2"):
    path = image.create(scratch.dir("disks") / f"disk.{fmt}", SIZE, fmt=fmt)
    qemu_io(path, "write -P 1 0 1M", "write -P 2 20M 100k", fmt=fmt)
    tidemark = Tidemark(scratch)
    tidemark("init")
    return path, tidemark


def same(scratch, tidemark, point, path, fmt="qcow2"):
    disk, = tidemark("restore", point["point"], "--to", scratch.dir("r"), "--force").json["disks"]
    image.assert_same(path, disk["to"], fmt, "raw")


def ours(path):
    return [n for n in image.bitmaps(path) if n.startswith("tidemark")]


@case
def an_image_is_incremental_by_its_bitmap(scratch):
    path, tidemark = setup(scratch)
    target = f"image:{path},name=off"
    point = tidemark("backup", target).json
    if point["disks"][0]["source"] != "full" or point["kind"] == "redirect-on-write":
        raise HarnessError(f"{point}")
    same(scratch, tidemark, point, path)
    for offset in ("3M", "4M", "24M"):
        qemu_io(path, f"write -P 7 {offset} 512")
        point = tidemark("backup", target, "--audit", "0").json
        disk = point["disks"][0]
        if disk["source"] != "bitmap" or disk["dirty_bytes"] > 65536 or \
                disk["read_bytes"] > 2 * 65536:
            raise HarnessError(f"{disk}")
        same(scratch, tidemark, point, path)
        if len(ours(path)) != 1:
            raise HarnessError(f"bitmaps {ours(path)}")
        image.check(path)


@case
def a_raw_image_is_read_whole_and_only_changes_are_stored(scratch):
    path, tidemark = setup(scratch, "raw")
    for number, new_bytes in enumerate((None, 0, 3 * 65536)):
        if new_bytes:
            qemu_io(path, "write -P 9 10M 160k", "write -z 20M 100k", fmt="raw")
        point = tidemark("backup", f"image:{path}", expect=3 if number else 0).json
        disk = point["disks"][0]
        if disk["source"] != ("hash-diff" if number else "full"):
            raise HarnessError(f"{point}")
        # 160 KiB of one byte are two equal clusters and a piece of a third
        if number and not disk["new_bytes"] <= new_bytes:
            raise HarnessError(f"stored what was there already: {disk}")
        if number and not any("read and compared" in w for w in point["warnings"]):
            raise HarnessError(f"warnings: {point['warnings']}")
        same(scratch, tidemark, point, path, "raw")
    tidemark("verify", "--read-data")


@case
def a_backup_says_what_it_cost(scratch):
    path = scratch / "much.raw"
    with open(path, "wb") as file:
        for number in range(257):
            file.write(bytes([number % 255 + 1]) * image.MIB)
    tidemark = Tidemark(scratch)
    tidemark("init")

    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    said = tidemark("backup", f"image:{path}").json["cpu_seconds"]
    whole = used() - before     # the start of the program is not in what it says
    if not whole / 2 < said < whole + 0.1:
        raise HarnessError(f"{said} CPU s are not the {whole:.3f} s that were used")
    text = tidemark("backup", f"image:{path},name=other", json_output=False).out
    if not re.search(r": \d+\.\d s, \d+\.\d CPU s \(\d+\.\d per GiB read\)\n", text):
        raise HarnessError(text)
    path.write_bytes(b"little")
    text = tidemark("backup", f"image:{path},name=third", json_output=False).out
    if not re.search(r": \d+\.\d s, \d+\.\d CPU s\n", text):
        raise HarnessError(text)


@case
def a_raw_disk_that_looks_like_qcow2_stays_raw(scratch):
    """A guest can write anything onto its raw disk: also a header that names a file of the host."""
    secret = scratch / "secret"
    secret.write_bytes(b"s3cret" * 10000)
    forged = image.create(scratch / "forged.qcow2", 1 << 20, backing=secret, backing_fmt="raw")
    path = scratch.dir("disks") / "disk.raw"
    path.write_bytes(forged.read_bytes().ljust(8 << 20, b"\0"))
    tidemark = Tidemark(scratch)
    tidemark("init")
    for target in (f"image:{path}", f"image:{path},format=raw"):
        point = tidemark("backup", target, expect=(0, 3)).json
        if point["disks"][0]["format"] != "raw" or point["disks"][0]["size"] != 8 << 20:
            raise HarnessError(f"{point}")
        same(scratch, tidemark, point, path, "raw")


@case
def on_and_off_share_one_history(scratch):
    path, tidemark = setup(scratch)
    tidemark("backup", f"image:{path},name=vm")
    vm = Vm(scratch, [Disk(path, "disk")], guest=False).start()
    note_baseline(vm)
    vm.write("disk", 5 << 20, 65536, 9)
    point = tidemark("backup", vm.target(), "--quiesce", "never").json
    if point["disks"][0]["source"] != "bitmap":
        raise HarnessError(f"{point}")
    assert_clean(vm)
    vm.terminate()
    same(scratch, tidemark, point, path)
    qemu_io(path, "write -P 7 9M 512")
    point = tidemark("backup", f"image:{path},name=vm").json
    if point["disks"][0]["source"] != "bitmap":
        raise HarnessError(f"{point}")
    same(scratch, tidemark, point, path)


def keeps_for_itself(scratch, fmt):
    path, tidemark = setup(scratch, fmt)
    vm = Vm(scratch, [Disk(path, "disk", fmt=fmt)], guest=False).start()
    result = tidemark("backup", f"image:{path}", expect=1)
    if str(vm.pid) not in result.err and "qemu" not in result.err:
        raise HarnessError(f"the holder is not named: {result.err}")
    if f"{path} is in use by a running program" not in result.err:
        raise HarnessError(f"the image is not named: {result.err}")
    if tidemark("list").json:
        raise HarnessError("there is a point of an image that is written")
    vm.terminate()
    tidemark("backup", f"image:{path}")


@case
def a_running_guest_keeps_its_image_for_itself(scratch):
    keeps_for_itself(scratch, "qcow2")


@case
def a_running_guest_keeps_its_raw_image_for_itself(scratch):
    keeps_for_itself(scratch, "raw")


def nobody_writes(tidemark, path, written, fmt):
    """Of a backup of `path` nobody can write `written`, which is it or an image below it."""
    qemu_io(written, "write -P 5 8M 8M", fmt=fmt)
    running = tidemark.start("backup", f"image:{path}", "--limit-rate", "1M")
    # Not by trying the lock: the backup would find it taken by that.
    wait_for("the reading", lambda: any(
        '"frozen"' in p.read_text() for p in (tidemark.state / "journal").glob("*.json")), 20)
    writer = subprocess.run(["qemu-io", "-f", fmt, "-c", "write 0 512", written],
                            capture_output=True, check=False)
    if writer.returncode == 0 or not running.running:
        raise HarnessError("nothing kept a writer out")
    running.signal(signal.SIGINT)
    running.finish(130)
    qemu_io(written, "write -P 3 0 512", fmt=fmt)


@case
def a_guest_cannot_start_while_its_image_is_read(scratch):
    path, tidemark = setup(scratch)
    nobody_writes(tidemark, path, path, "qcow2")
    if ours(path):
        raise HarnessError(f"an interrupted first backup leaves {ours(path)}")
    same(scratch, tidemark, tidemark("backup", f"image:{path}").json, path)


@case
def a_guest_cannot_start_while_its_raw_image_is_read(scratch):
    path, tidemark = setup(scratch, "raw")
    nobody_writes(tidemark, path, path, "raw")
    same(scratch, tidemark, tidemark("backup", f"image:{path}").json, path, "raw")


@case
def a_raw_image_below_is_locked_with_it(scratch):
    below, tidemark = setup(scratch, "raw")
    path = image.create(scratch / "top.qcow2", SIZE, backing=below, backing_fmt="raw")
    vm = Vm(scratch, [Disk(below, "disk", fmt="raw")], guest=False).start()
    result = tidemark("backup", f"image:{path}", expect=1)
    if f"{below} is in use by a running program" not in result.err:
        raise HarnessError(f"the image below is not named: {result.err}")
    vm.terminate()
    nobody_writes(tidemark, path, below, "raw")
    same(scratch, tidemark, tidemark("backup", f"image:{path}").json, path)


@case
def an_edit_that_breaks_the_bitmap_costs_a_read(scratch):
    path, tidemark = setup(scratch)
    tidemark("backup", f"image:{path}")
    vm = Vm(scratch, [Disk(path, "disk")], guest=False).start()
    vm.write("disk", 6 << 20, 4096, 5)
    vm.kill()
    point = tidemark("backup", f"image:{path}", expect=3).json
    disk = point["disks"][0]
    if disk["source"] != "hash-diff" or not point["warnings"] or disk["new_bytes"] != 65536:
        raise HarnessError(f"{point}")
    same(scratch, tidemark, point, path)
    qemu_io(path, "write -P 3 0 512")
    point = tidemark("backup", f"image:{path}").json
    if point["disks"][0]["source"] != "bitmap":
        raise HarnessError(f"{point}")
    same(scratch, tidemark, point, path)


@case
def a_resized_image_without_a_bitmap_is_compared(scratch):
    path, tidemark = setup(scratch, "raw")
    tidemark("backup", f"image:{path}")
    for size in (SIZE + 5 * image.MIB + 1536, SIZE - 2 * image.MIB - 512, SIZE):
        os.truncate(path, size)
        point = tidemark("backup", f"image:{path}", expect=3).json
        disk = point["disks"][0]
        if disk["source"] != "hash-diff" or disk["size"] != size or disk["new_bytes"] > 65536:
            raise HarnessError(f"{point}")
        same(scratch, tidemark, point, path, "raw")
    point = tidemark("backup", f"image:{path}", "--full").json
    if point["disks"][0]["source"] != "full" or not point["disks"][0]["new_bytes"]:
        raise HarnessError(f"{point}")
    same(scratch, tidemark, point, path, "raw")


@case
def a_clone_stores_what_is_its_own(scratch):
    rng = make_rng("clone")
    where = scratch.dir("disks")
    golden, clone = where / "golden.raw", where / "clone.raw"
    clusters = [rng.randbytes(65536) for _ in range(1024)]
    golden.write_bytes(b"".join(clusters))
    rng.shuffle(clusters)
    clone.write_bytes(b"".join(clusters) + rng.randbytes(3 * 65536 + 512))
    tidemark = Tidemark(scratch)
    tidemark("init")
    same(scratch, tidemark, tidemark("backup", f"image:{golden}").json, golden, "raw")
    point = tidemark("backup", f"image:{clone}").json
    disk, = point["disks"]
    if disk["source"] != "full" or disk["new_bytes"] > 64 * 65536:
        raise HarnessError(f"the clone was not recognized: {disk}")
    same(scratch, tidemark, point, clone, "raw")
    point = tidemark("backup", f"image:{clone},name=third", "--like", "golden").json
    if point["disks"][0]["new_bytes"] > 4 * 65536:     # the clone may be found beside golden
        raise HarnessError(f"--like: {point}")
    same(scratch, tidemark, point, clone, "raw")
    if tidemark("verify", "--read-data").json["damaged"]:
        raise HarnessError("verify finds damage")
    stats = tidemark("stats").json
    if [p["guest"] for p in stats["points"]] != ["golden", "clone", "third"] or stats["dedup"] < 2.5:
        raise HarnessError(f"stats: {stats}")
    if any(p["unique_bytes"] > 64 * 65537 for p in stats["points"]) or len(stats["guests"]) != 3:
        raise HarnessError(f"stats: {stats}")
    if "UNIQUE" not in tidemark("stats", json_output=False).out:
        raise HarnessError("stats prints no table")


@case
def restores_go_to_files_devices_and_servers(scratch):
    path, tidemark = setup(scratch)
    tidemark("backup", f"image:{path},name=g")
    where = scratch.dir("out")
    for fmt in ("raw", "qcow2"):
        disk, = tidemark("restore", "g", "--to", where / f"one.{fmt}", "--format", fmt).json["disks"]
        if disk["to"] != str(where / f"one.{fmt}") or disk["size"] != SIZE:
            raise HarnessError(f"{disk}")
        image.assert_same(path, disk["to"], "qcow2", fmt)
        if os.stat(disk["to"]).st_mode & 0o777 != 0o600:
            raise HarnessError("a restored file is open to others")
    if os.stat(where / "one.raw").st_blocks * 512 > 4 * image.MIB:
        raise HarnessError("holes were written")
    disk, = tidemark("restore", "g@latest", "--to", where).json["disks"]
    if disk["to"] != str(where / "g-disk.raw"):
        raise HarnessError(f"{disk}")
    link = where / "link.raw"
    link.symlink_to(where / "nothing")
    refused = tidemark("restore", "g", "--to", link, expect=1)
    if "link to what is not there" not in refused.err or '"progress"' in refused.err:
        raise HarnessError(f"not refused at once: {refused.err}")
    tidemark("restore", "g", "--to", link, "--force")
    if link.is_symlink() or (where / "nothing").exists():
        raise HarnessError("the link was not replaced")
    # A server whose disk is full of other data.
    target = scratch / "target.raw"
    run(["sh", "-c", f"yes old | head -c {SIZE} > {target}"])
    with image.nbd(target, scratch / "s.sock", "raw", writable=True):
        server = f"nbd+unix:///?socket={scratch / 's.sock'}"
        refused = tidemark("restore", "g", "--to", server, "--format", "qcow2", expect=2)
        if "as raw" not in refused.err:
            raise HarnessError(refused.err)
        tidemark("restore", "g", "--to", server, "--prove")
    image.assert_same(path, target, "qcow2", "raw")


@case
def a_server_that_cannot_flush_is_restored_to_with_a_warning(scratch):
    path, tidemark = setup(scratch)
    tidemark("backup", f"image:{path},name=g")
    target, sock = scratch / "target.raw", scratch / "s.sock"
    run(["sh", "-c", f"yes old | head -c {SIZE} > {target}"])
    dd = f"dd bs=256k iflag=fullblock conv=notrunc status=none oflag=seek_bytes seek=$4 of={target}"
    server = spawn(["nbdkit", "-f", "-U", sock, "eval", f"get_size=echo {SIZE}", f"pwrite={dd}",
                    "pread=exit 1", "can_write=exit 0"])
    scratch.defer(reap, server)
    wait_for("the server", sock.exists)
    done = tidemark("restore", "g", "--to", f"nbd+unix:///?socket={sock}", expect=3)
    warning, = done.json["warnings"]
    if "disk disk: nbd+unix" not in warning or "does not offer to flush" not in warning:
        raise HarnessError(warning)
    image.assert_same(path, target, "qcow2", "raw")


@case
def what_is_left_is_told_whole(scratch):
    """However long its name is: it may be a command that the line ends with."""
    where = scratch.dir("/".join((200 * "a", 200 * "b", 100 * "c")))
    base = image.create(where / "base.qcow2", SIZE)
    overlay = where / "base.qcow2.0123456789ab-0.tidemark-overlay"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", overlay])
    tidemark = Tidemark(scratch)
    tidemark("init")
    said = tidemark("recover", "--check", f"image:{base}", expect=5, json_output=False).out
    if f"{overlay}, and its journal is lost" not in said or "recovery removes it" not in said:
        raise HarnessError(f"it says: {said}")


@case
def what_a_killed_restore_leaves_is_gone_with_the_next(scratch):
    path, tidemark = setup(scratch)
    qemu_io(path, *(f"write -P {n} {n}M 1M" for n in range(2, 20)))
    point = tidemark("backup", f"image:{path},name=off").json["point"]
    for fmt in ("qcow2", "raw"):
        to = scratch.dir(f"to-{fmt}") / "disk.img"

        def partials(to=to):
            return list(to.parent.glob("*.partial"))
        for _ in range(10):
            killed = tidemark.start("restore", point, "--to", to, "--format", fmt, "--force")
            wait_for("the file", lambda: partials() or not killed.running, 30, 0.001)
            killed.kill()
            if left := partials():
                break
        else:
            raise HarnessError("it was always quicker")
        os.utime(left[0], (0, 0))
        # One that lives is left alone.
        other = tidemark.start("restore", point, "--to", to, "--format", fmt, "--force")
        wait_for("the other file's first bytes", lambda: not other.running or any(
            p.stat().st_blocks for p in set(partials()) - set(left)), 30, 0.001)
        other.signal(signal.SIGSTOP)
        for path_ in partials():
            os.utime(path_, (0, 0))
        tidemark("restore", point, "--to", to, "--format", fmt, "--force")
        other.signal(signal.SIGCONT)
        other.finish(0)
        image.assert_same(path, to, "qcow2", fmt)
        if partials():
            raise HarnessError(f"{partials()} are left")


@case
def restores_to_block_devices(scratch):
    path, tidemark = setup(scratch)
    tidemark("backup", f"image:{path},name=g")
    for size, ok in ((SIZE + 512, True), (SIZE - 512, False)):
        backing = scratch / f"dev{size}"
        run(["sh", "-c", f"yes old | head -c {size} > {backing}"])
        done = run(["losetup", "-f", "--show", backing], check=False)
        if done.returncode:
            print("  (no loop devices here: not run)")
            return
        device = done.stdout.strip()
        try:
            result = tidemark("restore", "g", "--to", device, expect=0 if ok else 1)
            if not ok and str(SIZE) not in result.err:
                raise HarnessError(f"too small a device: {result.err}")
        finally:
            run(["losetup", "-d", device])
        if ok:
            os.truncate(backing, SIZE)
            image.assert_same(path, backing, "qcow2", "raw")


@case
def a_damaged_cluster_is_never_restored_in_silence(scratch):
    rng = make_rng("damage")
    path, tidemark = setup(scratch)
    tidemark("backup", f"image:{path},name=g")
    objects = sorted(p for p in (scratch / "repo").rglob("*") if p.is_file() and "/s/" in str(p))
    for victim in objects:
        good = victim.read_bytes()
        at = rng.randrange(len(good))
        victim.chmod(0o600)
        victim.write_bytes(good[:at] + bytes([good[at] ^ 1 << rng.randrange(8)]) + good[at + 1:])
        report = tidemark("verify", "--read-data", expect=4).json
        if not report["damaged"]:
            raise HarnessError(f"a flipped bit at {at} of {victim} is not seen")
        result = tidemark("restore", "g", "--to", scratch / "x.raw", "--force", expect=(0, 4))
        if result.status == 0:
            image.assert_same(path, scratch / "x.raw", "qcow2", "raw")
        elif (scratch / "x.raw").exists():
            raise HarnessError("a failed restore left a file")
        victim.write_bytes(good)
        (scratch / "x.raw").unlink(missing_ok=True)
    tidemark("verify", "--read-data")


if __name__ == "__main__":
    main()
