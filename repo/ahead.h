/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loads the leaves of the parent's map that pieces will need before their turn comes, many at a
 * time: each is a request to the store.  Only fills the cache, so that what is written does not
 * depend on it, and what fails is left to those who need it.  Loop thread only.
 */
#pragma once

#include "cache.h"
#include "map.h"

#define AHEAD_LOADS 32

struct ahead;

struct ahead_load {
	struct cache_wait wait;
	struct ahead *a;
	bool busy;
};

struct ahead {
	struct repo *repo;
	/* Called on the loop when a load has come back: ahead_block() may get on. */
	void (*done)(struct ahead *a);
	struct map_cursor cursor;
	uint64_t last; /* leaf asked for last, by its position */
	bool off;      /* no parent, or something cannot be loaded */
	unsigned in_flight;
	struct ahead_load load[AHEAD_LOADS];
};

/* root NULL: there is nothing to load.  Nothing may be in flight. */
void ahead_init(struct ahead *a, struct repo *repo, const struct map_root *root);
/*
 * Sees to the leaf of block; table: the disk's sessions, used during the call.  False: it has to
 * wait for other loads, ask again after done().
 */
bool ahead_block(struct ahead *a, const struct table_entry *table, uint64_t block);
