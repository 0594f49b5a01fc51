#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How the overlays are merged back: at what rate, and what a full file system
does to it. Every point that is made meanwhile has what was there at its instant,
and every write of the guest is kept."""

import os
import signal
import subprocess
import time
from pathlib import Path

from harness import Sub, Tidemark, Vm, assert_clean, image, make_rng, note_baseline, run, wait_for
from harness.base import HarnessError
from harness.cases import case, main
from harness.vm import Disk

SIZE = 64 * image.MIB + 512
MIB = image.MIB
LONG = "COLLAPSE_LONG" in os.environ    # all kinds of disks and deaths, and large disks


class Rig:
    """A guest without an operating system, and a shadow of each of its disks."""

    def __init__(self, scratch, disks, extra=(), size=SIZE):
        self.scratch = scratch
        self.rng = make_rng("collapse")
        self.shadows = {d.id: image.Shadow(scratch / f"{d.id}.shadow", size) for d in disks}
        self.overlays = scratch.dir("overlays")
        self.vm = Vm(scratch, disks, guest=False, extra=extra).start()
        note_baseline(self.vm, [self.overlays])
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")

    @property
    def names(self):
        return list(self.shadows)

    def write(self, name, offset, length):
        self.vm.write(name, offset, length, self.rng.randrange(1, 256), self.shadows[name])

    def write_all(self, count=3):
        for name in self.names:
            for _ in range(count):
                offset = self.rng.randrange(0, SIZE // 512 - 1024) * 512
                self.write(name, offset, self.rng.randrange(1, 1024) * 512)

    def start(self, *options, env=None):
        """A backup that reads when this returns."""
        running = self.tidemark.start("backup", self.vm.target(), "--quiesce", "never", *options,
                                      env=env)
        wait_for("the freeze", lambda: not running.running or all(
            self.vm.active_file(n) != self.vm.disk(n).path for n in self.names), 30)
        return running

    def start_stopped(self, phase, *options, env=None):
        """The same, stopped right after `phase` was journalled."""
        running = self.start(*options, env={
            "TIDEMARK_DEBUG_STOP_AT": phase,
            # No guard, as when the host dies: what it would do at once is done by the test.
            "TIDEMARK_DEBUG_KILL_AT": "nowhere", **(env or {})})
        running.wait_stopped(phase)
        return running

    def backup(self, *options, expect=0):
        return self.tidemark("backup", self.vm.target(), "--quiesce", "never", *options,
                             expect=expect).json

    def keep_shadows(self):
        """What a point that is frozen now must hold."""
        return {n: s.copy(self.scratch / f"{n}.frozen") for n, s in self.shadows.items()}

    def assert_point(self, point, shadows=None):
        where = self.scratch.dir("restored")
        for disk in self.tidemark("restore", point["point"], "--to", where, "--force").json["disks"]:
            wanted = (shadows or {n: s.path for n, s in self.shadows.items()})[disk["disk"]]
            if found := image.difference(disk["to"], wanted, "raw", "raw"):
                raise HarnessError(f"{disk['disk']} of {point['point']}: {found}")

    def go_on(self, source="bitmap"):
        """All is in order; the next backup is incremental and right."""
        self.write_all()
        point = self.backup(expect=(0, 3))
        for disk in point["disks"]:
            if disk["source"] != source:
                raise HarnessError(f"{disk['disk']} was read by {disk['source']}: {disk['reason']}")
        self.assert_point(point)
        return point


def small_file_system(path, size):
    path.mkdir(mode=0o700)
    run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tidemark-test", path])
    return path


def fill(path):
    """Fills a file system to the last page."""
    run(["dd", "if=/dev/zero", f"of={path}/filler", "bs=64K"], check=False)


class FullRig(Rig):
    """The disk's own file system is full when its overlay is to be merged."""

    def __init__(self, scratch):
        self.where = small_file_system(scratch / "small", "32M")
        scratch.defer(lambda: run(["umount", "-l", self.where]))
        super().__init__(scratch, [Disk(image.create(self.where / "vda.qcow2", SIZE), "vda")])
        self.write("vda", 0, 2 * MIB)
        self.backup("--overlay-dir", self.overlays)
        self.write("vda", MIB, 65536)

    def start_full(self):
        """A backup whose commit finds no room; the guest wrote 8 MiB meanwhile."""
        frozen = self.keep_shadows()
        running = self.start_stopped("frozen", "--overlay-dir", self.overlays)
        for number in range(8):
            self.write("vda", (8 + number) * MIB, MIB)
        fill(self.where)
        running.signal(signal.SIGCONT)
        wait_for("it to say so", lambda: "is full" in running.err or not running.running, 30)
        if str(self.where) not in running.err or "MiB are needed" not in running.err:
            raise HarnessError(f"it says: {running.err}")
        if self.vm.qmp.execute("query-status")["status"] != "running":
            raise HarnessError("the guest was stopped")
        return running, frozen


