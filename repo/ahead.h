/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loads what pieces will need of the parent before their turn comes, many at a time since each is a
 * request to the store: leaves of its map, and tables of the segments that these refer to.  Only
 * fills the cache, so that what is written does not depend on it, and what fails is left to
 * those who need it.  Loop thread only.
 */
#pragma once

#include "cache.h"
#include "map.h"

#define AHEAD_LOADS 64

struct ahead;

struct ahead_load {
	struct cache_wait wait;
	struct ahead *a;
	bool busy;
};

/* On its way down the map; one load for the nodes that it needs itself. */
struct ahead_walk {
	struct map_cursor cursor;
	struct ahead_load load;
};

struct ahead {
	struct repo *repo;
	/* Called on the loop when a load has come back: it may be possible to get on. */
	void (*done)(struct ahead *a);
	struct ahead_walk leaves;
	uint64_t last; /* leaf asked for last, by its position */
	struct ahead_walk runs;
	struct map_run run; /* around the block asked for last */
	bool off;           /* no parent, or something cannot be loaded */
	unsigned in_flight;
	struct ahead_load load[AHEAD_LOADS];
};

/* root NULL: there is nothing to load.  Nothing may be in flight. */
void ahead_init(struct ahead *a, struct repo *repo, const struct map_root *root);
/*
 * table: the disk's sessions, used during the call.  False: it has to wait for other loads, ask
 * again after done().
 */
/* Sees to the leaf of a block; in the order of blocks. */
bool ahead_leaf(struct ahead *a, const struct table_entry *table, uint64_t block);
/* What the map says of a block; in the order of blocks. */
bool ahead_ref(struct ahead *a, const struct table_entry *table, uint64_t block, uint64_t *ret);
/* Sees to the tables of what ref leads to. */
bool ahead_tables(struct ahead *a, const struct table_entry *table, uint64_t ref);
