#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The command line: what is wrong with it is found before anything is done, and told rightly."""

import os
import signal
import subprocess

from harness import HarnessError, Tidemark, image, run, says
from harness.cases import case, main

SIZE = 8 * image.MIB


def setup(scratch, *names):
    """A repository, and images of that names with something in them."""
    tidemark = Tidemark(scratch)
    tidemark("init")
    paths = []
    for i, name in enumerate(names):
        paths.append(image.create(scratch.dir("disks") / f"{name}.qcow2", SIZE))
        run(["qemu-io", "-c", f"write -P {i + 1} 0 1M", paths[-1]])
    return tidemark, paths


def encrypted(path):
    """An image that cannot be backed up: its header says that it is encrypted."""
    image.create(path, SIZE)
    with open(path, "r+b") as file:
        file.seek(32)
        file.write((1).to_bytes(4, "big"))
    return path


def plain(tidemark, *words, **streams):
    """One command, with standard streams of its own; its status, and what it says."""
    done = subprocess.run([str(word) for word in (tidemark.binary, *words)], env=tidemark.env,
                          stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=60,
                          check=False, **streams)
    return done.returncode, done.stderr


@case
def wrong_words_are_found_before_anything_is_done(scratch):
    tidemark, (good,) = setup(scratch, "good")
    for wrong in ("typo", "image:", "qmp:/x,colour=red"):
        says(tidemark("backup", f"image:{good}", wrong, expect=2), f"'{wrong}'")
    for word, *options in (("'a@b'", "--name", "a@b"), ("256 bytes", "--name", "n" * 256),
                           ("--quiesce", "--quiesce", "require"), ("--overlay-dir", "--overlay-dir", scratch),
                           ("--keep-name", "--collapse", "pull", "--keep-name"),
                           ("--full", "--full", "--like", "x")):
        says(tidemark("backup", f"image:{good}", *options, expect=2), word)
    says(tidemark("backup", f"image:{good},name={'n' * 256}", expect=2), "256 bytes")
    nowhere = Tidemark(scratch, repo=scratch / "nowhere", state=tidemark.state)
    says(nowhere("backup", "vm1", expect=2), "'vm1'", "image:FILE")
    if tidemark("list").json or image.bitmaps(good):
        raise HarnessError("something was done")
    tidemark("backup", f"image:{good},name={'n' * 255}", "--name", "n" * 255)


@case
def a_wrong_disk_does_not_cost_an_epoch(scratch):
    tidemark, (path,) = setup(scratch, "c")
    tidemark("backup", f"image:{path}")
    for option in ("--disk", "--exclude-disk"):
        says(tidemark("backup", f"image:{path},name=oops", option, "nosuch", expect=2), "nosuch")
    says(tidemark("backup", f"image:{path},name=oops", "--like", "nosuch", expect=1), "nosuch")
    run(["qemu-io", "-c", "write -P 9 2M 64k", path])
    disk, = tidemark("backup", f"image:{path}").json["disks"]
    if disk["source"] != "bitmap":
        raise HarnessError(f"{disk}")


@case
def a_failed_target_leaves_the_others_alone(scratch):
    tidemark, (path,) = setup(scratch, "c")
    secret = encrypted(scratch / "secret.qcow2")
    result = tidemark("backup", f"image:{secret}", f"image:{path}", expect=1)
    if result.json["warnings"] or "secret" not in result.err:
        raise HarnessError(f"{result.json}: {result.err}")
    # the command was right, unless it leaves all disks out itself
    says(tidemark("backup", f"image:{secret}", expect=1), "no disk to back up")
    says(tidemark("backup", f"image:{path}", "--exclude-disk", "c", expect=2), "no disk to back up")


SLOWLY = "--limit-rate", "64K"      # takes several seconds, and looks at signals meanwhile


def signalled(scratch, numbers, *options, first=(), wrapper=()):
    """A backup that gets signals while it reads an image, after others."""
    tidemark, (path,) = setup(scratch, "c")
    tidemark.wrapper = list(wrapper)
    running = tidemark.start("backup", *first, f"image:{path}", *options,
                             env={"TIDEMARK_DEBUG_STOP_AT": "frozen"})
    running.wait_stopped("frozen")
    for number in (*numbers, signal.SIGCONT):
        running.signal(number)
    return running


@case
def an_interrupted_run_says_so_whatever_failed_before(scratch):
    running = signalled(scratch, [signal.SIGINT], *SLOWLY, first=[f"image:{scratch}/none.qcow2"])
    says(running.finish(130), "none.qcow2", "interrupted")


@case
def the_end_of_a_session_is_an_interruption(scratch):
    running = signalled(scratch, [signal.SIGHUP], *SLOWLY,
                        wrapper=["env", "--default-signal=HUP"])   # the tests may be under nohup
    says(running.finish(130), "interrupted")


