/* SPDX-License-Identifier: Apache-2.0 */
#include "look.h"

/* With rations: loads that are free, and clusters asked for per load beyond. */
#define FREE_LOADS      64
#define CLUSTERS_A_LOAD 16

void look_init(struct look *l, struct repo *repo, const struct map_root *root,
	       const struct table_entry *table)
{
	l->repo = repo;
	l->table = table;
	map_cursor_init(&l->cursor, root);
	l->run = (struct map_run){0};
	l->bad = l->rationed = false;
	l->asked = l->loads = 0;
}

void look_done(struct look *l)
{
	assert(!l->waiting);
	tables_unref(l->tables);
	l->tables = NULL;
}

/* ---- which reference ---- */

static void node_there(struct cache_wait *wait, int code)
{
	struct look *l = container_of(wait, struct look, wait);

	l->waiting = false;
	l->done(l, code, &wait->err);
}

static int supply(struct look *l, struct error *err)
{
	const struct map_need *need = &l->cursor.need;
	const struct tm_id *sid = &l->table[ref_session(need->ref)].session;
	size_t len;
	const uint8_t *bytes = cache_node(l->repo->cache, sid, ref_ordinal(need->ref), &len);

	if (bytes)
		return map_cursor_supply(&l->cursor, bytes, len, err);
	l->waiting = true;
	l->wait.done = node_there;
	cache_load_node(l->repo->cache, sid, ref_ordinal(need->ref), &l->wait);
	return LOOK_WAIT;
}

int look_run(struct look *l, uint64_t block, struct error *err)
{
	int r;

	if (block >= l->run.block && block - l->run.block < l->run.count)
		return 0;
	map_cursor_seek(&l->cursor, block);
	while ((r = map_cursor_next(&l->cursor, &l->run, err)) == MAP_NEED) {
		l->run.count = 0;
		r = supply(l, err);
		if (r != 0)
			return r;
	}
	return r;
}

/* ---- which content ---- */

static bool is_damage(int code)
{
	return code == TM_E_CORRUPT || code == TM_E_UNSUPPORTED;
}

static void tables_there(struct cache_wait *wait, int code)
{
	struct look *l = container_of(wait, struct look, wait);
	struct error err = wait->err;

	l->waiting = false;
	if (is_damage(code)) {
		/* What cannot be compared is stored again; that repairs it for later points. */
		log_debug("not compared: %s", err.text);
		l->bad = true;
		code = 0;
	}
	if (code == 0 && !l->bad)
		l->tables = cache_tables(l->repo->cache, &l->sid, SEGMENT_DATA, l->index);
	l->done(l, code, &err);
}

static bool allowed(const struct look *l)
{
	return !l->rationed || l->loads < FREE_LOADS + l->asked / CLUSTERS_A_LOAD;
}

/* l->tables of that segment, or NULL. */
static int find_tables(struct look *l, const struct tm_id *sid, uint32_t index)
{
	if ((l->tables || l->bad) && l->index == index && id_equal(&l->sid, sid))
		return 0;
	tables_unref(l->tables);
	l->bad = false;
	l->sid = *sid;
	l->index = index;
	l->tables = cache_tables(l->repo->cache, sid, SEGMENT_DATA, index);
	if (l->tables || !allowed(l))
		return 0;
	l->loads++;
	l->waiting = true;
	l->wait.done = tables_there;
	cache_load_tables(l->repo->cache, sid, SEGMENT_DATA, index, &l->wait);
	return LOOK_WAIT;
}

int look_content(struct look *l, uint64_t ref, const uint8_t **ret, struct error *err)
{
	const struct table_entry *e = &l->table[ref_session(ref)];
	uint32_t slot = (uint32_t)(ref_ordinal(ref) & (DATA_SLOTS - 1));
	uint64_t index = ref_ordinal(ref) >> DATA_SLOTS_LOG2;
	int r;

	(void)err;
	*ret = NULL;
	if (index >= e->ndata)
		return 0;
	r = find_tables(l, &e->session, (uint32_t)index);
	if (r != 0)
		return r;
	l->asked++;
	if (l->tables && seg_find(l->tables->t, slot))
		*ret = l->tables->t->descs[slot].b;
	return 0;
}
