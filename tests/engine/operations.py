# SPDX-License-Identifier: Apache-2.0
"""What is done to a guest, at random. Each operation ends with a guest that may be
dead; `cycle` brings it up again as a start script would, and looks at everything."""

import os
import shutil
import threading
import time
from pathlib import Path

from harness.base import HarnessError, run
from harness.qmp import QmpError

from .deaths import IMAGE_PHASES, PHASES, PULL_PHASES, Death
from .model import SECTOR, tag
from .world import DRIVES_MAX, GUEST, REPOS


def doze(rng, longest):
    time.sleep(rng.uniform(0, longest))


# --- backups ------------------------------------------------------------------------


def choose(world, rng):
    """(options, names of the disks) of a backup."""
    options, names = [], [d.name for d in world.drives]
    fit = [d.name for d in world.drives if d.persistent and d.kind != "v2"]
    pull = fit and rng.random() < 0.25
    if pull:
        names = fit
    elif len(names) > 1 and rng.random() < 0.15:
        names = sorted(rng.sample(names, rng.randrange(1, len(names))))
    for name in names if len(names) < len(world.drives) else ():
        options += ["--disk", name]
    if rng.random() < 0.1:
        options.append("--full")
    if rng.random() < 0.5:
        options += ["--limit-rate", rng.choice(("6M", "16M", "32M"))]
    if rng.random() < 0.2:
        options += ["--audit", rng.choice(("0", "10", "100"))]
    if pull:
        options += ["--collapse", "pull", *rng.choice((["--keep-name"], []))]
    elif rng.random() < 0.2:
        options += ["--overlay-dir", str(world.overlays)]
    elif rng.random() < 0.15 and world.host.small:
        options += ["--overlay-dir", str(world.host.small)]
    return options, names


def expect_epochs(world, repo, names, result):
    """A bitmap that had to be good was used; from now on this point's has to be."""
    point = result.json
    for disk in point["disks"]:
        drive = world.drive_of(disk["disk"])
        world.counts[f"read by {disk['source']}"] += 1
        if (disk["audit"] or {}).get("differed"):
            raise HarnessError(f"the audit says that a change of {drive.name} was missed: {disk}")
        if drive.epochs[repo] and disk["source"] != "bitmap" and disk["reason"] != "asked for with --full":
            raise HarnessError(f"{drive.name} should have been read by the bitmap of point "
                               f"{drive.epochs[repo]}: {disk}")
        drive.epochs[repo] = point["point"]
    if {world.drive_of(d["disk"]).name for d in point["disks"]} != set(names):
        raise HarnessError(f"not the disks that were asked for, {names}: {point}")


def backup(world, rng):
    """A backup of the running guest, which writes all the time."""
    repo = rng.randrange(REPOS)
    options, names = choose(world, rng)
    small = str(world.host.small) in options
    death = Death(world, rng, PULL_PHASES if "pull" in options else PHASES, not small)
    if small and death.expect:
        death.expect += (1, 5)      # given up, perhaps with a guest that stood
    pause = rng.choice((0.0005, 0.002, 0.01))
    growing = [d for d in world.drives if d.name in names]
    grows = Growth(world, rng, growing) if rng.random() < 0.2 else None
    print(f"#   repository {repo}, {' '.join(options) or 'no options'}; {grows or ''}{death}", flush=True)
    world.start_writer(rng.random(), pause)
    doze(rng, 0.15)
    running = world.tidemarks[repo].start("backup", world.target, "--quiesce", "never", *options,
                                          env=death.env)
    if grows:
        grows.start()
        death.expect = death.expect and (*death.expect, 1)
    result = death.strike(running)
    if grows and not grows.finish(result) and result.status == 1 and death.kind == "none" and not small:
        raise HarnessError(f"{result}: {result.err}")
    world.counts["backups"] += 1
    world.counts["backups with a pull"] += "pull" in options
    world.counts["backups with too little room"] += small
    world.counts["... given up for that"] += small and result.status == 1
    finish_backup(world, rng, repo, names, death, result)
    if grows:
        grows.forget()


