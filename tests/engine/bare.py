# SPDX-License-Identifier: Apache-2.0
"""A QEMU with guest.c in it, and the thread that makes it write."""

import os
import random
import socket
import struct
import threading
import time
from pathlib import Path

from harness.base import HarnessError, connect_unix, run
from harness.vm import Vm

from .model import SECTOR

_HERE = Path(__file__).resolve().parent
_CFLAGS = ("-m32 -march=i586 -std=gnu17 -Os -Wall -Wextra -Werror -ffreestanding -nostdlib -static "
           "-fno-pic -no-pie -fno-stack-protector -fcf-protection=none -mgeneral-regs-only "
           "-Wl,-Ttext=0x100000,--build-id=none,-N,-z,noexecstack,--no-warn-rwx-segments").split()
WINDOW = 12             # open requests
SECTORS_MAX = 256       # of one write


def build(scratch):
    """The guest's kernel."""
    kernel = scratch / "guest.elf"
    run(["gcc", *_CFLAGS, "-o", kernel, _HERE / "guest.c"])
    return kernel


class BareVm(Vm):
    """`port` is the socket to guest.c; `slots` are its numbers of the disks."""

    def __init__(self, scratch, disks, kernel, name="vm"):
        self.port_path = scratch.dir(name) / "port.sock"
        self.port = None
        super().__init__(scratch, disks, guest=False, name=name, extra=[
            "-S", "-object", "iothread,id=io0", "-kernel", str(kernel), "-serial", "chardev:port",
            "-chardev", f"socket,id=port,path={self.port_path},server=on,wait=off"])

    def start(self, wait=True, timeout=60.0):
        self.port_path.unlink(missing_ok=True)
        super().start(wait, timeout)
        self.port = connect_unix(self.port_path, 10)
        self.qmp.execute("cont")
        self.port.settimeout(timeout)
        status, op, disks = self.read_answer()
        if status or op != "h" or disks != len(self.disks):
            raise HarnessError(f"the guest says {status} {op} {disks}")
        return self

    def read_answer(self):
        """(status, op, generation); None once QEMU is gone."""
        data = b""
        while len(data) < 8:
            try:
                more = self.port.recv(8 - len(data))
            except ConnectionError:
                more = b""
            if not more:
                return None
            data += more
        status, op, _, generation = struct.unpack("<BcHI", data)
        return status, op.decode(), generation

    def ask(self, op, slot, count, number, lba, generation):
        self.port.sendall(struct.pack("<cBHIII", op.encode(), slot, count, number, lba, generation))

    def _drop_clients(self):
        super()._drop_clients()
        if getattr(self, "port", None):
            self.port.close()
            self.port = None


def flush(vm, model, contents, timeout=60):
    """All disks of a guest in which nothing else goes on: what was answered is durable then."""
    vm.port.settimeout(timeout)
    for slot, content in enumerate(contents):
        with model.lock:
            issued = model.tick()
        vm.ask("f", slot, 0, 0, 0, 1)
        if (answer := vm.read_answer()) != (0, "f", 1):
            raise HarnessError(f"a flush failed: {answer}")
        model.flushed(content, issued)


