/* SPDX-License-Identifier: Apache-2.0 */
#include "ahead.h"

void ahead_init(struct ahead *a, struct repo *repo, const struct map_root *root)
{
	assert(a->in_flight == 0);
	a->repo = repo;
	a->off = !root || root->ref == REF_HOLE;
	a->last = UINT64_MAX;
	if (!a->off)
		map_cursor_init(&a->cursor, root);
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

/* False when too many are on their way. */
static bool load(struct ahead *a, const struct tm_id *sid, uint64_t ordinal)
{
	struct ahead_load *l = a->load;

	if (a->in_flight == AHEAD_LOADS)
		return false;
	while (l->busy)
		l++;
	*l = (struct ahead_load){.wait.done = load_done, .a = a, .busy = true};
	a->in_flight++;
	cache_load_node(a->repo->cache, sid, ordinal, &l->wait);
	return true;
}

/* The node that the cursor needs on its way down.  False: it has to be loaded first. */
static bool supply(struct ahead *a, const struct table_entry *table)
{
	uint64_t ref = a->cursor.need.ref;
	const struct tm_id *sid = &table[ref_session(ref)].session;
	size_t len;
	const uint8_t *bytes = cache_node(a->repo->cache, sid, ref_ordinal(ref), &len);

	if (!bytes) {
		(void)load(a, sid, ref_ordinal(ref));
		return false;
	}
	if (map_cursor_supply(&a->cursor, bytes, len, NULL) < 0)
		a->off = true;
	return true;
}

bool ahead_block(struct ahead *a, const struct table_entry *table, uint64_t block)
{
	const struct tm_id *sid;
	uint64_t ref;
	size_t len;

	if (a->off || block / NODE_LEAF_BLOCKS == a->last)
		return true;
	map_cursor_seek(&a->cursor, block);
	while (map_cursor_leaf(&a->cursor, &ref) == MAP_NEED) {
		if (!supply(a, table))
			return false;
		if (a->off)
			return true;
	}
	if (ref != REF_HOLE && ref != REF_LOST) {
		sid = &table[ref_session(ref)].session;
		if (!cache_node(a->repo->cache, sid, ref_ordinal(ref), &len) &&
		    !cache_loads_node(a->repo->cache, sid, ref_ordinal(ref)) &&
		    !load(a, sid, ref_ordinal(ref)))
			return false;
	}
	a->last = block / NODE_LEAF_BLOCKS;
	return true;
}
