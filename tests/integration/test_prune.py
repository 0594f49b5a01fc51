#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Forgetting and pruning by the real program on a real directory, beside backups,
and killed at any moment. PRUNE_SECONDS sets how long the storms last (default 8)."""

import os
import time

from harness import HarnessError, Tidemark, image, make_rng, run
from harness.cases import case, main

SIZE = 12 * image.MIB
SECONDS = float(os.environ.get("PRUNE_SECONDS", "8"))
GUESTS = 4


class Guest:
    """A raw image, changed before each backup; what each point must contain is kept."""

    def __init__(self, scratch, name, rng):
        self.name, self.rng = name, rng
        self.path = scratch.dir("disks") / f"{name}.raw"
        self.copies = scratch.dir("copies")
        self.points = {}
        self.count = 0
        self.pending = None
        with open(self.path, "wb") as file:
            file.truncate(SIZE)
        self.change(40)

    def change(self, times):
        with open(self.path, "r+b") as file:
            for _ in range(times):
                file.seek(self.rng.randrange(SIZE // 65536) * 65536)
                file.write(self.rng.randbytes(512) * self.rng.choice((1, 128)))

    def start(self, tidemark):
        self.count += 1
        self.pending = (tidemark.start("backup", f"image:{self.path},name={self.name}"),
                        image.copy(self.path, self.copies / f"{self.name}-{self.count}"))

    def finish(self):
        running, copy = self.pending
        self.pending = None
        result = running.finish(expect=(0, 3))
        self.points[result.json["point"]] = copy

    def back_up(self, tidemark, times, changes):
        """Points, each of so many changes."""
        for _ in range(times):
            self.change(changes)
            self.start(tidemark)
            self.finish()

    def step(self, tidemark):
        """Begins a backup, or ends one that is done."""
        if not self.pending:
            self.change(3)
            self.start(tidemark)
        elif not self.pending[0].running:
            self.finish()


def check(scratch, tidemark, guests):
    """Everything verifies, and every point listed restores to what was backed up."""
    report = tidemark("verify", "--read-data").json
    if report["damaged"]:
        raise HarnessError(f"{report}")
    copies = {point: copy for g in guests for point, copy in g.points.items()}
    listed = [p["point"] for p in tidemark("list").json]
    for point in listed:
        if point not in copies:
            continue  # of a backup that was killed after its commit
        disk, = tidemark("restore", point, "--to", scratch / "back.raw", "--force").json["disks"]
        image.assert_same(copies[point], disk["to"], "raw", "raw")
    return listed


def damage(victim):
    """Flips a bit of a file; it, and what it held."""
    good = victim.read_bytes()
    victim.write_bytes(good[:-9] + bytes([good[-9] ^ 4]) + good[-8:])
    return victim, good


def maps(scratch):
    return sorted((scratch / "repo").rglob("m000.*"))


@case
def rules_and_names_choose(scratch):
    rng = make_rng("rules")
    tidemark = Tidemark(scratch)
    tidemark("init")
    guests = [Guest(scratch, name, rng) for name in ("a", "b")]
    for _ in range(4):
        for g in guests:
            g.start(tidemark)
            g.finish()
            g.change(3)
    a, b = ([*g.points] for g in guests)
    tidemark("forget", expect=2)
    tidemark("forget", a[0], "--keep-last", "1", expect=2)
    tidemark("forget", "--keep-within", "2q", expect=2)
    dry = tidemark("forget", "--keep-last", "2", "--dry-run").json
    if set(dry["removed"]) != {*a[:2], *b[:2]} or set(dry["kept"]) != {*a[2:], *b[2:]}:
        raise HarnessError(f"{dry}")
    if len(tidemark("list").json) != 8:
        raise HarnessError("a dry run removed points")
    shown, = tidemark("protect", a[0]).json
    if not shown["protected"] or not tidemark("show", a[0]).json["protected"]:
        raise HarnessError(f"{shown}")
    refused = tidemark("forget", a[0], expect=1, json_output=False)
    if a[0][:12] not in refused.err or refused.out:
        raise HarnessError(f"the protected point is not named, or shown as gone: {refused.out}")
    for words, said in ((("--keep-tag", "x,y"), "'x,y'"), (("--keep-last", "1", "--guest", "c"), "'c'")):
        if said not in tidemark("forget", *words, expect=1).err:
            raise HarnessError(f"{words} is not refused")
    if len(tidemark("list").json) != 8 or "'c'" not in tidemark("list", "--guest", "c", json_output=False).err:
        raise HarnessError("something went, or a guest that is not there is not told of")
    done = tidemark("forget", "--keep-last", "1", "--guest", "a").json
    if set(done["removed"]) != {*a[1:3]} or set(done["kept"]) != {a[0], a[3]}:
        raise HarnessError(f"{done}")
    tidemark("unprotect", a[0])
    done = tidemark("forget", a[0], "b@latest", "--prune").json
    if set(done["removed"]) != {a[0], b[3]} or done["prune"]["removed_objects"] == 0:
        raise HarnessError(f"{done}")
    if tidemark("prune", "--dry-run").json["removed_objects"]:
        raise HarnessError("something was left")
    for words in (("a",), ("a@latest",), (b[0], "a")):
        refused = tidemark("forget", *words, expect=1)
        if a[3][:12] not in refused.err or "the last one of guest a" not in refused.err:
            raise HarnessError(refused.err)
    if set(check(scratch, tidemark, guests)) != {a[3], *b[:3]}:
        raise HarnessError("the wrong points are left")
    shown = tidemark("forget", "b", json_output=False).out
    if b[2][:12] not in shown or set(tidemark("forget", a[3][:10]).json["removed"]) != {a[3]}:
        raise HarnessError(shown)


class Noise(Guest):
    """One that cannot be compressed."""

    def change(self, times):
        with open(self.path, "r+b") as file:
            for at in self.rng.sample(range(SIZE // 65536), times):
                file.seek(at * 65536)
                file.write(self.rng.randbytes(65536))


class Full:
    """A repository on a small file system of its own, which other files fill to the last byte."""

    def __init__(self, scratch, megabytes):
        self.where = scratch.dir("full")
        if run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tidemark-test", self.where],
               check=False).returncode:
            print("  (cannot mount here: not run)")
            self.where = None
            return
        scratch.defer(lambda: run(["umount", "-l", self.where], check=False))
        self.tidemark = Tidemark(scratch, repo=self.where / "repo")
        self.tidemark("init")

    def free(self):
        stat = os.statvfs(self.where)
        return stat.f_bavail * stat.f_frsize

    def reserve(self):
        file = self.where / "repo/tmp/reserve"
        return file.stat().st_blocks * 512 if file.exists() else 0

    def fill(self):
        with open(self.where / "filler", "ab", buffering=0) as file:
            for size in (1 << 20, 4096, 1):
                try:
                    while True:
                        file.write(b"x" * size)
                except OSError:
                    pass
        if self.free():
            raise HarnessError(f"{self.free()} bytes are free")


@case
def a_full_repository_is_pruned(scratch):
    """Not a byte is free: forget and prune go on with what was kept back, also when they are
    killed, and backups work again."""
    full = Full(scratch, 64)
    if not full.where:
        return
    rng, tidemark = make_rng("full"), full.tidemark
    if full.reserve() < 10 * image.MIB:
        raise HarnessError(f"{full.reserve()} bytes are kept back")
    guest = Noise(scratch, "g", rng)
    guest.back_up(tidemark, 3, 80)
    points = [*guest.points]
    full.fill()
    guest.change(40)
    failed = tidemark("backup", f"image:{guest.path},name=g", expect=1)
    if "No space left" not in failed.err or "forget points, then prune" not in failed.err:
        raise HarnessError(failed.err)
    full.fill()  # with what the failed one left
    for turn in range(12):
        running = tidemark.start("forget", points[0], "--prune")
        time.sleep(rng.random() * 0.06)
        running.kill()
        if full.free() and turn < 6:
            full.fill()
    if points[0] in [p["point"] for p in tidemark("list").json]:
        tidemark("forget", points[0])
    full.fill()
    if full.reserve() == 0:
        raise HarnessError("all that was kept back is gone")
    tidemark("forget", points[1])
    print(f"  {full.reserve()} bytes are kept back before the last prune")
    done = tidemark("prune", "--stale-hours", "0", "--max-unused", "0").json
    if full.free() < done["returned_bytes"] or done["returned_bytes"] < 2 * image.MIB:
        raise HarnessError(f"{done}, {full.free()} are free, {full.reserve()} kept back")
    os.unlink(full.where / "filler")
    tidemark("prune")
    if full.reserve() < 10 * image.MIB:
        raise HarnessError(f"{full.reserve()} bytes are kept back afterwards")
    guest.start(tidemark)
    guest.finish()
    if check(scratch, tidemark, [guest]) != [points[2], [*guest.points][3]]:
        raise HarnessError("the wrong points are left")


@case
def space_comes_back(scratch):
    tidemark = Tidemark(scratch)
    tidemark("init")
    guest = Guest(scratch, "g", make_rng("space"))
    guest.back_up(tidemark, 3, 60)
    first, middle, last = guest.points

    def stored():
        return sum(p.stat().st_size for p in (scratch / "repo").rglob("*") if p.is_file())

    tidemark("forget", first, guest.name + "@latest")
    before = stored()
    report = tidemark("prune", "--max-unused", "0").json
    freed = report["returned_bytes"]
    if before - stored() != freed or freed <= 0:
        raise HarnessError(f"{report}: {before} bytes before, {stored()} after")
    if last in check(scratch, tidemark, [guest]):
        raise HarnessError("a forgotten point is listed")
    tidemark("forget", middle, "--prune")
    if list((scratch / "repo").rglob("[dm]000.*")):
        raise HarnessError("without points there are segments")


@case
def four_backups_and_a_prune_at_once(scratch):
    rng = make_rng("storm")
    tidemark = Tidemark(scratch)
    tidemark("init")
    guests = [Guest(scratch, f"vm{i}", rng) for i in range(GUESTS)]
    janitor, prunes, end = None, 0, time.monotonic() + SECONDS
    while time.monotonic() < end or any(g.pending for g in guests) or janitor:
        for g in guests:
            if g.pending or time.monotonic() < end:
                g.step(tidemark)
        if janitor is None and time.monotonic() < end:
            janitor = tidemark.start("forget", "--keep-last", "3", "--prune", "--max-unused",
                                     str(rng.choice((0, 20, 50))))
        elif janitor and not janitor.running:
            janitor.finish()
            janitor, prunes = None, prunes + 1
        time.sleep(0.005)
    listed = check(scratch, tidemark, guests)
    made = sum(len(g.points) for g in guests)
    print(f"  {made} backups, {prunes} prunes, {len(listed)} points left", flush=True)
    tidemark("forget", "--keep-last", "1", "--prune", "--max-unused", "0")
    if len(check(scratch, tidemark, guests)) != GUESTS:
        raise HarnessError("the last points are not left")


@case
def a_killed_prune_is_run_again(scratch):
    rng = make_rng("killed")
    tidemark = Tidemark(scratch)
    tidemark("init")
    guest = Guest(scratch, "g", rng)
    killed, ended, end = 0, 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        guest.change(6)
        guest.start(tidemark)
        if rng.random() < 0.2:  # a backup is killed, too
            time.sleep(rng.random() * 0.1)
            guest.pending[0].kill()
            guest.pending = None
        else:
            guest.finish()
        running = tidemark.start("forget", "--keep-last", "3", "--prune", "--max-unused", "0",
                                 "--stale-hours", "0")
        time.sleep(rng.random() ** 2 * 0.12)
        killed += running.running
        running.kill()
        ended += running.finish(expect=None).status == 0
        if rng.random() < 0.2:
            check(scratch, tidemark, [guest])
    tidemark("prune", "--stale-hours", "0", "--max-unused", "0")
    left = check(scratch, tidemark, [guest])
    print(f"  {guest.count} backups, {killed} prunes killed, {ended} ended, {len(left)} points left")
    if tidemark("prune", "--stale-hours", "0", "--max-unused", "0").json["removed_objects"]:
        raise HarnessError("a second prune finds more")
    # What is left of a session that is over: nothing, unless points still use its segments.
    domain, = (scratch / "repo" / "d").iterdir()
    used = {p.parents[1].name for p in (domain / "s").rglob("*") if p.is_file()}
    for folder in ("k", "f", "t"):
        bad = [p.name for p in (domain / folder).glob("*")
               if p.name.split(".")[0] not in used.union(left)]
        if bad:
            raise HarnessError(f"flags of sessions that are over: {folder}/{bad}")


@case
def damage_stops_a_prune(scratch):
    tidemark = Tidemark(scratch)
    tidemark("init")
    guest = Guest(scratch, "g", make_rng("damage"))
    guest.back_up(tidemark, 2, 9)
    victim, good = damage(maps(scratch)[0])
    tidemark("forget", [*guest.points][0])
    before = sorted((scratch / "repo").rglob("*"))
    result = tidemark("prune", expect=(0, 4))
    if result.status == 4:
        if "nothing was removed" not in result.err or sorted((scratch / "repo").rglob("*")) != before:
            raise HarnessError(f"{result.err}")
    if victim.exists():
        victim.write_bytes(good)
    tidemark("prune")
    check(scratch, tidemark, [guest])


@case
def a_point_that_cannot_be_read_is_not_forgotten_by_rules(scratch):
    tidemark = Tidemark(scratch)
    tidemark("init")
    guest = Guest(scratch, "g", make_rng("unreadable"))
    guest.back_up(tidemark, 4, 9)
    points = [*guest.points]
    victim, good = damage(next((scratch / "repo").rglob(f"p/*/*-{points[1]}")))
    done = tidemark("forget", "--keep-last", "1", expect=3).json
    if done["removed"] != [points[2], points[0]] or "1 point cannot be read" not in done["warnings"][0]:
        raise HarnessError(f"{done}")
    victim.write_bytes(good)
    if check(scratch, tidemark, [guest]) != [points[1], points[3]]:
        raise HarnessError("the wrong points are left")


@case
def what_was_forgotten_is_said_though_the_prune_fails(scratch):
    tidemark = Tidemark(scratch)
    tidemark("init")
    guest = Guest(scratch, "g", make_rng("said"))
    guest.back_up(tidemark, 2, 9)
    damage(maps(scratch)[-1])   # of the point that stays
    first, second = guest.points
    said = tidemark("forget", first, "--prune", expect=4).json
    if said != {"removed": [first], "kept": [second], "warnings": []}:
        raise HarnessError(f"{said}")


if __name__ == "__main__":
    main()