@case
def a_full_base_is_waited_for(scratch):
    rig = FullRig(scratch)
    running, frozen = rig.start_full()
    rig.write("vda", 20 * MIB, MIB)         # the guest goes on meanwhile
    (rig.where / "filler").unlink()
    point = running.finish(3).json
    if not any("is full" in text for text in point["warnings"]):
        raise HarnessError(f"warnings {point['warnings']}")
    assert_clean(rig.vm)
    rig.assert_point(point, frozen)
    rig.go_on()


@case
def a_base_that_stays_full_leaves_the_guest_on_its_overlay(scratch):
    rig = FullRig(scratch)
    running, frozen = rig.start_full()
    running.signal(signal.SIGINT)           # else it waits for half a minute
    running.finish((5, 130), timeout=60)
    if rig.vm.active_file("vda").parent != rig.overlays or rig.vm.jobs():
        raise HarnessError(f"the guest is on {rig.vm.active_file('vda')}, jobs {rig.vm.jobs()}")
    rig.write("vda", 20 * MIB, MIB)
    rig.tidemark("recover", "--check", rig.vm.target(), expect=5)
    (rig.where / "filler").unlink()
    rig.tidemark("recover", rig.vm.target())
    assert_clean(rig.vm)
    newest = rig.tidemark("list").json[-1]
    rig.assert_point(newest, frozen)
    rig.go_on()


@case
def the_rate_holds_for_the_commit_and_is_lifted_for_a_guest_that_outruns_it(scratch):
    where = scratch.dir("disks")
    rig = Rig(scratch, [Disk(image.create(where / "vda.qcow2", SIZE), "vda")])
    rig.backup()
    frozen = rig.keep_shadows()
    running = rig.start_stopped("frozen", "--limit-rate", "8M")
    for number in range(8):
        rig.write("vda", number * MIB, MIB)
    running.signal(signal.SIGCONT)
    wait_for("the commit", lambda: rig.vm.jobs() or not running.running, 20)
    speeds, began = set(), time.monotonic()
    while running.running:
        for job in rig.vm.qmp.execute("query-block-jobs"):
            speeds.add(job["speed"])
        if time.monotonic() - began < 20:   # 8 MiB/s are nothing to this guest
            rig.write("vda", rig.rng.randrange(60) * MIB, MIB)
    result = running.finish(0)
    phases = {event["phase"] for event in result.events}
    if not {0, 8 * MIB} <= speeds:
        raise HarnessError(f"the job's speed was {speeds}")
    if "commit" not in phases:
        raise HarnessError(f"progress told of {phases}")
    assert_clean(rig.vm)
    rig.assert_point(result.json, frozen)
    rig.go_on()


# --- pull ------------------------------------------------------------------------


