# SPDX-License-Identifier: Apache-2.0
"""That a backup, or a recovery, left a guest as it found it."""

import os
import re
from collections import Counter
from pathlib import Path

from .base import HarnessError, wait_for
from .vm import plain_filename

OURS = "tidemark"   # what the names of Tidemark's bitmaps begin with


def _files(vm, extra_dirs=()):
    dirs = {Path(disk.path).parent for disk in vm.disks} | {Path(d) for d in extra_dirs}
    return {path for directory in dirs for path in directory.iterdir()}


def _nodes(vm):
    # Not by name: QEMU makes some up, and they differ after a restart.
    return Counter((node["drv"], plain_filename(node["file"])) for node in vm.nodes())


def _listeners(pid):
    """What sockets a process listens on."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(link))
        except FileNotFoundError:
            continue
        if match:
            inodes.add(match[1])
    found = set()
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        words = line.split()
        # Column 4 has the flags: __SO_ACCEPTCON is what listen() sets.
        if words[6] in inodes and int(words[3], 16) & 0x10000:
            found.add(words[7] if len(words) > 7 else "(no name)")
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[9] in inodes and words[3] == "0A":
                found.add(f"{table} {words[1]}")
    return found


def note_baseline(vm, extra_dirs=()):
    """Remembers how a guest looks before Tidemark first touches it. `extra_dirs`
    are more directories, beside the disks', in which nothing may stay behind."""
    vm.baseline = (_files(vm, extra_dirs), _nodes(vm), _listeners(vm.pid), tuple(extra_dirs))


def leftovers(vm, epochs=1):
    """What is not as it should be, as sentences. `epochs` is the number of
    repositories that follow this guest: each has one bitmap a disk. None means
    any number."""
    if vm.baseline is None:
        raise HarnessError("note_baseline() comes first")
    files, nodes, listeners, extra_dirs = vm.baseline
    found = []
    for disk in vm.disks:
        active = vm.active_file(disk.id)
        if active != Path(disk.path):
            found.append(f"{disk.id}: the guest writes to {active} instead of {disk.path}")
            continue
        ours = {name: b for name, b in vm.bitmaps(disk.id).items() if name.startswith(OURS)}
        if epochs is not None and len(ours) > epochs:
            found.append(f"{disk.id}: {len(ours)} bitmaps: {', '.join(sorted(ours))}")
        for name, bitmap in ours.items():
            if not bitmap["recording"] or bitmap["busy"] or bitmap.get("inconsistent"):
                found.append(f"{disk.id}: bitmap {name} is not of use: {bitmap}")
    found += [f"job {job['id']} is {job['status']}" for job in vm.jobs()]
    found += [f"export {export['id']} is there" for export in vm.exports()]
    found += [f"node of {drv} {file}" for drv, file in (_nodes(vm) - nodes)]
    found += [f"node of {drv} {file} is gone" for drv, file in (nodes - _nodes(vm))]
    found += [f"QEMU listens on {socket}" for socket in _listeners(vm.pid) - listeners]
    found += [f"file {path}" for path in sorted(_files(vm, extra_dirs) - files)]
    found += [f"file {path} is gone" for path in sorted(files - _files(vm, extra_dirs))]
    status = vm.qmp.execute("query-status")
    if not status["running"]:
        found.append(f"the guest is {status['status']}")
    return found


def assert_clean(vm, epochs=1, timeout=0.0):
    """Fails when a backup left anything behind: the guest on an overlay, a node,
    job, export, NBD server, file, or a bitmap beyond those of the current
    epochs. With a timeout, waits so long for what ends by itself."""
    found = []

    def clean():
        nonlocal found
        found = leftovers(vm, epochs)
        return not found
    try:
        wait_for("a clean guest", clean, timeout)
    except HarnessError:
        raise HarnessError("left behind: " + "; ".join(found)) from None
