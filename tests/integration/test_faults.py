#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Each QMP command of a backup, each step of its NBD connections and each write of its
journal, spoilt in each way. Afterwards one recovery puts all right.

    test_faults.py                   some of it, drawn by the seed
    TIDEMARK_FAULTS=all ...          all of it
    TIDEMARK_FAULT_TABLE=FILE ...    all of it, written down as docs/faults.md
"""

import os
import re
import signal

from harness import (Sub, Tidemark, Vm, assert_clean, image, make_rng, nbd_faults, note_baseline, run,
                     wait_for)
from harness.base import HarnessError
from harness.cases import case, main
from harness.checks import leftovers
from harness.proxy import FAULTS as QMP_FAULTS, Proxy
from harness.vm import Disk

SIZE = 8 * image.MIB + 512
TIMEOUT_MS = 1200       # instead of 30 s, for a table of many rows
TABLE = os.environ.get("TIDEMARK_FAULT_TABLE")
ALL = TABLE or os.environ.get("TIDEMARK_FAULTS") == "all"

HEAD = """# What a fault leads to

Made by `tests/integration/test_faults.py`, which fails when a cell is not as it has to be: whatever
happens to the n-th use of something in an incremental backup, afterwards (and after one `tidemark recover`
where the table says "recover") the guest runs on its own file, nothing is left, the next backup works, and what it
restores is what the guest wrote. "point": the backup was made all the same, and is right; "no point": it was
given up with an error, or died. "-": that does not happen. Waits are shortened to 1.2 s.
"""
QMP_HEAD = """
## QMP commands

The first and the last use of each.

* **refused**: QEMU never got the command; the answer was an error
* **no reply**: QEMU did it, the answer never came
* **lost**: QEMU did it, the connection ended
* **late**: QEMU did it, the answer came after the wait had been given up

| command | use | refused | no reply | lost | late |
|---|---|---|---|---|---|
"""
OTHER_HEAD = """
## QMP commands of other collapses

The same, for what only a pull (`--collapse pull --keep-name`) does, and a commit with a rate that is lifted, because somebody
interrupts the backup. The guest starts again after each: its own file is what it starts from.

| command | use | refused | no reply | lost | late |
|---|---|---|---|---|---|
"""
NBD_HEAD = """
## NBD

A peer between Tidemark and `qemu-nbd` spoils the first and the last use of each step.

* **error**: the answer is an error; a greeting is not one of NBD
* **short**: half of what was asked for comes, and is said to be all (what NBD allows for a block status)
* **disconnect**: the connection ends instead of an answer
* **hang**: no answer ever
* **late**: the answer comes after 1.5 s
* **killed**: the server is killed

| step | use | error | short | disconnect | hang | late | killed |
|---|---|---|---|---|---|---|---|
"""
JOURNAL_HEAD = """
## The journal

Each write of it, in the order of a run. There is a file in the state directory and a copy beside each base, here one; both are
written, then synced, then renamed.

* **EIO**, **ENOSPC**: on both files, or on the one named
* **crash before**: the agent is killed before it, and nobody watches over it, as when the host dies
* **crash between**: when the first file is in place and the copy is not
* **crash after**: once both are in place

| write | EIO | ENOSPC | EIO, first file | ENOSPC, copy | crash before | crash between | crash after |
|---|---|---|---|---|---|---|---|
"""
IMAGE_HEAD = """
## The journal of images at rest

As above; there is one file, for no overlay is made that could get lost with it.