class PullRig(Rig):
    """A guest whose overlays are to stay. `paths` are its own files at first."""

    def __init__(self, scratch, disks, extra=()):
        super().__init__(scratch, disks, extra)
        self.where = Path(disks[0].path).parent
        self.write_all(4)
        self.backup(expect=(0, 3))
        self.write_all(4)

    def pull(self, *options, expect=0, write=None):
        """A backup with a pull, while which the guest writes; its point is right."""
        running = self.start_stopped("frozen", "--collapse", "pull", *options)
        frozen = self.keep_shadows() if write is None else None
        self.write_all()
        running.signal(signal.SIGCONT)
        result = running.finish(expect)
        self.assert_point(result.json, frozen)
        for disk in result.json["disks"]:
            if disk["source"] != "bitmap":
                raise HarnessError(f"{disk['disk']}: {disk['source']}, {disk['reason']}")
        return result

    def adopt(self):
        """What the guest runs on now is what it starts from."""
        for disk in self.vm.disks:
            active = self.vm.active_file(disk.id)
            if active != disk.path:
                disk.path, disk.fmt = active, "qcow2"
        return {disk.id: disk.path for disk in self.vm.disks}

    def assert_images(self, paths=None):
        """The guest is off, and the files have all that it wrote."""
        for disk in self.vm.disks:
            image.assert_same((paths or {}).get(disk.id, disk.path), self.shadows[disk.id].path,
                              disk.fmt)
            if disk.fmt == "qcow2":
                image.check((paths or {}).get(disk.id, disk.path), leaks_ok=True)

    def assert_files_have_names(self):
        if gone := [n["file"] for n in self.vm.nodes() if n["file"][0] == "/" and not Path(n["file"]).exists()]:
            raise HarnessError(f"QEMU holds files that nobody can use: {gone}")

    def surplus(self):
        wanted = {Path(disk.path) for disk in self.vm.disks}
        return {p for p in self.where.iterdir() if p not in wanted}


def two_disks(scratch):
    where = scratch.dir("disks")
    return [Disk(image.create(where / f"{n}.qcow2", SIZE), n) for n in ("vda", "vdb")]


@case
def a_pull_leaves_the_guest_on_its_overlays_and_says_so(scratch):
    rig = PullRig(scratch, two_disks(scratch))
    rig.pull("--keep-name")         # QEMU knows the disks by their second names then
    before = {d.id: d.path for d in rig.vm.disks}
    result = rig.pull(expect=3)
    after = rig.adopt()
    rig.assert_files_have_names()
    if "pull" not in {event["phase"] for event in result.events}:
        raise HarnessError(f"no progress of the pull: {result.events}")
    for name in rig.names:
        if after[name] == before[name] or not before[name].exists():
            raise HarnessError(f"{name}: {before[name]} and then {after[name]}")
        if not any(str(after[name]) in text for text in result.json["warnings"]):
            raise HarnessError(f"{after[name]} is not in {result.json['warnings']}")
        if "backing-filename" in image.info(after[name], True):
            raise HarnessError(f"{after[name]} has a backing file")
    if rig.vm.jobs() or rig.vm.exports():
        raise HarnessError(f"left: {rig.vm.jobs()} {rig.vm.exports()}")
    rig.go_on()
    # Its old definition names files that are out of use.
    rig.vm.terminate()
    old = "image:" + ",".join(map(str, before.values())) + ",name=vm"
    result = rig.tidemark("recover", "--before-start", old, expect=5)
    if str(after["vda"]) not in result.err:
        raise HarnessError(f"it says: {result.err}")
    rig.assert_images()
    rig.vm.start()
    rig.go_on()


