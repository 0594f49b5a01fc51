# SPDX-License-Identifier: Apache-2.0
"""Judges a file tree by the log which the guest's writer keeps (guest/writer)."""

import hashlib
from pathlib import Path

from .base import HarnessError, run


class GuestLog:
    """The writer's log, replayed: `files` has {name: sha256}, `busy` the name of
    the one file an operation was under way on, or None; `done` counts the
    operations that were complete."""

    def __init__(self, text):
        self.text = text
        self.files, self.busy, self.done = {}, None, 0
        # Without a quiesced file system the last line can be cut off.
        for line in text[:text.rfind("\n") + 1].splitlines():
            number, verb, name, *rest = line.split(" ")
            if verb == "begin":
                if self.busy or int(number) != self.done + 1:
                    raise HarnessError(f"the guest's log is out of order at {line!r}")
                self.busy = name
            elif name != self.busy or int(number) != self.done + 1:
                raise HarnessError(f"the guest's log is out of order at {line!r}")
            else:
                self.busy = None
                self.done += 1
                if verb == "put":
                    self.files[name] = rest[0]
                else:
                    del self.files[name]


def judge_tree(tree, reference=None, at_least=0, at_most=None):
    """Compares TREE/files with TREE/log. `reference` is the log as the guest had
    it later, read from the running guest: the tree's must be a beginning of it,
    with between `at_least` and `at_most` operations complete, so that a tree of
    another time, consistent in itself, is found out too. Returns the number of
    files that were compared; raises at the first that is not as it should be."""
    tree = Path(tree)
    log = GuestLog((tree / "log").read_text())
    if reference is not None and not reference.startswith(log.text):
        raise HarnessError(f"{tree}/log is not what the guest wrote")
    if log.done < at_least or (at_most is not None and log.done > at_most):
        raise HarnessError(f"{tree} is of another time: {log.done} operations, "
                           f"expected {at_least} to {at_most}")
    there = {path.name: path for path in (tree / "files").iterdir()}
    # Of the operation under way anything may be seen: the old file, the new, none.
    for name in (log.busy, ".new"):
        if log.busy:
            there.pop(name, None)
    expected = {name: sha for name, sha in log.files.items() if name != log.busy}
    if missing := sorted(expected.keys() - there.keys()):
        raise HarnessError(f"{tree}: {len(missing)} files are missing, e.g. {missing[0]}")
    if surplus := sorted(there.keys() - expected.keys()):
        raise HarnessError(f"{tree}: {len(surplus)} files should not be there, e.g. {surplus[0]}")
    for name, sha in expected.items():
        if hashlib.sha256(there[name].read_bytes()).hexdigest() != sha:
            raise HarnessError(f"{tree}/files/{name} has not the content that the guest wrote")
    return len(expected)


def fsck(path):
    """A forced e2fsck that changes nothing; fails on anything it finds."""
    run(["e2fsck", "-f", "-n", path], timeout=120)


def extract(path, directory):
    """Copies all files out of a raw ext4 image, which is not mounted for it."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    done = run(["debugfs", "-R", f"rdump / {directory}", path], timeout=120)
    errors = [line for line in done.stderr.splitlines()
              if line and not line.startswith("debugfs ") and "ownership" not in line]
    if errors:
        raise HarnessError(f"debugfs {path}: {errors[0]}")
    return directory


def label(path):
    """The label of a raw ext4 image."""
    return run(["e2label", path]).stdout.strip()
