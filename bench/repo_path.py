# SPDX-License-Identifier: Apache-2.0
"""Scenarios of a repository that has grown for years, made with a simulated disk."""

from harness import HarnessError

import data
from data import CLUSTER, GIB
from scenario import scenario


def simulated(bench, name, **options):
    """An agent whose repository `sim` has filled, and what it said of it."""
    agent = bench.agent(name, init=False)
    taken = bench.tool("sim", "fill", agent.repo, *[f"{key}={value}" for key, value in options.items()])
    return agent, taken


@scenario("repo-open", "T4: opening a repository of 1000 points")
def repo_open(bench):
    """`list` of a guest with 1000 points, and `show latest`; what is asked of the store to open
    the repository and find the newest point, as a guest's backup does: how many requests, and
    how many round trips, which is how often an answer has to be waited for. These are counted as
    the time in a store whose every request takes 50 ms longer. And what goes through all points,
    for its memory."""
    points = 20 if bench.small else 1000
    agent, _ = simulated(bench, "open", size=64 * GIB, points=points, dirty=16)

    def find(rtt):
        taken = bench.tool("sim", "find", agent.repo, "guest", str(rtt))
        found = {"seconds": taken["seconds"], "requests": sum(taken[k] for k in ("gets", "lists", "heads"))}
        return {**found, "round_trips": taken["seconds"] * 1000 // rtt} if rtt else found

    outcome = bench.compare({"list": lambda: agent("list", "--guest", "guest"),
                             "show latest": lambda: agent("show", "latest"),
                             "open and find": lambda: find(0),
                             "open and find, far away": lambda: find(50),
                             "stats": lambda: agent("stats"),
                             "verify": lambda: agent("verify")})
    listed = agent("list", "--guest", "guest")["json"]
    if len(listed) != points:
        raise HarnessError(f"{len(listed)} points instead of {points}")
    bench.remove(agent)
    bench.target("seconds of list", outcome.median("list", "seconds"), 0.05)
    bench.target("requests to open and find the newest point", outcome.median("open and find", "requests"), 5)
    bench.target("seconds of that 50 ms away", outcome.median("open and find, far away", "seconds"), 0.5)
    bench.target("peak memory, MiB", max(outcome.median(name, "rss_mib") for name in ("list", "stats", "verify")), 64)


def year(bench, run):
    """365 daily points of a disk with as many blocks as 1 TiB has clusters, 16 384 of them changed each
    day in runs of `run`. Blocks are 4 KiB and almost empty, so that a year fits into memory;
    number and shape of tables and map are the same as of 64 KiB clusters. An agent with its
    repository, and what was measured of the last point."""
    points, dirty = (10, 1024) if bench.small else (365, 16384)
    agent, taken = simulated(bench, "year", size=(1 << 40) // CLUSTER * 4096, block=4096, points=points, dirty=dirty,
                             run=run)
    overhead = taken["table_bytes"] + taken["map_bytes"] + taken["point_bytes"]
    return agent, {**{key: taken[key] for key in ("seconds", "cpu", "rss_mib", "map_bytes", "table_bytes", "point_bytes",
                                                  "gets", "read_bytes", "dirty_bytes")},
                   "requests": sum(taken[key] for key in ("puts", "gets", "lists", "heads")),
                   "share": overhead / (dirty * CLUSTER / 3)}


def uniform_year(bench):
    """Made once for all who only add or drop a point."""
    if "year" not in bench.kept:
        bench.kept["year"] = year(bench, 1)
    return bench.kept["year"]


@scenario("repo-incremental", "T1, T2: a year of incremental backups of 1 TiB")
def repo_incremental(bench):
    """365 daily points of a disk with as many blocks as 1 TiB has clusters, 16 384 of them changed
    each day: uniformly, and in runs of 64. (Blocks are 4 KiB and almost empty, so that a year
    fits into memory; number and shape of tables and map are the same as of 64 KiB clusters.)
    What the last one costs, and what it writes beside its data, as a share of what 16 384 clusters of
    64 KiB take when they compress 3 : 1. The last row is the last of 40 points, uniformly changed, in a
    store whose every request takes 50 ms longer."""
    _, uniform = uniform_year(bench)
    agent, clustered = year(bench, 64)
    bench.remove(agent)
    points, dirty = (5, 1024) if bench.small else (40, 16384)
    agent, far = simulated(bench, "far", size=(1 << 40) // CLUSTER * 4096, block=4096, points=points, dirty=dirty,
                           rtt=50)
    bench.remove(agent)
    for name, taken, limit in (("uniform", uniform, 0.017), ("clustered", clustered, 0.004)):
        bench.row(name, **taken)
        bench.target(f"overhead, {name}, of the stored bytes", taken["share"], limit)
        bench.target(f"bytes read, {name}, of those dirty", taken["read_bytes"] / taken["dirty_bytes"], 1)
        bench.target(f"peak memory, {name}, MiB", taken["rss_mib"], 256)
    bench.row("uniform, far away", **{key: far[key] for key in ("seconds", "cpu", "rss_mib", "gets")})
    bench.target("seconds in a store 50 ms away", far["seconds"], 1.5)


@scenario("repo-restore", "T5: restore after a year", ("mkfs.ext4",))
def repo_restore(bench):
    """A disk of 4 GiB, half of it written at first, then 400 points of 64 scattered clusters of
    real data: the newest and the oldest point read to nowhere. Read amplification is what is
    asked of the store beside the frames' bytes of the clusters that the point has. Then every second
    point is forgotten, and what the repository takes after a `prune` is set against what is
    stored of the points that are left."""
    points, first = (10, 512) if bench.small else (400, 32768)
    content = data.file_system(bench.mib, bench.seed)  # not bench.image(): to map its holes would fill them
    agent, taken = simulated(bench, "year", size=GIB if bench.small else 4 * GIB, points=points, dirty=64,
                             first=first, content=content)
    ratio = (taken["before"]["payload_bytes"] + taken["payload_bytes"]) / ((first + 64 * (points - 1)) * CLUSTER)
    listed = agent("list")["json"]

    def read(point):
        got = bench.tool("sim", "read", agent.repo, point["point"])
        return {**{key: got[key] for key in ("seconds", "cpu", "rss_mib", "gets", "got_bytes")},
                "data_bytes": got["bytes"], "amplification": got["got_bytes"] / (got["bytes"] * ratio)}

    outcome = bench.compare({"newest": lambda: read(listed[-1]), "oldest": lambda: read(listed[0])})
    dropped = [point["point"] for point in listed[1::2]]
    while dropped:
        agent("forget", *dropped[:50])
        del dropped[:50]
    agent("prune")
    live = agent("prune", "--dry-run", "--max-unused", "0")["json"]["kept_bytes"]
    bench.row("every second forgotten", stored_bytes=agent.bytes(), live_bytes=live)
    bench.target("stored, of what the points need", agent.bytes() / live, 1.3)
    bench.remove(agent)
    for name in ("newest", "oldest"):
        gb = outcome.median(name, "data_bytes") / 1e9
        bench.target(f"GB/s, {name}", gb / outcome.median(name, "seconds"), 0.8, least=True)
        bench.target(f"GB for the CPU time of a second on two cores, {name}", 2 * gb / outcome.median(name, "cpu"), 0.8,
                     least=True)
        bench.target(f"read amplification, {name}", outcome.median(name, "amplification"), 1.75)
        bench.target(f"peak memory, {name}, MiB", outcome.median(name, "rss_mib"), 200)


@scenario("repo-prune", "T6, T7: dropping one point of 365")
def repo_prune(bench):
    """The uniformly changed year of repo-incremental. `forget` of a point in the middle, `prune
    --dry-run` (mark, and what would go), and `prune`."""
    agent, _ = uniform_year(bench)
    del bench.kept["year"]
    listed = agent("list")["json"]
    victims = iter(listed[len(listed) // 2:])
    outcome = bench.compare({
        "forget": lambda: agent("forget", next(victims)["point"]),
        "prune --dry-run": lambda: agent("prune", "--dry-run"),
        "prune": lambda: agent("prune"),
    })
    checked = agent("verify")["json"]
    if checked["damaged"] or checked["points"] != len(listed) - bench.rounds:
        raise HarnessError(f"after prune: {checked}")
    bench.remove(agent)
    bench.target("CPU seconds of mark", outcome.median("prune --dry-run", "cpu"), 5)
    bench.target("peak memory of prune, MiB", outcome.median("prune", "rss_mib"), 64)
    bench.target("seconds of forget", outcome.median("forget", "seconds"), 0.1)
