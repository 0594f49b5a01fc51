#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What a restore refuses before anything is written."""

from harness import HarnessError, Tidemark, image, run
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


@case
def every_kind_of_nbd_address_is_one(scratch):
    _, tidemark = setup(scratch, "a", "b")
    for to in ("nbd+vsock://1:9/", "nbds+vsock://1:9/", "nbd://[::1]:9/", "nbd+unix:///?socket=x"):
        check("takes one disk" in tidemark("restore", "g", "--to", to, expect=2).err, to)
        said = tidemark("restore", "g", "--to", to, "--disk", "a", "--format", "qcow2", expect=2)
        check("as raw" in said.err, said.err)


if __name__ == "__main__":
    main()
