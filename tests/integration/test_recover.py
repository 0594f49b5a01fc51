#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""QEMU dies, hangs, or is ended in each phase of a backup, with the agent or
without it. Whatever happened, the disks' own files have the newest data
afterwards, nothing is left, and the next backup works and restores right."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

from harness import Sub, Tidemark, Vm, assert_clean, image, make_rng, note_baseline, wait_for
from harness.base import HarnessError, run as run_program
from harness.cases import case, main
from harness.proxy import Proxy
from harness.qmp import Qmp
from harness.vm import Disk

SIZE = 24 * image.MIB + 512
NAMES = ("vda", "vdb")
PHASES = ["preparing", "freezing", "switched", "frozen", "committing", "pivoting", "pivoted", "settling"]
LONG = "RECOVER_LONG" in os.environ     # exchanged files: all kinds of disks and phases
# As when the host dies: nobody is left to put things in order.
NO_GUARD = {"TIDEMARK_DEBUG_KILL_AT": "nowhere"}


class Rig:
    """A guest of two disks without an operating system, one good point, and a
    shadow of what was written to each disk."""

    def __init__(self, scratch, dirs=("disks", "disks"), **kind):
        self.scratch = scratch
        self.rng = make_rng("recover")
        self.dirs = [scratch.dir(d) for d in dirs]
        self.dir = self.dirs[0]
        self.shadows = {n: image.Shadow(scratch / f"{n}.shadow", SIZE) for n in NAMES}
        self.paths = [image.create(d / f"{n}.qcow2", SIZE) for d, n in zip(self.dirs, NAMES)]
        self.vm = Vm(scratch, [Disk(p, n, **kind) for p, n in zip(self.paths, NAMES)],
                     guest=False).start()
        note_baseline(self.vm)
        self.tidemark = Tidemark(scratch)
        self.tidemark("init")
        for _ in range(4):
            self.write()
        self.backup()
        for _ in range(4):
            self.write()

    @property
    def images(self):
        return "image:" + ",".join(map(str, self.paths)) + ",name=vm"

    def write(self):
        for name in NAMES:
            offset = self.rng.randrange(0, SIZE // 512 - 2048) * 512
            length = self.rng.randrange(1, 2048) * 512
            self.vm.write(name, offset, length, self.rng.randrange(1, 256), self.shadows[name])

    def backup(self, *options, expect=0, env=None):
        return self.tidemark("backup", self.vm.target(), "--quiesce", "never", *options,
                             expect=expect, env=env)

    def start(self, *options, env=None):
        return self.tidemark.start("backup", self.vm.target(), "--quiesce", "never", *options,
                                   env=env)

    def start_reading(self, rate="2M", env=None, options=()):
        """A backup that reads when this returns; the guest has written meanwhile."""
        run = self.start("--full", "--limit-rate", rate, *options, env=env)
        wait_for("the freeze", lambda: not run.running or all(
            self.vm.active_file(n) != self.vm.disk(n).path for n in NAMES), 30)
        self.write()
        return run

    def stop_at(self, phase, env=None):
        """A backup stopped right after `phase` was journalled."""
        env = {"TIDEMARK_DEBUG_STOP_AT": phase, **(env or {})}
        if phase in PHASES[4:]:
            run = self.start_reading("8M", env)
        else:
            run = self.start(env=env)
        run.wait_stopped(phase)
        if phase in ("switched", "frozen"):
            self.write()
        return run

    def assert_images(self):
        """The guest is off, and its own files have all it wrote."""
        for path, name in zip(self.paths, NAMES):
            image.assert_same(path, self.shadows[name].path)
            image.check(path, leaks_ok=True)
        if surplus := [p for d in self.dirs for p in d.iterdir() if p not in self.paths]:
            raise HarnessError(f"left behind: {surplus}")

    def go_on(self):
        """The guest starts from its own files; its next backups are right."""
        if not self.vm.running:
            self.assert_images()
            self.vm.start()
        self.tidemark("recover", "--check", self.vm.target())
        for source in (("bitmap", "full", "hash-diff"), ("bitmap",)):
            self.write()
            point = self.backup(expect=(0, 3)).json
            if any(disk["source"] not in source for disk in point["disks"]):
                raise HarnessError(f"{point}")
            assert_clean(self.vm)
            where = self.scratch.dir("restored")
            restored = self.tidemark("restore", point["point"], "--to", where, "--force").json
            for disk in restored["disks"]:
                image.assert_same(disk["to"], self.shadows[disk["disk"]].path, "raw", "raw")
        if journals := list((self.tidemark.state / "journal").glob("*.json")):
            raise HarnessError(f"journals are left: {journals}")


def add_phases():
    for phase in PHASES:
        def both(scratch, phase=phase):
            rig = Rig(scratch)
            run = rig.stop_at(phase, NO_GUARD)
            rig.vm.kill()
            run.kill()
            rig.tidemark("recover", "--before-start", rig.images)
            rig.go_on()
        both.__name__ = f"qemu_and_agent_killed_in_{phase}"
        case(both)

        def qemu(scratch, phase=phase):
            rig = Rig(scratch)
            run = rig.stop_at(phase)
            rig.vm.kill()
            run.signal(signal.SIGCONT)
            # From "committing" on everything has been read: there is a point.
            run.finish((0, 3, 5) if phase in PHASES[4:] else (1, 3))
            rig.tidemark("recover", "--check", rig.images)
            rig.go_on()
        qemu.__name__ = f"qemu_killed_and_the_agent_lives_in_{phase}"
        case(qemu)


add_phases()


@case
def qemu_killed_while_a_commit_runs(scratch):
    for agent_lives in (True, False):
        rig = Rig(Sub(scratch, str(agent_lives)))
        run = rig.start_reading("8M")
        for _ in range(6):
            rig.write()
        wait_for("the commit", lambda: not run.running or rig.vm.jobs(), 30, 0.001)
        if not agent_lives:
            run.kill()
        rig.vm.kill()
        if agent_lives:
            run.finish((0, 3, 5))
        else:
            rig.tidemark("recover", "--before-start", rig.images)
        rig.go_on()
        rig.vm.kill()


# --- QEMU that ends in order, or does not answer ----------------------------------


def end_by(scratch, end):
    rig = Rig(scratch)
    run = rig.start_reading()
    end(rig.vm)
    run.finish(1)
    rig.tidemark("recover", "--check", rig.images)
    rig.go_on()


@case
def qemu_is_told_to_quit_while_disks_are_read(scratch):
    end_by(scratch, lambda vm: vm.quit())


@case
def qemu_gets_sigterm_while_disks_are_read(scratch):
    end_by(scratch, lambda vm: vm.terminate())


@case
def the_guest_is_paused_and_stays_so(scratch):
    rig = Rig(scratch)
    run = rig.start_reading()
    rig.vm.qmp.execute("stop")
    run.finish(0)
    if (state := rig.vm.qmp.execute("query-status")["status"]) != "paused":
        raise HarnessError(f"the guest is {state}")
    rig.vm.qmp.execute("cont")
    rig.go_on()


@case
def the_guest_is_reset_while_disks_are_read(scratch):
    rig = Rig(scratch)
    run = rig.start_reading()
    rig.vm.qmp.execute("system_reset")
    run.finish(0)
    rig.go_on()


def unplug(rig, run):
    rig.vm.qmp.execute("device_del", id="vdb")
    wait_for("the end of vdb", lambda: not any(
        "vdb" in entry.get("qdev", "") for entry in rig.vm.qmp.execute("query-block")))
    if not run.running:
        raise HarnessError("the backup ended too early for this test")


@case
def a_disk_is_unplugged_while_disks_are_read(scratch):
    for died in (False, True):
        rig = Rig(Sub(scratch, str(died)), bus="virtio-scsi")
        run = rig.start_reading("8M", NO_GUARD if died else None)
        unplug(rig, run)
        if died:
            run.kill()
            rig.tidemark("recover", rig.vm.target())
        else:
            run.finish(0)
        rig.tidemark("recover", "--check", rig.vm.target())
        rig.backup("--disk", "vda")
        rig.vm.terminate()
        rig.go_on()
        rig.vm.kill()


@case
def a_disk_is_unplugged_and_pulled(scratch):
    rig = Rig(scratch, bus="virtio-scsi")
    run = rig.start_reading("8M", options=("--collapse", "pull", "--keep-name"))
    unplug(rig, run)
    run.finish(0)
    rig.tidemark("recover", "--check", rig.vm.target())
    rig.vm.terminate()
    for path, name in zip(rig.paths, NAMES):
        image.assert_same(path, rig.shadows[name].path)


@case
def qemu_hangs_for_longer_than_the_agent_waits(scratch):
    for phase in ("freezing", "committing", "pivoting"):
        rig = Rig(Sub(scratch, phase))
        run = rig.stop_at(phase, {"TIDEMARK_DEBUG_QMP_MS": "2000"})     # 30 s otherwise
        rig.vm.stop_process()
        run.signal(signal.SIGCONT)
        run.finish((1, 5), timeout=200)
        rig.vm.continue_process()
        rig.tidemark("recover", rig.vm.target())
        assert_clean(rig.vm)
        rig.go_on()
        rig.vm.kill()


@case
def the_monitor_is_lost_and_taken_by_somebody_else(scratch):
    rig = Rig(scratch)
    proxy = Proxy(rig.vm.dir / "proxy.sock", rig.vm.qmp_path)
    scratch.defer(proxy.close)
    target = f"qmp:{proxy.path},name=vm"

    def take_it():
        other = Qmp(rig.vm.qmp_path, 10)
        time.sleep(7)       # longer than QEMU's greeting is waited for
        other.close()

    proxy.on_lost = take_it
    for command in ("transaction", "block-commit", "job-finalize"):
        rig.write()
        proxy.arm(command, 1, "lost")
        rig.tidemark("backup", target, "--quiesce", "never", expect=(0, 1, 3))
        if not proxy.fired:
            raise HarnessError(f"{command} was not used")
        rig.tidemark("recover", "--check", target)
        assert_clean(rig.vm)
    proxy.close()
    rig.go_on()


@case
def what_the_guest_zeroed_in_an_overlay_is_never_given_to_another_cluster(scratch):
    """When it is, and QEMU dies before its table is written, the guest reads one's data in
    the other's place. That moment cannot be hit at will; where clusters lie can be seen."""
    rig = Rig(scratch)
    run = rig.start_reading("1M")
    overlay = rig.vm.active_file("vda")

    def place(offset):
        rig.vm.flush("vda")
        for extent in json.loads(run_program(["qemu-img", "map", "-U", "--output=json", overlay]).stdout):
            if extent["start"] <= offset < extent["start"] + extent["length"]:
                return extent["offset"] + offset - extent["start"]
        raise HarnessError(f"nothing is at {offset}")

    where = []
    for number in range(4):
        offset = (8 + number) * image.MIB
        rig.vm.write("vda", offset, 65536, number + 1, rig.shadows["vda"])
        where.append(place(offset))
        rig.vm.write_zeroes("vda", offset, 65536, unmap=True, shadow=rig.shadows["vda"])
    run.signal(signal.SIGTERM)
    run.finish(None)
    if len(set(where)) != len(where):
        raise HarnessError(f"one after the other got the same place: {where}")
    rig.go_on()


# --- the journal ------------------------------------------------------------------


def crashed(scratch, phase="frozen", **options):
    """Both dead while frozen, with data in the overlays. Returns the rig and all
    files of the journal: the one in the state directory first."""
    rig = Rig(scratch, **options)
    run = rig.stop_at(phase, NO_GUARD)
    rig.vm.kill()
    run.kill()
    journal, = (rig.tidemark.state / "journal").glob("*.json")
    copies = [path.with_name(path.name + ".tidemark-journal") for path in rig.paths]
    if len({path.read_bytes() for path in (journal, *copies)}) != 1:
        raise HarnessError("the files of the journal differ")
    return rig, journal, *copies


@case
def an_overlay_that_was_being_made(scratch):
    for alive in (True, False):
        rig = Rig(Sub(scratch, f"alive-{alive}"))
        run = rig.stop_at("preparing", NO_GUARD)
        run.kill()
        journal, = (rig.tidemark.state / "journal").glob("*.json")
        first, second = json.loads(journal.read_text().splitlines()[0])["disks"]
        Path(first["overlay"]).write_bytes(b"")
        Path(second["overlay"] + "-data").write_bytes(b"")
        if not alive:
            rig.vm.kill()
        rig.tidemark("recover", *[] if alive else ["--before-start"], rig.vm.target() if alive else rig.images)
        rig.go_on()
        rig.vm.kill()


@case
def an_overlay_that_is_damaged_is_not_merged(scratch):
    rig, journal, *_ = crashed(scratch)
    overlays = [Path(d["overlay"]) for d in json.loads(journal.read_text().splitlines()[0])["disks"]]
    with open(overlays[1], "r+b") as file:      # its counts of references
        file.seek(2 * 65536)
        file.write(bytes(65536))
    kept = [p.read_bytes() for p in (*rig.paths, *overlays)]
    result = rig.tidemark("recover", "--before-start", rig.images, expect=5)
    if "is damaged" not in result.err or str(overlays[1]) not in result.err:
        raise HarnessError(f"{result}: {result.err}")
    # Not even the other disk's, for a guest has to be of one instant.
    if [p.read_bytes() for p in (*rig.paths, *overlays)] != kept:
        raise HarnessError("something was touched")
    run_program(["qemu-img", "check", "-q", "-r", "all", "-f", "qcow2", overlays[1]], check=False)
    rig.tidemark("recover", "--before-start", rig.images)
    rig.go_on()


@case
def no_disk_is_merged_while_one_is_in_use(scratch):
    rig, journal, *_ = crashed(scratch)
    overlays = [Path(d["overlay"]) for d in json.loads(journal.read_text().splitlines()[0])["disks"]]
    files = (*rig.paths, *overlays)
    kept = [p.read_bytes() for p in files]
    for used in (rig.paths[1], overlays[1]):
        with open(used, "rb"):
            assert_says(rig.tidemark("recover", rig.images, expect=(1, 5)), used, "is in use")
        if [p.read_bytes() for p in files] != kept:
            raise HarnessError("something was touched")
    rig.tidemark("recover", "--before-start", rig.images)
    rig.go_on()


@case
def a_journal_that_is_missing_or_torn_in_one_place(scratch):
    def remove(path):
        path.unlink()

    def tear(path):
        path.write_bytes(path.read_bytes()[:100])

    for number, spoil in enumerate((remove, tear)):
        for which in (0, 1, 2):
            rig, *places = crashed(Sub(scratch, f"{number}-{which}"))
            spoil(places[which])
            rig.tidemark("recover", "--before-start", rig.images)
            rig.go_on()
            rig.vm.kill()


@case
def any_base_leads_to_the_journal_when_the_state_is_lost(scratch):
    for phase in ("frozen", "pivoted"):
        rig, *places = crashed(Sub(scratch, phase), phase, dirs=("first", "second"))
        shutil.rmtree(rig.tidemark.state)
        result = rig.tidemark("recover", "--before-start", f"image:{rig.paths[1]}")
        rig.assert_images()
        if left := [path for path in places if path.exists()]:
            raise HarnessError(f"left behind: {left}: {result.err}")
        rig.go_on()
        rig.vm.kill()


@case
def without_any_journal_a_person_is_told_what_to_do(scratch):
    rig, *places = crashed(scratch)
    for path in places:
        path.unlink()
    overlays = sorted(rig.dir.glob("*.tidemark-overlay"))
    for number, path in enumerate(overlays):
        result = rig.tidemark("recover", "--before-start", rig.images, expect=5)
        if str(path) not in result.err or "'qemu-img commit' of it" not in result.err:
            raise HarnessError(f"{number}: it says: {result.err}")
        run_program(["qemu-img", "commit", "-q", path])
        path.unlink()
        Path(f"{path}-data").unlink()
    rig.tidemark("recover", "--before-start", rig.images)
    rig.go_on()


@case
def a_journal_of_a_newer_version_is_left_alone(scratch):
    rig, *places = crashed(scratch)
    saved = [path.read_bytes() for path in places]
    for path in places:
        line = path.read_text().splitlines()[0]
        document = json.loads(line)
        document["tidemark_journal"] = 2
        text = json.dumps(document).encode() + b"\n"
        path.write_bytes(text + b'{"crc32c":"%08x"}\n' % crc32c(text))
    before = {path: path.read_bytes() for path in rig.dir.iterdir()}
    result = rig.tidemark("recover", "--before-start", rig.images, expect=1)
    if "newer" not in result.err and "version" not in result.err:
        raise HarnessError(f"it says: {result.err}")
    if before != {path: path.read_bytes() for path in rig.dir.iterdir()}:
        raise HarnessError("something was touched")
    for path, content in zip(places, saved):
        path.write_bytes(content)
    rig.tidemark("recover", rig.images)
    rig.go_on()


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 & -(crc & 1))
    return crc ^ 0xffffffff


