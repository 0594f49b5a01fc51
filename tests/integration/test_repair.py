#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Damage to a repository, and the way back: verify, the next backup, repair, restore."""

import os
import random
import shutil

from harness import HarnessError, Tidemark, Vm, assert_clean, image, make_rng, note_baseline, run
from harness.cases import case, main
from harness.vm import Disk

SIZE = 16 * image.MIB
CLUSTER = 65536


def check(ok, what):
    if not ok:
        raise HarnessError(what)


def write_image(path, raw, data):
    raw.write_bytes(data)
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path])


def qemu_io(path, *commands):
    run(["qemu-io", "-f", "qcow2"] + [part for c in commands for part in ("-c", c)] + [path])


def noise(rng, size):
    return rng.randbytes(size)


class History:
    """An image with a few points, and a copy of it at each. Its first half never changes."""

    def __init__(self, scratch, rng, *secret):
        self.scratch, self.rng, self.secret = scratch, rng, secret
        self.tidemark = Tidemark(scratch)
        self.tidemark("init", *["--encrypt"] * bool(secret), *secret)
        self.path = scratch.dir("disks") / "d.qcow2"
        write_image(self.path, scratch / "d.raw", noise(rng, SIZE))
        self.target = f"image:{self.path},name=g"
        self.points, self.copies = [], []
        self.backup()
        for pattern in (3, 5):
            qemu_io(self.path, *(f"write -P {pattern} {at}k 128k"
                                 for at in (rng.randrange(SIZE // 2048, SIZE // 1024 - 128)
                                            for _ in range(3))))
            self.backup()

    def backup(self, expect=(0, 3)):
        point = self.tidemark("backup", self.target, "--audit", "0", *self.secret, expect=expect).json
        self.points.append(point)
        self.copies.append(shutil.copy(self.path, self.scratch / f"copy{len(self.points)}.qcow2"))
        return point

    def restore(self, number, expect=0):
        point = self.points[number]["point"]
        done = self.tidemark("restore", point, "--to", self.scratch.dir("r"), "--force", *self.secret,
                             expect=expect)
        if done.status == 0:
            image.assert_same(self.copies[number], done.json["disks"][0]["to"])
        return done

    def verify(self, *args, expect=0):
        return self.tidemark("verify", *args, *self.secret, expect=expect).json

    def repair(self, *args, expect=0):
        return self.tidemark("repair", *args, *self.secret, expect=expect).json

    def segments(self, letter):
        """Oldest session first."""
        return sorted(self.tidemark.repo.glob(f"d/*/s/*/000/{letter}*"))

    def missed(self, manifest):
        """The exit status of a verification when it is gone: others tell of it, if they use its data.
        The second point's may all have been overwritten."""
        number, = (i for i, p in enumerate(self.points) if manifest.endswith(p["point"]))
        return (4, (0, 4), 0)[number]

    def hit(self, report):
        return {p for d in report["damaged"] for p in d["points"]}


def flip(path, at):
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x20]))


