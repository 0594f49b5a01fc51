# SPDX-License-Identifier: Apache-2.0
"""What everything else here stands on: failures, waiting, child processes, a
place for files, and randomness that can be repeated."""

import atexit
import ctypes
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# e2fsck and its like are not in the PATH of those who are not root.
os.environ["PATH"] = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


class HarnessError(AssertionError):
    """A check that failed or a peer that did not do what was asked."""


def wait_for(what, condition, timeout=10.0, interval=0.02):
    """Calls `condition` until it returns something true; returns that."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise HarnessError(f"waited {timeout:g} s in vain for {what}")
        time.sleep(interval)


def make_rng(label="test"):
    """A random generator; its seed is printed, and taken back from $SEED."""
    seed = os.environ.get("SEED") or str(random.SystemRandom().randrange(1 << 32))
    print(f"{label}: SEED={seed}", file=sys.stderr, flush=True)
    return random.Random(seed)


def connect_unix(path, timeout, alive=lambda: True):
    """Connects to a unix socket, waiting for the one who is to create it, for as
    long as that one is `alive`."""
    def attempt():
        if not alive():
            raise HarnessError(f"nobody listens on {path} any more")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(os.fspath(path))
            return sock
        except OSError:
            sock.close()
            return None
    return wait_for(f"a listener on {path}", attempt, timeout)


def tail(path, size=4000):
    """The end of a log, for messages."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def _die_with_parent():
    # A test that is killed outright cannot clean up; the kernel does it then.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(argv, **kwargs):
    """subprocess.Popen of a child which does not outlive this process. (The
    kernel looks at the thread that forks: call this from a lasting one.)"""
    return subprocess.Popen([os.fspath(arg) for arg in argv],
                            preexec_fn=_die_with_parent, **kwargs)


def run(argv, timeout=60, check=True, **kwargs):
    """Runs a program to its end and returns a CompletedProcess with text."""
    argv = [os.fspath(arg) for arg in argv]
    try:
        done = subprocess.run(argv, timeout=timeout, stdin=subprocess.DEVNULL, text=True,
                              errors="replace", capture_output=True, check=False, **kwargs)
    except subprocess.TimeoutExpired:
        raise HarnessError(f"{argv[0]} took longer than {timeout} s: {argv}") from None
    if check and done.returncode != 0:
        raise HarnessError(f"{argv} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def reap(process, timeout=10.0):
    """Ends a child which was started here: asks first, then kills."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout)
    return process.returncode


def _exit_on_signal(number, _frame):
    sys.exit(128 + number)


class _Folder:
    """What a test has in common with a part of it: a place for files, which `dir` makes."""

    def __truediv__(self, name):
        return self.path / name

    def dir(self, name):
        path = self.path / name
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path


class Scratch(_Folder):
    """A private directory which is removed at the end, after everything that was
    registered with `defer` is undone, last first. With TIDEMARK_TEST_KEEP set, or
    `keep`, the files stay. Use it as a context manager, or call `close`."""

    def __init__(self, name="test"):
        # Unix socket paths end at 107 characters, so a long TMPDIR will not do.
        base = tempfile.gettempdir()
        if len(base) > 40:
            base = "/tmp"
        self.path = Path(tempfile.mkdtemp(prefix=f"tidemark-{name}.", dir=base))
        self.keep = bool(os.environ.get("TIDEMARK_TEST_KEEP"))
        self._undo = []
        # An ordinary SIGTERM, of a test runner's time limit for one, must not
        # leave anything behind either.
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _exit_on_signal)
        atexit.register(self.close)

    def __str__(self):
        return str(self.path)

    def defer(self, function, *args):
        self._undo.append((function, args))

    def close(self):
        while self._undo:
            function, args = self._undo.pop()
            try:
                function(*args)
            except Exception as error:  # the rest is to be cleaned up all the same
                print(f"cleaning up: {error}", file=sys.stderr)
        if self.keep:
            if self.path.exists():
                print(f"kept: {self.path}", file=sys.stderr)
        else:
            shutil.rmtree(self.path, ignore_errors=True)
        atexit.unregister(self.close)

    def __enter__(self):
        return self

    def __exit__(self, *_exc):
        self.close()


class Sub(_Folder):
    """A part of a Scratch with the same manners."""

    def __init__(self, scratch, name):
        self.path = scratch.dir(name)
        self.defer = scratch.defer
