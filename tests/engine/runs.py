# SPDX-License-Identifier: Apache-2.0
"""Worlds one after the other, each from its seed and number."""

import random
import time
import traceback

from harness import Scratch

from . import operations
from .world import World

CYCLES = 20     # of one world


def run_world(seed, number, cycles, deadline, counts, keep=False):
    """True: nothing was wrong."""
    at = "the start"
    with Scratch("engine") as scratch:
        world = None
        try:
            world = World(scratch, random.Random(f"{seed}/{number}"))
            for at in range(cycles):
                if time.monotonic() > deadline:
                    break
                print(f"# world {number} cycle {at}", flush=True)
                operations.cycle(world, random.Random(f"{seed}/{number}/{at}"))
                counts["cycles"] += 1
            at = "the end"
            operations.final(world)
        except Exception as error:  # pylint: disable=broad-except
            traceback.print_exc()
            print(f"WRONG: --seed {seed} --world {number}, cycle {at}: {error}", flush=True)
            counts["worlds that went wrong"] += 1
            scratch.keep = scratch.keep or keep
            return False
        finally:
            if world:
                counts.update(world.counts)
    return True


def run_worlds(seed, cycles, seconds, counts, first=0, last=None, wrong=20, keep=False):
    """Until `cycles` are done, `seconds` have passed, or `wrong` worlds went wrong, whose
    files stay with `keep`. `counts` is a Counter."""
    deadline, number = time.monotonic() + seconds, first
    while counts["cycles"] < cycles and time.monotonic() < deadline and number != last:
        counts["worlds"] += 1
        run_world(seed, number, min(CYCLES, cycles - counts["cycles"]), deadline, counts, keep)
        number += 1
        if counts["worlds that went wrong"] >= wrong:
            break
