# SPDX-License-Identifier: Apache-2.0
"""A QEMU process with disks, with the test guest in it or with none at all."""

import json
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from .base import ROOT, HarnessError, reap, run, spawn, tail, wait_for
from .console import Console
from .qmp import Agent, Qmp, QmpError

QEMU = os.environ.get("QEMU", "qemu-system-x86_64")
# What costs time in an emulated guest and is of no use in one is off; so is the check that the
# timer ticks, at which a kernel panics that got no processor for a moment.
_KERNEL_OPTIONS = ("console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable "
                   "cryptomgr.notests")


@dataclass
class Disk:
    """One disk. `id` is that of the device, or of the drive when `style` is
    "drive", QEMU's old way of `-drive if=virtio` with made-up node names."""
    path: Path
    id: str
    fmt: str = "qcow2"
    bus: str = "virtio-blk"             # or "virtio-scsi"; with style "blockdev" only
    style: str = "blockdev"             # or "drive"
    options: dict = field(default_factory=dict)      # of the format's node, e.g. detect-zeroes
    device: dict = field(default_factory=dict)       # of the device, e.g. logical_block_size
    discard: bool = True
    throttle: bool = False              # puts a throttle filter on top
    copy_on_read: bool = False          # puts a copy-on-read filter on top
    # Whether a guest's flush goes down to the host's disk. Without, tests run far
    # quicker, and what the guest flushed still outlives a kill -9 of QEMU, for
    # it is in the host's page cache then; only a power cut could lose it.
    fsync: bool = False

    @property
    def node(self):
        """The name of the format's node; QEMU makes one up for style "drive"."""
        return f"{self.id}-node" if self.style == "blockdev" else None

    def arguments(self, scsi_bus):
        path = str(self.path).replace(",", ",,")
        discard = "unmap" if self.discard else "ignore"
        extra = "".join(f",{key}={value}" for key, value in self.options.items())
        device = "".join(f",{key}={value}" for key, value in self.device.items())
        if self.style == "drive":
            return ["-drive", f"file={path},if=virtio,id={self.id},format={self.fmt},"
                              f"discard={discard},cache={'writeback' if self.fsync else 'unsafe'}"
                              + extra]
        argv = ["-blockdev", f"driver=file,node-name={self.id}-file,filename={path},"
                             f"discard={discard},"
                             f"cache.no-flush={'off' if self.fsync else 'on'}",
                "-blockdev", f"driver={self.fmt},node-name={self.node},file={self.id}-file,"
                             f"discard={discard}{extra}"]
        top = self.node
        if self.throttle:
            top = f"{self.id}-throttle"
            argv += ["-object", f"throttle-group,id={self.id}-group",
                     "-blockdev", f"driver=throttle,node-name={top},file={self.node},"
                                  f"throttle-group={self.id}-group,discard={discard}"]
        if self.copy_on_read:
            argv += ["-blockdev", f"driver=copy-on-read,node-name={self.id}-cor,file={top},discard={discard}"]
            top = f"{self.id}-cor"
        if self.bus == "virtio-scsi":
            return argv + ["-device", f"scsi-hd,drive={top},id={self.id},bus={scsi_bus}{device}"]
        return argv + ["-device", f"virtio-blk-pci,drive={top},id={self.id}{device}"]


def plain_filename(name):
    """The path of an image. QEMU gives a json: one where the backing file's name
    is not in the image's header, as of an overlay that was just added."""
    if not name.startswith("json:"):
        return name
    node = json.loads(name[len("json:"):])
    while isinstance(node, dict):
        node = node.get("filename") or node.get("file")
    return node or name