# --- the wrong files --------------------------------------------------------------


@case
def a_guest_started_without_its_overlay_is_not_merged_over(scratch):
    # In "committing" the first base has begun to change; the second one tells for both.
    for phase in ("switched", "frozen", "committing"):
        started_alone(*crashed(Sub(scratch, phase), phase))


def started_alone(rig, *journals):
    overlays = sorted(rig.dir.glob("*.tidemark-overlay"))
    rig.vm.start()
    rig.vm.write("vda", 1 << 20, 65536, 77)
    files = {path: path.read_bytes() for path in overlays}
    result = rig.tidemark("recover", rig.vm.target(), expect=5)
    if not any(str(path) in result.err for path in overlays):
        raise HarnessError(f"it says: {result.err}")
    rig.backup(expect=5)
    rig.vm.terminate()
    result = rig.tidemark("recover", "--before-start", rig.images, expect=5)
    if not any(str(path) in result.err for path in overlays):
        raise HarnessError(f"it says: {result.err}")
    if files != {path: path.read_bytes() for path in overlays}:
        raise HarnessError("an overlay was touched")
    # As it says: the person decides for the base.
    command, = (line for line in result.json["actions"] if ": rm -f --" in line)
    data = [str(path) for path in rig.dir.glob("*-overlay-data")]
    if missing := [path for path in [*map(str, (*overlays, *journals)), *data] if path not in command]:
        raise HarnessError(f"{missing} are not in: {command}")
    # Or by hand: the overlays alone.
    for path in overlays:
        path.unlink()
    said = rig.tidemark("recover", "--before-start", rig.images).json["actions"]
    if len(data) != 2 or any(not any(f"removed {path}" in line for line in said) for path in data):
        raise HarnessError(f"{data} are not in: {said}")
    for path, name in zip(rig.paths, NAMES):
        image.to_raw(path, rig.shadows[name].path)
    rig.go_on()
    rig.vm.kill()