@case
def a_pulled_disk_keeps_its_name_where_that_is_asked_for(scratch):
    rig = PullRig(scratch, two_disks(scratch))
    rig.pull("--keep-name")
    for _ in range(2):
        rig.go_on()
    rig.pull("--keep-name")         # once more, from a disk with two names
    names = [p for p in rig.surplus() if not p.name.endswith(".tidemark-name")]
    if names or len(rig.surplus()) != 2:
        raise HarnessError(f"left: {rig.surplus()}")
    rig.assert_files_have_names()
    # A death now, and recovery of a guest whose disks have two names.
    running = rig.start_stopped("frozen")
    rig.write_all()
    rig.vm.kill()
    running.kill()
    images = "image:" + ",".join(str(d.path) for d in rig.vm.disks) + ",name=vm"
    rig.tidemark("recover", "--before-start", images)
    rig.assert_images()
    rig.vm.start()
    rig.go_on()
    if rig.surplus():
        raise HarnessError(f"left after a restart: {rig.surplus()}")
    note_baseline(rig.vm)
    rig.go_on()
    assert_clean(rig.vm)


@case
def a_base_that_is_left_for_good_keeps_no_second_name(scratch):
    rig = PullRig(scratch, two_disks(scratch))
    rig.pull("--keep-name")
    before = [d.path for d in rig.vm.disks]
    rig.pull(expect=3)
    rig.adopt()
    # Who removes the old base wants its space back.
    if seconds := [p for path in before for p in path.parent.glob("*.tidemark-name")]:
        raise HarnessError(f"left: {seconds}")
    if any(path.stat().st_nlink != 1 for path in before):
        raise HarnessError(f"{before} have other names")
    rig.go_on()
    rig.vm.terminate()
    rig.assert_images()
    rig.vm.start()
    rig.go_on()


class Spell:
    """What strace does to the system calls of a program that is stopped: each use of `call`
    on one of the paths fails from now on."""

    def __init__(self, pid, log, call, error, *paths):
        argv = ["strace", "-f", "-qq", "-o", log, "-e", f"trace={call}", "-e",
                f"inject={call}:error={error}", "-p", str(pid)]
        for path in paths:
            argv += ["-P", path]
        self.process = subprocess.Popen(argv)
        status = Path(f"/proc/{pid}/status")
        wait_for("strace", lambda: "TracerPid:\t0\n" not in status.read_text(), 30)


@case
def a_pulled_disk_takes_no_name_before_it_is_safe_and_journalled(scratch):
    for what in ("sync", "journal"):
        sub = Sub(scratch, what)
        rig = PullRig(sub, [Disk(image.create(sub.dir("disks") / "vda.qcow2", SIZE), "vda")])
        base, = (d.path for d in rig.vm.disks)
        inode = base.stat().st_ino
        running = rig.start_stopped("completed", "--collapse", "pull", "--keep-name",
                                    env={"ASAN_OPTIONS": "detect_leaks=0"})  # not beside strace
        journal, = (rig.tidemark.state / "journal").glob("*.json")
        spell = ("fsync", "EIO", rig.vm.active_file("vda")) if what == "sync" else (
            "pwrite64", "ENOSPC", f"{journal}.tmp", f"{base}.tidemark-journal.tmp")
        strace = Spell(running.process.pid, sub / "strace.log", *spell)
        rig.write_all()
        running.signal(signal.SIGCONT)
        running.finish(5)
        strace.process.wait(30)
        # The end of the pull is tried twice: by the collapse, and by the way out.
        if (sub / "strace.log").read_text().count("INJECTED") < 2:
            raise HarnessError(f"what was to fail was not used twice: {what}")
        if base.stat().st_ino != inode:
            raise HarnessError(f"the overlay took the name all the same: {what}")
        rig.tidemark("recover", rig.vm.target())
        if base.stat().st_ino == inode:
            raise HarnessError(f"recovery did not bring the pull to its end: {what}")
        rig.go_on()
        rig.vm.kill()
        rig.assert_images()