class Growth:
    """A disk that grows while it is backed up."""

    def __init__(self, world, rng, drives):
        self.world = world
        self.drive = rng.choice(drives)
        self.delay = rng.uniform(0, 0.6)
        self.size = self.drive.content.size + rng.randrange(1, 2048) * SECTOR
        self.at, self.said = 0, "nothing yet"
        self._thread = threading.Thread(target=self._grow, daemon=True)

    def __str__(self):
        return f"{self.drive.name} grows after {self.delay:.2f} s; "

    def start(self):
        self.drive.content.pending = self.size
        self._thread.start()

    def _grow(self):
        time.sleep(self.delay)
        vm = self.world.vm
        try:
            node = vm.block(self.drive.name)["inserted"]["node-name"]
            vm.qmp.execute("block_resize", {"node-name": node, "size": self.size})
            # A node may be the disk's no more by now.
            if vm.block(self.drive.name)["inserted"]["image"]["virtual-size"] == self.size:
                with self.world.model.lock:
                    self.drive.content.resize(self.size)
                    self.drive.content.pending = 0
                    self.at = self.world.model.clock
            self.said = "done"
        except (OSError, AttributeError, HarnessError) as error:
            self.said = str(error)

    def finish(self, result):
        self._thread.join(60)
        print(f"#   {self.drive.name} grew at {self.at}: {self.said}; exit {result.status}", flush=True)
        self.world.counts["disks that grew during a backup"] += self.said == "done"
        given_up = result.status == 1 and "resized" in result.err
        self.world.counts["... and it was given up for that"] += given_up
        self.forget()
        return given_up

    def forget(self):
        if self.drive.fmt == "raw":
            self.drive.forget_epochs()


def finish_backup(world, rng, repo, names, death, result):
    """What is right after a backup and its death; recovery, while the guest writes on."""
    if world.host.failed:
        world.vm.kill()
    else:
        world.adopt_moves()
    if result.status in (0, 3) and not result.out.strip():
        raise HarnessError(f"{result}: no point")
    if not world.vm.running:
        for drive in world.drives:
            drive.forget_epochs()       # some would be good; that is for tests of one case
    elif result.status in (0, 3):
        expect_epochs(world, repo, names, result)
        if result.status == 0 or death.kind == "none":
            world.assert_bitmaps(result.json)
    else:
        # Whether there is a point is for the list to say.
        for drive in world.drives:
            drive.epochs[repo] = drive.epochs[repo] and "the last one's, or the one's before"
    world.clean_death = death.kind == "quit"
    if result.status not in (0, 3) and not world.host.failed and rng.random() < 0.2 and not is_guarded(world):
        print("#   the state of the host is lost", flush=True)
        shutil.rmtree(world.state)
    if world.vm.running and result.status not in (0, 3):
        # Before the guest's writes are waited for: with a commit that is to be
        # finalized they stand.
        world.writer.calm()
        recover(world, rng)
    doze(rng, 0.05)
    world.stop_writer()
    if not world.host.failed:
        world.adopt_moves()


