#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Bad input gets a clear error and leaves nothing behind."""

import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

from harness import HarnessError, Tidemark, Vm, assert_clean, image, note_baseline, run, says, wait_for
from harness.base import reap, spawn
from harness.cases import case, main
from harness.qmp import Qmp
from harness.vm import Disk

SIZE = 16 * image.MIB


def running(scratch, make=True):
    path = scratch.dir("disks") / "vda.qcow2"
    if make:
        image.create(path, SIZE)
    vm = Vm(scratch, [Disk(path, "vda")], guest=False).start()
    if make:
        vm.write("vda", 0, 1 << 20, 1)
    note_baseline(vm)
    tidemark = Tidemark(scratch)
    tidemark("init")
    return vm, tidemark


@case
def sockets_that_lead_nowhere(scratch):
    tidemark = Tidemark(scratch)
    tidemark("init")
    says(tidemark("backup", f"qmp:{scratch}/none.sock", expect=1), "none.sock")
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(scratch / "dead.sock"))
    dead.close()
    says(tidemark("backup", f"qmp:{scratch}/dead.sock", expect=1), "dead.sock")
    if tidemark("list").json:
        raise HarnessError("a point came out of nothing")


@case
def a_socket_that_is_not_qmp(scratch):
    tidemark = Tidemark(scratch)
    tidemark("init")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(scratch / "other.sock"))
    server.listen(4)

    def serve():
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            peer.sendall(b"220 mail.example.org ESMTP\r\n")
            peer.close()
    threading.Thread(target=serve, daemon=True).start()
    try:
        says(tidemark("backup", f"qmp:{scratch}/other.sock", expect=1), "other.sock", "QMP")
    finally:
        server.close()


@case
def a_socket_that_somebody_else_holds(scratch):
    vm, tidemark = running(scratch)
    holder = Qmp(vm.qmp_path)
    result = tidemark("backup", vm.target(), expect=1, timeout=60)
    says(result, vm.qmp_path, "another")
    holder.close()
    tidemark("backup", vm.target())
    assert_clean(vm)


@case
def an_unknown_disk_lists_the_known_ones(scratch):
    vm, tidemark = running(scratch)
    says(tidemark("backup", vm.target(), "--disk", "vdq", expect=(1, 2)), "vdq", "vda")
    tidemark("backup", vm.target())
    says(tidemark("restore", "vm", "--to", scratch / "x", "--disk", "vdq", expect=2), "vdq", "vda")
    assert_clean(vm)


@case
def repositories_that_are_none(scratch):
    vm, tidemark = running(scratch)
    for repo, word in ((scratch / "nowhere", "nowhere"), (scratch.dir("empty"), "empty")):
        says(Tidemark(scratch, repo=repo, state=tidemark.state)("backup", vm.target(), expect=1), word)
    foreign = scratch.dir("foreign")
    (foreign / "letter.txt").write_text("dear reader")
    says(Tidemark(scratch, repo=foreign)("init", expect=1), "foreign")
    says(Tidemark(scratch, repo=foreign)("list", expect=1), "foreign")
    says(tidemark("init", expect=1), tidemark.repo)
    if sorted(p.name for p in foreign.iterdir()) != ["letter.txt"]:
        raise HarnessError("a foreign directory was written to")
    # letters in a repository stay there and hinder nobody
    letters = [tidemark.repo / name for name in
               ("letter.txt", "keys/letter", "d/Letter", "domains/.letter", "lost+found/letter")]
    for letter in letters:
        letter.parent.mkdir(exist_ok=True)
        letter.write_text("dear reader")
    tidemark("backup", vm.target())
    for words in (("list",), ("verify", "--scrub"), ("prune", "--stale-hours", "0"), ("stats",)):
        tidemark(*words)
    if not all(letter.read_text() == "dear reader" for letter in letters):
        raise HarnessError("a letter was touched")
    assert_clean(vm)


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return (crc ^ 0xffffffff).to_bytes(4, "little")


