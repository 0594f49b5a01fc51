# SPDX-License-Identifier: Apache-2.0
"""How a backup under way can end otherwise than it should."""

import signal
import time
from pathlib import Path

PHASES = ("preparing", "freezing", "switched", "frozen", "committing", "pivoting", "pivoted", "settling")
PULL_PHASES = ("preparing", "freezing", "switched", "frozen", "pulling", "completed", "pulled", "settling")
IMAGE_PHASES = ("freezing", "frozen", "settling")


def stopped(run):
    try:
        stat = Path(f"/proc/{run.process.pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] == "T"


def wait_stopped_or_ended(run, timeout=60):
    end = time.monotonic() + timeout
    while run.running and not stopped(run) and time.monotonic() < end:
        time.sleep(0.002)


class Death:
    """One plan, made before the backup starts: `env` is for it, `strike` is called once
    it runs and returns when it has ended. `expect` are the exit statuses it may have."""

    def __init__(self, world, rng, phases=PHASES, power=True):
        self.world = world
        self.env, self.expect = {}, (0, 3)
        kinds = ["none"] * 9 + ["agent at", "agent", "agent", "interrupt", "qemu", "both", "both", "quit",
                                "stop, qemu", "stop, both"]
        if power and world.host.can_fail:
            kinds += ["power", "stop, power"]
        self.kind = rng.choice(kinds)
        self.delay = rng.uniform(0, 0.7)
        self.phase = rng.choice(phases)
        self.order = rng.random() < 0.5
        if self.kind == "agent at":
            self.env["TIDEMARK_DEBUG_KILL_AT"] = self.phase
        elif self.kind.startswith("stop"):
            self.env["TIDEMARK_DEBUG_STOP_AT"] = self.phase
        if "power" in self.kind:        # takes the guard as well: there is none
            self.env["TIDEMARK_DEBUG_KILL_AT"] = "nowhere"
        if self.kind == "interrupt":
            self.expect = (0, 3, 130, -signal.SIGINT, -signal.SIGTERM)      # the latter: too early
        elif self.kind in ("qemu", "quit", "stop, qemu"):
            self.expect = (0, 1, 3, 5)
        elif self.kind != "none":
            self.expect = None

    def __str__(self):
        if self.kind == "none":
            return "nobody dies"
        where = f" {self.phase}" if self.phase in self.env.values() else f" after {self.delay:.2f} s"
        return f"death: {self.kind}{where}"

    def strike(self, run):
        """Returns the Result."""
        if self.kind.startswith("stop"):
            wait_stopped_or_ended(run)
            time.sleep(self.delay / 10)
        elif self.kind not in ("none", "agent at"):
            end = time.monotonic() + self.delay
            while run.running and time.monotonic() < end:
                time.sleep(0.002)
        if self.kind != "none":
            self.world.counts[f"death: {self.kind}"] += 1
        getattr(self, "_" + self.kind.replace(", ", "_").replace(" ", "_"))(run)
        return run.finish(self.expect)

    def _none(self, run):
        pass

    _agent_at = _none

    def _agent(self, run):
        run.kill()

    def _interrupt(self, run):
        if run.running:
            run.signal(signal.SIGINT if self.order else signal.SIGTERM)

    def _qemu(self, _run):
        self.world.vm.kill()

    def _quit(self, _run):
        if self.order:
            self.world.vm.terminate()
        else:
            self.world.vm.quit()

    def _both(self, run):
        victims = [self.world.vm.kill, run.kill]
        for kill in victims if self.order else victims[::-1]:
            kill()

    def _stop_qemu(self, run):
        self.world.vm.kill()
        run.signal(signal.SIGCONT)

    def _stop_both(self, run):
        self.world.vm.kill()
        run.kill()

    def _power(self, _run):
        self.world.host.fail()

    _stop_power = _power
