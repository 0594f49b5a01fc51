#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Each QMP command of a backup, spoilt in each way: refused, unanswered, the
connection lost, answered too late. Afterwards one recovery puts all right.

    test_faults.py                   all of the table
    TIDEMARK_FAULT_TABLE=FILE ...    also writes it, as docs/faults.md
"""

import os

from harness import Tidemark, Vm, assert_clean, image, make_rng, note_baseline
from harness.base import HarnessError
from harness.cases import case, main
from harness.checks import leftovers
from harness.proxy import FAULTS, Proxy
from harness.vm import Disk

SIZE = 8 * image.MIB + 512
TIMEOUT_MS = 1200       # instead of 30 s, for a table of many rows
HEAD = """# What a fault of each QMP command leads to

Made by `tests/integration/test_faults.py`, which fails when a row is not as it has to be: whatever
happens to the n-th use of a command in an incremental backup, afterwards (and after one `tidemark recover`
where the table says "recover") the guest runs on its own file, nothing is left, the next backup works, and what it
restores is what the guest wrote. "point": the backup was made all the same, and is right; "no point": it was
given up with an error. Waits are shortened to 1.2 s.

* **refused**: QEMU never got the command; the answer was an error
* **no reply**: QEMU did it, the answer never came
* **lost**: QEMU did it, the connection ended
* **late**: QEMU did it, the answer came after the wait had been given up

| command | use | refused | no reply | lost | late |
|---|---|---|---|---|---|
"""


class Rig:
    def __init__(self, scratch):
        self.scratch = scratch
        self.rng = make_rng("faults")
        self.shadow = image.Shadow(scratch / "vda.shadow", SIZE)
        path = image.create(scratch.dir("disks") / "vda.qcow2", SIZE)
        self.vm = Vm(scratch, [Disk(path, "vda")], guest=False).start()
        note_baseline(self.vm)
        self.proxy = Proxy(self.vm.dir / "proxy.sock", self.vm.qmp_path,
                              late=TIMEOUT_MS * 2.2 / 1000)
        scratch.defer(self.proxy.close)
        self.tidemark = Tidemark(scratch, env={"TIDEMARK_DEBUG_QMP_MS": str(TIMEOUT_MS)})
        self.tidemark("init")
        self.target = f"qmp:{self.proxy.path},name=vm"
        self.backup()

    def write(self):
        offset = self.rng.randrange(0, SIZE // 512 - 256) * 512
        length = self.rng.randrange(1, 256) * 512
        self.vm.write("vda", offset, length, self.rng.randrange(1, 256), self.shadow)

    def backup(self, expect=(0, 3)):
        return self.tidemark("backup", self.target, "--quiesce", "never", expect=expect)

    def restored_right(self, point):
        disk, = self.tidemark("restore", point, "--to", self.scratch.dir("restored"),
                              "--force").json["disks"]
        image.assert_same(disk["to"], self.shadow.path, "raw", "raw")

    def spoil(self, command, nth, fault):
        """One row's cell: what came of it."""
        self.write()
        self.proxy.arm(command, nth, fault)
        result = self.backup(expect=(0, 1, 3, 5))
        if not self.proxy.fired and nth == 1:
            raise HarnessError("the command was not used")
        made = bool(result.out.strip())
        left = self.tidemark("recover", "--check", self.target, expect=(0, 5)).status == 5
        if made:
            self.restored_right(result.json["point"])
        elif result.status in (0, 3):
            raise HarnessError(f"{result}: no point, and no failure")
        if left and result.status in (0, 3):
            raise HarnessError(f"{result}: something is left, and it does not say so")
        if left:
            self.tidemark("recover", self.target)
        # A bitmap that could not be settled is settled by the next backup.
        if rest := [x for x in leftovers(self.vm, None) if ": bitmap " not in x]:
            raise HarnessError(f"{result}: left behind: {rest}")
        self.write()
        point = self.backup().json
        assert_clean(self.vm)
        self.restored_right(point["point"])
        if not self.proxy.fired:
            return "-"      # polls are as many as it takes
        return ("point" if made else "no point") + (", then recover" if left else "")


def uses(commands):
    """(command, n): the first and the last use of each, in order."""
    found = []
    for command in dict.fromkeys(commands):
        found.append((command, 1))
        if (count := commands.count(command)) > 1:
            found.append((command, count))
    return found


def write_table(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.write(HEAD)
        for (command, nth), cells in rows.items():
            file.write(f"| `{command}` | {nth} | {' | '.join(cells[f] for f in FAULTS)} |\n")


@case
def each_command_spoilt_in_each_way(scratch):
    rig = Rig(scratch)
    rig.write()
    rig.proxy.reset()
    rig.backup()
    rows, bad = {}, []
    for command, nth in uses(list(rig.proxy.commands)):
        rows[command, nth] = {}
        for fault in FAULTS:
            try:
                rows[command, nth][fault] = rig.spoil(command, nth, fault)
            except HarnessError as error:
                bad.append(f"{command} {nth} {fault}: {error}")
                rows[command, nth][fault] = "WRONG"
                rig.vm.kill()
                rig = Rig(Again(scratch, len(bad)))
            print(f"# {command} {nth} {fault}: {rows[command, nth][fault]}", flush=True)
    if table := os.environ.get("TIDEMARK_FAULT_TABLE"):
        write_table(table, rows)
    if bad:
        raise HarnessError(f"{len(bad)} are wrong:\n" + "\n".join(bad))
    print(f"# {sum(map(len, rows.values()))} faults", flush=True)


class Again:
    """A fresh part of a Scratch."""

    def __init__(self, scratch, number):
        self.path, self.defer = scratch.dir(f"again{number}"), scratch.defer

    def __truediv__(self, name):
        return self.path / name

    def dir(self, name):
        path = self.path / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path


if __name__ == "__main__":
    main()
