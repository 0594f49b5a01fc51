# SPDX-License-Identifier: Apache-2.0
"""What a clone costs: file systems with the same Debian packages, installed in another order."""

import hashlib
import os
import random
import subprocess
from pathlib import Path

from harness import HarnessError, run

from data import CLUSTER, MIB
from scenario import scenario

LIMIT = 0.15
LARGEST = 120 * 1024  # KiB installed; a few giants would leave no order to change
RUNS = 6              # of an installer, each a mount of its own


def packages(seed, golden, added):
    """Two lists of packages of so many MiB, the same for the same machine and seed."""
    rows = [r.split() for r in run(["dpkg-query", "-W", "-f", "${Package}:${Architecture} ${Installed-Size}\n"])
            .stdout.splitlines()]
    rows = sorted((name, int(size)) for name, size in rows if int(size) < LARGEST)
    random.Random(seed).shuffle(rows)
    lists = []
    for limit in (golden, added):
        chosen, kib = [], 0
        while rows and kib < limit * 1024:
            name, size = rows.pop()
            chosen.append(name)
            kib += size
        lists.append(chosen)
    return lists


def files(package):
    name = package.removesuffix(":all")
    for line in run(["dpkg", "-L", name], check=False).stdout.splitlines():
        path = Path(line)
        if path.is_file() and not path.is_symlink():
            yield path


def install_mounted(image, names, where):
    """Through the kernel, as a system does it."""
    run(["mount", "-o", "loop", image, where])
    try:
        for name in names:
            listing = "\0".join(str(p)[1:] for p in files(name))
            if listing:
                packed = subprocess.run(["tar", "-C", "/", "-c", "--null", "-T", "-"], input=listing.encode(),
                                        check=True, stdout=subprocess.PIPE).stdout
                subprocess.run(["tar", "-C", where, "-x"], input=packed, check=True)
                run(["sync", "-f", where])  # as a package manager does
    finally:
        run(["umount", where])


def install_debugfs(image, names, _where):
    made, commands = set(), []
    for name in names:
        for path in files(name):
            for parent in reversed(path.parents):
                if parent not in made and str(parent) != "/":
                    made.add(parent)
                    commands.append(f"mkdir {parent}")
            commands.append(f"write {path} {path}")
    subprocess.run(["debugfs", "-w", "-f", "-", image], input="\n".join(commands).encode(), check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def build(bench, install, golden_mib, added_mib):
    """golden, and two copies of it with the same more packages, their runs in another order."""
    where, mnt = bench.dir("clones"), bench.dir("clones-mnt")
    golden_names, added = packages(bench.seed, golden_mib, added_mib)
    golden = where / "golden.raw"
    with open(golden, "wb") as file:
        file.truncate(4 * (golden_mib + added_mib) * MIB)
    run(["mkfs.ext4", "-q", "-U", "12345678-1234-1234-1234-123456789abc",
         "-E", "lazy_itable_init=0,lazy_journal_init=0", golden])
    install(golden, golden_names, mnt)
    images = {"golden": golden}
    for number, name in enumerate(("first", "second")):
        image = images[name] = where / f"{name}.raw"
        run(["cp", "--sparse=always", golden, image])
        groups = [added[i * len(added) // RUNS:(i + 1) * len(added) // RUNS] for i in range(RUNS)]
        random.Random(bench.seed + 1 + number).shuffle(groups)
        for group in groups:
            install(image, group, mnt)
    return images


def floors(images):
    """For each image the share of its clusters with content that no image before has."""
    seen, shares = set(), {}
    for name, image in images.items():
        total = new = 0
        with open(image, "rb") as file:
            while cluster := file.read(CLUSTER):
                if cluster.count(0) == len(cluster):
                    continue
                total += 1
                digest = hashlib.sha256(cluster).digest()
                new += digest not in seen
                seen.add(digest)
        shares[name] = new / total
    return shares


def grown(bench, agent, name, image):
    """A backup: what was measured, and by how much the repository grew. What is read back is compared."""
    before = agent.bytes()
    taken = agent("backup", f"image:{image},name={name}")
    stored = agent.bytes() - before
    back = image.with_suffix(".back")
    agent("restore", taken["json"]["point"], "--to", back)
    bench.same(image, back)
    back.unlink()
    return {**{key: taken[key] for key in ("seconds", "cpu", "rss_mib")}, "stored_bytes": stored}


@scenario("dedup-clones", "What a clone costs", ("dpkg-query", "mkfs.ext4", "debugfs", "qemu-nbd"))
def dedup_clones(bench):
    """Three ext4 images with files of installed packages: a golden one of 1000 MiB, and two copies of
    it with the same 900 MiB of other packages, installed in another order, six runs of an
    installer each. Each is backed up alone; then all into one repository, a guest each, with no option
    given; then the second one beside the first one only. The floor is the share of clusters that no image
    before has anywhere."""
    mounts = os.geteuid() == 0 and Path("/dev/loop-control").exists()
    images = build(bench, install_mounted if mounts else install_debugfs, *((40, 30) if bench.small else (1000, 900)))
    floor = floors(images)
    alone = {}
    for name, image in images.items():
        agent = bench.agent("alone")
        alone[name] = grown(bench, agent, name, image)
        bench.remove(agent)
    shared, pair = bench.agent("shared"), bench.agent("pair")
    grown(bench, pair, "first", images["first"])
    rows = {name: (name, grown(bench, shared, name, image)) for name, image in images.items()}
    rows["second, beside first only"] = ("second", grown(bench, pair, "second", images["second"]))
    bench.remove(shared)
    bench.remove(pair)
    for label, (name, taken) in rows.items():
        bench.row(label, **taken, alone_bytes=alone[name]["stored_bytes"],
                  of_alone=taken["stored_bytes"] / alone[name]["stored_bytes"], floor=floor[name])
    if not mounts:
        # debugfs packs small files behind one another, where the kernel spreads them over block groups.
        bench.note("installed with debugfs, without rights to mount: clusters differ that would not on a system")
        return
    for label in list(rows)[2:]:
        bench.target(f"stored, of alone: {label}", bench.outcome.median(label, "of_alone"), 1 if bench.small else LIMIT)
