/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pool of worker threads for hashing, compressing and encrypting.  Tasks are
 * submitted on the loop thread, run on any worker in no particular order, and
 * are handed back on the loop thread.  A task is a batch (a piece, a segment):
 * one lock per batch, none per cluster.
 */
#pragma once

#include "error.h"
#include "loop.h"

#include <stdbool.h>

struct pool;
struct pool_task;

struct pool_task {
	/* On a worker. `worker` counts from 0 to pool_workers() - 1, for per-worker state. */
	void (*run)(struct pool_task *task, unsigned worker);
	/* On the loop thread, afterwards. */
	void (*done)(struct pool_task *task);
	struct pool_task *next;
};

/* workers 0: one per online CPU. */
int pool_new(struct loop *loop, unsigned workers, struct pool **ret, struct error *err) TM_WUR;

/* All tasks must have been handed back. */
void pool_free(struct pool *pool);

unsigned pool_workers(const struct pool *pool);

/* The task is borrowed until its done(). */
void pool_submit(struct pool *pool, struct pool_task *task);
