/* SPDX-License-Identifier: Apache-2.0 */
/* What a disk of a point has lost, by the records. */
#include "cache.h"
#include "lost.h"
#include "map.h"

static int load_node(struct repo *repo, const struct tm_id *sid, uint64_t ordinal,
		     struct error *err)
{
	struct cache_await w = {.wait.done = cache_await_done};

	cache_load_node(repo->cache, sid, ordinal, &w.wait);
	return cache_await(repo, &w, err);
}

/* Gives the cursor the node it needs; one that cannot be read is lost, recorded or not. */
static int supply(struct repo *repo, const struct disk_map *m, const struct lost *lost,
		  struct map_cursor *c, struct error *err)
{
	const struct tm_id *sid = &m->table[ref_session(c->need.ref)].session;
	uint64_t ordinal = ref_ordinal(c->need.ref);
	struct error one = {0};
	const uint8_t *bytes;
	size_t len;
	int r = 0;

	if (lost_has(lost, sid, SEGMENT_MAP, ordinal)) {
		map_cursor_supply_lost(c);
		return 0;
	}
	bytes = cache_node(repo->cache, sid, ordinal, &len);
	if (!bytes)
		r = load_node(repo, sid, ordinal, &one);
	if (r == 0)
		bytes = cache_node(repo->cache, sid, ordinal, &len);
	if (r == 0 && bytes)
		r = map_cursor_supply(c, bytes, len, &one);
	if (r == TM_E_CORRUPT || r == TM_E_UNSUPPORTED) {
		map_cursor_supply_lost(c);
		return 0;
	}
	return r < 0 ? error_pass(err, r, &one) : r;
}

static uint64_t lost_of_run(const struct disk_map *m, const struct lost *lost,
			    const struct map_run *run)
{
	uint64_t n = 0;

	if (run->ref == REF_LOST)
		return run->count;
	for (uint64_t i = 0; run->ref != REF_HOLE && i < run->count; i++)
		n += lost_has(lost, &m->table[ref_session(run->ref)].session, SEGMENT_DATA,
			      ref_ordinal(run->ref + i));
	return n;
}

static int count_lost(struct repo *repo, const struct point_disk *disk, const struct lost *lost,
		      uint64_t *ret, struct error *err)
{
	const struct disk_map *m = disk->map;
	const struct map_root root = {.ref = m->root,
				      .blocks = disk_blocks(disk->size, repo->block_bits),
				      .nsessions = m->nsessions};
	struct map_cursor c;
	struct map_run run;
	int r;

	map_cursor_init(&c, &root);
	for (;;) {
		r = map_cursor_next(&c, &run, err);
		if (r == MAP_NEED)
			r = supply(repo, m, lost, &c, err);
		else if (r == 0 && run.count == 0)
			return 0;
		else if (r == 0)
			*ret += lost_of_run(m, lost, &run);
		if (r < 0)
			return r;
	}
}

int repo_disk_lost(struct repo *repo, const struct point_disk *disk, uint64_t *ret,
		   struct error *err)
{
	const struct disk_map *m = disk->map;
	struct lost lost = {0};
	bool touched = false;
	int r = lost_load(repo, &lost, err);

	*ret = 0;
	for (uint32_t i = 0; r == 0 && i < m->nsessions && lost.n > 0; i++)
		touched |= lost_touches(&lost, &m->table[i].session);
	if (touched)
		r = count_lost(repo, disk, &lost, ret, err);
	*ret <<= repo->block_bits;
	lost_done(&lost);
	return r;
}
