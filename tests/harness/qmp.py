# SPDX-License-Identifier: Apache-2.0
"""Clients of QEMU's monitor (QMP) and of the guest agent (QGA)."""

import base64
import json
import random
import time

from .base import HarnessError, connect_unix, wait_for


class QmpError(HarnessError):
    def __init__(self, command, error):
        super().__init__(f"{command}: {error.get('class')}: {error.get('desc')}")
        self.error_class = error.get("class")
        self.desc = error.get("desc")


class _JsonLines:
    """One JSON object a line, both ways, over a unix socket."""

    def __init__(self, path, timeout, alive=lambda: True):
        self.path = path
        self._sock = connect_unix(path, timeout, alive)
        self._buffer = b""

    def send(self, message):
        self._sock.sendall(json.dumps(message).encode() + b"\n")

    def send_raw(self, data):
        self._sock.sendall(data)

    def receive(self, timeout):
        """The next object; None once `timeout` has passed."""
        end = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0:
                return None
            self._sock.settimeout(left)
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                return None
            except ConnectionError:
                data = b""
            if not data:
                raise HarnessError(f"{self.path}: the other side hung up")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return json.loads(line) if line.strip() else self.receive(max(0, end - time.monotonic()))

    def close(self):
        self._sock.close()


class Qmp(_JsonLines):
    """`execute` returns what "return" held; events pile up in `events`."""

    def __init__(self, path, timeout=10.0, alive=lambda: True):
        super().__init__(path, timeout, alive)
        self.events = []
        if not self.receive(timeout):
            raise HarnessError(f"{path}: no greeting; is another client connected?")
        self.execute("qmp_capabilities")

    def execute(self, command, arguments=None, timeout=30.0, **more):
        """Arguments as a dict (their names have dashes) or, where they are
        plain words, as keywords."""
        arguments = {**(arguments or {}), **more}
        self.send({"execute": command, "arguments": arguments})
        end = time.monotonic() + timeout
        while True:
            message = self.receive(max(0, end - time.monotonic()))
            if message is None:
                raise HarnessError(f"{command}: no answer within {timeout:g} s")
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise QmpError(command, message["error"])
            elif "return" in message:
                return message["return"]

    def hmp(self, line, timeout=30.0):
        return self.execute("human-monitor-command", {"command-line": line}, timeout)

    def poll_events(self):
        """Takes in what has arrived meanwhile; returns all events so far."""
        while (message := self.receive(0.001)) is not None:
            if "event" in message:
                self.events.append(message)
        return self.events


class Agent(_JsonLines):
    """The guest agent. There is room for one client: close it when done."""

    def __init__(self, path, timeout=10.0):
        super().__init__(path, timeout)
        # What an earlier client left half said is ended by the 0xff, and its
        # late answers are skipped by waiting for our own number.
        number = random.randrange(1, 1 << 31)

        def synchronised():
            self.send_raw(b"\xff" + json.dumps(
                {"execute": "guest-sync", "arguments": {"id": number}}).encode() + b"\n")
            while (message := self.receive(0.5)) is not None:
                if message.get("return") == number:
                    return True
            return False
        wait_for("the guest agent", synchronised, timeout)

    def execute(self, command, arguments=None, timeout=30.0, **more):
        self.send({"execute": command, "arguments": {**(arguments or {}), **more}})
        message = self.receive(timeout)
        if message is None:
            raise HarnessError(f"{command}: no answer within {timeout:g} s")
        if "error" in message:
            raise QmpError(command, message["error"])
        return message["return"]

    def read_file(self, path):
        """A file of the guest. Far quicker than printing it on the console."""
        handle = self.execute("guest-file-open", path=path, mode="r")
        parts = []
        try:
            while True:
                part = self.execute("guest-file-read", handle=handle, count=1 << 20)
                parts.append(base64.b64decode(part["buf-b64"]))
                if part["eof"] or not part["count"]:
                    return b"".join(parts)
        finally:
            self.execute("guest-file-close", handle=handle)

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.close()
