# SPDX-License-Identifier: Apache-2.0
"""Scenarios of the data path: from a disk into a repository and back."""

import os
import random
import shutil

from harness import Disk, HarnessError, Vm, image as images, run

import data
import peers
from data import CLUSTER, GIB, MIB
import virtnbd
from scenario import scenario
from writing import write_through

CORES = os.cpu_count() or 1
QEMU = ("qemu-system-x86_64", "python3-libnbd")
FILES = ("mkfs.ext4", "qemu-img", "qemu-nbd")


def stage_cpu(stages, *names):
    return sum(stages[name]["cpu"] for name in names)


def backup_limit(bench, server, image):
    """What a backup of `image` cannot be faster than: all cores busy with the stages alone."""
    read = peers.nbdcopy_null(server)
    stages = bench.tool("stages", image, bench.dir("limit"))
    cpu = read["cpu"] + read["helpers"] + stage_cpu(stages, "id", "compress", "write")
    return {"seconds": cpu / CORES, "cpu": cpu,
            "read": read["cpu"] + read["helpers"],
            **{name: stages[name]["cpu"] for name in ("zero", "id", "compress", "seal", "crc", "write")}}


def data_bytes(image):
    """Of a raw image, what is not a hole."""
    return sum(end - start for start, end in images.data_ranges(image))


def stored(agent, taken):
    disk = taken["json"]["disks"][0]
    return {**taken, "stored_bytes": agent.bytes(), "read_bytes": disk["read_bytes"],
            "new_bytes": disk["new_bytes"]}


@scenario("full", "A first backup", (*FILES, "nbdcopy"))
def full(bench):
    """A raw image with an ext4 file system of real files, in memory, into an empty repository in
    memory. Tidemark and its peers of the NBD kind read from qemu-nbd, restic and borg read the
    file. The limit is the CPU time of the stages alone (nbdcopy to null over one
    connection, with its server; content id, zstd at our level and frame size, durable writes),
    divided by the cores."""
    image, where = bench.image(), bench.dir("full")
    server = peers.Server(bench.scratch, image, "raw")

    def tidemark():
        agent = bench.agent("full")
        taken = stored(agent, agent("backup", f"image:{image},name=fs"))
        bench.remove(agent)
        return taken

    outcome = bench.compare({
        "limit": lambda: backup_limit(bench, server, image),
        "tidemark": tidemark,
        "nbdcopy to null": lambda: peers.nbdcopy_null(server),
        "nbdcopy | zstd -1": bench.peer(lambda: peers.nbdcopy_zstd(server, where), "zstd"),
        "qemu-img convert -c": lambda: peers.qemu_img(server, where),
        "borg": bench.peer(lambda: peers.borg(image, where), "borg"),
        "restic": bench.peer(lambda: peers.restic(image, where), "restic"),
        "restic, nothing changed": bench.peer(lambda: peers.restic_again(image, where), "restic"),
    }, few=("qemu-img convert -c", "borg", "restic", "restic, nothing changed"), of=data_bytes(image))
    server.close()
    agent = bench.agent("full")
    point = agent("backup", f"image:{image},name=fs")["json"]
    back = where / "back.raw"
    agent("restore", point["point"], "--to", back)
    bench.same(image, back)
    bench.remove(agent)
    shutil.rmtree(where)
    seconds = outcome.median("tidemark", "seconds")
    if outcome.has("nbdcopy | zstd -1"):
        bench.target("time, of nbdcopy | zstd -1", seconds / outcome.median("nbdcopy | zstd -1", "seconds"), 0.65)
        bench.target("repository, of that stream's size",
                     outcome.median("tidemark", "stored_bytes") / outcome.median("nbdcopy | zstd -1", "stored_bytes"),
                     1.06)
    bench.target("time, of the limit", seconds / outcome.median("limit", "seconds"), 1.15)
    bench.target("CPU time with the server's, of the limit's",
                 (outcome.median("tidemark", "cpu") + outcome.median("tidemark", "helpers"))
                 / outcome.median("limit", "cpu"), 1.15)
    bench.target("GB/s of data that is not zero", outcome.median("tidemark", "new_bytes") / seconds / 1e9,
                 0.55, least=True)
    bench.target("GB of it for the agent's CPU time of a second on two cores",
                 2 * outcome.median("tidemark", "new_bytes") / outcome.median("tidemark", "cpu") / 1e9, 0.55, least=True)
    bench.target("peak memory, MiB", outcome.median("tidemark", "rss_mib"), 256)


