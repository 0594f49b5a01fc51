#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What tests/demo runs once the packages are there. See there."""

import os
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness import (ROOT, Disk, HarnessError, Scratch, Tidemark, Vm, assert_clean,  # noqa: E402
                     guest_image, image, journal, make_rng, note_baseline, run, wait_for)

DISKS = {"system": 1 << 30, "data": 768 << 20}
INCREMENTALS = 4
OPERATIONS = 12     # of the guest on each disk, at least, between two backups


def say(text=""):
    print(text, flush=True)


def prepare():
    """The binary and the guest. Their chatter is shown only if they fail."""
    build = ROOT / "build"
    if not os.environ.get("TIDEMARK"):
        if not (build / "build.ninja").exists():
            run(["meson", "setup", "-Dbuildtype=debugoptimized", build, ROOT], timeout=300)
        run(["meson", "compile", "-C", build], timeout=1800)
    guest_image()


def start_guest(scratch):
    disks = scratch.dir("disks")
    vm = Vm(scratch, [Disk(image.create(disks / f"{name}.qcow2", size), name)
                      for name, size in DISKS.items()], name="demo").start()
    for name, device in zip(DISKS, ("vda", "vdb")):
        vm.console.sh(f"mkfs.ext4 -q -L {name} -E nodiscard -J size=8 /dev/{device} && "
                      f"mkdir /mnt/{name} && mount -o discard /dev/{device} /mnt/{name} && "
                      f"writer --fill /mnt/{name} 12 2048", timeout=120)
    note_baseline(vm)
    return vm


def operations(vm):
    """{disk: how many operations its writer has completed}"""
    done = {}
    for name in DISKS:
        number, verb, *_ = vm.console.sh(f"tail -n 1 /mnt/{name}/log").split()
        done[name] = int(number) - (verb == "begin")
    return done


def wait_for_writes(vm, since):
    def enough():
        now = operations(vm)
        return all(now[name] >= since[name] + OPERATIONS for name in DISKS)
    wait_for("the guest to write", enough, timeout=60, interval=0.5)


def backup(vm, tidemark, number):
    """One backup while the guest writes. Returns what --json said, with the
    operations complete just before and just after it."""
    before = operations(vm)
    point = tidemark("backup", vm.target(), "--quiesce", "require").json
    after = operations(vm)
    assert_clean(vm)
    if not point["quiesced"] or {d["size"] for d in point["disks"]} != set(DISKS.values()):
        raise HarnessError(f"not what was asked for: {point}")
    for disk in point["disks"]:
        if number > 0 and disk["source"] != "bitmap":
            raise HarnessError(f"{disk['disk']} was not read by its bitmap: {disk['reason']}")
    return point, before, after


def table_line(number, point):
    def total(key):
        return f"{sum(disk[key] for disk in point['disks']) / (1 << 20):9.1f} MiB"
    source = "/".join(sorted({disk["source"] for disk in point["disks"]}))
    say(f"  {number}  {point['point'][:12]:12}  {source:10} {point['freeze_ms']:6} ms "
        f"{total('read_bytes')} {total('new_bytes')} {total('stored_bytes')} "
        f"{point['seconds']:7.2f} s")


def judge_image(path, scratch, logs, before, after):
    """One restored file system. Returns its label and the number of files."""
    name = journal.label(path)
    if name not in DISKS:
        raise HarnessError(f"{path} has no file system of the guest")
    journal.fsck(path)
    tree = journal.extract(path, scratch.dir("trees") / f"{Path(path).parent.name}-{name}")
    files = journal.judge_tree(tree, logs[name], before[name], after[name])
    if files < 12:
        raise HarnessError(f"{path}: only {files} files to compare")
    return name, files


def restore(tidemark, scratch, number, taken, logs):
    point, before, after = taken
    to = scratch.dir(f"restored-{number}")
    result = tidemark("restore", point["point"], "--to", to, "--format", "raw").json
    found = dict(judge_image(disk["to"], scratch, logs, before, after)
                 for disk in result["disks"])
    if found.keys() != DISKS.keys():
        raise HarnessError(f"point {number} restored only {sorted(found)}")
    counts = " and ".join(f"all {files} files of '{name}'" for name, files in found.items())
    say(f"  point {number} ({point['point'][:12]}): both file systems are clean; {counts}\n"
        "    have the content that the guest recorded for that moment")


def demo(began):
    rng = make_rng("demo")
    with Scratch("demo") as scratch:
        tidemark = Tidemark(scratch)
        say("Booting a guest with two disks ...")
        vm = start_guest(scratch)
        points, since = [], operations(vm)
        for name in DISKS:
            vm.console.background(f"exec writer /mnt/{name} {rng.randrange(30000)}")
        say("It writes on both without a pause. Backing it up meanwhile:\n")

        tidemark("init")
        say("  #  point         read by  guest frozen        read        new         stored"
            "     time")
        for number in range(1 + INCREMENTALS):
            wait_for_writes(vm, since)
            points.append(backup(vm, tidemark, number))
            since = points[-1][1]
            table_line(number, points[-1][0])

        for name in DISKS:
            vm.console.sh(f"touch /mnt/{name}/.stop")
        with vm.agent() as agent:
            vm.console.sh("while pidof writer; do sleep 0.1; done", timeout=20)
            logs = {name: agent.read_file(f"/mnt/{name}/log").decode() for name in DISKS}

        chosen = sorted(rng.sample(range(len(points)), 2))
        say(f"\nRestoring two points chosen at random, {chosen[0]} and {chosen[1]}:\n")
        for number in chosen:
            restore(tidemark, scratch, number, points[number], logs)

        vm.poweroff()
        end = {name: len(log.splitlines()) for name, log in logs.items()}
        for disk in vm.disks:
            image.check(disk.path)
            raw = image.to_raw(disk.path, scratch / f"{disk.id}.raw")
            judge_image(raw, scratch, logs, {disk.id: 0}, end)
        say("\nThe guest's own disks, on which it went on writing all the time, are right too.")
        say(f"Everything matches. {time.monotonic() - began:.0f} seconds in all.")


def main():
    began = time.monotonic()
    say("Building Tidemark and its test guest ...")
    try:
        prepare()
        say(f"... done after {time.monotonic() - began:.0f} seconds.")
        demo(time.monotonic())
    except HarnessError as error:
        print(f"tests/demo: FAILED: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
