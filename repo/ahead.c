/* SPDX-License-Identifier: Apache-2.0 */
#include "ahead.h"

void ahead_init(struct ahead *a, struct repo *repo, const struct map_root *root)
{
	assert(a->in_flight == 0);
	a->repo = repo;
	a->off = !root || root->ref == REF_HOLE;
	a->last = UINT64_MAX;
	a->run = (struct map_run){0};
	if (a->off)
		return;
	map_cursor_init(&a->leaves.cursor, root);
	map_cursor_init(&a->runs.cursor, root);
}

static void load_done(struct cache_wait *wait, int code)
{
	struct ahead_load *l = container_of(wait, struct ahead_load, wait);

	l->busy = false;
	l->a->in_flight--;
	if (code < 0)
		l->a->off = true;
	else
		l->a->done(l->a);
}

static struct cache_wait *load_begin(struct ahead *a, struct ahead_load *l)
{
	*l = (struct ahead_load){.wait.done = load_done, .a = a, .busy = true};
	a->in_flight++;
	return &l->wait;
}

/* For one more load; NULL when too many are on their way. */
static struct cache_wait *load_next(struct ahead *a)
{
	for (unsigned i = 0; i < AHEAD_LOADS; i++)
		if (!a->load[i].busy)
			return load_begin(a, &a->load[i]);
	return NULL;
}

/* The node that a cursor needs on its way down.  False: it has to be loaded first. */
static bool supply(struct ahead *a, struct ahead_walk *w, const struct table_entry *table)
{
	uint64_t ref = w->cursor.need.ref;
	const struct tm_id *sid = &table[ref_session(ref)].session;
	size_t len;
	const uint8_t *bytes = cache_node(a->repo->cache, sid, ref_ordinal(ref), &len);

	if (!bytes) {
		/* whoever loads it already: the answer is what this waits for */
		if (!w->load.busy)
			cache_load_node(a->repo->cache, sid, ref_ordinal(ref),
					load_begin(a, &w->load));
		return false;
	}
	if (map_cursor_supply(&w->cursor, bytes, len, NULL) < 0)
		a->off = true;
	return true;
}

/* False: later. */
static bool load_leaf(struct ahead *a, const struct tm_id *sid, uint64_t ordinal)
{
	struct cache *c = a->repo->cache;
	struct cache_wait *w;
	size_t len;

	if (cache_loads_node(c, sid, ordinal) ||
	    (cache_node(c, sid, ordinal, &len) && !cache_node_behind(c, sid, ordinal, &ordinal)))
		return true;
	w = load_next(a);
	if (w)
		cache_load_node(c, sid, ordinal, w);
	return w != NULL;
}

bool ahead_leaf(struct ahead *a, const struct table_entry *table, uint64_t block)
{
	uint64_t ref;

	if (a->off || block / NODE_LEAF_BLOCKS == a->last)
		return true;
	map_cursor_seek(&a->leaves.cursor, block);
	while (map_cursor_leaf(&a->leaves.cursor, &ref) == MAP_NEED) {
		if (!supply(a, &a->leaves, table))
			return false;
		if (a->off)
			return true;
	}
	if (ref != REF_HOLE && ref != REF_LOST &&
	    !load_leaf(a, &table[ref_session(ref)].session, ref_ordinal(ref)))
		return false;
	a->last = block / NODE_LEAF_BLOCKS;
	return true;
}

bool ahead_ref(struct ahead *a, const struct table_entry *table, uint64_t block, uint64_t *ret)
{
	const struct map_run *run = &a->run;

	*ret = REF_HOLE;
	if (block < run->block || block - run->block >= run->count) {
		a->run.count = 0;
		map_cursor_seek(&a->runs.cursor, block);
		while (map_cursor_next(&a->runs.cursor, &a->run, NULL) == MAP_NEED)
			if (!supply(a, &a->runs, table) || a->off)
				return false;
	}
	if (run->count > 0 && run->ref != REF_HOLE)
		*ret = run->ref + (block - run->block);
	return true;
}

bool ahead_tables(struct ahead *a, const struct table_entry *table, uint64_t ref)
{
	const struct table_entry *e = &table[ref_session(ref)];
	uint64_t index = ref_ordinal(ref) >> DATA_SLOTS_LOG2;
	struct cache *c = a->repo->cache;
	struct cache_wait *w;
	struct tables *t;

	if (index >= e->ndata)
		return true;
	t = cache_tables(c, &e->session, SEGMENT_DATA, (uint32_t)index);
	tables_unref(t);
	if (t || cache_loads_tables(c, &e->session, SEGMENT_DATA, (uint32_t)index))
		return true;
	w = load_next(a);
	if (w)
		cache_load_tables(c, &e->session, SEGMENT_DATA, (uint32_t)index, w);
	return w != NULL;
}
