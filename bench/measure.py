# SPDX-License-Identifier: Apache-2.0
"""One run of a program: seconds, CPU seconds, memory."""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

from harness import HarnessError

TICK = os.sysconf("SC_CLK_TCK")
TIMEOUT = 1800


def _stat(pid):
    """(its own CPU seconds, those of children it has waited for); also of one that has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0, 0.0
    user, system, child_user, child_system = (int(f) / TICK for f in fields[11:15])
    return user + system, child_user + child_system


def cpu_of(pid):
    return _stat(pid)[0]


class _Peak(threading.Thread):
    """Looks at the memory of a process while it runs: that of its children does not count. Ever more
    rarely, as the kernel keeps the peak, and who looks often takes a processor from who works."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.path, self.kib, self.over = Path(f"/proc/{pid}/status"), 0, threading.Event()
        self.start()

    def run(self):
        pause = 0.005
        while not self.over.wait(pause):
            pause = min(2 * pause, 0.25)
            try:
                for line in self.path.read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        self.kib = max(self.kib, int(line.split()[1]))
            except OSError:
                return


def measure(*pipeline, servers=(), env=None, stdin=None, expect=(0,)):
    """Runs programs, each reading what the one before writes. Returns a dict:

    seconds  from the first start to the last end
    cpu      CPU seconds of the programs themselves
    helpers  CPU seconds of the servers they read from: of their children, and of the
             running processes with the pids `servers`
    rss_mib  the largest memory one of them had
    out      what the last one wrote (text)"""
    before = {pid: cpu_of(pid) for pid in servers}
    processes, peaks = [], []
    began = time.monotonic()
    try:
        _start(pipeline, stdin, env, processes, peaks)
        return _end(pipeline, began, processes, peaks, before, expect)
    finally:
        for process in processes:
            process.kill()  # does nothing to one that has been waited for


def _start(pipeline, stdin, env, processes, peaks):
    """Not by spawn(): that forks, and to copy the page tables of this process takes as long as what is short."""
    source = stdin if stdin is not None else subprocess.DEVNULL
    for argv in pipeline:
        process = subprocess.Popen([os.fspath(a) for a in argv], stdin=source, stdout=subprocess.PIPE, env=env,
                                   stderr=subprocess.PIPE if argv is pipeline[-1] else subprocess.DEVNULL)
        if processes:
            processes[-1].stdout.close()
        source = process.stdout
        processes.append(process)
        peaks.append(_Peak(process.pid))


def _end(pipeline, began, processes, peaks, before, expect):
    timer = threading.Timer(TIMEOUT, lambda: [p.kill() for p in processes])
    timer.daemon = True  # or a bench that is ended would wait for it
    timer.start()
    errors = []
    reader = threading.Thread(target=lambda: errors.append(processes[-1].stderr.read()), daemon=True)
    reader.start()
    out = processes[-1].stdout.read()
    reader.join()
    cpu = helpers = 0.0
    for process, peak in zip(processes, peaks):
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        own, children = _stat(process.pid)
        cpu, helpers = cpu + own, helpers + children
        peak.over.set()
        process.wait()
    seconds = time.monotonic() - began
    timer.cancel()
    processes[-1].stdout.close()
    processes[-1].stderr.close()
    for process, argv in zip(processes, pipeline):
        if process.returncode not in expect:
            raise HarnessError(f"{' '.join(map(str, argv))}: status {process.returncode}\n"
                               f"{errors[0].decode('utf-8', 'replace')[-2000:]}")
    helpers += sum(cpu_of(pid) - cpu for pid, cpu in before.items())
    return {"seconds": seconds, "cpu": cpu, "helpers": helpers,
            "rss_mib": max(peak.kib for peak in peaks) / 1024,
            "out": out.decode("utf-8", "replace")}


class Agent:
    """tidemark with a repository of its own."""

    def __init__(self, binary, where):
        self.binary, self.repo = binary, where / "repo"
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("TIDEMARK_")}
        self.env["TIDEMARK_STATE_DIR"] = str(where / "state")
        where.mkdir(parents=True, exist_ok=True)

    def __call__(self, *arguments, servers=(), expect=(0, 3)):
        """As measure(), with the JSON that it printed as `json`."""
        taken = measure([self.binary, "-r", self.repo, "--json", "--progress", "never", *arguments],
                        servers=servers, env=self.env, expect=expect)
        out = taken.pop("out")
        taken["json"] = json.loads(out) if out.strip() else None
        return taken

    def bytes(self):
        return tree_bytes(self.repo)


def tree_bytes(path):
    return sum(p.stat().st_size for p in Path(path).rglob("*") if p.is_file())
