# SPDX-License-Identifier: Apache-2.0
"""What the tests share: QEMU processes, a test guest, images, Tidemark's runs.
Only the standard library, and python3-libnbd where a test asks for it."""

from . import image, journal
from .base import ROOT, HarnessError, Scratch, Sub, make_rng, reap, run, spawn, wait_for
from .checks import assert_clean, note_baseline
from .console import Console
from .journal import GuestLog, judge_tree
from .qmp import Agent, Qmp, QmpError
from .tidemark import Result, Tidemark, says
from .vm import Disk, Vm, guest_image

__all__ = ["Agent", "Console", "Disk", "GuestLog", "HarnessError", "Qmp", "QmpError", "ROOT",
           "Result", "Scratch", "Sub", "Tidemark", "Vm", "assert_clean", "guest_image", "image",
           "journal", "judge_tree", "make_rng", "note_baseline", "reap", "run", "says", "spawn",
           "wait_for"]
