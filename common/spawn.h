/* SPDX-License-Identifier: Apache-2.0 */
/* Other programs, started with posix_spawn and an argument vector; never a shell. */
#pragma once

#include "buf.h"
#include "error.h"

#include <stdbool.h>
#include <sys/types.h>

/*
 * Runs argv (argv[0] looked up in PATH, NULL-terminated) to its end, at most
 * timeout_ms, after which it is killed (TM_E_TIMEOUT).  stdin is /dev/null.
 * stdout goes to *ret_out (at most 64 MiB; may be NULL), whatever the exit status; stderr's first
 * lines become part of the error when that is not 0 (TM_E_PEER).
 */
int spawn_run(const char *const argv[], unsigned timeout_ms, struct buf *ret_out,
	      struct error *err) TM_WUR;

/*
 * Starts a server in the background, its stdin from the descriptor `in`, which may be a socket to
 * talk over, its stderr to `errors`; what is -1, and stdout, is /dev/null.  posix_spawn cannot tie
 * its life to ours: whoever starts one journals enough to find it again, or gives it a bounded
 * life.
 */
int spawn_start(const char *const argv[], int in, int errors, pid_t *ret, struct error *err) TM_WUR;

/*
 * SIGTERM, again and again, for a qemu-nbd that has just been started forgets the first one; then
 * SIGKILL after timeout_ms; reaps.  Returns when the process is gone.
 */
void spawn_stop(pid_t pid, unsigned timeout_ms);

/* True when the process started by spawn_start has ended (and is reaped). */
bool spawn_ended(pid_t pid);