@case
def names_do_not_grow_with_each_pull(scratch):
    where = scratch.dir("disks")
    rig = PullRig(scratch, [Disk(image.create(where / "vda.qcow2", SIZE), "vda"),
                            Disk(image.create(where / f"{'n' * 190}.qcow2", SIZE), "vdb")])
    # The second name of vdb would not begin with the first, and not be recognized.
    result = rig.tidemark("backup", rig.vm.target(), "--quiesce", "never", "--collapse", "pull",
                          "--keep-name", expect=2)
    if "is too long" not in result.err:
        raise HarnessError(f"it says: {result.err}")
    assert_clean(rig.vm)
    seen = set()
    for _ in range(3):
        rig.write_all()
        rig.pull(expect=3)
        seen.add(tuple(len(path.name) for path in rig.adopt().values()))
    extra = len(".0123456789ab-0.qcow2")
    if seen != {(len("vda") + extra, 180 + extra)}:
        raise HarnessError(f"lengths of the names: {seen}")
    rig.go_on()


def add_kinds():
    """Every kind of disk, by each way; what follows is incremental and right."""
    def plain(where):
        return [Disk(image.create(where / "vda.qcow2", SIZE), "vda", style="drive")], ()

    def raw(where):
        return [Disk(image.create(where / "vda.raw", SIZE, fmt="raw"), "vda", fmt="raw")], ()

    def version_2(where):
        path = image.create(where / "vda.qcow2", SIZE, options={"compat": "0.10"})
        return [Disk(path, "vda")], ()

    def chain(where):
        image.create(where / "bottom.qcow2", SIZE)
        run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "bottom.qcow2", "-F", "qcow2",
             where / "vda.qcow2"])
        return [Disk(where / "vda.qcow2", "vda", style="drive")], ()

    def throttled(where):
        return [Disk(image.create(where / "vda.qcow2", SIZE), "vda", throttle=True)], ()

    def iothread(where):
        path = image.create(where / "vda.qcow2", SIZE)
        return ([Disk(path, "vda", device={"iothread": "io0"})], ("-object", "iothread,id=io0"))

    short = ((plain, ()), (raw, ()), (chain, ("--keep-name",)), (iothread, ("--keep-name",)))
    for kind in (plain, raw, version_2, chain, throttled, iothread):
        for options in ((), ("--keep-name",)):
            if options and kind == raw:
                continue

            def pulls(scratch, kind=kind, options=options):
                disks, extra = kind(scratch.dir("disks"))
                rig = PullRig(scratch, disks, extra)
                path = disks[0].path
                backing = image.info(path, True).get("backing-filename")
                rig.pull(*options, expect=0 if options else 3)
                rig.adopt()
                rig.go_on()
                rig.vm.terminate()
                if options:
                    disks[0].path = path
                elif disks[0].path == path:
                    raise HarnessError("the guest has its old file")
                if image.info(disks[0].path).get("backing-filename") != backing:
                    raise HarnessError(f"{image.info(disks[0].path)}, was over {backing}")
                rig.assert_images()
                rig.vm.start()
                rig.go_on()
            if not LONG and (kind, options) not in short:
                continue
            pulls.__name__ = f"pull_of_{kind.__name__}{'_keeps_its_name' if options else ''}"
            case(pulls)


add_kinds()


@case
def a_raw_disk_cannot_keep_its_name(scratch):
    path = image.create(scratch.dir("disks") / "vda.raw", SIZE, fmt="raw")
    rig = Rig(scratch, [Disk(path, "vda", fmt="raw")])
    rig.write_all()
    result = rig.tidemark("backup", rig.vm.target(), "--collapse", "pull", "--keep-name", expect=2)
    if "--keep-name" not in result.err:
        raise HarnessError(f"it says: {result.err}")
    assert_clean(rig.vm)
    rig.tidemark("backup", rig.vm.target(), "--keep-name", expect=2)


