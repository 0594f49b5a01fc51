# SPDX-License-Identifier: Apache-2.0
"""What was measured, for people and for programs."""

import json
import os
import platform
import re
import statistics
import textwrap
import time
from pathlib import Path

from harness import run

MIB = 1 << 20
# Columns of the tables in this order: name, heading, factor, digits. Others are only in the JSON.
COLUMNS = [
    ("seconds", "seconds", 1, 3),
    ("cpu", "CPU s", 1, 2),
    ("helpers", "server CPU s", 1, 2),
    ("cpu_per_gib", "CPU s/GiB", 1, 2),
    ("rss_mib", "RSS MiB", 1, 0),
    ("stored_bytes", "stored MiB", 1 / MIB, 1),
    ("live_bytes", "live MiB", 1 / MIB, 1),
    ("share", "of 3 : 1 data %", 100, 2),
    ("alone_bytes", "alone MiB", 1 / MIB, 1),
    ("of_alone", "of alone %", 100, 1),
    ("floor", "floor %", 100, 1),
    ("grown_bytes", "grown MiB", 1 / MIB, 1),
    ("dirty_bytes", "dirty MiB", 1 / MIB, 1),
    ("read_bytes", "read MiB", 1 / MIB, 1),
    ("new_bytes", "new MiB", 1 / MIB, 1),
    ("data_bytes", "data MiB", 1 / MIB, 1),
    ("got_bytes", "asked MiB", 1 / MIB, 1),
    ("table_bytes", "tables KiB", 1 / 1024, 0),
    ("map_bytes", "map KiB", 1 / 1024, 0),
    ("point_bytes", "manifest KiB", 1 / 1024, 1),
    ("puts", "puts", 1, 0),
    ("gets", "gets", 1, 0),
    ("requests", "requests", 1, 0),
    ("round_trips", "round trips", 1, 0),
    ("freeze_ms", "freeze ms", 1, 0),
    ("beyond_qemu", "beyond QEMU s", 1, 3),
    ("first", "first byte s", 1, 3),
    ("amplification", "amplification", 1, 2),
    ("instructions", "instructions", 1, 0),
    ("writes", "writes", 1, 0),
    ("p50_us", "p50 µs", 1, 0),
    ("p99_us", "p99 µs", 1, 0),
    ("max_ms", "max ms", 1, 1),
    ("read", "read", 1, 2),
    ("id", "id", 1, 2),
    ("compress", "zstd", 1, 2),
    ("seal", "seal", 1, 2),
    ("crc", "CRC", 1, 2),
    ("write", "write", 1, 2),
    ("load", "load", 1, 2),
    ("open_frame", "open", 1, 2),
    ("unpack", "unpack", 1, 2),
    ("write_data", "write data", 1, 2),
]


def _version(argv):
    try:
        return run(argv, timeout=20, check=False).stdout.splitlines()[0].strip()
    except (OSError, IndexError):
        return None


def machine(root):
    """Where and with what this was measured."""
    cpu = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")), platform.machine())
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // (1 << 20)
    programs = {"qemu-img": ["qemu-img", "--version"], "nbdcopy": ["nbdcopy", "--version"],
                "zstd": ["zstd", "--version"], "restic": ["restic", "version"], "borg": ["borg", "--version"],
                "gcc": ["gcc", "--version"]}
    virtnbdbackup = _version(["virtnbdbackup", "--version"])
    return {"date": time.strftime("%Y-%m-%d", time.gmtime()), "cpu": cpu, "cores": os.cpu_count(),
            "memory_gib": memory, "kernel": platform.release(), "load": os.getloadavg()[0],
            "commit": _version(["git", "-C", root, "describe", "--always", "--dirty"]),
            "programs": {**{name: _version(argv) for name, argv in programs.items()},
                         "virtnbdbackup": virtnbdbackup and f"virtnbdbackup {virtnbdbackup}"}}


def as_json(it, outcome, rounds, load, commit):
    rows = {}
    for name, row in outcome.rows.items():
        rows[name] = {key: {"median": statistics.median(v), "min": min(v), "max": max(v), "n": len(v)}
                      for key, v in row.items()}
    return {"title": it.title, "what": it.what, "rounds": rounds, "load": load, "commit": commit, "rows": rows,
            "notes": outcome.notes,
            "targets": [{"text": t.text, "value": t.value, "limit": t.limit, "least": t.least, "met": t.met}
                        for t in outcome.targets]}


def escape(text):
    return text.replace("|", "\\|")


def _cell(value, factor, digits):
    text = f"{value['median'] * factor:.{digits}f}"
    spread = value["max"] - value["min"]
    if value["n"] > 1 and value["median"] and spread / abs(value["median"]) > 0.02:
        text += f" ±{50 * spread / abs(value['median']):.0f}%"
    return text


def table(result):
    """Lines of Markdown: medians, and half the distance between the extremes."""
    columns = [c for c in COLUMNS if any(c[0] in row for row in result["rows"].values())]
    lines = ["| | " + " | ".join(c[1] for c in columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, row in result["rows"].items():
        cells = [_cell(row[key], factor, digits) if key in row else "" for key, _, factor, digits in columns]
        rounds = next(iter(row.values()))["n"]
        few = f" ({rounds} rounds)" if 1 < rounds < result["rounds"] else ""
        lines.append(f"| {escape(name)}{few} | " + " | ".join(cells) + " |")
    if result["targets"]:
        lines += ["", "| target | measured | | |", "|---|---:|---|---|"]
        for t in result["targets"]:
            lines.append(f"| {escape(t['text'])} | {t['value']:.3g} | {'at least' if t['least'] else 'at most'} "
                         f"{t['limit']:g} | {'met' if t['met'] else '**missed**'} |")
    lines += [f"* {note}" for note in result["notes"]]
    return lines


def _head(document):
    m = document["machine"]
    return (f"{m['date']}: {m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, Linux {m['kernel']}; "
            f"{document['arguments']['data']} MiB of files, seed {document['arguments']['seed']}; "
            + "; ".join(v for v in m["programs"].values() if v) + ".")


def _sections(documents):
    """{name: lines}"""
    sections = {}
    for document in documents:
        for name, result in document["scenarios"].items():
            sections[name] = [f"### {name}: {result['title']}", "", *textwrap.wrap(result["what"], 120),
                              f"(Rounds: {result['rounds']}; commit {result['commit']}; load {result['load']:.0f}.)", "", *table(result)]
    return sections


def _heads(documents):
    """Of the runs; what they have in common is said once."""
    return list(dict.fromkeys(_head(document) for document in documents))


def markdown(documents):
    lines = [*_heads(documents)]
    for section in _sections(documents).values():
        lines += ["", *section]
    return "\n".join(lines)


def weave(documents, path):
    """Puts the figures into a document: see bench/run."""
    parts = re.split(r"(?m)^(?=##)", path.read_text())
    sections = _sections(documents)
    for i, part in enumerate(parts):
        if part.startswith("## Figures\n"):
            parts[i] = "\n".join(["## Figures", "", *textwrap.wrap("\n".join(_heads(documents)), 120), "", ""])
        found = re.match(r"### ([\w-]+): ", part)
        if found and found[1] in sections:
            kept = part[part.index("For a user:"):] if "For a user:" in part else ""
            parts[i] = "\n".join([*sections.pop(found[1]), "", kept])
    path.write_text("".join(parts))
    for name in sections:
        print(f"{path} has no section '### {name}: …'")


def save(path, document):
    path.write_text(json.dumps(document, indent=1) + "\n")
