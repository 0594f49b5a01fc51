/* SPDX-License-Identifier: Apache-2.0 */
/* The process that puts a guest in order when its agent no longer can; see guard.c. */
#pragma once

#include "journal.h"

/* How long a guard tries to put a guest in order; then it is left to the next command. */
#define GUARD_TRIES_MS (UINT64_C(600) * 1000)

struct guard;

/*
 * Starts the guard of a journalled run, which this process is to end with guard_end().  In tests
 * with TIDEMARK_DEBUG_KILL_AT there is none, as after the end of a host: *ret is NULL then.
 */
int guard_start(const struct journal *j, const char *state_dir, struct guard **ret,
		struct error *err) TM_WUR;

/* All below take NULL for no guard and never wait, except guard_end() for a moment. */

/* From here until guard_release() the guest's I/O may stand: silence is counted. */
void guard_hold(struct guard *g);
/* Some progress, or a wait that is bounded; nothing while not held. */
void guard_beat(struct guard *g);
void guard_release(struct guard *g);

/* The guest is in order, or left to a person: nobody need watch over it.  Frees g. */
void guard_end(struct guard *g);
