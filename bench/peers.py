# SPDX-License-Identifier: Apache-2.0
"""Other programs at the same work. Each is left out when it is not installed."""

import importlib.util
import os
import shutil

from harness import reap, run, spawn, wait_for

from measure import measure, tree_bytes

CORES = os.cpu_count() or 1


MODULES = {"python3-libnbd": "nbd"}


def missing(*needs):
    """Of programs and modules, those that are not here."""
    return [n for n in needs if not (importlib.util.find_spec(MODULES[n]) if n in MODULES else shutil.which(n))]


class Server:
    """qemu-nbd with an image, for those who read over NBD."""

    def __init__(self, scratch, image, fmt, *options, writable=False):
        self.socket = scratch.dir("nbd") / f"{image.stem}-{id(self):x}.sock"
        self.process = spawn(["qemu-nbd", "-t", "-f", fmt, "-k", self.socket, "-e", "16",
                              *["-r"] * (not writable), *options, image])
        scratch.defer(reap, self.process)
        wait_for("qemu-nbd", lambda: self.socket.exists() or self.process.poll() is not None)

    @property
    def uri(self):
        return f"nbd+unix:///?socket={self.socket}"

    @property
    def pid(self):
        return self.process.pid

    def close(self):
        reap(self.process)


def _fresh(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    return path


def sized(taken, out, size):
    """What was made is in the way of the next one."""
    _fresh(out)
    return {**taken, "stored_bytes": size}


def nbdcopy_zstd(server, where):
    out = _fresh(where / "stream.zst")
    taken = measure(["nbdcopy", server.uri, "-"], ["zstd", "-q", "-1", f"-T{CORES}", "-o", out],
                    servers=[server.pid])
    return sized(taken, out, out.stat().st_size)


def nbdcopy_null(server):
    """Over one connection, which reads in order, with requests as ours: the least it can cost. With
    more connections nbdcopy reads at as many places at once, and qemu-nbd, which remembers one
    range of data at a time, asks the file system with each request where the next hole is: for a
    file in memory that is a walk over its pages, and several times the cost of reading."""
    return measure(["nbdcopy", "--connections=1", f"--request-size={512 << 10}", "--requests=8", server.uri, "null:"],
                   servers=[server.pid])


def qemu_img(server, where):
    out = _fresh(where / "compressed.qcow2")
    taken = measure(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd",
                     "-m", "8", "-W", server.uri, out], servers=[server.pid])
    return sized(taken, out, out.stat().st_blocks * 512)


def borg(image, where):
    repo = _fresh(where / "borg")
    env = {**os.environ, "BORG_BASE_DIR": str(where / "borg-home"), "BORG_PASSPHRASE": "",
           "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes", "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}
    run(["borg", "init", "-e", "none", repo], env=env)
    taken = measure(["borg", "create", "--compression", "zstd,1", "--chunker-params", "fixed,65536",
                     "--sparse", f"{repo}::one", image], env=env)
    return sized(taken, repo, tree_bytes(repo))


def restic(image, where):
    repo = _fresh(where / "restic")
    env = {**os.environ, "RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(where / "restic-cache")}
    run(["restic", "-q", "init", "-r", repo], env=env)
    taken = measure(["restic", "-q", "backup", "-r", repo, image], env=env)
    return {**taken, "stored_bytes": tree_bytes(repo)}


def restic_again(image, where):
    env = {**os.environ, "RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(where / "restic-cache")}
    before = tree_bytes(where / "restic")
    taken = measure(["restic", "-q", "backup", "--force", "-r", where / "restic", image], env=env)
    return {**taken, "stored_bytes": tree_bytes(where / "restic") - before}
