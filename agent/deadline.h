/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bound on calls that nothing else bounds: a system call into a dead file server returns never.
 * When the time is over a thread says so and ends the process, with exit status 1.
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
