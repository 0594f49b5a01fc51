# SPDX-License-Identifier: Apache-2.0
"""A guest, its disks, two repositories, and what must always hold of them."""

import hashlib
import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from harness import Tidemark, image
from harness.base import HarnessError, run
from harness.vm import Disk, plain_filename

from .bare import BareVm, Writer, build, flush
from .host import Host, descendants
from .model import SECTOR, Content, Model, tag

REPOS = 2
DRIVES_MAX = 3
GUEST = "vm"


@dataclass(eq=False)
class Drive:
    """A disk of the guest, attached or not. Its name is never used again."""
    name: str
    kind: str                   # qcow2, raw, v2 or chain
    path: Path                  # the active image
    content: Content
    below: list = field(default_factory=list)       # images that `path` stands on
    discard: bool = True        # whether QEMU lets the guest's discards through
    iothread: bool = False
    copy_on_read: bool = False
    # For each repository the point whose bitmap must still be of use, or None.
    epochs: list = field(default_factory=lambda: [None] * REPOS)

    @property
    def fmt(self):
        return "raw" if self.kind == "raw" and not self.below else "qcow2"

    @property
    def persistent(self):
        return self.kind in ("qcow2", "chain") or bool(self.below)

    def forget_epochs(self):
        self.epochs = [None] * REPOS


@dataclass
class Point:
    """A committed point: {drive's name: SHA-256 of its raw content}."""
    digests: dict