def assert_refused(vm, what):
    """A second QEMU on the same files does not start."""
    try:
        vm.start()
    except HarnessError as error:
        if 'Failed to get "write" lock' in str(error):
            return
        raise
    raise HarnessError(f"a second QEMU started {what}")


@case
def no_other_qemu_starts_on_a_frozen_base(scratch):
    rig = Rig(scratch)
    run = rig.stop_at("frozen")
    other = Vm(scratch, rig.vm.disks, guest=False, name="other")
    assert_refused(other, "beside the first one")
    rig.vm.kill()
    assert_refused(other, "while the agent is alive")
    # A start script waits for the agent, which puts things in order itself.
    waiting = rig.tidemark.start("recover", "--before-start", rig.images)
    time.sleep(1)
    if not waiting.running:
        raise HarnessError(f"it did not wait: {waiting.finish(None).err}")
    run.signal(signal.SIGCONT)
    run.finish((1, 3))      # all that is to be read may have been read
    waiting.finish(0)
    rig.assert_images()
    other.start()
    other.kill()
    rig.go_on()


@case
def status_and_recover_beside_a_backup_that_runs(scratch):
    rig = Rig(scratch)
    run = rig.start_reading("1M")
    rig.write()
    target = rig.vm.target()
    for asked in (target, rig.images):
        status = rig.tidemark("status", asked).json
        running = status["running"]
        if running["process"] != run.process.pid or running["phase"] != "frozen" or \
                status["recovery_needed"] or running["repository"] != f"file:{rig.tidemark.repo}":
            raise HarnessError(f"{status}")
        text = rig.tidemark("status", asked, json_output=False).out
        if str(run.process.pid) not in text or "frozen" not in text:
            raise HarnessError(text)
    for options in ((), ("--check",)):
        for asked in ((target,), (rig.images,), ()):
            document = rig.tidemark("recover", *options, *asked).json
            if document["left"] or str(run.process.pid) not in document["actions"][0]:
                raise HarnessError(f"{document}")
    rig.tidemark("backup", target, expect=1)
    if not run.running:
        raise HarnessError("the backup ended too early for this test")
    run.finish(0)
    if rig.tidemark("status", target).json.get("running"):
        raise HarnessError("it still runs")
    rig.go_on()


