# SPDX-License-Identifier: Apache-2.0
"""A man in the middle of a connection to QEMU or to the guest agent, who can lose
things."""

import contextlib
import json
import os
import select
import socket
import threading
import time

FAULTS = ("error", "no reply", "lost", "late")  # that need nobody else


class Proxy:
    """Listens on `path` and speaks with the one at `target`. `arm(command, nth,
    fault)` spoils the n-th use of a command from then on, once:

      error     nobody hears of it; the answer is an error
      no reply  it is done; the answer never comes
      lost      it is done; the connection ends instead of an answer
      late      it is done; the answer comes after `late` seconds
      held      it is done; the answer comes when `release` is called
      {...}     it is done; this is the answer instead

    `commands` lists what was asked since `reset`. The guest agent's answers have
    no ids: without `ids` the next result is taken. `on_lost` is called once a connection was lost."""

    def __init__(self, path, target, late=3.0, ids=True):
        self.path, self.target, self.late, self.ids = path, target, late, ids
        self.on_lost = None
        self.commands, self.fired = [], False
        self._fault = None
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(os.fspath(path))
        self._listener.listen(4)
        self._closed = False
        threading.Thread(target=self._run, daemon=True).start()

    def reset(self):
        with self._lock:
            self.commands, self._fault, self.fired = [], None, False

    def arm(self, command, nth, fault):
        self.reset()
        with self._lock:
            self._fault = (command, nth, fault)
        self._released.clear()

    def release(self):
        self._released.set()

    def close(self):
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _run(self):
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection = _Connection(self, client, server)
            with contextlib.suppress(OSError), client, server:
                server.connect(os.fspath(self.target))
                connection.run()
            if connection.lost and self.on_lost:
                self.on_lost()

    def is_due(self, when):
        return self._released.is_set() if when is None else time.monotonic() >= when

    def judge(self, command):
        """The fault for this use of a command, or None."""
        with self._lock:
            self.commands.append(command)
            if (not self._fault or self._fault[0] != command
                    or self.commands.count(command) != self._fault[1]):
                return None
            fault, self._fault, self.fired = self._fault[2], None, True
            return fault


class _Connection:
    def __init__(self, proxy, client, server):
        self.proxy, self.client, self.server = proxy, client, server
        self.spoilt = {}        # id of a command, or "next": its fault
        self.lost = False
        self.held = []          # (when, line), None: when released

    def run(self):
        """One connection to its end."""
        buffers = {self.client: b"", self.server: b""}
        while True:
            ready, _, _ = select.select(list(buffers), [], [], 0.05)
            for when, line in list(self.held):
                if self.proxy.is_due(when):
                    self.held.remove((when, line))
                    self.client.sendall(line)
            for sock in ready:
                data = sock.recv(1 << 16)
                if not data:
                    return
                *lines, buffers[sock] = (buffers[sock] + data).split(b"\n")
                for line in lines:
                    step = self._from_client if sock is self.client else self._from_server
                    if not step(line + b"\n"):
                        return

    def _from_client(self, line):
        message = json.loads(line.lstrip(b"\xff"))
        fault = self.proxy.judge(message.get("execute", ""))
        if fault == "error":
            answer = {"error": {"class": "GenericError", "desc": "injected"},
                      "id": message.get("id")}
            self.client.sendall(json.dumps(answer).encode() + b"\r\n")
            return True
        if fault:
            self.spoilt[message.get("id") if self.proxy.ids else "next"] = fault
        self.server.sendall(line)
        return True

    def _from_server(self, line):
        if line.strip():
            message = json.loads(line.lstrip(b"\xff"))
            # The guest agent also answers, with an error, to the 0xff before a sync.
            key = message.get("id") if self.proxy.ids else "next" if "return" in message else None
            fault = self.spoilt.pop(key, None)
            if fault == "lost":
                self.lost = True
                return False
            if fault == "late":
                self.held.append((time.monotonic() + self.proxy.late, line))
            if fault == "held":
                self.held.append((None, line))
            if isinstance(fault, dict):
                answer = {**fault, "id": key} if self.proxy.ids else fault
                self.client.sendall(json.dumps(answer).encode() + b"\r\n")
            if fault:
                return True
        self.client.sendall(line)
        return True
