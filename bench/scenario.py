# SPDX-License-Identifier: Apache-2.0
"""What a scenario is, and what it is given."""

import json
import shutil
import statistics
from dataclasses import dataclass, field

from harness import HarnessError, run

import data
from measure import Agent, measure
from peers import missing
from warm import Warm, needed

SCENARIOS = {}
FEW = 2     # rounds of what takes long and is there to be seen beside the rest


def scenario(name, title, needs=()):
    """Registers a function of a Bench; its first words say what is measured."""
    def register(function):
        SCENARIOS[name] = Scenario(name, title, tuple(needs), function)
        return function
    return register


@dataclass
class Scenario:
    name: str
    title: str
    needs: tuple
    function: object

    @property
    def absent(self):
        return missing(*self.needs)

    @property
    def what(self):
        return " ".join(self.function.__doc__.split())


@dataclass
class Target:
    text: str
    value: float
    limit: float
    least: bool = False     # the limit is a lower one

    @property
    def met(self):
        return self.value >= self.limit if self.least else self.value <= self.limit


@dataclass
class Outcome:
    rows: dict = field(default_factory=dict)        # {contender: {measure: [a value a round]}}
    targets: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    def median(self, contender, key):
        return statistics.median(self.rows[contender][key])

    def has(self, *contenders):
        return all(c in self.rows for c in contenders)


@dataclass
class Peer:
    """Another program at the same work. It may be missing, or fail."""

    function: object


class Bench:
    def __init__(self, args, scratch, where):
        self.small, self.seed = args.small, args.seed
        self.rounds = 1 if args.small else args.rounds
        self.mib = min(args.data, 48) if args.small else args.data
        self.scratch, self.where = scratch, where
        self.build = args.build
        self.tidemark = args.build / "agent/tidemark"
        self.outcome = None
        self.warm = Warm() if needed() and not args.small else None
        self.number = 0
        self.kept = {}  # what one scenario leaves to another

    # --- for scenarios ------------------------------------------------------------

    def dir(self, name):
        path = self.where / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def agent(self, name, init=True):
        """tidemark and an empty repository. A name that was used is used up."""
        self.number += 1
        agent = Agent(self.tidemark, self.dir(f"{name}-{self.number}"))
        if init:
            agent("init")
        return agent

    @staticmethod
    def remove(agent):
        """With its repository."""
        shutil.rmtree(agent.repo.parent)

    def image(self):
        """The file system of real files, in the place where everything happens."""
        path = self.where / "fs.raw"
        if not path.exists():
            data.place(data.file_system(self.mib, self.seed), path)
        return path

    def tool(self, name, *arguments, **options):
        """A program of the bench: what it measured itself, and was measured of it."""
        taken = measure([self.build / "bench" / f"bench_{name}", *arguments], **options)
        return {**taken, **json.loads(taken.pop("out"))}

    def compare(self, contenders, rounds=None, few=(), of=None):
        """Runs each contender once a round, one after the other, so that what happens on the
        machine meanwhile hits them all; those of `few` in two rounds only. They return dicts of
        numbers. `of`: bytes of data that each goes through, where it does not say `data_bytes`
        itself."""
        for number in range(rounds or self.rounds):
            for name, function in list(contenders.items()):
                if function is None or (name in few and number >= FEW):
                    continue
                if self.warm:
                    self.warm.fill()
                taken = self.attempt(name, function) if isinstance(function, Peer) else function()
                if taken is None:
                    contenders[name] = None
                    self.outcome.rows.pop(name, None)
                    continue
                size = taken.get("data_bytes", of)
                if size and "cpu" in taken:
                    taken["cpu_per_gib"] = (taken["cpu"] + taken.get("helpers", 0)) / (size / data.GIB)
                row = self.outcome.rows.setdefault(name, {})
                for key, value in taken.items():
                    if isinstance(value, (int, float)) and not isinstance(value, bool):
                        row.setdefault(key, []).append(value)
                print(f"    round {number + 1}: {name}: {taken['seconds']:.3f} s", flush=True)
        return self.outcome

    def row(self, name, **numbers):
        """A row that was counted and not timed."""
        self.outcome.rows[name] = {key: [value] for key, value in numbers.items()}

    def target(self, text, value, limit, least=False):
        self.outcome.targets.append(Target(text, value, limit, least))

    def note(self, text):
        self.outcome.notes.append(text)

    def peer(self, function, *programs):
        """For compare() and attempt(), or None when its programs are not there, which is noted."""
        absent = missing(*programs)
        if absent:
            self.note(f"left out: {', '.join(absent)} not installed")
            return None
        return Peer(function)

    def attempt(self, name, peer):
        """What a peer returns, or None when it fails, which is noted: nothing ends for that."""
        try:
            return peer.function()
        except (HarnessError, OSError) as error:
            why = " ".join(str(error).split())
            print(f"    {name}: FAILED: {why}", flush=True)
            self.note(f"left out: {name} failed: {why[:200]}")
            return None

    def same(self, a, b):
        """What came back is what was there."""
        if run(["cmp", a, b], check=False, timeout=600).returncode != 0:
            raise HarnessError(f"{a} and {b} differ")

    # --- for bench/run -------------------------------------------------------------

    def play(self, it):
        self.outcome = Outcome()
        it.function(self)
        return self.outcome