@case
def before_start_is_quick_and_quiet_when_nothing_is_left(scratch):
    rig = Rig(scratch)
    rig.vm.terminate()
    shutil.rmtree(scratch / "repo")     # and asks no repository
    result = rig.tidemark("recover", "--before-start", rig.images, json_output=False)
    if result.out or result.err or result.seconds > 1.5:
        raise HarnessError(f"{result}: {result.out}{result.err}")
    result = rig.tidemark("recover", "--before-start", f"image:{rig.paths[0]}.qcow3", expect=1)
    if "there is no image" not in result.err:
        raise HarnessError(f"it says: {result.err}")
    rig.tidemark("recover", "--before-start", expect=2)
    rig.tidemark("recover", "--before-start", "--check", rig.images, expect=2)


# --- another file under the name of a base ----------------------------------------


class Exchange:
    """The file of a disk is renamed away, and a copy of it has its name."""

    def __init__(self, path, aside, keep_times=True):
        self.path, self.aside = path, aside
        path.rename(aside)
        image.copy(aside, path)
        if keep_times:
            shutil.copystat(aside, path)
        self.content = path.read_bytes()

    def undo(self):
        if self.path.read_bytes() != self.content:
            raise HarnessError(f"the other file under the name {self.path} was written")
        self.path.unlink()
        self.aside.rename(self.path)


