# SPDX-License-Identifier: Apache-2.0
"""A host whose power can fail: a file system of its own, which forgets what was not
synced. Where loop devices are not to be had it is a directory, and power never fails."""

import ctypes
import fcntl
import os
import signal
import struct
from pathlib import Path

from harness.base import HarnessError, run, wait_for

SMALL = 2 << 20         # bytes of the directory that is soon full
_CLONE_NEWNS = 0x20000
_EXT4_IOC_SHUTDOWN = 0x8004587d
_NO_LOG_FLUSH = struct.pack("<I", 2)


def private_mounts():
    """What this process mounts from now on is gone with it. False: not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if os.geteuid() or libc.unshare(_CLONE_NEWNS):
        return False
    return run(["mount", "--make-rprivate", "/"], check=False).returncode == 0


def descendants(pid):
    """All processes below this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            state, parent = stat.rsplit(")", 1)[1].split()[:2]
            if state != "Z":
                parents.setdefault(int(parent), []).append(int(entry.name))
    found, wanted = [], [pid]
    while wanted:
        children = parents.get(wanted.pop(), [])
        found += children
        wanted += children
    return found


class Host:
    def __init__(self, scratch, size=1 << 30):
        self.path = scratch.dir("host")
        self._disk = scratch / "host.img"
        self.can_fail = self.failed = False
        self.small = None       # a directory that is soon full, and empty after a power cut
        if private_mounts():
            with open(self._disk, "wb") as file:
                file.truncate(size)
            run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1", self._disk])
            self.can_fail = self._mount(check=False)
            if self.can_fail:
                scratch.defer(self._give_up)
            self._mount_small(scratch.dir("small"), scratch)

    def _mount_small(self, path, scratch):
        if run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "small", path], check=False).returncode == 0:
            self.small = path
            # Before the files are removed; whoever has one open is killed by then.
            scratch.defer(run, ["umount", "-l", path])

    def _mount(self, check=True):
        return run(["mount", "-o", "loop", self._disk, self.path], check=check).returncode == 0

    def _unmount(self):
        # A process that is being killed holds its files for a moment longer.
        wait_for("the host's file system", lambda: run(["umount", self.path], check=False).returncode == 0, 20)

    def _give_up(self):
        # After a test that went wrong there may be somebody left.
        for pid in descendants(os.getpid()):
            os.kill(pid, signal.SIGKILL)
        self._unmount()

    def fail(self):
        """The power fails: all that runs on the host is dead, what was not synced is
        gone. The caller reaps its own children."""
        if not self.can_fail:
            raise HarnessError("this host's power cannot fail")
        victims = descendants(os.getpid())
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in victims:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    pass
            if number == signal.SIGSTOP:
                self.failed = True
                handle = os.open(self.path, os.O_RDONLY)
                try:
                    fcntl.ioctl(handle, _EXT4_IOC_SHUTDOWN, _NO_LOG_FLUSH)
                finally:
                    os.close(handle)

    def power_on(self):
        self._unmount()
        self._mount()
        self.failed = False