class Writer:
    """Writes at random to all disks of a guest until `stop`: with one window of open
    requests over all of them, or in chains of small writes each of which begins when
    the one before has ended, a hundred microseconds later. Survives the guest's death:
    `dead` says so."""

    def __init__(self, vm, model, contents, seed, pause=0.002):
        self.vm, self.model, self.contents = vm, model, contents
        self.rng = random.Random(seed)
        self.pause = pause
        self.chains = self.rng.random() < 0.4
        self.dead = False
        self.failure = None
        self.writes = 0
        self.reads = 0
        self._open = {}         # generation: what to do with the answer
        self._numbers = 1 << 31         # of what is no write
        self._found = None
        self._stopping = threading.Event()
        self._room = threading.Semaphore(WINDOW)
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._write, self._hear)]
        for thread in self._threads:
            thread.start()

    def calm(self):
        """From now on writes are far apart: a merge ends only where the guest dirties fewer
        clusters than QEMU copies."""
        self.chains, self.pause = False, 0.02

    def stop(self, timeout=60):
        """Waits for what is open; after a death nothing is."""
        self._stopping.set()
        self._threads[0].join(timeout)
        end = time.monotonic() + timeout
        while self._open and not self.dead and time.monotonic() < end:
            time.sleep(0.002)
        if self._open and not self.dead:
            raise HarnessError(f"{len(self._open)} requests of the guest hang")
        if not self.dead:
            # An answer of its own ends the one who listens.
            self._stop_hearing()
        self._threads[1].join(timeout)
        for done, *args in self._open.values():
            if done == self.model.linked:
                self.model.broken(args[-1])
        if self.failure:
            raise HarnessError(self.failure)

    def _stop_hearing(self):
        try:
            self.vm.ask("q", 0, 0, 0, 0, 0)
        except (OSError, AttributeError):
            self.dead = True

    # --- the two threads ------------------------------------------------------------

    def _hear(self):
        try:
            while (answer := self.vm.read_answer()) is not None:
                status, op, generation = answer
                if op == "q":
                    return
                if op == "R":
                    self._found = generation
                    continue
                if status:
                    raise HarnessError(f"the guest's {op} {generation} failed: {status}")
                done, *args = self._open.pop(generation)
                done(*args)
                self._room.release()
        except (OSError, AttributeError):
            pass
        except HarnessError as error:       # a request failed, or what it read was wrong
            self.failure = str(error)
            self._open.clear()
        self.dead = True

    def _write(self):
        try:
            while not self._stopping.is_set() and not self.dead:
                if self.chains:
                    self._chain()
                    continue
                if not self._room.acquire(timeout=0.05):
                    continue
                if not self._one():
                    self._room.release()
                if self.pause:
                    time.sleep(self.rng.expovariate(1 / self.pause))
        except (OSError, AttributeError):
            self.dead = True

    def _one(self):
        slot = self.rng.randrange(len(self.contents))
        content = self.contents[slot]
        if self.rng.random() < 0.03:
            return self._flush(slot, content)
        if self.rng.random() < 0.1:
            return self._read(slot, content)
        sectors = content.size // SECTOR
        count = min(sectors, self.rng.choice((1, 1, 2, 8, 8, 8, 16, 31, 128, SECTORS_MAX)))
        lba = self.rng.randrange(sectors - count + 1)
        if self.rng.random() < 0.5:      # a place that is written again and again
            lba = min(lba % 512, sectors - count)
        if self.rng.random() < 0.5:
            lba -= lba % 8
        if self.rng.random() < 0.05:     # the very end
            lba = sectors - count
        op = "w" if self.rng.random() < 0.85 else self.rng.choice("zZd")
        if op != "w" and self.rng.random() < 0.5:       # whole clusters
            lba -= lba % 128
            count = min(sectors - lba, self.rng.choice((128, SECTORS_MAX)))
        write = self.model.issue(content, lba, count, op.lower())
        if not write:
            return False
        self.writes += 1
        self._open[write.generation] = (self.model.answer, content, lba, count, write)
        self.vm.ask(op, slot, count, content.number, lba, write.generation)
        return True

    def _chain(self):
        """A chain, to its end. Nothing else is open then."""
        links = []
        for _ in range(WINDOW):
            slot = self.rng.randrange(len(self.contents))
            content = self.contents[slot]
            count = self.rng.choice((1, 1, 8))
            lba = self.rng.randrange(content.size // SECTOR - count)
            if write := self.model.issue(content, lba, count):
                self.model.link(write)
                self._open[write.generation] = (self.model.linked, content, lba, count, write)
                links.append(("c", slot, count, content.number, lba, write.generation))
        for _ in links:
            self._room.acquire()
        self.writes += len(links)
        for link in links:
            self.vm.ask(*link)
        while self._open and not self.dead:
            time.sleep(0.0005)
        if self.rng.random() < 0.1 and not self.dead:
            self._room.acquire()
            slot = self.rng.randrange(len(self.contents))
            self._flush(slot, self.contents[slot])
            while self._open and not self.dead:
                time.sleep(0.0005)

    def _flush(self, slot, content):
        with self.model.lock:
            issued = self.model.tick()
        self._numbers += 1
        self._open[self._numbers] = (self.model.flushed, content, issued)
        self.vm.ask("f", slot, 0, 0, 0, self._numbers)
        return True

    def _read(self, slot, content):
        """One sector, one that was written of late if there is one."""
        with self.model.lock:
            issued = self.model.tick()
            written = list(content.changes)
        lba = self.rng.choice(written) if written else self.rng.randrange(content.size // SECTOR)
        self._numbers += 1
        self.reads += 1
        self._open[self._numbers] = (self._have_read, content, lba, issued)
        self.vm.ask("r", slot, 1, content.number, lba, self._numbers)
        return True

    def _have_read(self, content, lba, issued):
        self.model.read(content, lba, self._found, issued)
