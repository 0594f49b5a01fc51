#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Ways in which an image changes behind the back of its bitmap: either QEMU keeps
the bitmap right, or that it cannot be used is noticed. The audit is off, so that
only the rules of docs/epochs.md are at work; what is restored is always compared."""

import os
import shutil
import signal
from pathlib import Path

from harness import HarnessError, Tidemark, image, run, wait_for
from harness.cases import case, main

SIZE = 16 * image.MIB + 512


def qemu_io(path, *commands, fmt="qcow2"):
    run(["qemu-io", "-f", fmt] + [part for c in commands for part in ("-c", c)] + [path])


class Rig:
    """An image with two points, and a repository."""

    def __init__(self, scratch, after="bitmap", **create):
        self.scratch = scratch
        self.path = image.create(scratch.dir("disks") / "disk.qcow2", SIZE, **create)
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")
        qemu_io(self.path, "write -P 1 0 3M", "write -P 2 9M 100k")
        self.backup("full")
        qemu_io(self.path, "write -P 3 1M 64k")
        self.backup(after)

    def backup(self, source, reason="", path=None, name="guest"):
        path = path or self.path
        point = self.tidemark("backup", f"image:{path},name={name}", "--audit", "0",
                              expect=(0, 3)).json
        disk, = point["disks"]
        if disk["source"] != (source or disk["source"]) or reason not in disk["reason"]:
            raise HarnessError(f"expected {source} ({reason}): {disk}")
        to, = self.tidemark("restore", point["point"], "--to", self.scratch.dir("r"),
                            "--force").json["disks"]
        image.assert_same(path, to["to"], "qcow2", "raw")
        return point

    def keep(self, name):
        return image.copy(self.path, self.scratch / name)


@case
def edited_by_a_tool_of_qemu(scratch):
    rig = Rig(scratch)
    qemu_io(rig.path, "write -P 4 5M 64k", "write -z 0 64k", "discard 9M 64k")
    rig.backup("bitmap")


@case
def an_older_copy_brings_its_older_bitmap(scratch):
    rig = Rig(scratch)
    old = rig.keep("old")
    qemu_io(rig.path, "write -P 4 5M 64k")
    rig.backup("bitmap")
    qemu_io(rig.path, "write -P 5 6M 64k")
    rig.backup("bitmap")
    # As it was then, and with a life of its own since.
    qemu_io(old, "write -P 6 7M 64k")
    shutil.copyfile(old, rig.path)
    rig.backup("bitmap")
    qemu_io(rig.path, "write -P 7 8M 64k")
    rig.backup("bitmap")


@case
def a_copy_of_an_image_in_use_has_no_bitmap_to_trust(scratch):
    rig = Rig(scratch)
    with image.nbd(rig.path, scratch / "s", writable=True) as handle:
        handle.pwrite(b"\7" * 65536, 5 << 20)
        handle.flush()
        torn = rig.keep("torn")
        handle.pwrite(b"\7" * 65536, 6 << 20)
    shutil.copyfile(torn, rig.path)
    rig.backup("hash-diff", "inconsistent")
    rig.backup("bitmap")


@case
def written_while_its_bitmaps_are_settled(scratch):
    """A run failed and QEMU stopped: the epoch is disabled, its child records. A
    writer comes before each step that puts this in order."""
    rig = Rig(scratch)
    epoch, = image.bitmaps(rig.path)
    fields = epoch.split("-")
    child = "-".join(fields[:3] + ["f" * 32, fields[3]] + fields[5:])
    run(["qemu-img", "bitmap", "--disable", rig.path, epoch])
    run(["qemu-img", "bitmap", "--add", "-g", "65536", rig.path, child])
    steps = scratch / "steps"
    wrapper = scratch.dir("bin") / "qemu-img"
    wrapper.write_text(f"""#!/bin/sh
