/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What points cost.  All maps are walked twice:
 *
 *	mark    each slot of a node or cluster becomes "seen", with the second point "shared"
 *	count   what is seen and not shared belongs to one point alone
 *
 * A shared node has only shared things below it, so that the walks stop there; a node's
 * number of clusters is kept, so that shared trees are not counted again.  Memory: three bits a
 * slot, and 8 bytes a map node.
 */
#include "cache.h"
#include "map.h"
#include "points.h"

#include <string.h>

/* Marks of a segment. */
struct marks {
	struct tm_id sid;
	uint8_t type;
	uint32_t index;
	bool touched;
	struct marks *next_touched;
	uint64_t *seen, *shared, *mine; /* bits by slot */
	uint64_t *below;                /* map segments: clusters under the node */
};

struct counter {
	struct repo *repo;
	struct repo_stats *stats;
	struct marks **v; /* hash table */
	size_t n, cap;
	struct marks *touched; /* with mine bits */
	const struct point_disk *disk;
};

static bool bit(const uint64_t *bits, uint32_t i)
{
	return bits[i / 64] >> i % 64 & 1;
}

static void bit_on(uint64_t *bits, uint32_t i)
{
	bits[i / 64] |= UINT64_C(1) << i % 64;
}

/* ---- marks ---- */

static void marks_free(struct marks *m)
{
	if (!m)
		return;
	free(m->seen);
	free(m->below);
	free(m);
}

static size_t marks_hash(const struct tm_id *sid, uint8_t type, uint32_t index)
{
	uint64_t h;

	memcpy(&h, sid->b + 8, sizeof(h)); /* random bytes */
	h ^= ((uint64_t)index << 2 | type) * UINT64_C(0x9e3779b97f4a7c15);
	return (size_t)(h ^ h >> 29);
}

static int marks_grow(struct counter *c, struct error *err)
{
	size_t cap = c->cap ? 2 * c->cap : 256;
	struct marks **v = calloc(cap, sizeof(struct marks *));

	if (!v)
		return error_nomem(err);
	for (size_t i = 0; i < c->cap; i++) {
		size_t at;

		if (!c->v[i])
			continue;
		at = marks_hash(&c->v[i]->sid, c->v[i]->type, c->v[i]->index) & (cap - 1);
		while (v[at])
			at = (at + 1) & (cap - 1);
		v[at] = c->v[i];
	}
	free(c->v);
	c->v = v;
	c->cap = cap;
	return 0;
}

static int marks_new(const struct tm_id *sid, uint8_t type, uint32_t index, struct marks **ret,
		     struct error *err)
{
	size_t slots = (size_t)1 << seg_slots_log2(type), words = slots / 64;
	struct marks *m = calloc(1, sizeof(*m));

	if (!m)
		return error_nomem(err);
	*m = (struct marks){.sid = *sid, .type = type, .index = index};
	m->seen = calloc(3 * words, sizeof(*m->seen));
	m->below = type == SEGMENT_MAP ? calloc(slots, sizeof(*m->below)) : NULL;
	if (!m->seen || (type == SEGMENT_MAP && !m->below)) {
		marks_free(m);
		return error_nomem(err);
	}
	m->shared = m->seen + words;
	m->mine = m->shared + words;
	*ret = m;
	return 0;
}

static int marks_get(struct counter *c, const struct tm_id *sid, uint8_t type, uint32_t index,
		     struct marks **ret, struct error *err)
{
	size_t at;
	int r = 2 * (c->n + 1) > c->cap ? marks_grow(c, err) : 0;

	if (r < 0)
		return r;
	at = marks_hash(sid, type, index) & (c->cap - 1);
	for (; c->v[at]; at = (at + 1) & (c->cap - 1)) {
		*ret = c->v[at];
		if ((*ret)->index == index && (*ret)->type == type && id_equal(&(*ret)->sid, sid))
			return 0;
	}
	r = marks_new(sid, type, index, ret, err);
	if (r < 0)
		return r;
	c->v[at] = *ret;
	c->n++;
	return 0;
}

/* The point that is being walked has the slot; false when it was known already. */
static bool mark_mine(struct counter *c, struct marks *m, uint32_t slot)
{
	if (bit(m->mine, slot))
		return false;
	bit_on(m->mine, slot);
	if (!m->touched) {
		m->touched = true;
		m->next_touched = c->touched;
		c->touched = m;
	}
	return true;
}

static void forget_mine(struct counter *c)
{
	while (c->touched) {
		struct marks *m = c->touched;

		c->touched = m->next_touched;
		m->touched = false;
		memset(m->mine, 0, ((size_t)1 << seg_slots_log2(m->type)) / 8);
	}
}

/* ---- reading ---- */