@case
def a_repository_of_a_newer_format_is_refused(scratch):
    vm, tidemark = running(scratch)
    descriptors = [tidemark.repo / name for name in ("repo", "repo.copy")]
    good = descriptors[0].read_bytes()
    for descriptor in descriptors:
        descriptor.chmod(0o600)
    # The version behind the magic; an unknown incompatible feature; a byte that was damaged.
    for at, sound, words in ((8, True, ("format version", "this program knows")),
                             (16, True, ("features",)), (8, False, ("checksum",))):
        bad = good[:at] + bytes([good[at] + 2]) + good[at + 1:-4]
        for descriptor in descriptors:
            descriptor.write_bytes(bad + (crc32c(bad) if sound else good[-4:]))
        for words_of in (("backup", vm.target()), ("list",), ("prune",)):
            says(tidemark(*words_of, expect=(1, 4)), tidemark.repo, *words)
    descriptors[0].write_bytes(good)
    tidemark("key", "repair")
    # One copy is enough, whichever; the other one is told of and put again.
    for worn, name in (lambda d: d.write_bytes(good[:60]), "repo"), (lambda d: d.unlink(), "repo.copy"), (
            lambda d: d.unlink(), "repo"):
        worn(tidemark.repo / name)
        if f"({name})" not in tidemark("list", expect=3).err or name not in tidemark("verify", expect=4).out:
            raise HarnessError(f"{name} is not missed")
        tidemark("key", "repair")
        if any(d.read_bytes() != good for d in descriptors):
            raise HarnessError(f"{name} was not put again")
        tidemark("verify")
    tidemark("backup", vm.target())
    assert_clean(vm)


@case
def two_hosts_with_guests_of_one_name_keep_their_own(scratch):
    # Each host has its own state; the points lie among each other, each right and each incremental.
    hosts = [Tidemark(scratch, state=scratch.dir(f"state{i}")) for i in range(2)]
    paths = [image.create(scratch.dir("disks") / f"{i}.qcow2", SIZE) for i in range(2)]
    hosts[0]("init")
    made = []
    for turn in range(5):
        i = turn % 2
        run(["qemu-io", "-c", f"write -P {turn + 1} {turn}M 1M", paths[i]])
        point = hosts[i]("backup", f"image:{paths[i]},name=twin", "--audit", "0", expect=(0, 3)).json
        if turn > 1 and point["disks"][0]["source"] != "bitmap":
            raise HarnessError(f"host {i} lost its epoch: {point}")
        image.to_raw(paths[i], scratch / f"{turn}.raw")
        made.append(point["point"])
    for turn, point in enumerate(made):
        out, = hosts[0]("restore", point, "--to", scratch.dir("r"), "--force").json["disks"]
        image.assert_same(scratch / f"{turn}.raw", out["to"], "raw", "raw")
    if [p["point"] for p in hosts[1]("list", "--guest", "twin").json] != made:
        raise HarnessError("list")


def mounted(scratch, name, size):
    """A small tmpfs, or None where mounting is not allowed."""
    where = scratch.dir(name)
    if run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", where], check=False).returncode:
        print("  (cannot mount here: not run)")
        return None
    scratch.defer(lambda: run(["umount", "-l", where], check=False))
    return where


@case
def a_full_repository_fails_only_the_backup(scratch):
    small = mounted(scratch, "small", "2m")
    if not small:
        return
    noise = scratch / "noise"
    noise.write_bytes(os.urandom(8 << 20))
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", noise,
         scratch.dir("disks") / "vda.qcow2"])
    vm, tidemark = running(scratch, make=False)
    full = Tidemark(scratch, repo=small / "repo", state=tidemark.state)
    full("init")
    result = full("backup", vm.target(), expect=1)
    says(result, "No space left", "small")
    assert_clean(vm, epochs=0)
    if full("list").json:
        raise HarnessError("half a point is visible")
    tidemark("backup", vm.target())
    assert_clean(vm)


@case
def a_read_only_repository_fails_before_the_freeze(scratch):
    vm, tidemark = running(scratch)
    where = mounted(scratch, "fixed", "8m")
    if not where:
        return
    fixed = Tidemark(scratch, repo=where / "repo", state=tidemark.state)
    fixed("init")
    run(["mount", "-o", "remount,ro", where])
    says(fixed("backup", vm.target(), expect=1), "ead-only")
    if fixed("list").json:
        raise HarnessError("a point in a read-only repository")
    if "under a budget" not in str(fixed("verify", "--budget", "5s", expect=3).json["warnings"]):
        raise HarnessError("verify does not say that the next run begins where this one did")
    assert_clean(vm, epochs=0)


def mounted_device(scratch, device):
    """An ext4 on what a file shows; None where that cannot be mounted."""
    run(["mkfs.ext4", "-q", device, "64M"])
    where = scratch.dir("hangs")
    if run(["mount", "-o", "loop", device, where], check=False).returncode:
        print("  (cannot mount here: not run)")
        return None
    scratch.defer(lambda: run(["umount", where], check=False))
    return where


