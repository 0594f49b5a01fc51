#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What a restore refuses before anything is written, what it writes where a link is, and that it
ends when it is interrupted."""

import os
import signal

from harness import HarnessError, Tidemark, image, run, wait_for
from harness.base import reap, spawn
from harness.cases import case, main

SIZE = 4 * image.MIB + 512


def setup(scratch, *names):
    """A point "g" of images with these names."""
    where = scratch.dir("disks")
    paths = [image.create(where / f"{name}.qcow2", SIZE) for name in names]
    for number, path in enumerate(paths, 1):
        run(["qemu-io", "-f", "qcow2", "-c", f"write -P {number} 64k 1M", path])
    tidemark = Tidemark(scratch)
    tidemark("init")
    tidemark("backup", "image:" + ",".join(map(str, paths)) + ",name=g")
    return paths, tidemark


def check(fine, what):
    if not fine:
        raise HarnessError(f"{what}")


def files(where):
    """The files of a directory, if there is one, with their first bytes."""
    return {path.name: path.read_bytes()[:10] for path in where.glob("*") if path.is_file()}


@case
def two_disks_of_one_file_name_are_refused(scratch):
    paths, tidemark = setup(scratch, "a_b", "a\tb")
    for where in (scratch.dir("there"), scratch / "new"):
        said = tidemark("restore", "g", "--to", where, "--force", expect=2, json_output=False)
        check(all(word in said.err for word in ("'a_b'", "'a", "--disk")), said.err)
        check(not files(where), files(where))
    for name, path in zip(("a_b", "a\tb"), paths):
        made, = tidemark("restore", "g", "--to", scratch.dir("there"), "--force", "--disk", name).json["disks"]
        image.assert_same(path, made["to"], "qcow2", "raw")


@case
def two_names_of_one_file_are_refused(scratch):
    _, tidemark = setup(scratch, "a", "b")
    where = scratch.dir("there")
    (where / "g-a.raw").write_text("precious")
    (where / "g-b.raw").symlink_to("g-a.raw")
    said = tidemark("restore", "g", "--to", where, "--force", expect=2, json_output=False)
    check("'a' and 'b'" in said.err or "'b' and 'a'" in said.err, said.err)
    check((where / "g-a.raw").read_text() == "precious", "a file was overwritten")


@case
def a_target_that_is_taken_is_found_before_anything_is_written(scratch):
    """Whichever of the disks it is of."""
    _, tidemark = setup(scratch, "a", "b", "c")
    for name in "abc":
        where = scratch.dir(f"with-{name}")
        (where / f"g-{name}.raw").write_text("precious")
        said = tidemark("restore", "g", "--to", where, expect=1)
        check(f"g-{name}.raw" in said.err and "--force" in said.err, said.err)
        check(files(where) == {f"g-{name}.raw": b"precious"}, files(where))
    (where / "g-c.raw").unlink()
    (where / "g-c.raw").mkdir()
    said = tidemark("restore", "g", "--to", where, "--force", expect=2)
    check("g-c.raw" in said.err and not files(where), said.err)


@case
def the_file_behind_a_link_is_replaced(scratch):
    """It is what the guest's definition names."""
    (path,), tidemark = setup(scratch, "a")
    real, link = scratch.dir("real") / "disk.img", scratch.dir("links") / "disk.img"
    for fmt in ("raw", "qcow2"):
        real.write_text("old")
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(real, link.parent))
        said = tidemark("restore", "g", "--to", link, "--format", fmt, expect=1)
        check("--force" in said.err and real.read_text() == "old", said.err)
        made, = tidemark("restore", "g", "--to", link, "--format", fmt, "--force").json["disks"]
        check(made["to"] == str(link) and link.is_symlink(), made)
        check(not real.is_symlink(), "the file has become a link")
        image.assert_same(path, real, "qcow2", fmt)
        check(os.listdir(real.parent) == os.listdir(link.parent) == ["disk.img"], "something is left")


@case
def every_kind_of_nbd_address_is_one(scratch):
    _, tidemark = setup(scratch, "a", "b")
    for to in ("nbd+vsock://1:9/", "nbds+vsock://1:9/", "nbd://[::1]:9/", "nbd+unix:///?socket=x"):
        check("takes one disk" in tidemark("restore", "g", "--to", to, expect=2).err, to)
        said = tidemark("restore", "g", "--to", to, "--disk", "a", "--format", "qcow2", expect=2)
        check("as raw" in said.err, said.err)


@case
def an_interrupted_restore_does_not_wait_for_its_server(scratch):
    _, tidemark = setup(scratch, "a")
    for step in ("pwrite", "zero", "flush"):
        sock, begun, hold = (scratch / f"{step}.{what}" for what in ("sock", "begun", "hold"))
        hold.touch()
        answers = {"pwrite": "cat > /dev/null", "zero": "exit 0", "flush": "exit 0"}
        answers[step] = f"touch {begun}; while [ -e {hold} ]; do sleep 0.1; done; {answers[step]}"
        server = spawn(["nbdkit", "-f", "-U", sock, "eval", "get_size=echo 64M"]
                       + [f"{method}={script}" for method, script in answers.items()])
        try:
            wait_for("nbdkit", lambda sock=sock: sock.exists() or server.poll() is not None)
            restore = tidemark.start("restore", "g", "--to", f"nbd+unix:///?socket={sock}")
            wait_for(step, lambda begun=begun: begun.exists() or not restore.running)
            restore.signal(signal.SIGINT)
            said = restore.finish(130, timeout=30)
            check("interrupted" in said.err and not said.out, said.err)
        finally:
            hold.unlink()
            reap(server)


@case
def an_interrupted_restore_leaves_no_file(scratch):
    """Unless it was quicker."""
    _, tidemark = setup(scratch, "a")
    to = scratch.dir("to") / "disk.img"
    for fmt in ("raw", "qcow2"):
        restore = tidemark.start("restore", "g", "--to", to, "--format", fmt)
        wait_for("its file", lambda: list(to.parent.iterdir()) or not restore.running, 30, 0.001)
        restore.signal(signal.SIGINT)
        done = restore.finish((0, 130)).status == 0
        check(os.listdir(to.parent) == ["disk.img"] * done, os.listdir(to.parent))
        to.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