static int get_node(struct counter *c, uint64_t ref, unsigned level, uint64_t pos, struct node *ret,
		    struct error *err)
{
	const struct disk_map *map = c->disk->map;
	const struct tm_id *sid = &map->table[ref_session(ref)].session;
	struct cache_await w = {.wait.done = cache_await_done};
	size_t len;
	const uint8_t *bytes = cache_node(c->repo->cache, sid, ref_ordinal(ref), &len);

	if (!bytes) {
		int r;

		cache_load_node(c->repo->cache, sid, ref_ordinal(ref), &w.wait);
		r = cache_await(c->repo, &w, err);
		if (r < 0)
			return r;
		bytes = cache_node(c->repo->cache, sid, ref_ordinal(ref), &len);
		if (!bytes)
			return error_set(err, TM_E_NOMEM, "the map cache is too small");
	}
	return node_decode(bytes, len, level, pos, map->nsessions, ret, err);
}

static bool is_damage(int code)
{
	return code == TM_E_CORRUPT || code == TM_E_UNSUPPORTED;
}

/* ---- first walk: marking ---- */

static int mark_cluster(struct counter *c, uint64_t ref, struct error *err)
{
	uint64_t ordinal = ref_ordinal(ref);
	uint32_t slot = (uint32_t)(ordinal & (DATA_SLOTS - 1));
	struct marks *m;
	int r = marks_get(c, &c->disk->map->table[ref_session(ref)].session, SEGMENT_DATA,
			  (uint32_t)(ordinal >> DATA_SLOTS_LOG2), &m, err);

	if (r < 0 || !mark_mine(c, m, slot))
		return r;
	if (bit(m->seen, slot))
		bit_on(m->shared, slot);
	else
		c->stats->cluster_bytes += c->disk->block_size;
	bit_on(m->seen, slot);
	return 0;
}

static int mark_node(struct counter *c, uint64_t ref, unsigned level, uint64_t pos,
		     uint64_t *ret_below, struct error *err);

static int mark_entries(struct counter *c, const struct node *n, uint64_t *ret_below,
			struct error *err)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < node_entries(n->level); i++) {
		uint64_t below = 1;

		if (n->e[i] == REF_HOLE)
			continue;
		if (n->level == 0)
			r = mark_cluster(c, n->e[i], err);
		else
			r = mark_node(c, n->e[i], n->level - 1, n->pos * NODE_CHILDREN + i, &below,
				      err);
		*ret_below += below;
	}
	return r;
}

static int mark_node(struct counter *c, uint64_t ref, unsigned level, uint64_t pos,
		     uint64_t *ret_below, struct error *err)
{
	uint32_t slot = (uint32_t)(ref_ordinal(ref) & (MAP_SLOTS - 1));
	struct error one = {0};
	uint64_t below = 0;
	struct marks *m;
	struct node n;
	int r = marks_get(c, &c->disk->map->table[ref_session(ref)].session, SEGMENT_MAP,
			  (uint32_t)(ref_ordinal(ref) >> MAP_SLOTS_LOG2), &m, err);

	if (r < 0)
		return r;
	*ret_below = m->below[slot];
	if (bit(m->shared, slot) || !mark_mine(c, m, slot))
		return 0;
	if (bit(m->seen, slot))
		bit_on(m->shared, slot);
	bit_on(m->seen, slot);
	r = get_node(c, ref, level, pos, &n, &one);
	if (is_damage(r)) {
		c->stats->damaged++;
		return 0;
	}
	if (r < 0)
		return error_pass(err, r, &one);
	r = mark_entries(c, &n, &below, err);
	*ret_below = m->below[slot] = below;
	return r;
}

/* ---- second walk: what only this point has ---- */

static int own_node(struct counter *c, uint64_t ref, unsigned level, uint64_t pos,
		    struct error *err);

static int own_entry(struct counter *c, const struct node *n, unsigned i, struct error *err)
{
	uint64_t ordinal = ref_ordinal(n->e[i]);
	uint32_t slot = (uint32_t)(ordinal & (DATA_SLOTS - 1));
	struct marks *m;
	int r;

	if (n->level > 0)
		return own_node(c, n->e[i], n->level - 1, n->pos * NODE_CHILDREN + i, err);
	r = marks_get(c, &c->disk->map->table[ref_session(n->e[i])].session, SEGMENT_DATA,
		      (uint32_t)(ordinal >> DATA_SLOTS_LOG2), &m, err);
	if (r == 0 && !bit(m->shared, slot))
		(void)mark_mine(c, m, slot);
	return r;
}

static int own_node(struct counter *c, uint64_t ref, unsigned level, uint64_t pos,
		    struct error *err)
{
	struct error one = {0};
	struct marks *m;
	struct node n;
	int r = marks_get(c, &c->disk->map->table[ref_session(ref)].session, SEGMENT_MAP,
			  (uint32_t)(ref_ordinal(ref) >> MAP_SLOTS_LOG2), &m, err);

