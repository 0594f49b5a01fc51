/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Looking things up in a point's disk while a session writes: which reference a block has,
 * and which content that is.  Never blocks: LOOK_WAIT means that something is being loaded;
 * done() is called on the loop when it is worth asking again.
 */
#pragma once

#include "cache.h"
#include "lost.h"
#include "map.h"

#define LOOK_WAIT 1

struct look {
	struct repo *repo;
	const struct table_entry *table; /* borrowed: the disk's session table */
	struct lost *lost;               /* borrowed: what is not looked at; or NULL */
	/* Nodes that cannot be read are added to what is lost, and their runs are REF_LOST;
	 * otherwise they are failures. */
	bool tolerant;
	void (*done)(struct look *l, int code, const struct error *err);
	struct map_cursor cursor;
	struct map_run run; /* around the block asked for last */
	bool waiting;
	struct cache_wait wait;
	struct tm_id sid; /* of the tables being loaded, used or known to be bad */
	uint32_t index;
	struct tables *tables; /* referenced */
	bool bad;              /* those tables are damaged */
};

/* Table and lost are borrowed until look_done(). */
void look_init(struct look *l, struct repo *repo, const struct map_root *root,
	       const struct table_entry *table, struct lost *lost);
void look_done(struct look *l); /* nothing may be waiting */

/* The run around block, in l->run (count 0: behind the end).  0, LOOK_WAIT or an error. */
int look_run(struct look *l, uint64_t block, struct error *err) TM_WUR;
/* The run that ends with block, or one around it; block is inside the point's disk. */
int look_run_until(struct look *l, uint64_t block, struct error *err) TM_WUR;
/*
 * The content id of the cluster that ref refers to, valid until the next call; NULL when it is
 * not known: it was removed or is lost, or its tables are damaged.
 */
int look_content(struct look *l, uint64_t ref, const uint8_t **ret, struct error *err) TM_WUR;
/* Whether ref, of a run, leads to a cluster that cannot be read any more. */
bool look_lost(const struct look *l, uint64_t ref);