@case
def the_next_backup_heals_and_repair_takes_it_to_older_points(scratch):
    h = History(scratch, make_rng(scratch))
    segment = h.segments("d")[0]
    flip(segment, segment.stat().st_size // 4)
    h.verify()                                       # the structure is sound
    report = h.verify("--scrub", expect=4)
    check(len(report["damaged"]) == 1 and report["damaged"][0]["object"].endswith(segment.name),
          f"{report}")
    lost = {tuple(r) for r in report["damaged"][0]["ranges"]}
    hits = report["damaged"][0]["hits"]
    check({hit["point"] for hit in hits} == h.hit(report) and {hit["disk"] for hit in hits} == {"d"}
          and [[hit["offset"], hit["length"]] for hit in hits] == report["damaged"][0]["ranges"], f"{hits}")
    check(all(offset % CLUSTER == 0 and 0 < length <= 8 * CLUSTER for offset, length in lost),
          f"more than a frame: {lost}")
    for i, point in enumerate(h.points):
        h.restore(i, expect=4 if point["point"] in h.hit(report) else 0)
    before = h.hit(report)
    check(before, "nothing is hit")
    h.repair("--dry-run", expect=4)
    h.repair(expect=4)                               # the content is nowhere else yet
    plan = h.tidemark("backup", "--dry-run", h.target).json["disks"][0]
    check(plan["source"] == "hash-diff" and "damaged" in plan["reason"], f"{plan}")
    disk, = h.backup(expect=3)["disks"]
    check(disk["source"] == "hash-diff" and "damaged" in disk["reason"], f"{disk}")
    check(0 < disk["new_bytes"] <= 8 * CLUSTER, f"stored more than what was lost: {disk}")
    h.verify(h.points[-1]["point"], "--read-data")
    h.restore(-1)
    mended = h.repair("--read-data")
    check(mended["damaged"] and all(d["repaired"] for d in mended["damaged"]), f"{mended}")
    check(not h.verify("--read-data", "--scrub")["damaged"], "damage is left")
    for i in range(len(h.points)):
        h.restore(i)
    check(h.backup(expect=0)["disks"][0]["source"] == "bitmap", "not incremental any more")
    check(not list(h.tidemark.repo.glob("d/*/x/*")), "records of what is whole again")


@case
def a_map_that_is_gone_is_built_again(scratch):
    h = History(scratch, make_rng(scratch))
    for number, segment in enumerate(h.segments("m")):
        keep = segment.read_bytes()
        segment.unlink()
        report = h.verify(expect=4)
        check(h.points[number]["point"] in h.hit(report), f"{report}")
        h.restore(number, expect=4)
        shown = h.repair("--dry-run", expect=4)
        check(shown["damaged"][0]["repaired"] and not segment.exists(), f"{shown}")
        done = h.repair()
        check(done["damaged"][0]["repaired"], f"{done}")
        check(not h.verify("--read-data")["damaged"], "damage is left")
        for i in range(len(h.points)):
            h.restore(i)
        check(len(list(segment.parent.glob("m*"))) == 1 and not segment.exists(), "generations")
        segment.write_bytes(keep)                    # an interrupted repair: both are there
        flip(segment, len(keep) - 1)
        h.verify(expect=4)
        h.repair()
        check(not segment.exists() and not h.verify()["damaged"], "the damaged one stayed")


@case
def what_lies_in_an_objects_place_stays_and_is_passed_by(scratch):
    """A folder, a link, a pipe: readers find the generation that repair puts."""
    h = History(scratch, make_rng("place"))
    victim = h.points[1]["point"]
    map_segment, = (h.tidemark.repo / "d").rglob(f"s/{victim}/000/m000.*")
    away = scratch / "away"
    for number, place in enumerate((lambda p: (p.mkdir(), (p / "notes").write_text("x")),
                                    lambda p: os.symlink(away, p), os.mkfifo)):
        os.rename(map_segment, away)
        place(map_segment)
        check(h.tidemark("verify", expect=4).json["damaged"], "no damage")
        check(all(d["repaired"] for d in h.tidemark("repair").json["damaged"]), "not repaired")
        h.tidemark("verify", "--read-data")
        h.restore(1)
        check(os.path.lexists(map_segment), "it was removed")
        for later in map_segment.parent.glob("m000.0001-*"):
            later.unlink()
        if number == 0:
            (map_segment / "notes").unlink()
            map_segment.rmdir()
        else:
            map_segment.unlink()
        os.rename(away, map_segment)


@case
def a_running_guest_gives_back_what_was_lost(scratch):
    """Also when nobody has verified: the run that meets the damage says so, the one after heals."""
    rng = make_rng(scratch)
    path = image.create(scratch.dir("disks") / "d.qcow2", SIZE)
    tidemark = Tidemark(scratch)
    tidemark("init")
    vm = Vm(scratch, [Disk(path, "disk")], guest=False).start()
    note_baseline(vm)

    def backup(*args, expect=0):
        return tidemark("backup", vm.target(), "--quiesce", "never", "--audit", "0", *args,
                        expect=expect)

    for pattern in range(1, 40):
        vm.write("disk", rng.randrange(SIZE // CLUSTER) * CLUSTER, CLUSTER, pattern)
    backup()
    for letter, meets in (("m", True), ("d", False)):
        segments = sorted(tidemark.repo.glob(f"d/*/s/*/000/{letter}*"))
        segment = segments[0 if meets else 1]        # of the first, of the one that read all again
        flip(segment, segment.stat().st_size - 3)
        vm.write("disk", 5 * CLUSTER, CLUSTER, 77 + meets)
        if meets:                                    # a node of the map that the run needs
            met = backup(expect=4)
            check("checksum" in met.err and "reads disk" in met.err, met.err)
            assert_clean(vm)
        else:
            tidemark("verify", "--scrub", expect=4)
        disk, = backup(expect=3).json["disks"]
        check(disk["source"] == "hash-diff" and "damaged" in disk["reason"], f"{disk}")
        assert_clean(vm)
        check(not tidemark("verify", "latest", "--read-data").json["damaged"], "the newest is damaged")
        vm.write("disk", 6 * CLUSTER, CLUSTER, 79 + meets)
        disk, = backup().json["disks"]
        check(disk["source"] == "bitmap" and disk["dirty_bytes"] == CLUSTER, f"{disk}")
    vm.terminate()
    made, = tidemark("restore", "latest", "--to", scratch.dir("r")).json["disks"]
    image.assert_same(path, made["to"])


@case
def every_kind_of_damage_has_exit_status_4(scratch):
    """And costs no more than what verify names: flips, cuts, additions and losses of every object."""
    rng = make_rng(scratch)
    h = History(scratch, rng)
    objects = sorted(p for p in h.tidemark.repo.rglob("*")
                     if p.is_file() and "s" in p.parts or p.parent.parent.name == "p")
    check(len(objects) >= 3 * 3, f"{objects}")
    for path in objects:
        keep, manifest = path.read_bytes(), path.parent.parent.name == "p"
        how = rng.randrange(4)
        if how == 0:
            flip(path, rng.randrange(len(keep)))
        elif how == 1:
            os.truncate(path, rng.randrange(len(keep)))
        elif how == 2:
            path.write_bytes(keep + b"x")
        else:
            path.unlink()
        missed = manifest and how == 3
        report = h.verify("--read-data", "--scrub", expect=h.missed(path.name) if missed else 4)
        hit = h.hit(report)
        check(not (missed and hit), f"{report}")
        for i, point in enumerate(h.points):
            gone = manifest and path.name.endswith(point["point"])
            h.restore(i, expect=(1 if how == 3 else 4) if gone else 4 if point["point"] in hit else 0)
        for record in h.tidemark.repo.glob("d/*/x/*"):
            record.unlink()
        path.write_bytes(keep)
    check(not h.verify("--read-data", "--scrub")["damaged"], "the test left damage")


@case
def each_key_does_what_it_may(scratch):
    """A backup key verifies and records; a janitor key repairs maps; clusters take a full key."""
    rng = make_rng(scratch)
    h = History(scratch, rng, "--key-file", scratch / "full.key")
    for role in ("backup", "janitor"):
        h.tidemark("key", "add", "--role", role, "--new-key-file", scratch / f"{role}.key", *h.secret)
    for role in ("backup", "janitor"):
        h.secret = ("--key-file", scratch / f"{role}.key")
        check(not h.verify("--scrub")["damaged"], "damage")
        done = h.tidemark("verify", "--read-data", *h.secret, expect=1)
        check("cannot read" in done.err or "may not" in done.err, done.err)
    data, maps = h.segments("d")[0], h.segments("m")[1]
    flip(data, data.stat().st_size // 4)
    maps.unlink()
    h.secret = ("--key-file", scratch / "backup.key")
    check(len(h.verify("--scrub", expect=4)["damaged"]) == 2, "damage is missing")
    check(len(list(h.tidemark.repo.glob("d/*/x/*"))) == 2, "no records")
    h.tidemark("repair", *h.secret, expect=1)
    h.secret = ("--key-file", scratch / "janitor.key")
    report = h.repair(expect=4)
    check(sorted(d["repaired"] for d in report["damaged"]) == [False, True], f"{report}")
    h.secret = ("--key-file", scratch / "backup.key")
    h.backup(expect=3)
    h.secret = ("--key-file", scratch / "full.key")
    h.restore(-1)
    h.repair()
    check(not h.verify("--read-data")["damaged"], "damage is left")
    for i in range(len(h.points)):
        h.restore(i)


@case
def a_budget_reads_all_data_in_the_end(scratch):
    """Each run goes on where the last one ended, and finds damage that the structure does not show."""
    h = History(scratch, make_rng(scratch))
    segment = h.segments("d")[0]
    flip(segment, segment.stat().st_size - 5)
    check(not h.verify()["damaged"], "the structure check saw it")
    for _ in range(20):
        report = h.verify("--read-data", "--budget", "1s", expect=(0, 4))
        if report["damaged"]:
            break
    check(h.hit(report), "nothing was found")
    check(list(h.tidemark.repo.glob("d/*/c/r-*")), "no record of how far it came")


if __name__ == "__main__":
    main()