def a_hang(scratch, where, begin, end):
    """The repository hangs in the middle of a backup: the guest does not notice."""
    vm, tidemark = running(scratch)
    vm.write("vda", 4 << 20, 8 << 20, 7)
    hung = Tidemark(scratch, repo=where / "repo", state=tidemark.state)
    hung("init")
    backup = hung.start("backup", vm.target(), "--limit-rate", "2M",
                        env={"TIDEMARK_DEBUG_STALL_MS": "1500"})
    wait_for("the freeze", lambda: vm.active_file("vda") != vm.disk("vda").path, 20)
    begin()
    try:
        wait_for("the guest to be back on its own file",
                 lambda: vm.active_file("vda") == vm.disk("vda").path, 40)
        wait_for("the message", lambda: "has not answered" in backup.err, 20)
        vm.write("vda", 4 << 20, 1 << 20, 8)
    finally:
        end()
    backup.finish(1)
    assert_clean(vm, epochs=0, timeout=5)
    hung("backup", vm.target())
    assert_clean(vm)


@case
def a_repository_that_hangs_does_not_hold_the_guest(scratch):
    """Its file system is frozen."""
    if where := mounted_device(scratch, scratch / "fs.img"):
        a_hang(scratch, where, lambda: run(["fsfreeze", "-f", where]),
               lambda: run(["fsfreeze", "-u", where]))


def served_device(scratch):
    """A file in a file system that a process serves, of bytes that another one has; the two."""
    if not os.access("/dev/fuse", os.W_OK) or not shutil.which("nbdfuse"):
        print("  (no FUSE here: not run)")
        return None, None, None
    sock, mount = scratch / "server.sock", scratch.dir("device")
    server = spawn(["nbdkit", "-f", "-U", sock, "memory", "64M"])
    scratch.defer(reap, server)
    wait_for("the server", sock.exists)
    fuse = spawn(["nbdfuse", mount / "nbd", f"nbd+unix:///?socket={sock}"])
    scratch.defer(reap, fuse)
    scratch.defer(lambda: run(["fusermount", "-u", mount], check=False))
    wait_for("the device", (mount / "nbd").exists)
    return mount / "nbd", server, fuse


@case
def a_repository_on_a_server_that_stops_does_not_hold_the_guest(scratch):
    """Nothing that its block device is asked for comes back, until the server goes on."""
    device, server, _ = served_device(scratch)
    if device and (where := mounted_device(scratch, device)):
        a_hang(scratch, where, lambda: server.send_signal(signal.SIGSTOP),
               lambda: server.send_signal(signal.SIGCONT))


@case
def a_repository_on_a_server_that_is_dead_does_not_hold_a_command(scratch):
    """The file system that is to have the repository does not answer."""
    device, _, fuse = served_device(scratch)
    if not device:
        return
    fuse.send_signal(signal.SIGSTOP)
    dead = Tidemark(scratch, repo=device.parent / "repo",
                    env={"TIDEMARK_DEBUG_STALL_MS": "1500"})
    try:
        for words in (("list",), ("verify",), ("prune",), ("key", "list")):
            says(dead(*words, expect=1, timeout=10), "has not answered", dead.repo)
        dead("recover", timeout=10)     # there is nothing that it would have to ask
    finally:
        fuse.send_signal(signal.SIGCONT)
    says(dead("list", expect=1), "there is no repository")


@case
def a_disk_in_use_is_not_restored_over(scratch):
    """Neither the file that a guest runs on, nor one below another, nor a device."""
    vm, tidemark = running(scratch)
    path = vm.disk("vda").path
    tidemark("backup", vm.target())
    before = os.stat(path).st_ino
    for form in ("raw", "qcow2"):
        says(tidemark("restore", "latest", "--to", path, "--force", "--format", form, expect=1),
             path, "in use", "qemu-system")
    if os.stat(path).st_ino != before or list(path.parent.iterdir()) != [path]:
        raise HarnessError(f"something was done: {list(path.parent.iterdir())}")
    vm.kill()
    above = path.parent / "above.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", path, "-F", "qcow2", above])
    device = loop_device(scratch)
    for form, top, victim in (("qcow2", above, path), ("raw", device, device)):
        if not top:
            continue
        sock = scratch / f"{form}.sock"
        holder = spawn(["qemu-nbd", "-t", "-f", form, "-k", sock, top])
        wait_for("the holder", sock.exists, 10)
        says(tidemark("restore", "latest", "--to", victim, "--force", expect=1), victim, "in use",
             "qemu-nbd")
        holder.terminate()
        reap(holder)
    above.unlink()
    tidemark("restore", "latest", "--to", path, "--force")
    if device:
        tidemark("restore", "latest", "--to", device)
        image.assert_same(path, device, "raw", "raw")


def loop_device(scratch):
    """A block device of SIZE bytes; None where none can be made."""
    backing = scratch / "device.raw"
    with open(backing, "wb") as file:
        file.truncate(SIZE)
    done = run(["losetup", "-f", "--show", backing], check=False)
    if done.returncode:
        print("  no loop devices here")
        return None
    scratch.defer(run, ["losetup", "-d", done.stdout.strip()])
    return Path(done.stdout.strip())