class World:
    def __init__(self, scratch, rng):
        self.scratch = scratch
        self.model = Model()
        self.host = Host(scratch)
        self.old_bases = set()          # that QEMU has open still
        self.images = self._dir("disks")
        self.overlays = self._dir("overlays")
        self.state = self._dir("state")
        self.out = scratch.dir("out")
        self.aside = self._dir("aside")
        # The second one is encrypted. A key file is quick; a password takes work on purpose.
        self.tidemarks = [Tidemark(scratch, repo=self.host.path / f"repo{n}", state=self.state, env=env)
                          for n, env in enumerate(({}, {"TIDEMARK_KEY_FILE": str(scratch / "key")}))]
        self.points = [{} for _ in range(REPOS)]
        self.counts = Counter()
        # QEMU makes up names of nodes for the old way to name drives.
        self.style = rng.choice(("blockdev", "blockdev", "drive"))
        self.drives, self.parked = [], []
        self.born = 0
        self.clean_death = True         # what ended the guest last let it write all
        self.powerless = False          # the power failed in this cycle
        self.cut_off = False            # it has failed
        self.copied = None              # images: {drive: paths}, {drive: Content}
        self.copied_repos = [None] * REPOS      # their points then
        self.vm = BareVm(scratch, [], build(scratch))
        self.tidemarks[0]("init")
        self.tidemarks[1]("init", "--encrypt", "--label", "engine")
        for kind in rng.sample(("qcow2", "raw", "v2", "chain"), rng.randrange(1, DRIVES_MAX + 1)):
            self.drives.append(self.new_drive(rng, kind))
        self.writer = None
        self.start()

    def _dir(self, name):
        path = self.host.path / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    # --- disks ----------------------------------------------------------------------

    def new_drive(self, rng, kind):
        self.born += 1
        name = f"d{self.born}"
        size = rng.randrange(2 * image.MIB, 8 * image.MIB, SECTOR)
        if rng.random() < 0.3:
            size -= size % image.MIB
        content = self.model.new_disk(size)
        content.reuses = kind != "raw"
        path, below = self.images / f"{name}.{'raw' if kind == 'raw' else 'qcow2'}", []
        if kind == "chain":
            template = self.images / f"{name}.template"
            for lba in range(0, size // SECTOR, 3):
                content.settled[lba * SECTOR:(lba + 1) * SECTOR] = tag(content.number, lba, 0)
            template.write_bytes(content.settled)
            image.create(path, size, backing=template, backing_fmt="raw")
            below = [template]
        else:
            options = {"compat": "0.10"} if kind == "v2" else {}
            if kind == "qcow2" and rng.random() < 0.5:
                options = rng.choice(({"cluster_size": "4k"}, {"extended_l2": "on"}, {"cluster_size": "1M"}))
            image.create(path, size, "raw" if kind == "raw" else "qcow2", options)
        # A person who makes a disk waits for it, too.
        run(["sync", "-f", path])
        return Drive(name, kind, path, content, below, rng.random() < 0.7, rng.random() < 0.3,
                     rng.random() < (0.5 if below else 0.1) and self.style == "blockdev")

    def drive_of(self, disk):
        """Of a disk as points call it: by its device, or by its file where the guest was off."""
        return next(d for d in self.drives if disk in (d.name, d.path.stem))

    def adopt_moves(self):
        """What a person does who reads that a pull has made another file the disk: the guest is
        defined with that, and the old one goes."""
        for drive in self.drives:
            note = Path(f"{drive.path}.tidemark-moved")
            if Path(f"{drive.path}.tidemark-journal").exists() or not note.exists():
                continue
            old, drive.path = drive.path, Path(note.read_text().rstrip("\n"))
            print(f"#   {drive.name} is {drive.path.name} now", flush=True)
            self.old_bases.add(str(old))
            old.unlink()
            note.unlink()
            run(["sync", "-f", self.images])

    def files(self):
        """All images there have to be."""
        found = set()
        for drive in self.drives + self.parked:
            found |= {drive.path, *drive.below}
        return found

    def second_names(self, drive):
        """A disk that kept its name in a pull has another one as long as QEMU runs, or until
        the next backup."""
        return [p for p in self.images.glob(f"{drive.path.name}.*.tidemark-name")]

    def is_active(self, drive, filename):
        """Whether this is the drive's image, by any of its names."""
        try:
            return os.path.samefile(drive.path, filename)
        except OSError:
            return False

    @property
    def target(self):
        return self.vm.target(agent=False, name=GUEST)

    @property
    def image_target(self):
        return "image:" + ",".join(str(d.path) for d in self.drives) + f",name={GUEST}"

    # --- the guest --------------------------------------------------------------------

    def start(self):
        self.vm.disks = [Disk(d.path, d.name, fmt=d.fmt, style=self.style, fsync=True, discard=d.discard,
                              copy_on_read=d.copy_on_read,
                              device={"iothread": "io0"} if d.iothread else {}) for d in self.drives]
        self.old_bases = set()
        self.vm.start()
        for drive in self.drives:
            if not drive.persistent:
                drive.forget_epochs()

    def start_writer(self, seed, pause=0.002):
        self.writer = Writer(self.vm, self.model, [d.content for d in self.drives], seed, pause)

    def stop_writer(self):
        writer, self.writer = self.writer, None
        if writer:
            self.counts["guest writes"] += writer.writes
            self.counts["guest reads"] += writer.reads
            writer.stop()

    def look(self, drive):
        """What is on a disk, of the running guest too, whose flush came before."""
        raw = self.out / f"{drive.name}.look"
        if drive.fmt == "raw":
            return drive.path.read_bytes()
        argv = ["qemu-img", "convert", *["-U"] * self.vm.running, "-f", "qcow2", "-O", "raw", drive.path, raw]
        try:
            run(argv)
            return raw.read_bytes()
        finally:
            raw.unlink(missing_ok=True)

    def settle(self, all_answered):
        """Every disk has what it must have; from now on, what it has is what it must."""
        if self.vm.running:
            flush(self.vm, self.model, [d.content for d in self.drives])
        for drive in self.drives:
            self.counts["sectors of qcow2 disks with the data of others (QEMU's)"] += self.model.settle(
                drive.content, self.look(drive), all_answered or self.vm.running)

    # --- points -------------------------------------------------------------------------

    def restore(self, repo, point):
        """{drive's name: content} of a point."""
        result = self.tidemarks[repo]("restore", point, "--to", self.out, "--force")
        found = {}
        for disk in result.json["disks"]:
            path = Path(disk["to"])
            found[disk["disk"]] = path.read_bytes()
            path.unlink()
        return found

    def listed(self, repo):
        return {p["point"]: p for p in self.tidemarks[repo]("list").json}

    def new_points(self, since):
        """Points that have come since `since` of the clock: each is one instant."""
        for repo in range(REPOS):
            listed = self.listed(repo)
            if gone := self.points[repo].keys() - listed.keys():
                raise HarnessError(f"repository {repo} lost the points {sorted(gone)}")
            for point in listed.keys() - self.points[repo].keys():
                self._examine(repo, point, since)

    def _examine(self, repo, point, since):
        found = self.restore(repo, point)
        contents = {name: self.drive_of(name).content for name in found}
        try:
            self.model.instant([(contents[name], contents[name].at_its_size(data))
                                for name, data in found.items()], since, self.model.clock)
        except HarnessError as error:
            raise HarnessError(f"point {point} of repository {repo}: {error}") from None
        digests = {name: hashlib.sha256(data).digest() for name, data in found.items()}
        self.points[repo][point] = Point(digests)
        self.counts["points"] += 1

    def assert_point(self, repo, point):
        """An older point, as it was when it was new."""
        digests = {name: hashlib.sha256(data).digest() for name, data in self.restore(repo, point).items()}
        if digests != self.points[repo][point].digests:
            raise HarnessError(f"point {point} of repository {repo} is not what it was")
        self.counts["points restored again"] += 1

    # --- nothing is left ------------------------------------------------------------------

    def leftovers(self):
        known = self.files() | {n for d in self.drives + self.parked for n in self.second_names(d)
                                if self.is_active(d, n)}
        if self.cut_off:        # a journal that was never born; the next backup writes over it
            known |= set(self.images.glob("*.tidemark-journal.tmp"))
        found = [f"file {p}" for p in sorted(set(self.images.iterdir()) - known)]
        found += [f"file {p} is gone" for p in sorted(self.files() - set(self.images.iterdir()))]
        for directory in (self.overlays, self.host.small):
            found += [f"file {p}" for p in (directory.iterdir() if directory else ())]
        found += [f"journal {p}" for p in (self.state / "journal").glob("*.json")]
        own = {self.vm.pid} if self.vm.running else set()
        for pid in set(descendants(os.getpid())) - own:
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            found.append(f"process {pid}: {b' '.join(words).decode()}")
        if self.vm.running:
            found += self._left_in_qemu()
        return found

    def _left_in_qemu(self):
        found = [f"job {j['id']} is {j['status']}" for j in self.vm.jobs()]
        found += [f"export {e['id']}" for e in self.vm.exports()]
        known = {str(p) for p in self.files()}
        for node in self.vm.nodes():
            name = plain_filename(node["file"])
            if name not in known | self.old_bases and not any(self.is_active(d, name) for d in self.drives):
                found.append(f"node {node['node-name']} of {node['file']}")
        for drive in self.drives:
            if not self.is_active(drive, active := self.vm.active_file(drive.name)):
                found.append(f"{drive.name} is on {active} instead of {drive.path}")
        if not self.vm.qmp.execute("query-status")["running"]:
            found.append("the guest does not run")
        return found

    def assert_clean(self):
        if found := self.leftovers():
            raise HarnessError("left behind: " + "; ".join(found))

    def assert_bitmaps(self, point):
        """After a backup: one bitmap of the repository on each disk, and a good one."""
        for disk in point["disks"]:
            drive = self.drive_of(disk["disk"])
            owner = "-".join(disk["bitmap"].split("-")[:3]) + "-"
            ours = [b for n, b in self.bitmaps(drive).items() if n.startswith(owner)]
            if not ours and drive.fmt == "raw" and drive.content.former:
                continue        # it is of no use for a raw disk that grew
            if len(ours) != 1 or not ours[0]["recording"] or ours[0]["busy"] or ours[0].get("inconsistent"):
                raise HarnessError(f"{drive.name} has these bitmaps of point {point['point']}'s repository: {ours}")

    def bitmaps(self, drive):
        for node in self.vm.nodes():
            if node["drv"] == drive.fmt and self.is_active(drive, plain_filename(node["file"])):
                return {b["name"]: b for b in node.get("dirty-bitmaps", []) if b.get("name")}
        raise HarnessError(f"no node has {drive.path}")

    # --- copies ---------------------------------------------------------------------------

    def copy_aside(self, name, paths):
        """Copies files and folders, for going back to them later; durable, as a
        storage snapshot would be."""
        where = self.aside / name
        shutil.rmtree(where, ignore_errors=True)
        where.mkdir()
        for path in paths:
            run(["cp", "-a", "--sparse=always", path, where])
        run(["sync", "-f", where])
        return where

    def copy_back(self, name, paths):
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            run(["cp", "-a", "--sparse=always", self.aside / name / path.name, path])
        run(["sync", "-f", self.aside])
