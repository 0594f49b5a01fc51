# SPDX-License-Identifier: Apache-2.0
"""What a guest feels of a backup: how long its writes take."""

import contextlib
import json
import math
import os
import shutil
import statistics
import struct
import threading
import time
from pathlib import Path

from harness import HarnessError, Tidemark, Vm, image, run, wait_for
from harness.vm import Disk

from engine.host import private_mounts

from scenario import FEW, scenario

HERE = Path(__file__).resolve().parent
LOG_BYTES = 16 * image.MIB


class Guest:
    """A Linux guest with a disk of data, and latency.c in it."""

    def __init__(self, bench, gib):
        where = bench.dir("latency")
        self.scratch, self.seed, self.vm = bench.scratch, bench.seed, None
        run(["gcc", "-D_GNU_SOURCE", "-static", "-O2", "-o", where / "latency", HERE / "latency.c"])
        program, self.log, disk = where / "program.raw", where / "log.raw", where / "disk.qcow2"
        program.write_bytes((where / "latency").read_bytes().ljust(2 * image.MIB, b"\0"))
        image.create(self.log, LOG_BYTES, "raw")
        # A disk full of data that nothing makes smaller, so that a backup has something to do.
        raw = where / "disk.raw"
        with open(raw, "wb") as file:
            for _ in range(gib << 4):
                file.write(os.urandom(64 * image.MIB))
        run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, disk], timeout=600)
        raw.unlink()
        self.vm = Vm(bench.scratch, [Disk(disk, "vda"), Disk(self.log, "vdb", fmt="raw"),
                                     Disk(program, "vdc", fmt="raw")]).start()
        self.vm.console.sh("cat /dev/vdc >/latency; chmod 755 /latency")

    def start(self, seconds):
        """Writes for so long in the background; see Writing."""
        self.seed += 1
        return Writing(self, seconds)


class Writing:
    """`result` waits for the end and gives [(when, microseconds)], by the host's clock."""

    def __init__(self, guest, seconds):
        self.guest, self.error = guest, None
        command = f"/latency /dev/vda /dev/vdb {seconds} {guest.seed}"
        self._thread = threading.Thread(target=self._run, args=(command, seconds + 120), daemon=True)
        self._thread.start()
        # The program says on its log that it begins.
        wait_for("the guest to write", self._has_begun, 30, 0.001)
        self.began = time.monotonic()

    def _has_begun(self):
        with open(self.guest.log, "rb") as log:
            return self.error or struct.unpack("<II", log.read(8)) == (0xffffffff, self.guest.seed)

    def _run(self, command, timeout):
        try:
            self.guest.vm.console.sh(command, timeout)
        except HarnessError as error:
            self.error = error

    def result(self):
        self._thread.join()
        if self.error:
            raise self.error
        data = self.guest.log.read_bytes()
        count, _ = struct.unpack_from("<II", data)
        return [(self.began + at / 1e6, took)
                for at, took in struct.iter_unpack("<II", data[8:8 * (count + 1)])]


class Phases(threading.Thread):
    """When a backup under way was in which phase, by its journal."""

    def __init__(self, running, state):
        super().__init__(daemon=True)
        self.running, self.journals, self.spans = running, state / "journal", []
        self.start()

    def _phase(self):
        for path in self.journals.glob("*.json"):
            with contextlib.suppress(OSError):
                return json.loads(path.read_text().splitlines()[0])["phase"]
        return None

    def run(self):
        while self.running.running:
            phase, now = self._phase(), time.monotonic()
            if self.spans and self.spans[-1][0] == phase:
                self.spans[-1][2] = now
            else:
                self.spans.append([phase, now, now])
            time.sleep(0.005)

    def of(self, phases, notes, first=0.0, last=float("inf")):
        """Of the writes that ended within one of the phases, how long they took."""
        return [took for at, took in notes if first <= at <= last and any(
            phase in phases and begun <= at + took / 1e6 <= ended for phase, begun, ended in self.spans)]


