# SPDX-License-Identifier: Apache-2.0
"""What there is to back up: file systems of real files, the same for the same machine and seed."""

import os
import random
import shutil
import tempfile
from pathlib import Path

from harness import HarnessError, run

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
CLUSTER = 64 * KIB
SOURCES = ["/usr/bin", "/usr/lib", "/usr/share"]
LARGEST = 96 * MIB      # a few giants would be all there is


def cache():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(base) / "tidemark-bench"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _files(seed, want):
    """Files of this system of `want` bytes together, folder by folder, folders in random order."""
    folders = []
    for source in SOURCES:
        for folder, names, files in os.walk(source):
            names.sort()
            folders.append((folder, sorted(files)))
    random.Random(seed).shuffle(folders)
    total = 0
    for folder, files in folders:
        for name in files:
            path = Path(folder) / name
            if path.is_symlink() or not path.is_file() or not os.access(path, os.R_OK):
                continue
            size = path.stat().st_size
            if not 0 < size < LARGEST:
                continue
            if total + size > want:
                return
            total += size
            yield path
    raise HarnessError(f"{', '.join(SOURCES)} hold only {total // MIB} MiB: ask for less with --data")


def file_system(mib, seed):
    """An ext4 image with so many MiB of files, 1.75 times as large, kept for the next time."""
    image = cache() / f"ext4-{mib}-{seed}.raw"
    if image.exists():
        return image
    with tempfile.TemporaryDirectory(dir=cache()) as tree:
        for path in _files(seed, mib * MIB):
            to = Path(tree, *path.parts[1:])
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)
        made = image.with_suffix(".new")
        with open(made, "wb") as file:
            file.truncate(mib * MIB * 7 // 4)
        run(["mkfs.ext4", "-q", "-F", "-U", "12345678-1234-1234-1234-123456789abc", "-d", tree,
             "-E", "lazy_itable_init=0,lazy_journal_init=0,hash_seed=12345678-1234-1234-1234-123456789abc",
             made], timeout=1200)
        made.rename(image)
    return image


def place(image, to):
    """A sparse copy."""
    run(["cp", "--sparse=always", image, to], timeout=600)
    return to


class Clusters:
    """Clusters of real content, one after the other, none of them all zero."""

    def __init__(self, image, seed):
        self.file, self.random = open(image, "rb"), random.Random(seed)
        self.count = os.fstat(self.file.fileno()).st_size // CLUSTER

    def take(self, size=CLUSTER):
        while True:
            self.file.seek(self.random.randrange(self.count) * CLUSTER)
            data = self.file.read(size)
            if data.count(0) < len(data) // 2:
                # No cluster comes twice, or it would not be stored.
                return self.random.randbytes(16) + data[16:]

    def close(self):
        self.file.close()