@case
def a_link_and_a_file_of_data_are_not_replaced(scratch):
    where, data = scratch.dir("disks"), scratch.dir("data")
    path = image.create(data / "vdb.qcow2", SIZE)
    (where / "vdb.qcow2").symlink_to(path)
    disks = [Disk(image.create(where / "vda.qcow2", SIZE, options={"data_file": data / "vda.raw"}),
                  "vda"), Disk(where / "vdb.qcow2", "vdb")]
    rig = Rig(scratch, disks)
    rig.write_all()
    for disk, word in (("vda", "another file"), ("vdb", "symbolic link")):
        result = rig.tidemark("backup", rig.vm.target(), "--collapse", "pull", "--keep-name",
                              "--disk", disk, expect=2)
        if word not in result.err:
            raise HarnessError(f"it says: {result.err}")
    assert_clean(rig.vm)
    if not disks[1].path.is_symlink():
        raise HarnessError("the link is gone")


@case
def a_point_that_is_not_committed_gives_its_changes_back_after_a_pull(scratch):
    rig = PullRig(scratch, two_disks(scratch))
    running = rig.start_stopped("settling", "--collapse", "pull")
    rig.write_all()
    # Its session goes, and the point with it: as if the repository had refused it.
    newest = rig.tidemark("list").json[-1]["point"]
    running.kill()
    rig.tidemark("forget", newest)
    rig.tidemark("recover", rig.vm.target(), expect=3)
    rig.adopt()
    rig.go_on()


@case
def two_repositories_stay_incremental_through_a_pull(scratch):
    rig = PullRig(scratch, two_disks(scratch))
    other = Tidemark(scratch, repo=scratch / "repo2", state=rig.tidemark.state)
    other("init")
    other("backup", rig.vm.target(), "--quiesce", "never")
    rig.write_all()
    rig.pull("--keep-name")
    rig.write_all()
    point = other("backup", rig.vm.target(), "--quiesce", "never").json
    if {disk["source"] for disk in point["disks"]} != {"bitmap"}:
        raise HarnessError(f"the other repository: {point['disks']}")
    for disk in other("restore", point["point"], "--to", scratch.dir("other")).json["disks"]:
        image.assert_same(disk["to"], rig.shadows[disk["disk"]].path, "raw")
    rig.go_on()


@case
def a_pull_without_room_turns_to_a_commit(scratch):
    where = small_file_system(scratch / "small", "24M")
    scratch.defer(lambda: run(["umount", "-l", where]))
    path = image.create(scratch.dir("disks") / "vda.qcow2", SIZE)
    rig = Rig(scratch, [Disk(path, "vda")])
    rig.write("vda", 0, 40 * MIB)
    rig.backup()
    for mode, status in (("commit", 0), ("pull", 3)):
        rig.write_all()
        frozen = rig.keep_shadows()
        running = rig.start_stopped("frozen", "--overlay-dir", where, "--collapse", mode)
        rig.write("vda", 50 * MIB, MIB)
        running.signal(signal.SIGCONT)
        point = running.finish(status).json
        if status and not any("by commit" in text for text in point["warnings"]):
            raise HarnessError(f"warnings {point['warnings']}")
        assert_clean(rig.vm)
        rig.assert_point(point, frozen)
        if rig.vm.qmp.execute("query-status")["status"] != "running":
            raise HarnessError("the guest was stopped")
    rig.go_on()