if [ "$1" = bitmap ] && ! grep -q -e --add {steps}; then
    n=$(wc -l < {steps})
    echo "$*" >> {steps}
    {shutil.which("qemu-io")} -f qcow2 -c "write -q -P 9 $((4 + n))M 64k" {rig.path} || exit 1
fi
exec {shutil.which("qemu-img")} "$@"
""")
    wrapper.chmod(0o700)
    steps.write_text("")
    path = rig.tidemark.env["PATH"]
    rig.tidemark.env["PATH"] = f"{wrapper.parent}:{path}"
    rig.backup(None)
    rig.tidemark.env["PATH"] = path
    done = steps.read_text()
    if not all(f"{child}" in done and f"--{step}" in done for step in ("enable", "merge", "remove")):
        raise HarnessError(f"not what was to be seen: {done}")
    rig.backup("bitmap")


@case
def a_clone_of_the_image_is_another_guests_disk(scratch):
    rig = Rig(scratch)
    clone = rig.keep("clone.qcow2")
    qemu_io(rig.path, "write -P 4 5M 64k")
    qemu_io(clone, "write -P 5 6M 64k")
    rig.backup("full", "does not hold for this guest", path=clone, name="other")
    rig.backup("bitmap")
    qemu_io(clone, "write -P 6 7M 64k")
    rig.backup("bitmap", path=clone, name="other")
    # Even under one name each image brings the bitmap that is its own.
    qemu_io(clone, "write -P 7 8M 64k")
    twin = rig.keep("twin.qcow2")
    qemu_io(rig.path, "write -P 8 2M 64k")
    qemu_io(twin, "write -P 9 3M 64k")
    rig.backup("bitmap")
    rig.backup("bitmap", path=twin)
    rig.backup("bitmap")


@case
def the_repository_goes_back_in_time(scratch):
    rig = Rig(scratch)
    shutil.copytree(rig.tidemark.repo, scratch / "then")
    qemu_io(rig.path, "write -P 4 5M 64k")
    rig.backup("bitmap")
    qemu_io(rig.path, "write -P 5 6M 64k")
    shutil.rmtree(rig.tidemark.repo)
    shutil.move(scratch / "then", rig.tidemark.repo)
    rig.backup("hash-diff", "does not hold")
    rig.backup("bitmap")


@case
def two_copies_of_a_repository_take_the_bitmap_from_each_other(scratch):
    rig = Rig(scratch)
    shutil.copytree(rig.tidemark.repo, scratch / "second")
    one, two = rig.tidemark.repo, scratch / "second"
    for repo, source in ((one, "bitmap"), (two, "hash-diff"), (one, "hash-diff"), (one, "bitmap")):
        qemu_io(rig.path, "write -P 4 5M 64k")
        rig.tidemark.repo = repo
        rig.backup(source)


@case
def reverted_to_an_internal_snapshot(scratch):
    rig = Rig(scratch)
    run(["qemu-img", "snapshot", "-c", "then", rig.path])
    qemu_io(rig.path, "write -P 4 5M 64k")
    rig.backup("bitmap")
    done = run(["qemu-img", "snapshot", "-a", "then", rig.path], check=False)
    print(f"# snapshot -a: exit {done.returncode}: {done.stderr.strip()}", flush=True)
    if done.returncode == 0:
        raise HarnessError("QEMU reverts an image that has bitmaps")
    rig.backup("bitmap")


@case
def resized_while_it_is_off(scratch):
    rig = Rig(scratch)
    done = run(["qemu-img", "resize", "-f", "qcow2", rig.path, str(SIZE + image.MIB)], check=False)
    print(f"# resize: exit {done.returncode}: {done.stderr.strip()}", flush=True)
    qemu_io(rig.path, "write -P 4 16M 512")
    rig.backup("bitmap")


@case
def rebased_and_converted(scratch):
    low = image.create(scratch.dir("disks") / "low.qcow2", SIZE)
    other = image.create(scratch.dir("disks") / "other.qcow2", SIZE)
    qemu_io(other, "write -P 9 12M 1M")
    rig = Rig(scratch, backing=low)
    run(["qemu-img", "rebase", "-u", "-b", other, "-F", "qcow2", rig.path])
    rig.backup("hash-diff", "below it")
    rig.backup("bitmap")
    for options, source in (([], "hash-diff"), (["--bitmaps"], "bitmap")):
        out = scratch / "converted"
        run(["qemu-img", "convert", "-O", "qcow2", "-B", other, "-F", "qcow2", *options, rig.path, out])
        qemu_io(out, "write -P 6 7M 64k")
        shutil.copyfile(out, rig.path)
        rig.backup(source)


@case
def the_image_below_is_written_or_replaced(scratch):
    low = image.create(scratch.dir("disks") / "low.qcow2", SIZE)
    qemu_io(low, "write -P 8 11M 1M")
    rig = Rig(scratch, backing=low)
    rig.backup("bitmap")
    qemu_io(low, "write -P 9 12M 1M")
    rig.backup("hash-diff", "below it")
    rig.backup("bitmap")
    other = image.copy(low, scratch / "other")
    qemu_io(other, "write -P 10 12M 1M")
    other.replace(low)
    rig.backup("hash-diff", "below it")
    # A copy that keeps the time has the content that it had then.
    run(["cp", "-p", low, other])
    other.replace(low)
    rig.backup("bitmap")


@case
def the_data_file_of_an_image_below_is_written(scratch):
    where = scratch.dir("disks")
    low = image.create(where / "low.qcow2", SIZE, options={"data_file": where / "low.data"})
    qemu_io(low, "write -P 8 11M 1M")
    rig = Rig(scratch, backing=low)
    was = os.stat(low)
    qemu_io(low, "write -P 9 11M 64k")      # into a cluster that it has
    os.utime(low, ns=(was.st_atime_ns, was.st_mtime_ns))
    rig.backup("hash-diff", "below it")
    rig.backup("bitmap")


@case
def what_lies_below_is_in_files_that_nobody_watches(scratch):
    where = scratch.dir("disks")
    flat = image.create(where / "low.vmdk", SIZE, fmt="vmdk", options={"subformat": "monolithicFlat"})
    qemu_io(flat, "write -P 8 11M 1M", fmt="vmdk")
    rig = Rig(scratch, after="hash-diff", backing=flat, backing_fmt="vmdk")
    was = os.stat(flat)
    qemu_io(flat, "write -P 9 11M 64k", fmt="vmdk")
    os.utime(flat, ns=(was.st_atime_ns, was.st_mtime_ns))
    rig.backup("hash-diff", "not watched")


@case
def the_image_below_is_exchanged_during_a_backup(scratch):
    low = image.create(scratch.dir("disks") / "low.qcow2", SIZE)
    qemu_io(low, "write -P 8 11M 1M")
    rig = Rig(scratch, backing=low)
    for phase in ("freezing", "frozen"):    # before qemu-nbd opens it, and behind
        other = image.copy(low, scratch / "other")
        qemu_io(other, "write -P 9 12M 1M")
        qemu_io(rig.path, "write -P 4 5M 64k")
        backup = rig.tidemark.start("backup", f"image:{rig.path},name=guest", "--audit", "0",
                                    env={"TIDEMARK_DEBUG_STOP_AT": phase})
        backup.wait_stopped(phase)
        other.replace(low)
        backup.signal(signal.SIGCONT)
        refused = backup.finish(1)
        if f"{low} below it was written or replaced" not in refused.err:
            raise HarnessError(refused.err)
        rig.backup("hash-diff")
        rig.backup("bitmap")


@case
def the_image_below_is_written_while_it_is_read(scratch):
    """By a program that does not know QEMU's locks."""
    low = image.create(scratch.dir("disks") / "low.raw", SIZE, fmt="raw")
    rig = Rig(scratch, backing=low, backing_fmt="raw")
    for _ in range(5):
        qemu_io(rig.path, "write -P 4 4M 6M")
        backup = rig.tidemark.start("backup", f"image:{rig.path},name=guest", "--audit", "0",
                                    "--limit-rate", "2M")
        wait_for("the reading", lambda backup=backup: not backup.running or
                 '"phase":"read"' in backup.err, 20, 0.01)
        with open(low, "r+b") as file:
            file.seek(12 << 20)
            file.write(b"\7" * 65536)
        refused = backup.finish((0, 1, 3))
        if refused.status == 1:
            break
    else:
        raise HarnessError("nobody noticed, or it had always been read already")
    if f"{low} below it was written or replaced" not in refused.err:
        raise HarnessError(refused.err)
    rig.backup("hash-diff")