# --- changes ---------------------------------------------------------------------


class Writable:
    """A QEMU without a guest, its disk written through its own NBD server: dirty bitmaps
    record that as they do what a guest writes."""

    def __init__(self, bench, name, path):
        self.path = path
        self.vm = Vm(bench.scratch, [Disk(path, "vda", device={"share-rw": "on"})], guest=False, name=f"vm-{name}").start()

    def write(self, writes):
        """(offset, bytes) each; bytes a number: so many zeroes."""
        write_through(self.vm.qmp.execute, "vda-node", self.vm.dir / "write.sock", writes)


class Changing(Writable):
    """The same with a repository."""

    def __init__(self, bench, name, size):
        super().__init__(bench, name, images.create(bench.dir(name) / "disk.qcow2", size))
        self.agent = bench.agent(name)

    def backup(self, *options):
        before = self.agent.bytes()
        taken = self.agent("backup", self.vm.target(), *options, servers=[self.vm.pid])
        disk = taken["json"]["disks"][0]
        # QEMU's part is that of a server; qemu-img and the like belong to the run.
        return {**taken, "grown_bytes": self.agent.bytes() - before,
                **{key: disk[key] for key in ("dirty_bytes", "read_bytes", "new_bytes")},
                "freeze_ms": taken["json"]["freeze_ms"], "source": disk["source"]}

    def close(self):
        self.vm.quit()
        shutil.rmtree(self.agent.repo.parent)
        shutil.rmtree(self.path.parent)


