# SPDX-License-Identifier: Apache-2.0
"""The shell of the test guest, on a virtio-serial port (see guest/init)."""

import base64
import shlex
import time

from .base import HarnessError, connect_unix


class Console:
    """`run` gives (status, output) of a command; `sh` gives the output and
    fails when the status is not 0. Each command has its own shell."""

    # read(1) of the guest's shell takes a character at a time: keep it short.
    _MAX_COMMAND = 16 << 10

    def __init__(self, path, timeout=10.0):
        self._sock = connect_unix(path, timeout)
        self._buffer = b""
        self._number = 0

    def wait_ready(self, timeout=60.0):
        self._read_to(b"guest-ready\n", timeout, "the guest to boot")

    def _read_to(self, mark, timeout, what):
        end = time.monotonic() + timeout
        while mark not in self._buffer:
            left = end - time.monotonic()
            if left <= 0:
                raise HarnessError(f"waited {timeout:g} s in vain for {what}; "
                                   f"the console ends with {self._buffer[-300:]!r}")
            self._sock.settimeout(left)
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                continue
            if not data:
                raise HarnessError(f"the guest's console hung up during {what}")
            self._buffer += data
        before, self._buffer = self._buffer.split(mark, 1)
        return before

    def run(self, command, timeout=30.0):
        """(status, output) of a shell command in the guest. What goes on in the
        background has to redirect its output, or it mixes with later answers."""
        self._number += 1
        word = f"done-{self._number}"
        line = f"{word} {base64.b64encode(command.encode()).decode()}\n"
        if len(line) > self._MAX_COMMAND:
            raise HarnessError("the command is too long; use put()")
        self._sock.settimeout(timeout)
        self._sock.sendall(line.encode())
        output = self._read_to(f"\n{word} ".encode(), timeout, f"`{command}`")
        status = self._read_to(b"\n", 10, "an exit status")
        return int(status), output.decode("utf-8", "replace")

    def sh(self, command, timeout=30.0):
        status, output = self.run(command, timeout)
        if status != 0:
            raise HarnessError(f"`{command}` in the guest exited with {status}:\n{output}")
        return output

    def background(self, command):
        """Starts a command which goes on; returns its pid in the guest."""
        return int(self.sh(f"setsid sh -c {shlex.quote(command)} </dev/null "
                           ">/dev/null 2>&1 & echo $!"))

    def put(self, path, data):
        """Writes a small file in the guest."""
        path = shlex.quote(path)
        self.sh(f": >{path}")
        for start in range(0, len(data), 6000):
            part = base64.b64encode(data[start:start + 6000]).decode()
            self.sh(f"echo {part} | base64 -d >>{path}")

    def close(self):
        self._sock.close()