def assert_says(result, *words):
    if missing := [str(word) for word in words if str(word) not in result.err]:
        raise HarnessError(f"{missing} is not in: {result.err}")


@case
def a_base_exchanged_while_disks_are_read(scratch):
    # With "drive" QEMU opens the base again by its name, with "blockdev" it does not.
    for style in ("drive", "blockdev") if LONG else ("drive",):
        rig = Rig(Sub(scratch, style), style=style)
        run = rig.start_reading("8M")
        inode = rig.paths[0].stat().st_ino
        exchange = Exchange(rig.paths[0], rig.scratch / "aside")
        rig.write()
        assert_says(run.finish(5), rig.paths[0], inode, "overlay")
        rig.write()
        assert_says(rig.tidemark("recover", rig.vm.target(), expect=5), inode)
        rig.backup(expect=5)
        exchange.undo()
        rig.write()
        rig.tidemark("recover", rig.vm.target())
        rig.go_on()
        rig.vm.kill()


@case
def a_base_without_its_name_when_it_is_to_be_read(scratch):
    rig = Rig(scratch)
    run = rig.stop_at("frozen")
    inode = rig.paths[0].stat().st_ino
    aside = rig.paths[0].rename(scratch / "aside")
    run.signal(signal.SIGCONT)
    assert_says(run.finish(5), rig.paths[0], inode, "overlay", "tidemark recover")
    rig.tidemark("recover", "--check", rig.vm.target(), expect=5)
    rig.write()
    aside.rename(rig.paths[0])
    rig.tidemark("recover", rig.vm.target())
    rig.go_on()


