/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segment tables and map pages that were read, least recently used first out.  Look-ups
 * are immediate; what is missing is loaded through the loop, once for all who wait.
 * Loop thread only.
 */
#pragma once

#include "internal.h"
#include "segment.h"

struct cache_wait {
	/* After code 0 the look-up succeeds inside this call. */
	void (*done)(struct cache_wait *w, int code);
	struct error err;
	/* the cache's: */
	struct cache_wait *next;
	uint32_t slot;
};

/* Tables that are being used by somebody. */
struct tables {
	struct seg_tables *t;
	unsigned refs;
	/* the cache's: */
	struct tables *next;
	bool cached;
	uint32_t ahead_next, ahead; /* frame behind what was read last, and how many that were */
	char key[KEY_MAX];
};

int cache_new(struct repo *repo, struct cache **ret, struct error *err) TM_WUR;
void cache_free(struct cache *c); /* nothing may be loading or referenced */

/* A reference, or NULL: load it. */
struct tables *cache_tables(struct cache *c, const struct tm_id *sid, uint8_t type, uint32_t index);
void tables_ref(struct tables *t);
void tables_unref(struct tables *t);
void cache_load_tables(struct cache *c, const struct tm_id *sid, uint8_t type, uint32_t index,
		       struct cache_wait *w);
/* Whether somebody has asked for them already. */
bool cache_loads_tables(const struct cache *c, const struct tm_id *sid, uint8_t type,
			uint32_t index);
/* After the segment's object was not found: the next look-up loads what compaction put there. */
void cache_forget_tables(struct cache *c, struct tables *t);

/* The bytes of a map node, valid until the next call; NULL: load it. */
const uint8_t *cache_node(struct cache *c, const struct tm_id *sid, uint64_t ordinal,
			  size_t *ret_len);
void cache_load_node(struct cache *c, const struct tm_id *sid, uint64_t ordinal,
		     struct cache_wait *w);
/*
 * Pages of a segment that are used one after the other are read several at a time.  Whether the
 * node is in those read last; then *ret is the one to load now, so that what comes behind them is
 * there in time.
 */
bool cache_node_behind(struct cache *c, const struct tm_id *sid, uint64_t ordinal, uint64_t *ret);
/* Whether somebody has asked for it already. */
bool cache_loads_node(const struct cache *c, const struct tm_id *sid, uint64_t ordinal);

/*
 * A load that is waited for: given as {.wait.done = cache_await_done}, its wait to one of the loads
 * above, then to cache_await(), which runs the loop until the answer is there and returns it.  An
 * error of the loop itself is logged only, for requests cannot be taken back.
 */
struct cache_await {
	struct cache_wait wait;
	int code;
	bool done;
};
void cache_await_done(struct cache_wait *wait, int code);
int cache_await(struct repo *repo, struct cache_await *w, struct error *err) TM_WUR;

/* Forgets everything that is not in use. */
void cache_drop(struct cache *c);
