# SPDX-License-Identifier: Apache-2.0
"""Runs of the program under test."""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .base import ROOT, HarnessError, reap, spawn, wait_for

# Whatever else a run does, it must not print one of these.
_SANITIZERS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "WARNING: ThreadSanitizer",
               "WARNING: MemorySanitizer", "runtime error: ")


def _documents(text):
    """All JSON documents in a text, one after the other."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        document, at = decoder.raw_decode(text, at)
        found.append(document)
    return found


@dataclass
class Result:
    argv: list
    status: int
    out: str
    err: str
    seconds: float

    @property
    def docs(self):
        """What --json printed: a list of documents."""
        try:
            return _documents(self.out)
        except json.JSONDecodeError as error:
            raise HarnessError(f"{self}: stdout is not JSON: {error}\n{self.out}") from None

    @property
    def json(self):
        """The one document that --json printed."""
        docs = self.docs
        if len(docs) != 1:
            raise HarnessError(f"{self}: {len(docs)} JSON documents instead of one\n{self.out}")
        return docs[0]

    @property
    def events(self):
        """The progress events on stderr."""
        found = []
        for line in self.err.splitlines():
            if line.startswith("{"):
                try:
                    found.append(json.loads(line))
                except json.JSONDecodeError:
                    pass
        return found

    def __str__(self):
        return f"{' '.join(map(str, self.argv))} (exit {self.status}, {self.seconds:.1f} s)"


class Running:
    """A run in the background; `finish` gives its Result."""

    def __init__(self, argv, env, stem):
        self.argv = argv
        self._out, self._err = stem.with_suffix(".out"), stem.with_suffix(".err")
        self._began = time.monotonic()
        # Files and not pipes: nobody reads while it runs, and a pipe would fill.
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.process = spawn(argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err)

    @property
    def running(self):
        return self.process.poll() is None

    @property
    def out(self):
        return self._out.read_text(errors="replace")

    @property
    def err(self):
        return self._err.read_text(errors="replace")

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def kill(self):
        if self.running:
            self.process.kill()
            self.process.wait(10)

    def wait_stopped(self, what):
        """Until TIDEMARK_DEBUG_STOP_AT has stopped it at `what`."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        wait_for(what, lambda: not self.running or stat.read_text().rsplit(")", 1)[1].split()[0] == "T", 60)
        if not self.running:
            raise HarnessError(f"it never came to '{what}': {self.err}")

    def finish(self, expect=0, timeout=120.0):
        """`expect`: the exit status there must be, several, or None for any.
        A run ended by signal N has the status -N."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            reap(self.process)
            raise HarnessError(f"{self.argv} took longer than {timeout:g} s:\n{self.err}") from None
        result = Result(self.argv, status, self.out, self.err, time.monotonic() - self._began)
        for text in _SANITIZERS:
            if text in result.err:
                raise HarnessError(f"{result}\n{result.err}")
        allowed = (expect,) if isinstance(expect, int) else expect
        if allowed is not None and status not in allowed:
            raise HarnessError(f"{result}: expected exit {expect}\n{result.out}{result.err}")
        self._out.unlink()
        self._err.unlink()
        return result


class Tidemark:
    """tidemark = Tidemark(scratch); tidemark("backup", vm.target()).json

    Each has a repository and a state directory of its own in `scratch`, unless
    told otherwise. The binary is $TIDEMARK, or that of build/."""

    def __init__(self, scratch, repo=None, state=None, env=None, binary=None, wrapper=()):
        self.scratch = scratch
        self.binary = Path(binary or os.environ.get("TIDEMARK") or ROOT / "build/agent/tidemark")
        self.repo = Path(repo or scratch / "repo")
        self.state = Path(state or scratch.dir("state"))
        self.wrapper = list(wrapper)    # e.g. ["valgrind", "-q"] or ["strace", ...]
        # Only what is set here: the caller's repository must never be touched.
        self.env = {key: value for key, value in os.environ.items()
                    if not key.startswith("TIDEMARK_")}
        self.env["TIDEMARK_STATE_DIR"] = str(self.state)
        self.env.update(env or {})
        self._number = 0

    def start(self, *args, json_output=True, env=None):
        """Starts a command and returns at once, with a Running."""
        if not os.access(self.binary, os.X_OK):
            raise HarnessError(f"there is no {self.binary}; build it or set TIDEMARK")
        self._number += 1
        argv = [*self.wrapper, self.binary, "-r", self.repo, *["--json"] * json_output, *args]
        stem = self.scratch.dir("runs") / f"{id(self):x}-{self._number}"
        run = Running([str(arg) for arg in argv], {**self.env, **(env or {})}, stem)
        self.scratch.defer(run.kill)
        return run

    def __call__(self, *args, expect=0, timeout=120.0, json_output=True, env=None):
        """Runs a command to its end and returns a Result."""
        return self.start(*args, json_output=json_output, env=env).finish(expect, timeout)


def says(result, *words):
    """An error that has all of these in its text, and no result beside it."""
    for word in words:
        if str(word) not in result.err:
            raise HarnessError(f"'{word}' is missing from: {result.err}")
    if result.out.strip():
        raise HarnessError(f"an error printed a result: {result.out}")