| write | EIO | ENOSPC | crash before | crash after |
|---|---|---|---|---|
"""
IMAGE_FAULTS = ("EIO", "ENOSPC", "crash before", "crash after")
JOURNAL_FAULTS = ("EIO", "ENOSPC", "EIO, first file", "ENOSPC, copy", "crash before", "crash between",
                  "crash after")


class Rig:
    def __init__(self, scratch, env=None):
        self.scratch = scratch
        self.rng = make_rng("faults")
        self.shadow = image.Shadow(scratch / "vda.shadow", SIZE)
        path = image.create(scratch.dir("disks") / "vda.qcow2", SIZE)
        self.vm = Vm(scratch, [Disk(path, "vda")], guest=False).start()
        note_baseline(self.vm)
        self.tidemark = Tidemark(scratch, env={"TIDEMARK_DEBUG_QMP_MS": str(TIMEOUT_MS),
                                               "TIDEMARK_DEBUG_STALL_MS": str(TIMEOUT_MS * 2), **(env or {})})
        self.tidemark("init")
        self.target = self.vm.target()
        self.prepare()
        self.backup()

    def prepare(self):
        """For those who need more than this."""

    def end(self):
        self.vm.kill()

    def write(self):
        offset = self.rng.randrange(0, SIZE // 512 - 256) * 512
        length = self.rng.randrange(1, 256) * 512
        self.vm.write("vda", offset, length, self.rng.randrange(1, 256), self.shadow)

    def backup(self, expect=(0, 3), env=None):
        return self.tidemark("backup", self.target, "--quiesce", "never", expect=expect, env=env)

    def restored_right(self, point):
        disk, = self.tidemark("restore", point, "--to", self.scratch.dir("restored"),
                              "--force").json["disks"]
        image.assert_same(disk["to"], self.shadow.path, "raw", "raw")

    def left(self):
        """What is there that should not be, as sentences."""
        # A bitmap that could not be settled is settled by the next backup.
        return [x for x in leftovers(self.vm, None) if ": bitmap " not in x]

    def assert_clean(self):
        assert_clean(self.vm)

    # --- for each table -------------------------------------------------------------

    def spoilt_backup(self, row, fault):
        """(Result, whether the fault came to pass)"""
        raise NotImplementedError

    def spoil(self, row, fault):
        """One cell: what came of it."""
        for _ in range(3):
            self.write()
        result, fired = self.spoilt_backup(row, fault)
        made = bool(result.out.strip())
        left = self.tidemark("recover", "--check", self.target, expect=(0, 5)).status == 5
        if made:
            self.restored_right(result.json["point"])
        elif result.status in (0, 3):
            raise HarnessError(f"{result}: no point, and no failure")
        # 5, unless it died or was told to end.
        if left and result.status in (0, 1, 3):
            raise HarnessError(f"{result}: something is left, and it does not say so")
        if left:
            self.tidemark("recover", self.target)
        if rest := self.left():
            raise HarnessError(f"{result}: left behind: {rest}")
        self.write()
        point = self.backup().json
        self.assert_clean()
        self.restored_right(point["point"])
        if not fired:
            return "-"      # polls are as many as it takes
        return ("point" if made else "no point") + (", then recover" if left else "")


def uses(steps):
    """(step, n): the first and the last use of each, in order."""
    found = []
    for step in dict.fromkeys(steps):
        found.append((step, 1))
        if (count := steps.count(step)) > 1:
            found.append((step, count))
    return found


_sections = {}


def run_table(scratch, rig_class, head, faults, some):
    """Every cell of a table, or `some` of them."""
    rig = rig_class(scratch)
    rows = rig.rows()
    cells = [(row, fault) for row in rows for fault in faults]
    if not ALL:
        cells = sorted(rig.rng.sample(cells, min(some, len(cells))), key=cells.index)
    outcome, bad = {}, []
    for row, fault in cells:
        try:
            outcome[row, fault] = rig.spoil(row, fault)
        except HarnessError as error:
            bad.append(f"{row} {fault}: {error}")
            outcome[row, fault] = "WRONG"
            rig.end()
            rig = rig_class(Sub(scratch, f"again{len(bad)}"))
        print(f"# {row} {fault}: {outcome[row, fault]}", flush=True)
    if TABLE:
        _sections[head] = head + "".join(
            f"| {rig_class.say(row)} | {' | '.join(outcome[row, f] for f in faults)} |\n" for row in rows)
        with open(TABLE, "w", encoding="utf-8") as file:
            file.write(HEAD + "".join(_sections.values()))
    if bad:
        raise HarnessError(f"{len(bad)} are wrong:\n" + "\n".join(bad))
    print(f"# {len(cells)} faults", flush=True)


def say_use(row):
    step, nth = row
    return f"{step} | {nth}"


# --- QMP ----------------------------------------------------------------------------


class QmpRig(Rig):
    def prepare(self):
        self.proxy = Proxy(self.vm.dir / "proxy.sock", self.vm.qmp_path, late=TIMEOUT_MS * 2.2 / 1000)
        self.scratch.defer(self.proxy.close)
        self.target = f"qmp:{self.proxy.path},name=vm"

    def rows(self):
        self.write()
        self.proxy.reset()
        self.backup()
        return uses(list(self.proxy.commands))

    def spoilt_backup(self, row, fault):
        self.proxy.arm(*row, fault)
        result = self.backup(expect=(0, 1, 3, 5))
        if not self.proxy.fired and row[1] == 1:
            raise HarnessError("the command was not used")
        return result, self.proxy.fired

    @staticmethod
    def say(row):
        return f"`{row[0]}` | {row[1]}"


@case
def each_command_spoilt_in_each_way(scratch):
    run_table(scratch, QmpRig, QMP_HEAD, QMP_FAULTS, 20)


class OtherRig(QmpRig):
    """A pull makes another file the guest's disk: QEMU calls it by its first name until it ends."""

    SAME = (7 * image.MIB, image.MIB // 2, 7)   # a place of which the content never changes

    def prepare(self):
        super().prepare()
        self.vm.write("vda", *self.SAME, self.shadow)

    def write(self):
        offset = self.rng.randrange(0, self.SAME[0] // 512 - 256) * 512
        length = self.rng.randrange(1, 256) * 512
        self.vm.write("vda", offset, length, self.rng.randrange(1, 256), self.shadow)

    def rows(self):
        return [(step, 1) for step in ("block-stream", "blockdev-reopen", "job-finalize", "job-dismiss",
                                       "block-job-set-speed")]

    def spoilt_backup(self, row, fault):
        self.proxy.arm(*row, fault)
        if row[0] == "block-job-set-speed":
            result = self._interrupted()
        else:
            result = self.tidemark("backup", self.target, "--quiesce", "never", "--collapse", "pull",
                                   "--keep-name", expect=(0, 1, 3, 5))
        if not self.proxy.fired:
            raise HarnessError(f"the command was not used: {self.proxy.commands}")
        return result, True

    def _interrupted(self):
        """A commit that takes seconds, and somebody who does not want to wait."""
        backup = self.tidemark.start("backup", self.target, "--quiesce", "never", "--audit", "0",
                                     "--limit-rate", "128K")
        path = self.vm.disk("vda").path
        wait_for("the freeze", lambda: not backup.running or self.vm.active_file("vda") != path, 30)
        self.vm.write("vda", *self.SAME)
        wait_for("the commit", lambda: not backup.running or "block-commit" in self.proxy.commands, 30, 0.01)
        backup.signal(signal.SIGTERM)
        return backup.finish((0, 1, 3, 5, 130))

    def left(self):
        self.vm.terminate()
        image.assert_same(self.vm.disk("vda").path, self.shadow.path)
        self.vm.start()
        return [x for x in super().left() if not x.endswith(".tidemark-name")]


@case
def each_command_of_other_collapses_spoilt_in_each_way(scratch):
    run_table(scratch, OtherRig, OTHER_HEAD, QMP_FAULTS, 3)


# --- NBD ----------------------------------------------------------------------------


class NbdRig(Rig):
    def _backup(self, fault):
        log = self.scratch / "nbd.log"
        log.unlink(missing_ok=True)
        result = self.backup(expect=(0, 1, 3, 5), env=nbd_faults.environment(self.scratch, log, fault))
        return result, log.read_text().splitlines()

    def rows(self):
        for _ in range(3):
            self.write()
        return uses(self._backup(None)[1])

    def spoilt_backup(self, row, fault):
        result, lines = self._backup((*row, fault))
        if row[1] == 1 and "fired" not in lines:
            raise HarnessError("the step was not used")
        return result, "fired" in lines

    say = staticmethod(say_use)


@case
def each_step_of_nbd_spoilt_in_each_way(scratch):
    run_table(scratch, NbdRig, NBD_HEAD, nbd_faults.FAULTS, 8)


# --- the journal --------------------------------------------------------------------


class JournalRig(Rig):
    """strace does to the system calls on the journal's files what a disk would."""

    def _trace(self, *inject, env=None):
        """A backup under strace. Returns (Result, [(syscall, phase or None)])."""
        log = self.scratch / "strace.log"
        state = self.tidemark.state / "journal"
        wanted = [state / f"{path.stem}.json.tmp" for path in state.glob("*.lock")
                  if not path.name.startswith("disk-")]
        wanted += [f"{self.vm.disk('vda').path}.tidemark-journal.tmp"]
        argv = ["strace", "-f", "-qq", "-b", "execve", "-s", "9999", "-o", log, "-e", "trace=openat,pwrite64,fsync,/^rename"]
        for path in wanted:
            argv += ["-P", path]
        for what in inject:
            argv += ["-e", f"inject={what}"]
        self.tidemark.wrapper = argv
        try:
            # No word of LeakSanitizer: it cannot work under ptrace.
            result = self.backup(expect=None, env={"ASAN_OPTIONS": "detect_leaks=0", **(env or {})})
        finally:
            self.tidemark.wrapper = []
        return result, self._calls(log.read_text(errors="replace"))

    @staticmethod
    def _calls(text):
        found = []
        for line in text.splitlines():
            if match := re.search(r"\b(openat|pwrite64|fsync)\(", line):
                phase = re.search(r'\\"phase\\": ?\\"(\w+)', line)
                found.append((match[1], phase and phase[1]))
        return found

    def rows(self):
        self.write()
        _, calls = self._trace()
        # Each write is of all files.
        phases = [phase for call, phase in calls if call == "pwrite64"]
        self.__class__.files = files = phases.count(phases[0])
        rows = [(n, phases[n]) for n in range(0, len(phases), files)]
        if any(len(set(phases[n:n + files])) != 1 for n, _ in rows):
            raise HarnessError(f"writes of the journal: {phases}")
        return rows

    def spoilt_backup(self, row, fault):
        first, phase = row[0] + 1, row[1]
        last = first + self.files - 1
        inject = {
            "EIO": f"fsync:error=EIO:when={first}..{last}",
            "ENOSPC": f"pwrite64:error=ENOSPC:when={first}..{last}",
            "EIO, first file": f"fsync:error=EIO:when={first}",
            "ENOSPC, copy": f"pwrite64:error=ENOSPC:when={first + 1}..{last}",
            "crash before": f"openat:signal=SIGKILL:when={first}",
            "crash between": f"/^rename:signal=SIGKILL:when={first + 1}",
            "crash after": None,
        }[fault]
        # Nobody watches over it, as when the host dies: the guard would be under the same spell.
        alone = {"TIDEMARK_DEBUG_KILL_AT": "nowhere"} if fault.startswith("crash") else None
        if inject:
            result, _ = self._trace(inject, env=alone)
        else:
            result = self.backup(expect=None, env={"TIDEMARK_DEBUG_KILL_AT": phase})
        if fault.startswith("crash") and result.status != -signal.SIGKILL:
            raise HarnessError(f"{result}: it was to be killed\n{result.err}")
        return result, True

    @staticmethod
    def say(row):
        return f"`{row[1]}`"


@case
def each_write_of_the_journal_spoilt_in_each_way(scratch):
    run_table(scratch, JournalRig, JOURNAL_HEAD, JOURNAL_FAULTS, 10)


class ImageRig(JournalRig):
    """The same without a guest."""

    def __init__(self, scratch):
        self.path = scratch / "disks/vda.qcow2"
        super().__init__(scratch)

    def prepare(self):
        self.vm.terminate()
        self.target = f"image:{self.path},name=vm"

    def end(self):
        """Nothing runs."""

    def write(self):
        offset = self.rng.randrange(0, SIZE // 512 - 256) * 512
        length, pattern = self.rng.randrange(1, 256) * 512, self.rng.randrange(1, 256)
        run(["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern} {offset} {length}", self.path])
        self.shadow.write(offset, length, pattern)

    def left(self):
        image.assert_same(self.path, self.shadow.path)
        image.check(self.path)
        return [str(path) for path in self.path.parent.iterdir() if path != self.path]

    def assert_clean(self):
        if rest := self.left():
            raise HarnessError(f"left behind: {rest}")
        if (flags := list(image.bitmaps(self.path).values())) != [{"auto"}]:
            raise HarnessError(f"bitmaps: {flags}")


@case
def each_write_of_the_journal_of_an_image_spoilt_in_each_way(scratch):
    run_table(scratch, ImageRig, IMAGE_HEAD, IMAGE_FAULTS, 2)


if __name__ == "__main__":
    main()
