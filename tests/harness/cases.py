# SPDX-License-Identifier: Apache-2.0
"""A file of test cases: each function marked @case gets a Scratch of its own,
and prints one line "ok NAME" or "not ok NAME"."""

import signal
import sys
import time
import traceback

from .base import Scratch

_cases = []


def case(function):
    _cases.append(function)
    return function


def main():
    """Runs the cases named on the command line, or all; exits with 1 after a failure."""
    # A shell's background job ignores them, and so would all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    wanted = sys.argv[1:]
    failed = 0
    for function in _cases:
        name = function.__name__
        if wanted and name not in wanted:
            continue
        began = time.monotonic()
        try:
            with Scratch() as scratch:
                function(scratch)
        except BaseException as error:  # pylint: disable=broad-except
            failed += 1
            traceback.print_exc()
            print(f"not ok {name} ({time.monotonic() - began:.1f} s): {error}", flush=True)
            if isinstance(error, KeyboardInterrupt):
                break
        else:
            print(f"ok {name} ({time.monotonic() - began:.1f} s)", flush=True)
    sys.exit(1 if failed else 0)


__all__ = ["case", "main"]