def figures(bench, name, took):
    """One round of a row."""
    if len(took) < 20:
        bench.note(f"{name}: only {len(took)} writes in one round")
        return
    ordered = sorted(took)
    values = {"writes": len(took), "p50_us": statistics.median(ordered), "p99_us": ordered[len(took) * 99 // 100],
              "max_ms": ordered[-1] / 1000}
    row = bench.outcome.rows.setdefault(name, {})
    for key, value in values.items():
        row.setdefault(key, []).append(value)


class Runs:
    """Backups of the guest, each into a repository of its own, which is removed at its end."""

    def __init__(self, bench, guest, seconds):
        self.bench, self.guest, self.seconds, self.number, self.repo = bench, guest, seconds, 0, None

    def start(self, *options, repo=None):
        """(the run, its Phases)"""
        self.number += 1
        where = self.bench.dir(f"latency-{self.number}")
        tidemark = Tidemark(self.bench.scratch, repo=repo or where / "repo", state=where / "state",
                            binary=self.bench.tidemark)
        tidemark("init")
        self.repo = tidemark.repo
        running = tidemark.start("backup", self.guest.vm.target(agent=False), "--disk", "vda", "--full",
                                 "--quiesce", "never", *options)
        return running, Phases(running, tidemark.state)

    def finish(self, running, expect=0):
        result = running.finish(expect, timeout=600)
        shutil.rmtree(self.repo)
        return result

    def plain(self):
        """Read and merged back, as fast as it goes."""
        writing = self.guest.start(self.seconds)
        time.sleep(0.5)
        running, phases = self.start()
        self.finish(running)
        notes = writing.result()
        figures(self.bench, "while a backup reads", phases.of(("frozen",), notes))
        figures(self.bench, "while it is merged back", phases.of(("committing", "pivoting", "pivoted"), notes))

    def governed(self, limit_ms):
        """The same, slower where writes take longer than this."""
        writing = self.guest.start(self.seconds)
        time.sleep(0.5)
        running, phases = self.start("--latency-limit", str(limit_ms))
        self.finish(running)
        figures(self.bench, "the same with --latency-limit", phases.of(("frozen",), writing.result()))

    def hanging(self, where):
        """The file system of the repository hangs for half of the time."""
        writing = self.guest.start(self.seconds)
        running, phases = self.start("--limit-rate", "64M", repo=where / f"repo-{self.number}")
        time.sleep(1)
        run(["fsfreeze", "-f", where])
        first = time.monotonic()
        time.sleep(self.seconds / 2)
        last = time.monotonic()
        run(["fsfreeze", "-u", where])
        self.finish(running)
        figures(self.bench, "while the repository hangs", phases.of(("frozen",), writing.result(), first, last))

    def full(self, where):
        """The overlay's file system fills up."""
        writing = self.guest.start(self.seconds)
        running, phases = self.start("--overlay-dir", str(where), "--limit-rate", "16M")
        result = self.finish(running, 1)
        notes = writing.result()
        if "room" not in result.err:
            raise HarnessError(f"{result}: {result.err}")
        figures(self.bench, "until the overlay's disk is full", phases.of(("frozen",), notes))
        figures(self.bench, "while that is merged back", phases.of(("committing", "pivoting", "pivoted"), notes))


def mount(bench, name, size):
    """A file system of `size`, or None where that is not allowed."""
    where, disk = bench.dir(name), bench.where / f"{name}.img"
    with open(disk, "wb") as file:
        file.truncate(size)
    run(["mkfs.ext4", "-q", disk])
    if run(["mount", "-o", "loop,discard", disk, where], check=False).returncode:
        return None
    bench.scratch.defer(run, ["umount", where])
    return where


@scenario("guest-latency", "What the guest feels", ("qemu-system-x86_64", "qemu-img", "gcc"))
def guest_latency(bench):
    """4 KiB writes of a Linux guest (emulated: no KVM), one after the other at random places of its
    disk and past its page cache: without a backup; while a full backup reads; while its overlay is
    merged back; while one reads that was told to slow down when more than one write in a hundred takes longer
    than 1.5 times what one in a hundred took without a backup; while the repository's file system hangs, for as long as it does (fsfreeze); and on
    an overlay file system of 64 MiB that fills up, for which the backup is given up. All lies in
    memory, so the latency of a real disk is not in it. Two rounds."""
    seconds, gib = (4, 1) if bench.small else (10, 2)
    mounts = private_mounts()       # before QEMU starts, which has to see them
    repos, small = (mount(bench, "hanging", 4 << 30), mount(bench, "small", 64 << 20)) if mounts else (None, None)
    if not repos or not small:
        bench.note("without file systems of its own: neither one that hangs nor a full one")
    guest = Guest(bench, gib)
    runs = Runs(bench, guest, seconds)
    for _ in range(min(bench.rounds, FEW)):
        figures(bench, "no backup", [took for _, took in guest.start(seconds).result()])
        runs.plain()
        runs.governed(math.ceil(1.5 * bench.outcome.median("no backup", "p99_us") / 1000))
        if repos and small:
            runs.hanging(repos)
            runs.full(small)
    guest.vm.kill()