def incremental(bench, name, size, clusters, length, together=1, limit=1.3):
    """Rounds of `length` bytes into each of `clusters` clusters, `together` of them in a row; beside it
    a first backup of a disk that has the same clusters in a row, which it may cost `limit` times."""
    rng = random.Random(bench.seed)
    runs = sorted(rng.sample(range(size // CLUSTER // together), clusters // together))
    places = [run * together + n for run in runs for n in range(together)]
    clusters = len(places)
    content = data.Clusters(bench.image(), bench.seed)
    disk = Changing(bench, name, size)
    packed, apart = bench.dir(name) / "packed.raw", bench.dir(name) / "apart.raw"
    shadow = {}

    def change(n):
        for place in places:
            new = content.take(n)
            shadow[place] = new + shadow.get(place, bytes(CLUSTER))[n:]
            yield place * CLUSTER, new

    disk.write(change(CLUSTER))
    disk.backup()

    def start_domain():
        domain = virtnbd.Domain(bench, size)
        domain.write((place * CLUSTER, shadow[place]) for place in places)
        domain.backup("full")
        return domain

    start = bench.peer(start_domain, *virtnbd.NEEDS)
    domain = start and bench.attempt("virtnbdbackup", start)

    def virtnbdbackup():
        domain.write((place * CLUSTER, shadow[place][:length]) for place in places)
        return domain.backup("inc")

    def tidemark():
        disk.write(change(length))
        taken = disk.backup("--audit", "0")
        if taken["source"] != "bitmap":
            raise HarnessError(f"not read by the bitmap: {taken['json']}")
        with open(packed, "wb") as in_a_row, open(apart, "wb") as with_holes:
            for place in places:
                in_a_row.write(shadow[place])
                with_holes.write(shadow[place])
                if place + 1 not in shadow:
                    with_holes.seek(CLUSTER, os.SEEK_CUR)
        return taken

    def full_of_as_much():
        agent = bench.agent(f"{name}-full")
        before = agent.bytes()
        taken = agent("backup", f"image:{packed},name=packed")
        grown = agent.bytes() - before
        bench.remove(agent)
        return {**taken, "grown_bytes": grown}

    def zstd():
        stages = bench.tool("stages", apart, bench.dir("limit"))
        return {"seconds": stages["compress"]["cpu"], "cpu": stages["compress"]["cpu"],
                "grown_bytes": stages["seal"]["bytes"]}

    outcome = bench.compare({"tidemark": tidemark, "a full of as many bytes": full_of_as_much,
                             "zstd of the clusters alone": zstd,
                             "virtnbdbackup": domain and bench.peer(virtnbdbackup)}, of=clusters * CLUSTER)
    if domain:
        domain.close()
    prove(bench, disk, shadow, size)
    disk.close()
    content.close()
    # One clean cluster is read beside them, whatever is dirty: it proves the bitmap's end.
    bench.target("bytes read, of those dirty",
                 (outcome.median("tidemark", "read_bytes") - CLUSTER) / (clusters * CLUSTER), 1.0)
    bench.target("repository grows, of zstd of the clusters",
                 outcome.median("tidemark", "grown_bytes")
                 / outcome.median("zstd of the clusters alone", "grown_bytes"), 1.05)
    if limit:
        bench.target("CPU time with the server's, of a full of as much",
                     sum(outcome.median("tidemark", k) for k in ("cpu", "helpers"))
                     / sum(outcome.median("a full of as many bytes", k) for k in ("cpu", "helpers")), limit)
        bench.target("time, of a full of as much",
                     outcome.median("tidemark", "seconds") / outcome.median("a full of as many bytes", "seconds"), limit)


def prove(bench, disk, shadow, size):
    back = disk.path.with_name("back.raw")
    disk.agent("restore", "latest", "--to", back)
    with open(back, "rb") as file:
        for place, content in shadow.items():
            file.seek(place * CLUSTER)
            if file.read(CLUSTER) != content:
                raise HarnessError(f"cluster {place} is not what was written")
    if back.stat().st_size != size or back.stat().st_blocks * 512 > 2 * len(shadow) * CLUSTER:
        raise HarnessError("the restored disk has another size, or is not sparse")
    back.unlink()


@scenario("incremental-64k", "An incremental backup: scattered clusters", (*QEMU, *FILES))
def incremental_64k(bench):
    """A QEMU with a 64 GiB disk of which 1 % of the 64 KiB clusters are overwritten with real
    data at random places; beside it a first backup of a disk that holds the same clusters in a
    row. Dirty bitmap, freeze, overlay and commit are part of it, the audit of clean clusters is not;
    QEMU's CPU time is the server's. virtnbdbackup has a libvirt domain of its own with the same
    writes, and does not compress."""
    size = GIB if bench.small else 64 * GIB
    incremental(bench, "inc64k", size, size // CLUSTER // 100, CLUSTER)


@scenario("incremental-4k", "An incremental backup: scattered small writes", (*QEMU, *FILES))
def incremental_4k(bench):
    """The same, where 4 KiB are overwritten in each cluster, as a database does."""
    size = GIB if bench.small else 64 * GIB
    incremental(bench, "inc4k", size, size // CLUSTER // 100, 4096)


@scenario("incremental-runs", "An incremental backup: files written anew", (*QEMU, *FILES))
def incremental_runs(bench):
    """The same, where the clusters lie together in runs of 4 MiB, as files do."""
    size = GIB if bench.small else 64 * GIB
    incremental(bench, "incruns", size, size // CLUSTER // 100, CLUSTER, together=16 if bench.small else 64)


@scenario("incremental-small", "An incremental backup: little has changed", (*QEMU, *FILES))
def incremental_small(bench):
    """The same with 4 KiB in one of a thousand clusters: 66 MiB are dirty, and what a backup takes apart
    from reading weighs more: it is here for that, and has no limit."""
    size = GIB if bench.small else 64 * GIB
    incremental(bench, "incsmall", size, size // CLUSTER // 1000, 4096, limit=None)


@scenario("nothing-changed", "Nothing changed", (*QEMU, "qemu-img"))
def nothing_changed(bench):
    """A running QEMU with a sparse disk of 16 TiB, 300 points behind it, and no write since the
    last. What QEMU itself needs is taken to be its own CPU time, as the agent waits for it."""
    size, points = (64 * GIB, 5) if bench.small else (16 << 40, 300)
    disk = Changing(bench, "nothing", size)
    shutil.rmtree(disk.agent.repo)
    bench.tool("sim", "fill", disk.agent.repo, f"size={size}", f"points={points - 1}", "dirty=64", "guest=vm-nothing")
    disk.write((n * (size // 64), bytes(range(256)) * 256) for n in range(64))
    disk.backup()

    def tidemark():
        taken = disk.backup()
        return {**taken, "beyond_qemu": taken["seconds"] - taken["helpers"]}

    outcome = bench.compare({"tidemark": tidemark})
    disk.close()
    bench.target("seconds beyond QEMU's own", outcome.median("tidemark", "beyond_qemu"), 0.5)
    bench.target("KiB written", outcome.median("tidemark", "grown_bytes") / 1024, 64)
    bench.target("peak memory, MiB", outcome.median("tidemark", "rss_mib"), 64)


@scenario("block-status", "Asking which clusters are dirty", (*QEMU, "qemu-img", "qemu-nbd"))
def block_status(bench):
    """A disk of 1 TiB whose bitmap names 100 000 clusters far apart, served by qemu-nbd: the time
    from connecting until the first piece is read, with the reader that `backup` uses."""
    size, extents = (16 * GIB, 2000) if bench.small else (1 << 40, 100_000)
    path = images.create(bench.dir("status") / "disk.qcow2", size)
    run(["qemu-img", "bitmap", "--add", "-g", "65536", path, "b"])
    disk = Writable(bench, "status", path)
    step = size // extents // CLUSTER * CLUSTER
    disk.write((n * step, CLUSTER) for n in range(extents))
    disk.vm.quit()
    server = peers.Server(bench.scratch, path, "qcow2", "-B", "b")
    outcome = bench.compare({"reader": lambda: bench.tool("sim", "nbd", server.socket, "b", servers=[server.pid])},
                            of=extents * CLUSTER)
    server.close()
    if outcome.median("reader", "dirty_bytes") != extents * CLUSTER:
        raise HarnessError(f"{outcome.rows} instead of {extents} extents")
    bench.target("seconds until the first byte is read", outcome.median("reader", "first"), 1.0)
    bench.target("peak memory, MiB", outcome.median("reader", "rss_mib"), 64)


# --- back ------------------------------------------------------------------------


@scenario("restore", "A restore", FILES)
def restore(bench):
    """The image of the first scenario, restored to a raw and to a qcow2 file in memory; beside
    it qemu-img convert from a qcow2 file with zstd. The limit: load, open, decompress, write."""
    image, where = bench.image(), bench.dir("restore")
    agent = bench.agent("restore")
    point = agent("backup", f"image:{image},name=fs")["json"]["point"]
    packed = where / "packed.qcow2"
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", "-m", "8", "-W",
         image, packed], timeout=1200)

    def tidemark(fmt, *options, compare=False):
        back = where / f"back.{fmt}"
        taken = agent("restore", point, "--to", back, "--format", fmt, *options)
        if compare:
            images.assert_same(back, image, fmt, "raw")
            if back.stat().st_blocks > image.stat().st_blocks * 1.02 + 4096:
                raise HarnessError(f"{back} has fewer holes than what was backed up")
        back.unlink()
        return taken

    def qemu_img(fmt):
        back = where / f"back.{fmt}"
        taken = peers.measure(["qemu-img", "convert", "-f", "qcow2", "-O", fmt, "-m", "8", "-W", packed, back])
        back.unlink()
        return taken

    def limit():
        back = where / "limit.raw"
        written = bench.tool("stages", "write", back, str(data_bytes(image)))
        back.unlink()
        stages = {**bench.tool("stages", image, bench.dir("limit"), "back"), "write_data": written["write_data"]}
        parts = ("load", "open_frame", "unpack", "write_data")
        cpu = stage_cpu(stages, *parts)
        return {"seconds": cpu / CORES, "cpu": cpu, **{name: stages[name]["cpu"] for name in parts}}

    for fmt in ("raw", "qcow2"):
        tidemark(fmt, compare=True)
    outcome = bench.compare({
        "limit": limit,
        "tidemark to raw": lambda: tidemark("raw"),
        "qemu-img to raw": lambda: qemu_img("raw"),
        "tidemark to qcow2": lambda: tidemark("qcow2"),
        "qemu-img to qcow2": lambda: qemu_img("qcow2"),
        "tidemark to raw, --prove": lambda: tidemark("raw", "--prove"),
    }, of=data_bytes(image))
    bench.remove(agent)
    shutil.rmtree(where)
    for fmt in ("raw", "qcow2"):
        bench.target(f"times as fast as qemu-img, to {fmt}",
                     outcome.median(f"qemu-img to {fmt}", "seconds") / outcome.median(f"tidemark to {fmt}", "seconds"),
                     2, least=True)
        for what, text in (("seconds", "time to {}, of the limit"), ("cpu", "CPU time to {}, of the limit's")):
            bench.target(text.format(fmt), outcome.median(f"tidemark to {fmt}", what) / outcome.median("limit", what), 1.2)
    bench.target("peak memory, MiB", max(outcome.median(f"tidemark to {fmt}", "rss_mib") for fmt in ("raw", "qcow2")),
                 256)


@scenario("verify", "Reading everything back", FILES)
def verify(bench):
    """verify --read-data of the first scenario's repository: every cluster is decrypted,
    decompressed and hashed. And without reading data."""
    image = bench.image()
    agent = bench.agent("verify")
    agent("backup", f"image:{image},name=fs")

    def limit():
        stages = bench.tool("stages", image, bench.dir("limit"), "back")
        cpu = stage_cpu(stages, "load", "open_frame", "unpack", "prove_id")
        return {"seconds": cpu / CORES, "cpu": cpu}

    outcome = bench.compare({"limit": limit,
                             "verify --read-data": lambda: agent("verify", "--read-data"),
                             "verify": lambda: agent("verify")}, of=data_bytes(image))
    bench.remove(agent)
    bench.target("time, of the limit",
                 outcome.median("verify --read-data", "seconds") / outcome.median("limit", "seconds"), 1.2)
    bench.target("CPU time, of the limit's",
                 outcome.median("verify --read-data", "cpu") / outcome.median("limit", "cpu"), 1.2)
    bench.target("peak memory, MiB", outcome.median("verify --read-data", "rss_mib"), 256)


@scenario("many-disks", "A guest of many disks", FILES)
def many_disks(bench):
    """A guest that is off, with 24 disks which each hold a part of the image, beside one disk
    that holds all of it."""
    image, where = bench.image(), bench.dir("many")
    count = 4 if bench.small else 24
    part = -(-image.stat().st_size // count // MIB) * MIB
    paths, ranges = [], list(images.data_ranges(image))
    with open(image, "rb") as file:
        for number in range(count):
            path = where / f"disk{number:02}.raw"
            with open(path, "wb") as to:
                for start, end in ranges:
                    start, end = max(start, number * part), min(end, (number + 1) * part)
                    while start < end:
                        file.seek(start)
                        block = file.read(min(MIB, end - start))
                        to.seek(start - number * part)
                        to.write(block)
                        start += len(block)
                to.truncate(part)
            paths.append(path)

    def tidemark(target):
        agent = bench.agent("many")
        taken = agent("backup", target)
        taken["stored_bytes"] = agent.bytes()
        bench.remove(agent)
        return taken

    outcome = bench.compare({
        "one disk": lambda: tidemark(f"image:{image},name=one"),
        f"{count} disks": lambda: tidemark(f"image:{','.join(map(str, paths))},name=many"),
    }, rounds=min(bench.rounds, 3), of=data_bytes(image))
    shutil.rmtree(where)
    bench.target("CPU time, of one disk's",
                 outcome.median(f"{count} disks", "cpu") / outcome.median("one disk", "cpu"), 1.2)
    bench.target("peak memory, MiB", outcome.median(f"{count} disks", "rss_mib"), 256)