@case
def what_nohup_ignores_stays_ignored(scratch):
    signalled(scratch, [signal.SIGHUP, signal.SIGINT], "--limit-rate", "512K",
              wrapper=["env", "--ignore-signal=HUP", "--ignore-signal=INT"]).finish(0)


@case
def a_file_is_one_disk_of_a_guest(scratch):
    tidemark, (path,) = setup(scratch, "c")
    links = scratch / "symbolic.qcow2", scratch.dir("disks") / "hard.qcow2"
    links[0].symlink_to(path)
    links[1].hardlink_to(path)
    for other in (path, *links):
        says(tidemark("backup", f"image:{path},{other}", expect=2), "same image", scratch.dir("disks"))
    for strange in ("/dev/null", scratch):
        says(tidemark("backup", f"image:{strange}", expect=1), strange, "neither a regular file")
    if tidemark("list").json or image.bitmaps(path):
        raise HarnessError("something was done")


@case
def a_dry_prune_counts_the_points_that_would_go(scratch):
    tidemark, (path,) = setup(scratch, "c")
    for i in range(3):
        (scratch / "noise").write_bytes(os.urandom(1 << 20))
        run(["qemu-io", "-c", f"write -s {scratch}/noise {i}M 1M", path])
        tidemark("backup", f"image:{path}", "--full", "--audit", "0")
    words = ("forget", "--keep-last", "1", "--prune", "--max-unused", "100")
    dry = tidemark(*words, "--dry-run").json
    if len(tidemark("list").json) != 3 or not dry["prune"]["removed_objects"]:
        raise HarnessError(f"{dry}")
    done = tidemark(*words).json
    if done["removed"] != dry["removed"] or any(
            done["prune"][key] != dry["prune"][key] for key in ("kept_bytes", "compacted_bytes")):
        raise HarnessError(f"said {dry}, did {done}")


@case
def warnings_of_a_prune_stand_where_all_do(scratch):
    tidemark, (path,) = setup(scratch, "c")
    tidemark("backup", f"image:{path}")
    (tidemark.repo / "repo.copy").unlink()      # every command warns of that
    done = tidemark("forget", "--keep-last", "1", "--prune", expect=3).json
    if "repo.copy" not in str(done["warnings"]) or "warnings" in done["prune"]:
        raise HarnessError(f"{done}")
    if "repo.copy" not in str(tidemark("prune", expect=3).json["warnings"]):
        raise HarnessError("prune")


@case
def results_that_nobody_gets_are_a_failure(scratch):
    tidemark, (path,) = setup(scratch, "c")
    tidemark("backup", f"image:{path}")
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full, os.fdopen(writer, "wb") as broken:
        for words in (("--help",), ("backup", "--help"), ("--version",), ("-r", tidemark.repo, "list")):
            for out in (full, broken, None):
                streams = {"stdout": out} if out else {"preexec_fn": lambda: os.close(1)}
                status, err = plain(tidemark, *words, **streams)
                if status != 1 or "cannot write to standard output" not in err:
                    raise HarnessError(f"{words} into {out}: {status} {err}")


@case
def damage_that_was_found_is_told_by_the_status(scratch):
    tidemark, (path,) = setup(scratch, "c")
    tidemark("backup", f"image:{path}")
    segment = max((p for p in (tidemark.repo / "d").rglob("*") if p.is_file()),
                  key=lambda p: p.stat().st_size)
    segment.chmod(0o600)
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    with open("/dev/full", "wb") as full:
        status, err = plain(tidemark, "-r", tidemark.repo, "verify", "--read-data", stdout=full)
    if status != 4 or "standard output" not in err:
        raise HarnessError(f"{status}: {err}")


@case
def repositories_of_other_kinds_are_not_made(scratch):
    here = scratch.dir("here")
    tidemark = Tidemark(scratch)
    for repo in ("sftp:host:/x", "http://h/x", "host:/x", "host:x"):
        status, err = plain(tidemark, "-r", repo, "init", cwd=here, stdout=subprocess.DEVNULL)
        if status != 2 or f"./{repo}" not in err or list(here.iterdir()):
            raise HarnessError(f"{repo}: {status} {err} {list(here.iterdir())}")
    for repo in ("./host:x", "file:host:y", f"{here}/a:b"):
        for words in (("init",), ("list",)):
            status, err = plain(tidemark, "-r", repo, *words, cwd=here, stdout=subprocess.DEVNULL)
            if status:
                raise HarnessError(f"{repo}: {status} {err}")
    says(Tidemark(scratch, repo=here / "a:b")("init", expect=1), "there is a repository")


if __name__ == "__main__":
    main()
