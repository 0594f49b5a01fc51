/* SPDX-License-Identifier: Apache-2.0 */
#include "look.h"

void look_init(struct look *l, struct repo *repo, const struct map_root *root,
	       const struct table_entry *table, struct lost *lost)
{
	l->repo = repo;
	l->table = table;
	l->lost = lost;
	map_cursor_init(&l->cursor, root);
	l->run = (struct map_run){0};
	l->bad = l->tolerant = false;
}

void look_done(struct look *l)
{
	assert(!l->waiting);
	tables_unref(l->tables);
	l->tables = NULL;
}

/* ---- which reference ---- */

static bool is_damage(int code)
{
	return code == TM_E_CORRUPT || code == TM_E_UNSUPPORTED;
}

/* The node that the cursor needs. */
static const struct tm_id *need_session(const struct look *l)
{
	return &l->table[ref_session(l->cursor.need.ref)].session;
}

/* After a node could not be read: 0 when that is borne. */
static int give_up_node(struct look *l, int code, struct error *err)
{
	if (!l->tolerant || !is_damage(code))
		return code;
	log_debug("a node of the map is lost: %s", err->text);
	error_clear(err);
	return lost_add(l->lost, need_session(l), SEGMENT_MAP, ref_ordinal(l->cursor.need.ref),
			err);
}

static void node_there(struct cache_wait *wait, int code)
{
	struct look *l = container_of(wait, struct look, wait);
	struct error err = wait->err;

	l->waiting = false;
	if (code < 0)
		code = give_up_node(l, code, &err);
	l->done(l, code, &err);
}

static int supply(struct look *l, struct error *err)
{
	const struct tm_id *sid = need_session(l);
	uint64_t ordinal = ref_ordinal(l->cursor.need.ref);
	struct error one = {0};
	const uint8_t *bytes;
	size_t len;
	int r;

	if (l->tolerant && lost_has(l->lost, sid, SEGMENT_MAP, ordinal)) {
		map_cursor_supply_lost(&l->cursor);
		return 0;
	}
	bytes = cache_node(l->repo->cache, sid, ordinal, &len);
	if (bytes) {
		r = map_cursor_supply(&l->cursor, bytes, len, &one);
		if (r < 0 && give_up_node(l, r, &one) == 0) {
			map_cursor_supply_lost(&l->cursor);
			return 0;
		}
		return r < 0 ? error_pass(err, r, &one) : r;
	}
	l->waiting = true;
	l->wait.done = node_there;
	cache_load_node(l->repo->cache, sid, ordinal, &l->wait);
	return LOOK_WAIT;
}

static bool in_run(const struct look *l, uint64_t block)
{
	return block >= l->run.block && block - l->run.block < l->run.count;
}

int look_run(struct look *l, uint64_t block, struct error *err)
{
	int r;

	if (in_run(l, block))
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

int look_run_until(struct look *l, uint64_t block, struct error *err)
{
	int r;

	if (in_run(l, block))
		return 0;
	map_cursor_seek(&l->cursor, block);
	while ((r = map_cursor_until(&l->cursor, &l->run)) == MAP_NEED) {
		l->run.count = 0;
		r = supply(l, err);
		if (r != 0)
			return r;
	}
	return r;
}

/* ---- which content ---- */

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
	if (l->tables)
		return 0;
	l->waiting = true;
	l->wait.done = tables_there;
	cache_load_tables(l->repo->cache, sid, SEGMENT_DATA, index, &l->wait);
	return LOOK_WAIT;
}

bool look_lost(const struct look *l, uint64_t ref)
{
	if (ref == REF_LOST)
		return true;
	return l->lost && lost_has(l->lost, &l->table[ref_session(ref)].session, SEGMENT_DATA,
				   ref_ordinal(ref));
}

int look_content(struct look *l, uint64_t ref, const uint8_t **ret, struct error *err)
{
	const struct table_entry *e = &l->table[ref_session(ref)];
	uint32_t slot = (uint32_t)(ref_ordinal(ref) & (DATA_SLOTS - 1));
	uint64_t index = ref_ordinal(ref) >> DATA_SLOTS_LOG2;
	int r;

	(void)err;
	*ret = NULL;
	if (index >= e->ndata || look_lost(l, ref))
		return 0;
	r = find_tables(l, &e->session, (uint32_t)index);
	if (r != 0)
		return r;
	if (l->tables && seg_find(l->tables->t, slot))
		*ret = l->tables->t->descs[slot].b;
	return 0;
}