@case
def a_disk_and_the_one_below_it_are_backed_up_together(scratch):
    """The bitmaps of the lower one are put in order while the other one looks on."""
    low = image.create(scratch.dir("disks") / "low.qcow2", SIZE)
    qemu_io(low, "write -P 8 11M 1M")
    top = image.create(scratch / "disks/top.qcow2", SIZE, backing=low)
    tidemark = Tidemark(scratch)
    tidemark("init")
    for number in range(3):
        qemu_io(top, f"write -P {number} 3M 64k")
        point = tidemark("backup", f"image:{low},{top},name=both", expect=(0, 3)).json
        restored = tidemark("restore", point["point"], "--to", scratch.dir("r"), "--force").json["disks"]
        for path, disk in zip((low, top), restored):
            image.assert_same(path, disk["to"], "qcow2", "raw")


@case
def the_image_is_exchanged_while_it_is_read(scratch):
    """What was read is what was there; the other file is right by the bitmap that it brings."""
    rig = Rig(scratch)
    old = rig.keep("old")
    for number, other in enumerate((None, old)):    # a copy of what is read, or an older one
        qemu_io(rig.path, f"write -P {4 + number} 5M 64k", f"write -P {4 + number} 7M 64k")
        backup = rig.tidemark.start("backup", f"image:{rig.path},name=guest", "--audit", "0",
                                  env={"TIDEMARK_DEBUG_STOP_AT": "frozen"})
        stat = Path(f"/proc/{backup.process.pid}/stat")
        wait_for("the freeze", lambda: not backup.running or
                 stat.read_text().rsplit(")", 1)[1].split()[0] == "T")
        aside = scratch / f"aside{number}"
        rig.path.rename(aside)
        shutil.copyfile(other or aside, rig.path)
        backup.signal(signal.SIGCONT)
        point = backup.finish((0, 3)).json
        to, = rig.tidemark("restore", point["point"], "--to", scratch.dir("r"), "--force").json["disks"]
        image.assert_same(aside, to["to"], "qcow2", "raw")
        qemu_io(rig.path, "write -P 6 9M 64k")
        print(f"# read by {rig.backup(None)['disks'][0]['source']} then", flush=True)


@case
def an_external_data_file_has_no_bitmap_over_a_stop(scratch):
    data = scratch.dir("disks") / "data.raw"
    rig = Rig(scratch, after="hash-diff", options={"data_file": str(data)})
    with open(data, "r+b") as file:
        file.seek(1 << 20)
        file.write(b"\x55" * 65536)
    rig.backup("hash-diff", "cannot keep one")


@case
def edited_by_a_tool_that_knows_no_bitmaps(scratch):
    rig = Rig(scratch)
    with open(rig.path, "r+b") as file:
        file.seek(88)       # autoclear_features: who does not know a bit, clears it
        flags = int.from_bytes(file.read(8), "big")
        file.seek(88)
        file.write((flags & ~1).to_bytes(8, "big"))
    qemu_io(rig.path, "write -P 4 5M 64k")
    rig.backup("hash-diff")
    rig.backup("bitmap")


if __name__ == "__main__":
    main()
