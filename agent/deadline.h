/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bound on calls that nothing else bounds: a system call into a dead file server returns never.
 * When the time is over a thread says so and ends the process, with exit status 1; or the call is
 * left alone on a thread of its own, where something is to be done without it.
 */
#pragma once

#include "agent.h"

#include <pthread.h>

struct deadline {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool over; /* by lock */
	uint64_t limit_ms;
	char text[512];
};

/* repo: as in -r.  The deadline may not move until deadline_end(). */
int deadline_begin(struct deadline *d, const char *repo, struct error *err) TM_WUR;
void deadline_end(struct deadline *d);

typedef int deadline_fn(void *data, struct error *err);

/*
 * Calls fn on a thread of its own, which gets the signals meanwhile that ask for an end.
 * *ret_hung, and TM_E_TIMEOUT: that thread goes on, for as long as the process lives, and so must
 * what it uses.  Untouched otherwise.
 */
int deadline_call(deadline_fn *fn, void *data, const char *repo, bool *ret_hung,
		  struct error *err) TM_WUR;