@case
def another_file_is_read_under_the_name_of_a_base(scratch):
    rig = Rig(scratch)
    points = rig.tidemark("list").json
    run = rig.stop_at("frozen")
    exchange = Exchange(rig.paths[1], rig.scratch / "aside")
    run_program(["qemu-io", "-f", "qcow2", "-c", "write -P 99 0 64k", rig.paths[1]])
    exchange.content = rig.paths[1].read_bytes()
    run.signal(signal.SIGCONT)
    assert_says(run.finish(5), "what was read is not the disk", rig.paths[1])
    if rig.tidemark("list").json != points:
        raise HarnessError("there is a point of the other file")
    exchange.undo()
    rig.tidemark("recover", rig.vm.target())
    rig.go_on()


@case
def a_base_that_was_exchanged_before_is_left_alone(scratch):
    rig = Rig(scratch, style="drive")
    exchange = Exchange(rig.paths[0], rig.scratch / "aside")
    rig.write()
    if "replaced" not in rig.tidemark("status", rig.vm.target(), json_output=False).out:
        raise HarnessError("status does not tell")
    result = rig.backup(expect=3)
    assert_says(result, rig.paths[0], "replaced")
    if [disk["disk"] for disk in result.json["disks"]] != ["vdb"]:
        raise HarnessError(f"{result.json}")
    exchange.undo()
    rig.go_on()


