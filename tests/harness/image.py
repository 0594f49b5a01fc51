# SPDX-License-Identifier: Apache-2.0
"""Disk images on the host, by way of qemu-img and qemu-nbd."""

import contextlib
import errno
import hashlib
import json
import os
import sys
from pathlib import Path

from .base import HarnessError, reap, run, spawn, wait_for

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def create(path, size, fmt="qcow2", options=None, backing=None, backing_fmt="qcow2"):
    """`options` are those of qemu-img -o, e.g. {"compat": "0.10"}."""
    argv = ["qemu-img", "create", "-q", "-f", fmt]
    if options:
        argv += ["-o", ",".join(f"{key}={value}" for key, value in options.items())]
    if backing:
        argv += ["-b", backing, "-F", backing_fmt]
    run(argv + [path, str(size)])
    return Path(path)


def info(path, force_share=False):
    """qemu-img info. On an image that a running QEMU writes, `force_share` gives
    what is in the file so far, which may be old."""
    argv = ["qemu-img", "info", "--output=json", path]
    return json.loads(run(argv + ["-U"] * force_share).stdout)


def bitmaps(path, force_share=False):
    """{name: set of flags} of the bitmaps stored in a qcow2 file."""
    data = info(path, force_share).get("format-specific", {}).get("data", {})
    return {b["name"]: set(b["flags"]) for b in data.get("bitmaps", [])}


def check(path, fmt="qcow2", leaks_ok=False):
    """Fails when qemu-img finds errors. Clusters that leak cost space only, and
    a QEMU that was killed may leave some."""
    done = run(["qemu-img", "check", "--output=json", "-f", fmt, path], check=False)
    if done.returncode == 0 or (done.returncode == 3 and leaks_ok):
        return json.loads(done.stdout)
    raise HarnessError(f"qemu-img check {path}: exit {done.returncode}\n{done.stdout}{done.stderr}")


def to_raw(path, out, fmt="qcow2"):
    """A sparse raw copy of what a guest would see in the image."""
    run(["qemu-img", "convert", "-f", fmt, "-O", "raw", path, out], timeout=300)
    return Path(out)


def difference(a, b, fmt_a="qcow2", fmt_b="raw"):
    """How two images differ in size or content, as a phrase; "" when they do not.
    (compare -s would also want the same holes.)"""
    sizes = [json.loads(run(["qemu-img", "info", "--output=json", "-f", fmt, path]).stdout)
             ["virtual-size"] for path, fmt in ((a, fmt_a), (b, fmt_b))]
    if sizes[0] != sizes[1]:
        return f"{sizes[0]} bytes and {sizes[1]} bytes"
    done = run(["qemu-img", "compare", "-f", fmt_a, "-F", fmt_b, a, b], timeout=300, check=False)
    if done.returncode not in (0, 1):
        raise HarnessError(f"qemu-img compare {a} {b}: {done.stdout}{done.stderr}")
    return done.stdout.strip() if done.returncode else ""


def assert_same(a, b, fmt_a="qcow2", fmt_b="raw"):
    if found := difference(a, b, fmt_a, fmt_b):
        raise HarnessError(f"{a} and {b} differ: {found}")


def data_ranges(path):
    """The (start, end) of what is not a hole in a file."""
    with open(path, "rb") as file:
        end, size = 0, os.fstat(file.fileno()).st_size
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    return
                raise
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            yield start, end


def sha256(path, fmt="qcow2", scratch=None):
    """SHA-256 of the whole content as a guest sees it."""
    raw = Path(path)
    if fmt != "raw":
        raw = Path(f"{scratch or path}.sha.tmp")
        to_raw(path, raw, fmt)
    try:
        digest = hashlib.sha256()
        with open(raw, "rb") as file:
            while block := file.read(4 * MIB):
                digest.update(block)
        return digest.hexdigest()
    finally:
        if fmt != "raw":
            raw.unlink()


@contextlib.contextmanager
def nbd(path, socket, fmt="qcow2", writable=False):
    """Serves an image; gives a connected libnbd handle (python3-libnbd)."""
    try:
        import nbd as libnbd  # only a few tests need it
    except ImportError:
        raise HarnessError(f"{sys.executable} has no libnbd; run with /usr/bin/python3, "
                           "for which Debian's python3-libnbd is") from None
    process = spawn(["qemu-nbd", "-t", "-f", fmt, "-k", socket, "-e", "8"]
                    + ["-r"] * (not writable) + [path])
    try:
        wait_for("qemu-nbd", lambda: os.path.exists(socket) or process.poll() is not None)
        handle = libnbd.NBD()
        handle.connect_unix(os.fspath(socket))
        try:
            yield handle
        finally:
            with contextlib.suppress(libnbd.Error):
                handle.shutdown(libnbd.SHUTDOWN_ABANDON_PENDING)
    finally:
        reap(process)


def read(path, offset, length, socket, fmt="qcow2"):
    """Bytes of an image which nobody has open."""
    with nbd(path, socket, fmt) as handle:
        return bytes(handle.pread(length, offset))


class Shadow:
    """A raw file to which a test applies by itself what it makes a guest write:
    the reference for what a backup must contain."""

    def __init__(self, path, size):
        self.path = Path(path)
        self.size = size
        with open(self.path, "wb") as file:
            file.truncate(size)

    def write(self, offset, length, pattern):
        with open(self.path, "r+b") as file:
            file.seek(offset)
            file.write(bytes([pattern]) * length)

    def zero(self, offset, length):
        self.write(offset, length, 0)

    def resize(self, size):
        os.truncate(self.path, size)
        self.size = size

    def copy(self, to):
        """The reference of one instant, kept for later."""
        run(["cp", "--sparse=always", "--", self.path, to])
        return Path(to)

    def assert_equals(self, path, fmt="raw"):
        assert_same(path, self.path, fmt_a=fmt, fmt_b="raw")


def copy(path, to):
    """A copy of an image file as it is, holes kept."""
    run(["cp", "--sparse=always", "--", path, to])
    return Path(to)