@case
def overlay_directories_that_do_not_work(scratch):
    vm, tidemark = running(scratch)
    says(tidemark("backup", vm.target(), "--overlay-dir", scratch / "nowhere", expect=1), "nowhere")
    assert_clean(vm, epochs=0)
    tiny = mounted(scratch, "tiny", "64k")
    if tiny:
        (tiny / "filler").write_bytes(b"x" * 61440)
        says(tidemark("backup", vm.target(), "--overlay-dir", tiny, expect=1), "tiny")
        (tiny / "filler").unlink()
        if list(tiny.iterdir()):
            raise HarnessError(f"left behind: {list(tiny.iterdir())}")
    assert_clean(vm, epochs=0)
    tidemark("backup", vm.target())
    assert_clean(vm)


@case
def what_a_qemu_nbd_said_is_told(scratch):
    """One that does not start, one that is killed, one that dies with a reason."""
    vm, tidemark = running(scratch)
    real = shutil.which("qemu-nbd")
    bin_dir = scratch.dir("bin")
    tidemark.env["PATH"] = f"{bin_dir}:{os.environ['PATH']}"
    fake = bin_dir / "qemu-nbd"

    def use(script):
        fake.write_text("#!/bin/sh\n" + script)
        fake.chmod(0o755)
    use("printf 'first\\n\\033[31mno such sector on the moon\\n' >&2; exit 1\n")
    says(tidemark("backup", vm.target(), expect=1), "vda.qcow2", "qemu-nbd has ended",
         "no such sector on the moon")
    assert_clean(vm, epochs=0)
    for script, words in ((f"exec {real} \"$@\"\n", ("qemu-nbd was ended by signal 9",)),
                          (f"{real} \"$@\" & wait; echo the moon is down >&2; exit 1\n",
                           ("qemu-nbd has ended", "the moon is down"))):
        use(script)
        backup = tidemark.start("backup", vm.target(), "--limit-rate", "512K")
        servers = wait_for("the server", lambda: [
            int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and
            is_server(p, scratch)])
        time.sleep(0.3)     # it reads
        os.kill(servers[0], signal.SIGKILL)
        says(backup.finish(1), "disk vda", *words)
        assert_clean(vm, epochs=0)
    fake.unlink()
    tidemark("backup", vm.target())
    assert_clean(vm)


def is_server(process, scratch):
    """A qemu-nbd itself, not a shell that runs one, of an image of this test."""
    try:
        words = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[0].endswith(b"qemu-nbd") and str(scratch).encode() in words[-2]


@case
def images_that_cannot_be_read(scratch):
    tidemark = Tidemark(scratch)
    tidemark("init")
    says(tidemark("backup", f"image:{scratch}/none.qcow2", expect=1), "none.qcow2")
    says(tidemark("backup", f"image:{scratch}", expect=1), str(scratch))
    broken = scratch / "broken.qcow2"
    broken.write_bytes(b"QFI\xfb" + b"\xff" * 600)
    says(tidemark("backup", f"image:{broken}", expect=1), "broken.qcow2")
    if tidemark("list").json:
        raise HarnessError("a point came out of nothing")


@case
def restores_that_would_overwrite(scratch):
    path = image.create(scratch / "disk.qcow2", SIZE)
    tidemark = Tidemark(scratch)
    tidemark("init")
    tidemark("backup", f"image:{path},name=g")
    mine = scratch / "mine.raw"
    mine.write_text("precious")
    says(tidemark("restore", "g", "--to", mine, expect=1), "mine.raw", "--force")
    if mine.read_text() != "precious":
        raise HarnessError("a file was overwritten")
    tidemark("restore", "g", "--to", mine, "--force")
    image.assert_same(path, mine, "qcow2", "raw")
    says(tidemark("restore", "g", "--to", scratch / "no" / "such" / "dir.raw", expect=1), "dir.raw")
    says(tidemark("restore", "nobody", "--to", scratch / "x", expect=1), "nobody")
    left = [p.name for p in scratch.path.iterdir() if "partial" in p.name]
    if left:
        raise HarnessError(f"left behind: {left}")


@case
def targets_and_points_that_make_no_sense(scratch):
    tidemark = Tidemark(scratch)
    tidemark("init")
    for words in (("backup", "ftp:x"), ("backup", "qmp:"), ("backup", "image:name=x"),
                  ("backup", "qmp:/x,colour=red"), ("backup", "image:/x,name=a@b")):
        result = tidemark(*words, expect=2)
        if "tidemark:" not in result.err:
            raise HarnessError(f"{words}: {result.err}")
    says(tidemark("show", "abcd", expect=1), "abcd")


if __name__ == "__main__":
    main()