class Vm:
    """vm = Vm(scratch, [Disk(path, "vda")]); vm.start().

    With guest=True the test guest boots: `console` is its shell and `agent()`
    its guest agent; disks appear as /dev/vda ... in their order. With
    guest=False there is only the firmware, and writes come from `write` and
    the like, through the device's own back end as a guest's would.

    `qmp_path` and `agent_path` are for Tidemark; `qmp` is the harness's own."""

    def __init__(self, scratch, disks, guest=True, memory=128, name="vm", extra=()):
        self.scratch = scratch
        self.disks = list(disks)
        self.guest = guest
        self.memory = memory if guest else 16
        self.name = name
        self.extra = list(extra)
        self.dir = scratch.dir(name)
        self.qmp_path = self.dir / "qmp.sock"
        self.agent_path = self.dir / "qga.sock"
        self._own_path = self.dir / "own.sock"
        self._console_path = self.dir / "con.sock"
        self.log_path = self.dir / "qemu.log"
        self.process = self.qmp = self.console = None
        self.started_in = None
        self.baseline = None            # see checks.py
        scratch.defer(self.kill)

    # --- life ---------------------------------------------------------------------

    def arguments(self):
        # Without rdrand, whatever asks for randomness in the guest waits seconds
        # for the kernel to gather some: mkfs alone took four.
        argv = [QEMU, "-accel", "tcg", "-cpu", "qemu64,+rdrand", "-machine", "pc", "-m", self.memory, "-nodefaults",
                "-display", "none", "-name", self.name]
        for number, path in enumerate((self.qmp_path, self._own_path)):
            argv += ["-chardev", f"socket,id=qmp{number},path={path},server=on,wait=off",
                     "-mon", f"chardev=qmp{number},mode=control"]
        if any(disk.bus == "virtio-scsi" for disk in self.disks):
            argv += ["-device", "virtio-scsi-pci,id=scsi0"]
        for disk in self.disks:
            argv += disk.arguments("scsi0.0")
        if self.guest:
            image = guest_image()
            argv += ["-kernel", image / "kernel", "-initrd", image / "initrd",
                     "-append", _KERNEL_OPTIONS, "-no-reboot",
                     "-serial", f"file:{self.dir}/kernel.log",
                     "-chardev", f"socket,id=con,path={self._console_path},server=on,wait=off",
                     "-chardev", f"socket,id=qga,path={self.agent_path},server=on,wait=off",
                     "-device", "virtio-serial-pci",
                     "-device", "virtserialport,chardev=con,name=tidemark.console",
                     "-device", "virtserialport,chardev=qga,name=org.qemu.guest_agent.0"]
        return [str(arg) for arg in argv + self.extra]

    def start(self, wait=True, timeout=60.0):
        """Starts QEMU, again too after any kind of end; with a guest, waits until
        it has booted unless told otherwise. Returns self."""
        if self.running:
            raise HarnessError(f"{self.name} is running already")
        self._drop_clients()
        # A line at a time, because `io` looks for the answers in the log.
        argv = ["stdbuf", "-oL"] + self.arguments()
        began = time.monotonic()
        for path in (self.qmp_path, self._own_path, self._console_path, self.agent_path):
            path.unlink(missing_ok=True)
        with open(self.log_path, "ab") as log:
            self.process = spawn(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            # It listens before it opens the disks, so a connection proves nothing.
            self.qmp = Qmp(self._own_path, 20, alive=lambda: self.running)
            if self.guest:
                self.console = Console(self._console_path)
                if wait:
                    self.console.wait_ready(timeout)
        except HarnessError as error:
            state = "runs" if self.running else f"exited with {self.process.returncode}"
            self.kill()
            raise HarnessError(f"{error}; QEMU {state}\n{tail(self.log_path)}"
                               f"{tail(self.dir / 'kernel.log')}") from None
        self.started_in = time.monotonic() - began
        return self

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self):
        return self.process.pid

    def kill(self):
        """kill -9; nothing when it does not run."""
        if self.running:
            self.process.kill()
            self.process.wait(10)
        self._drop_clients()

    def terminate(self, timeout=20.0):
        """SIGTERM: QEMU closes its images in order."""
        if self.running:
            reap(self.process, timeout)
        self._drop_clients()

    def quit(self, timeout=20.0):
        """The monitor's quit."""
        try:
            self.qmp.execute("quit")
        except HarnessError:
            pass  # it may be gone before the answer
        self.wait_exit(timeout)

    def poweroff(self, timeout=30.0):
        """The guest switches itself off."""
        self.console.run("umount -a -r; sync; (sleep 0.2; poweroff -f) >/dev/null 2>&1 &")
        self.wait_exit(timeout)

    def wait_exit(self, timeout=20.0):
        wait_for(f"{self.name} to end", lambda: not self.running, timeout)
        self._drop_clients()

    def stop_process(self):
        """SIGSTOP: a QEMU that hangs. `continue_process` wakes it up."""
        self.process.send_signal(signal.SIGSTOP)

    def continue_process(self):
        self.process.send_signal(signal.SIGCONT)

    def _drop_clients(self):
        for client in (self.qmp, self.console):
            if client:
                client.close()
        self.qmp = self.console = None

    def agent(self, timeout=20.0):
        """The guest agent; close it before Tidemark is to have its turn."""
        return Agent(self.agent_path, timeout)

    def target(self, agent=None, name=None):
        """The TARGET for Tidemark's command line."""
        agent = self.guest if agent is None else agent
        return (f"qmp:{self.qmp_path}" + (f",agent={self.agent_path}" if agent else "")
                + f",name={name or self.name}")

    # --- what QEMU says -------------------------------------------------------------

    def disk(self, disk_id):
        return next(disk for disk in self.disks if disk.id == disk_id)

    def block(self, disk_id):
        """The entry of query-block which belongs to a disk."""
        for entry in self.qmp.execute("query-block"):
            if entry["device"] == disk_id or disk_id in entry.get("qdev", "").split("/"):
                return entry
        raise HarnessError(f"query-block knows no disk {disk_id}")

    def active_file(self, disk_id):
        """The file which the guest's writes go to now."""
        return Path(plain_filename(self.block(disk_id)["inserted"]["image"]["filename"]))

    def nodes(self):
        return self.qmp.execute("query-named-block-nodes", flat=True)

    def jobs(self):
        return self.qmp.execute("query-jobs")

    def exports(self):
        return self.qmp.execute("query-block-exports")

    def bitmaps(self, disk_id):
        """{name: entry} of the named bitmaps on the disk's own image."""
        path = str(self.disk(disk_id).path)
        for node in self.nodes():
            if plain_filename(node["file"]) == path and node["drv"] == self.disk(disk_id).fmt:
                return {b["name"]: b for b in node.get("dirty-bitmaps", []) if b.get("name")}
        raise HarnessError(f"no node has {path}")

    # --- writes without a guest -------------------------------------------------------

    def io(self, disk_id, command, wait=True, timeout=20.0):
        """A qemu-io command on the disk, as if from the guest. QEMU tells the
        outcome on its stdout only: it is looked for there, and an error raises.
        A command that is not `aio_…` must not be used while a commit is
        pending: QEMU 7.2 dead-locks, for its monitor waits for the request."""
        start = self.log_path.stat().st_size
        device = self.block(disk_id).get("qdev") or disk_id
        answer = self.qmp.hmp(f'qemu-io -d {device} "{command}"', timeout)
        if answer.strip():
            raise HarnessError(f"qemu-io {command}: {answer.strip()}")
        if not wait:
            return None

        def outcome():
            with open(self.log_path, "rb") as log:
                log.seek(start)
                text = log.read().decode("utf-8", "replace")
            # Anything else that is said may be an error, or not of this command.
            if "bytes at offset" in text or ("\n" in text and time.monotonic() > patience):
                return text
            return None
        patience = time.monotonic() + 0.3
        text = wait_for(f"qemu-io {command}", outcome, timeout, interval=0.002)
        done = re.search(r"(?:wrote|read|discard) (\d+)/(\d+) bytes at offset", text)
        if not done or done[1] != done[2] or "failed" in text:
            raise HarnessError(f"qemu-io {command}: {text.strip()}")
        return text

    def write(self, disk_id, offset, length, pattern, shadow=None):
        """`length` bytes of the value `pattern`, on the disk when this returns."""
        self.io(disk_id, f"aio_write -f -P {pattern} {offset} {length}")
        if shadow:
            shadow.write(offset, length, pattern)

    def write_zeroes(self, disk_id, offset, length, unmap=False, shadow=None):
        self.io(disk_id, f"aio_write {'-u ' if unmap else ''}-z {offset} {length}")
        if shadow:
            shadow.zero(offset, length)

    def discard(self, disk_id, offset, length, shadow=None):
        """On qcow2 version 3, whole clusters without a backing file: reads as
        zeroes afterwards. Not while a commit is pending (see `io`)."""
        self.io(disk_id, f"discard {offset} {length}")
        if shadow:
            shadow.zero(offset, length)

    def flush(self, disk_id):
        """Not while a commit is pending (see `io`)."""
        device = self.block(disk_id).get("qdev") or disk_id
        self.qmp.hmp(f'qemu-io -d {device} flush')

    def dump(self, disk_id, out):
        """A raw copy of what the guest sees now, for comparison. Uses QEMU's one
        NBD server, so not while Tidemark reads. Only a still guest gives one
        instant."""
        socket = self.dir / "dump.sock"
        node = self.block(disk_id)["inserted"]["node-name"]
        self.qmp.execute("nbd-server-start", {
            "addr": {"type": "unix", "data": {"path": str(socket)}}, "max-connections": 8})
        try:
            self.qmp.execute("block-export-add", {
                "type": "nbd", "id": "dump", "node-name": node, "name": "dump"})
            run(["qemu-img", "convert", "-f", "raw", "-O", "raw",
                 f"nbd+unix:///dump?socket={socket}", out], timeout=120)
        finally:
            self.qmp.execute("nbd-server-stop")
            socket.unlink(missing_ok=True)
        return Path(out)


def guest_image():
    """The directory with the test guest's kernel and initrd, built if need be."""
    global _guest_image
    if _guest_image is None:
        _guest_image = Path(run([ROOT / "tests/guest/build"], timeout=600).stdout.strip())
    return _guest_image


_guest_image = None
__all__ = ["Disk", "Vm", "QmpError", "guest_image"]
