# SPDX-License-Identifier: Apache-2.0
"""Instructions of the parts of a backup: the same on every run, so that a change shows."""

import json
import os
import re
from pathlib import Path

from harness import HarnessError, run

from scenario import scenario

# Times to do it, and what one time is. Those of libraries are printed only: they choose
# their code by the processor.
KERNELS = {
    "crc": (100, "CRC-32C of 64 KiB"),
    "extents": (20000, "extent added to a set"),
    "map": (8000, "scattered cluster put into a map"),
    "segment": (8000, "cluster of 16 bytes put into a segment"),
    "reader": (4000, "scattered cluster of 4 KiB read from a simulated disk"),
}
LIBRARIES = {
    "zero": (200, "zero test of 64 KiB (memcmp)"),
    "id": (50, "content id of 64 KiB (OpenSSL)"),
    "compress": (10, "zstd of a frame, 512 KiB"),
    "unpack": (20, "the same decompressed"),
    "seal": (50, "AES-256-GCM of 64 KiB (OpenSSL)"),
}
EXPECTED = Path(__file__).with_name("kernels.json")
TOLERANCE = 0.05


def _instructions(program, name, times):
    done = run(["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, name, str(times)],
               timeout=300)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if not found:
        raise HarnessError(f"callgrind says nothing of {name}: {done.stderr[-500:]}")
    return int(found[1])


@scenario("kernels", "Instructions of the parts", ("valgrind",))
def kernels(bench):
    """Instructions that valgrind counts for one time of each part, without the start of the
    program. They do not depend on what else the machine does: bench/kernels.json holds what they
    were, and more than 5 % above it fails. BENCH_ACCEPT=1 writes them anew."""
    program = bench.build / "bench/bench_kernels"
    counts = {}
    for name, (times, what) in {**KERNELS, **({} if bench.small else LIBRARIES)}.items():
        low, high = (_instructions(program, name, n) for n in (times, 2 * times))
        counts[name] = (high - low) / times
        bench.row(what, instructions=counts[name])
    own = {name: round(counts[name]) for name in KERNELS}
    if os.environ.get("BENCH_ACCEPT"):
        EXPECTED.write_text(json.dumps(own, indent=1) + "\n")
    for name, expected in json.loads(EXPECTED.read_text()).items():
        bench.target(f"instructions, {KERNELS[name][1]}", own[name], round(expected * (1 + TOLERANCE)))
    worse = [f"{t.text}: {t.value}, was {t.limit} with {TOLERANCE:.0%}" for t in bench.outcome.targets if not t.met]
    if worse:
        raise HarnessError("; ".join(worse))