@case
def a_base_exchanged_while_it_is_merged(scratch):
    for style in ("drive", "blockdev") if LONG else ("drive",):
        rig = Rig(Sub(scratch, style), style=style)
        run = rig.stop_at("pivoting")
        inode = rig.paths[0].stat().st_ino
        exchange = Exchange(rig.paths[0], rig.scratch / "aside")
        run.signal(signal.SIGCONT)
        assert_says(run.finish(5), rig.paths[0], inode)
        rig.write()
        rig.tidemark("recover", "--check", rig.vm.target(), expect=5)
        exchange.undo()
        rig.tidemark("recover", rig.vm.target())
        rig.go_on()
        rig.vm.kill()


@case
def an_overlay_directory_that_was_renamed_is_mentioned(scratch):
    rig = Rig(scratch)
    where = scratch.dir("overlays")
    for left_to_recovery in (False, True):
        run = rig.start("--overlay-dir", where, env={
            "TIDEMARK_DEBUG_STOP_AT": "frozen", **(NO_GUARD if left_to_recovery else {})})
        run.wait_stopped("frozen")
        rig.write()
        moved = where.rename(scratch / "moved")
        if left_to_recovery:
            run.kill()
            said = "".join(rig.tidemark("recover", rig.vm.target(), expect=3).json["actions"])
        else:
            run.signal(signal.SIGCONT)
            said = run.finish((0, 3)).err
        if said.count("was moved") != len(NAMES):
            raise HarnessError(f"it says: {said}")
        shutil.rmtree(moved)
        where.mkdir()
    rig.go_on()


@case
def a_name_that_a_pull_was_to_take_is_taken(scratch):
    rig = Rig(scratch)
    run = rig.start("--full", "--collapse", "pull", "--keep-name",
                    env={"TIDEMARK_DEBUG_STOP_AT": "pulling"})
    run.wait_stopped("pulling")
    exchange = Exchange(rig.paths[0], rig.scratch / "aside")
    rig.write()
    run.signal(signal.SIGCONT)
    assert_says(run.finish(5), rig.paths[0])
    rig.write()
    if rig.paths[0].read_bytes() != exchange.content:
        raise HarnessError("the other file was touched")
    rig.paths[0].rename(rig.scratch / "another")
    rig.tidemark("recover", rig.vm.target())
    rig.vm.terminate()
    for path, name in zip(rig.paths, NAMES):
        image.assert_same(path, rig.shadows[name].path)


@case
def files_exchanged_after_a_crash(scratch):
    # phase, which of base and overlay, with its times: is it refused?
    table = [("frozen", "base", False, True), ("frozen", "base", True, False),
             ("frozen", "both", True, False), ("frozen", "overlay", True, True),
             ("committing", "both", True, False), ("committing", "base", True, True),
             ("pivoted", "base", True, True), ("pivoted", "both", True, False)]
    for number, (phase, which, keep_times, refused) in enumerate(table if LONG else table[1::2]):
        rig, *_ = crashed(Sub(scratch, str(number)), phase)
        overlay, = rig.dir.glob("vda.*.tidemark-overlay")
        files = {"base": [rig.paths[0]], "overlay": [overlay], "both": [rig.paths[0], overlay]}
        exchanges = [Exchange(path, rig.scratch / f"aside{n}", keep_times)
                     for n, path in enumerate(files[which])]
        print(f"# {phase} {which} {keep_times}", flush=True)
        if refused:
            assert_says(rig.tidemark("recover", "--before-start", rig.images, expect=5),
                        files[which][0])
            for exchange in exchanges:
                exchange.undo()
        rig.tidemark("recover", "--before-start", rig.images)
        rig.go_on()
        rig.vm.kill()


if __name__ == "__main__":
    main()