	if (r < 0 || bit(m->shared, (uint32_t)(ref_ordinal(ref) & (MAP_SLOTS - 1))))
		return r;
	r = get_node(c, ref, level, pos, &n, &one);
	if (is_damage(r))
		return 0;
	if (r < 0 && err && !err->code)
		*err = one;
	for (unsigned i = 0; r == 0 && i < node_entries(level); i++)
		if (n.e[i] != REF_HOLE)
			r = own_entry(c, &n, i, err);
	return r;
}

/* A slot's part of its frame, for all slots of the segment that are the point's own. */
static uint64_t own_bytes(const struct marks *m, const struct seg_tables *t)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < t->nframes; i++) {
		const struct seg_frame *f = &t->frames[i];
		uint64_t n = 0;

		for (uint32_t k = 0; k < f->nslots; k++)
			n += bit(m->mine, (uint32_t)f->first_slot + k);
		assert(f->nslots > 0); /* seg_read.c has seen to that */
		sum += f->stored_len * n / f->nslots;
	}
	return sum;
}

static int own_segment_bytes(struct counter *c, const struct marks *m, uint64_t *ret,
			     struct error *err)
{
	struct cache_await w = {.wait.done = cache_await_done};
	struct tables *t = cache_tables(c->repo->cache, &m->sid, m->type, m->index);

	if (!t) {
		struct error one = {0};
		int r;

		cache_load_tables(c->repo->cache, &m->sid, m->type, m->index, &w.wait);
		r = cache_await(c->repo, &w, &one);
		if (is_damage(r)) {
			c->stats->damaged++;
			return 0;
		}
		if (r < 0)
			return error_pass(err, r, &one);
		t = cache_tables(c->repo->cache, &m->sid, m->type, m->index);
	}
	if (t)
		*ret += own_bytes(m, t->t);
	tables_unref(t);
	return 0;
}

/* ---- points ---- */

static int mark_point(struct counter *c, const struct point *p, struct repo_point_stats *ret,
		      struct error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < p->ndisks; i++) {
		const struct point_disk *d = &p->disks[i];
		uint64_t below = 0;

		c->disk = d;
		ret->raw_bytes += d->size;
		ret->new_bytes += d->new_bytes;
		ret->stored_bytes += d->stored_bytes;
		if (d->map->root == REF_HOLE)
			continue;
		r = mark_node(c, d->map->root,
			      root_level(disk_blocks(d->size, c->repo->block_bits)), 0, &below,
			      err);
		ret->data_bytes += below * d->block_size;
	}
	forget_mine(c);
	return r;
}

static int count_point(struct counter *c, const struct point *p, struct repo_point_stats *ret,
		       struct error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < p->ndisks; i++) {
		const struct point_disk *d = &p->disks[i];

		c->disk = d;
		if (d->map->root != REF_HOLE)
			r = own_node(c, d->map->root,
				     root_level(disk_blocks(d->size, c->repo->block_bits)), 0, err);
	}
	for (const struct marks *m = c->touched; r == 0 && m; m = m->next_touched)
		r = own_segment_bytes(c, m, &ret->unique_bytes, err);
	forget_mine(c);
	return r;
}

static int add_object(void *data, const char *key, uint64_t size, struct error *err)
{
	struct repo_stats *s = data;

	(void)key;
	(void)err;
	s->objects++;
	s->object_bytes += size;
	return 0;
}

void repo_stats_done(struct repo_stats *s)
{
	point_list_done(&s->points);
	free(s->point);
	*s = (struct repo_stats){0};
}

int repo_stats(struct repo *repo, struct repo_stats *ret, struct error *err)
{
	struct repo_stats s = {0};
	struct counter c = {.repo = repo, .stats = &s};
	char folder[KEY_MAX];
	size_t damaged = 0;
	int r = repo_points(repo, NULL, &s.points, &damaged, err);

	s.damaged = damaged;
	s.point = calloc(s.points.n + 1, sizeof(*s.point));
	if (r == 0 && !s.point)
		r = error_nomem(err);
	for (size_t i = 0; r == 0 && i < s.points.n; i++)
		r = mark_point(&c, s.points.v[i], &s.point[i], err);
	for (size_t i = 0; r == 0 && i < s.points.n; i++)
		r = count_point(&c, s.points.v[i], &s.point[i], err);
	name_domain_folder(repo, folder);
	r = r ? r : repo->st->ops->list(repo->st, folder, add_object, &s, err);
	for (size_t i = 0; i < c.cap; i++)
		marks_free(c.v[i]);
	free(c.v);
	if (r < 0)
		repo_stats_done(&s);
	else
		*ret = s;
	return r;
}
