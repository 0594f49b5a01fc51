#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A qemu-nbd that is not quite right: by this name in front of the PATH it starts the
real one, and stands between it and its clients. In the environment:

  NBD_REAL    the real qemu-nbd
  NBD_FAULT   STEP:N:FAULT, the N-th use of a step (of all connections together) is spoilt
  NBD_LOG     gets a line for each step, and "fired" for the fault

  error       the answer is an error (of a greeting: not that of an NBD server)
  short       half of what was asked for is answered, and said to be all
  disconnect  the connection ends instead of an answer
  hang        no answer ever
  late        the answer comes after LATE_S seconds
  killed      the server is killed
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

FAULTS = ("error", "short", "disconnect", "hang", "late", "killed")
LATE_S = 1.5
_OPTIONS = {7: "option go", 8: "option structured reply", 10: "option set meta context"}
_REQUESTS = {0: "read", 7: "block status"}
_OPTION_REPLY, _ERR_POLICY = 0x3e889045565a9, 1 << 31 | 2
_CHUNK, _CHUNK_DONE, _CHUNK_ERROR, _EIO = 0x668e33ef, 1, 1 << 15 | 1, 5


def environment(scratch, log, fault=None):
    """What makes a program use this one. `fault`: (step, n, fault)."""
    where = scratch.dir("nbd-bin")
    link = where / "qemu-nbd"
    if not link.exists():
        link.symlink_to(Path(__file__).resolve())
    found = {"PATH": f"{where}:{os.environ['PATH']}", "NBD_REAL": shutil.which("qemu-nbd"),
             "NBD_LOG": str(log)}
    if fault:
        found["NBD_FAULT"] = ":".join(map(str, fault))
    return found


class Gone(Exception):
    """This connection is over."""


class Faults:
    def __init__(self, server):
        self.server = server
        self._lock = threading.Lock()
        self._counts = {}
        step, _, rest = os.environ.get("NBD_FAULT", "").partition(":")
        self._fault = (step, *rest.split(":")) if step else None

    def judge(self, step):
        """The fault for this use of a step, or None. Those that end it all do not return."""
        with self._lock, open(os.environ["NBD_LOG"], "a", encoding="ascii") as log:
            log.write(f"{step}\n")
            self._counts[step] = self._counts.get(step, 0) + 1
            if not self._fault or (step, str(self._counts[step])) != self._fault[:2]:
                return None
            log.write("fired\n")
        fault = self._fault[2]
        if fault == "killed":
            self.server.kill()
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "disconnect":
            raise Gone
        if fault == "hang":
            time.sleep(3600)
        if fault == "late":
            time.sleep(LATE_S)
            return None
        return fault


class Connection:
    def __init__(self, faults, client, target):
        self.faults, self.client, self.target = faults, client, target
        self.server = socket.socket(socket.AF_UNIX)

    def run(self):
        with contextlib.suppress(Gone, OSError), self.client, self.server:
            try:
                self.server.connect(self.target)
                self._greeting()
                threading.Thread(target=self._answers, daemon=True).start()
                self.server.sendall(self._take(4))
                self._negotiate()
                while True:
                    self._request()
            finally:
                for sock in (self.client, self.server):
                    with contextlib.suppress(OSError):
                        sock.shutdown(socket.SHUT_RDWR)

    def _take(self, length, sock=None):
        data = b""
        while len(data) < length:
            more = (sock or self.client).recv(length - len(data))
            if not more:
                raise Gone
            data += more
        return data

    def _answers(self):
        with contextlib.suppress(OSError):
            while data := self.server.recv(1 << 18):
                self.client.sendall(data)
            self.client.shutdown(socket.SHUT_RDWR)

    def _greeting(self):
        greeting = self._take(18, self.server)
        fault = self.faults.judge("connect")
        if fault == "error":
            greeting = b"HTTP/1.1 400 Bad Request\r\n"[:18]
        elif fault == "short":
            self.client.sendall(greeting[:9])
            raise Gone
        self.client.sendall(greeting)

    def _negotiate(self):
        option = None
        while option != 7:
            head = self._take(16)
            _, option, length = struct.unpack(">QII", head)
            data = self._take(length)
            fault = self.faults.judge(_OPTIONS.get(option, "another option"))
            if fault == "error":
                self.client.sendall(struct.pack(">QIII", _OPTION_REPLY, option, _ERR_POLICY, 0))
                option = None
            elif fault == "short":
                self.client.sendall(struct.pack(">QI", _OPTION_REPLY, option))
                raise Gone
            else:
                self.server.sendall(head + data)

    def _request(self):
        head = self._take(28)
        magic, flags, kind, cookie, offset, length = struct.unpack(">IHHQQI", head)
        fault = self.faults.judge(_REQUESTS[kind]) if kind in _REQUESTS else None
        if fault == "error":
            self.client.sendall(struct.pack(">IHHQIIH", _CHUNK, _CHUNK_DONE, _CHUNK_ERROR, cookie, 6, _EIO, 0))
            return
        if fault == "short":
            head = struct.pack(">IHHQQI", magic, flags, kind, cookie, offset, max(length // 1024 * 512, 512))
        self.server.sendall(head)


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main():
    die_with_parent()       # the real one ends with the agent's wish or by recovery; tests with us
    argv = sys.argv[1:]
    at = argv.index("-k") + 1
    path, argv[at] = argv[at], argv[at] + ".real"
    server = subprocess.Popen([os.environ["NBD_REAL"], *argv], preexec_fn=die_with_parent)
    while not os.path.exists(argv[at]):
        if server.poll() is not None:
            sys.exit(server.returncode)
        time.sleep(0.005)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(16)
    faults = Faults(server)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=Connection(faults, client, argv[at]).run, daemon=True).start()


if __name__ == "__main__":
    main()