def is_guarded(world):
    """Is a process still at it that puts in order what the agent left? It holds a lock in the state."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = path.read_bytes().split(b"\0")
        except OSError:
            continue            # it has ended
        if b"__guard-recovery" in argv and os.fsencode(world.state) in argv:
            return True
    return False


def recover(world, rng):
    """By the command for it, or by the next backup."""
    if rng.random() < 0.5:
        world.tidemarks[0]("recover", world.target, expect=(0, 3))
        world.adopt_moves()
    else:
        repo = rng.randrange(REPOS)
        expect_epochs(world, repo, [d.name for d in world.drives],
                      world.tidemarks[repo]("backup", world.target, "--quiesce", "never", expect=(0, 3)))


def images_at_rest(world, rng):
    """The guest is switched off; its images are backed up, and written by a tool."""
    stop(world, rng)
    for _ in range(rng.randrange(1, 3)):
        if rng.random() < 0.6:
            write_at_rest(world, rng)
        repo, env = rng.randrange(REPOS), {}
        if rng.random() < 0.3:
            env = {"TIDEMARK_DEBUG_KILL_AT": rng.choice(IMAGE_PHASES)}
        print(f"#   images to repository {repo} {env or ''}", flush=True)
        result = world.tidemarks[repo]("backup", world.image_target, env=env, expect=None if env else (0, 3))
        world.counts["backups of images"] += 1
        if result.status in (0, 3):
            for disk in result.json["disks"]:
                drive = world.drive_of(disk["disk"])
                if drive.epochs[repo] and disk["source"] != "bitmap":
                    raise HarnessError(f"{drive.name}: no bitmap: {disk}")
                if drive.persistent:
                    drive.epochs[repo] = result.json["point"]
        else:
            world.counts["death: agent at, images"] += 1
            for drive in world.drives:
                drive.epochs[repo] = None
            # As whatever uses the images next has to; a server may still hold them.
            world.tidemarks[0]("recover", "--before-start", world.image_target, json_output=False)


def write_at_rest(world, rng):
    """What qemu-io writes, as any tool would that knows bitmaps."""
    drive = rng.choice(world.drives)
    count = rng.randrange(1, 300)
    lba = rng.randrange(max(1, drive.content.size // SECTOR - count))
    count = min(count, drive.content.size // SECTOR - lba)
    write = world.model.issue(drive.content, lba, count)
    data = b"".join(tag(drive.content.number, s, write.generation) for s in range(lba, lba + count))
    (world.out / "data").write_bytes(data)
    run(["qemu-io", "-f", drive.fmt, "-c",
         f"write -s {world.out / 'data'} {lba * SECTOR} {count * SECTOR}", "-c", "flush", drive.path])
    world.model.answer(drive.content, lba, count, write)
    if not drive.persistent:
        drive.forget_epochs()


# --- the guest's life -----------------------------------------------------------------


def write(world, rng):
    """The guest writes; perhaps it is killed, or the power fails, in the middle."""
    world.start_writer(rng.random(), rng.choice((0.0005, 0.002)))
    doze(rng, 0.4)
    world.clean_death = False
    end = rng.choice(("goes on", "goes on", "killed") + ("power",) * world.host.can_fail)
    print(f"#   {end}", flush=True)
    if end == "power":
        world.host.fail()
    if end != "goes on":
        world.counts[f"death: {end} at rest"] += 1
        world.vm.kill()
        for drive in world.drives:
            drive.forget_epochs()
    world.stop_writer()


def stop(world, rng):
    """The guest is off in order, and all it wrote is on its disks."""
    how = rng.choice((world.vm.quit, world.vm.terminate))
    world.settle(True)
    how()
    for drive in world.drives:
        if not drive.persistent:
            drive.forget_epochs()


def restart(world, rng):
    """Off and on, with drives added, taken away, brought back, or in another order."""
    world.start_writer(rng.random())
    doze(rng, 0.1)
    world.stop_writer()
    stop(world, rng)
    what = rng.choice(("as it was", "add", "remove", "back", "shuffle"))
    if what == "add" and len(world.drives) < DRIVES_MAX:
        kind = rng.choice(("qcow2", "qcow2", "raw", "v2", "chain"))
        world.drives.insert(rng.randrange(len(world.drives) + 1), world.new_drive(rng, kind))
        what = f"add {kind}"
    elif what == "remove" and len(world.drives) > 1:
        world.parked.append(world.drives.pop(rng.randrange(len(world.drives))))
    elif what == "back" and world.parked and len(world.drives) < DRIVES_MAX:
        world.drives.append(world.parked.pop(rng.randrange(len(world.parked))))
    elif what == "shuffle":
        rng.shuffle(world.drives)
    print(f"#   drives {what}: {', '.join(f'{d.name} {d.kind}' for d in world.drives)}", flush=True)


def resize(world, rng):
    """A disk grows while the guest runs."""
    drive = rng.choice(world.drives)
    size = drive.content.size + rng.randrange(1, 2048) * SECTOR
    node = world.vm.block(drive.name)["inserted"]["node-name"]
    try:
        world.vm.qmp.execute("block_resize", {"node-name": node, "size": size})
    except QmpError as error:
        # QEMU resizes no image with an inconsistent bitmap, which the next backup removes.
        if "inconsistent" not in str(error):
            raise
        print(f"#   {error}", flush=True)
        world.counts["resizes refused by QEMU"] += 1
        return
    drive.content.resize(size)
    if drive.fmt == "raw":
        drive.forget_epochs()       # QEMU calls its new end clean, and nobody knows what is there
    print(f"#   {drive.name} has {size} bytes", flush=True)


def foreign(world, rng):
    """Another program makes a snapshot of a disk, or merges its own back."""
    drive = rng.choice(world.drives)
    if drive.kind == "qcow2" and drive.below:
        foreign_merge(world, drive)
    elif drive.kind == "qcow2" and not drive.copy_on_read:
        # On such a filter the snapshot would have the filter as its backing file, which
        # nobody can open.
        foreign_snapshot(world, drive)
    drive.forget_epochs()
    world.start_writer(rng.random())
    doze(rng, 0.1)
    world.stop_writer()


def foreign_snapshot(world, drive):
    path = world.images / f"{drive.name}.foreign-{world.model.clock}"
    world.vm.qmp.execute("blockdev-snapshot-sync", {
        "node-name": world.vm.block(drive.name)["inserted"]["node-name"], "format": "qcow2",
        "snapshot-file": str(path), "snapshot-node-name": f"{drive.name}-foreign"})
    run(["sync", "-f", path])
    drive.below, drive.path = [drive.path], path
    print(f"#   {drive.name} is on {path.name}", flush=True)


def foreign_merge(world, drive):
    world.settle(True)
    world.vm.terminate()
    base, = drive.below
    run(["qemu-img", "commit", "-q", "-d", "-f", "qcow2", drive.path])
    run(["sync", "-f", base])
    drive.path.unlink()
    drive.path, drive.below = base, []
    print(f"#   {drive.name} is back on {base.name}", flush=True)


# --- older copies -----------------------------------------------------------------------


def older_images(world, rng):
    """The images are copied while the guest is off, and some time later put back."""
    stop(world, rng)
    if world.copied and rng.random() < 0.6:
        drives, contents = world.copied
        for drive in world.drives + world.parked:
            drive.forget_epochs()
        mine = [d for d in drives if d in world.drives and [d.path, *d.below] == drives[d]]
        if len(mine) > 1 and rng.random() < 0.3:
            mine = [rng.choice(mine)]
        for drive in mine:
            for name in world.second_names(drive):
                name.unlink()
            world.copy_back("images", drives[drive])
            drive.content = contents[drive].copy()
        print(f"#   back to older copies of {', '.join(d.name for d in mine) or 'nothing'}", flush=True)
        return
    paths = {d: [d.path, *d.below] for d in world.drives}
    world.copied = paths, {d: d.content.copy() for d in world.drives}
    world.copy_aside("images", [p for each in paths.values() for p in each])
    print("#   images copied", flush=True)


def older_repository(world, rng):
    """A repository is copied, and some time later put back."""
    repo = rng.randrange(REPOS)
    path = world.tidemarks[repo].repo
    if world.copied_repos[repo] is not None and rng.random() < 0.6:
        world.copy_back(f"repo{repo}", [path])
        world.points[repo] = dict(world.copied_repos[repo])
        for drive in world.drives + world.parked:
            drive.epochs[repo] = None
        print(f"#   repository {repo} is back to {len(world.points[repo])} points", flush=True)
        return
    world.copied_repos[repo] = dict(world.points[repo])
    world.copy_aside(f"repo{repo}", [path])
    print(f"#   repository {repo} is copied", flush=True)


def forget(world, rng):
    """The older points go, and what only they used."""
    repo = rng.randrange(REPOS)
    tidemark, keep = world.tidemarks[repo], rng.randrange(2, 5)
    if not world.points[repo]:
        print("#   the guest is not known there yet", flush=True)
        tidemark("forget", "--guest", GUEST, "--keep-last", keep, "--prune", expect=1)
        return
    tidemark("forget", "--guest", GUEST, "--keep-last", keep, "--prune", expect=(0, 3))
    left = world.listed(repo).keys()
    for point in world.points[repo].keys() - left:
        del world.points[repo][point]
        world.counts["points forgotten"] += 1
    for drive in world.drives + world.parked:
        if drive.epochs[repo] not in left:
            drive.epochs[repo] = None


# --- one cycle --------------------------------------------------------------------------

OPERATIONS = [(backup, 16), (images_at_rest, 3), (write, 2), (restart, 3), (resize, 2), (foreign, 2),
              (older_images, 2), (older_repository, 2), (forget, 3)]


def bring_up(world):
    """What a host does that starts: file systems first, then the guests."""
    if world.host.can_fail and not os.path.ismount(world.host.path):
        raise HarnessError("the host's file system is gone")
    if not world.powerless:
        # What a QEMU that was killed had not flushed is seen by the next one, which
        # never syncs it (it flushes what it wrote itself).
        run(["sync", "-f", world.images])
    world.adopt_moves()
    world.tidemarks[0]("recover", "--before-start", world.image_target, json_output=False)
    world.settle(world.clean_death)
    world.start()


def cycle(world, rng):
    operation, = rng.choices([o for o, _ in OPERATIONS], [n for _, n in OPERATIONS])
    print(f"#   {operation.__name__}", flush=True)
    since = world.model.tick()
    world.clean_death = True
    operation(world, rng)
    world.counts[f"operation: {operation.__name__}"] += 1
    world.powerless = world.host.failed
    world.cut_off |= world.powerless
    if world.powerless:
        world.host.power_on()
    if not world.state.exists():
        world.state.mkdir(mode=0o700)
    world.new_points(since)
    if not world.vm.running:
        bring_up(world)
    world.settle(True)
    world.assert_clean()
    for repo in range(REPOS):
        if world.points[repo]:
            world.assert_point(repo, rng.choice(sorted(world.points[repo])))


def final(world):
    """At the end of a run: all that there is."""
    for repo in range(REPOS):
        for point in world.points[repo]:
            world.assert_point(repo, point)
        if world.tidemarks[repo]("verify", "--read-data").json["damaged"]:
            raise HarnessError(f"repository {repo} is damaged")