def auto(scratch, style, fill_first):
    size = 1 << 30
    path = image.create(scratch.dir("disks") / "vda.qcow2", size)
    rig = Rig(scratch, [Disk(path, "vda", style=style)], size=size)
    inode = path.stat().st_ino
    if fill_first:
        rig.write("vda", 0, 32 * MIB)
    rig.backup()
    running = rig.start_stopped("frozen")
    for number in range(300 // 4):
        rig.write("vda", number * 4 * MIB, 4 * MIB)
    running.signal(signal.SIGCONT)
    events = running.finish(0).events
    rig.go_on()
    rig.vm.terminate()
    image.assert_same(path, rig.shadows["vda"].path)
    rig.vm.start()
    rig.go_on()
    if left := [p for p in path.parent.iterdir() if p != path]:
        raise HarnessError(f"left: {left}")
    return path.stat().st_ino != inode, {event["phase"] for event in events}


if LONG:
    @case
    def auto_pulls_a_new_disk_that_was_filled_meanwhile(scratch):
        # An agent that looks when the job is at its end already tells of no progress.
        pulled, phases = auto(scratch, "drive", False)
        if not pulled or "commit" in phases:
            raise HarnessError(f"it was {'' if pulled else 'not '}pulled, phases {phases}")

    @case
    def auto_commits_where_a_node_has_a_name_or_the_disk_has_data(scratch):
        for number, (style, fill_first) in enumerate((("blockdev", False), ("drive", True))):
            pulled, _ = auto(Sub(scratch, str(number)), style, fill_first)
            if pulled:
                raise HarnessError(f"{style} was pulled")


def add_deaths():
    """Whoever dies wherever: the newest data are in the file the guest starts from."""
    short = (("agent", "pulling", True), ("agent", "completed", False), ("both", "completed", True),
             ("both", "pulled", True), ("qemu", "pulled", False), ("agent", "renamed", True))
    for phase in ("pulling", "completed", "pulled", "renamed", "settling"):
        for keep in (False, True):
            if phase == "renamed" and not keep:
                continue
            for dies in ("agent", "qemu", "both"):
                if not LONG and (dies, phase, keep) not in short:
                    continue

                def death(scratch, phase=phase, keep=keep, dies=dies):
                    rig = PullRig(scratch, two_disks(scratch))
                    options = ("--collapse", "pull") + ("--keep-name",) * keep
                    if phase != "settling":     # which recovery journals as well
                        running = rig.start_stopped("frozen", *options)
                        rig.write_all()
                        running.kill()
                    # Perhaps again, with the stop where it is wanted; it recovers first.
                    running = rig.start_stopped(phase, *options)
                    rig.write_all()
                    die(rig, running, phase, keep, dies)
                death.__name__ = (f"{dies}_killed_in_{phase}{'_keeping_the_name' if keep else ''}")
                case(death)


def die(rig, running, phase, keep, dies):
    before = {disk.id: disk.path for disk in rig.vm.disks}
    images = "image:" + ",".join(str(d.path) for d in rig.vm.disks) + ",name=vm"
    if dies != "agent":
        rig.vm.kill()
    if dies != "qemu":
        running.kill()
    if dies == "agent":
        rig.write_all()
        rig.tidemark("recover", "--check", rig.vm.target(), expect=5)
        rig.tidemark("recover", rig.vm.target(), expect=0 if keep else 3)
        if keep:
            rig.vm.terminate()
            rig.assert_images(before)
            rig.vm.start()
        else:
            rig.adopt()
        rig.go_on()
    else:
        if dies == "qemu":
            running.signal(signal.SIGCONT)
            running.finish((0, 1, 3, 5))
        if (dies, phase, keep) == ("qemu", "settling", False):
            # Too late to go back: it was the agent that told of the new files.
            rig.tidemark("recover", "--before-start", images, expect=5)
            for disk in rig.vm.disks:
                disk.path, = rig.where.glob(f"{disk.id}.*-?.qcow2")
            rig.assert_images()
            rig.vm.start()
            rig.write_all()
            rig.assert_point(rig.backup(expect=(0, 3)))
            rig.go_on()
            return
        rig.tidemark("recover", "--before-start", images)
        rig.assert_images()
        if not keep and rig.surplus():
            raise HarnessError(f"left: {rig.surplus()}")
        rig.vm.start()
        rig.write_all()
        point = rig.backup(expect=(0, 3))
        rig.assert_point(point)
        if rig.surplus():
            raise HarnessError(f"left: {rig.surplus()}")
        rig.go_on()


add_deaths()


if __name__ == "__main__":
    main()
