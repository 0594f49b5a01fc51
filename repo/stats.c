/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What points cost.  All maps are walked twice:
 *
 *	mark    each slot of a node or cluster becomes "seen", with the second point "shared"
 *	count   what is seen and not shared belongs to one point alone
 *
 * A shared node has only shared things below it, so that the walks stop there; a node's
 * number of clusters is kept, so that shared trees are not counted again.  Memory: three bits a
 * slot that is in use, 8 bytes a map node, and the names of the points: their manifests, which grow
 * with the number of points, are read anew for each walk.
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
	uint32_t words;                 /* of each of the bit sets, which grow */
	uint64_t *seen, *shared, *mine; /* bits by slot */
	uint64_t *below;                /* map segments: clusters under the node */
};

/* Where a point is in the list. */
struct place {
	struct tm_id id;
	size_t at;
};

struct counter {
	struct repo *repo;
	struct repo_stats *stats;
	struct marks **v; /* hash table */
	size_t n, cap;
	struct marks *touched; /* with mine bits */
	const struct point_disk *disk;
	struct place *place; /* of each point, by id */
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

/* Room for the slot: most segments of a map use few. */
static int marks_room(struct marks *m, uint32_t slot, struct error *err)
{
	uint32_t words = m->words ? m->words : 1, had = m->words;
	uint64_t *bits, *below;

	if (slot / 64 < had)
		return 0;
	while (words <= slot / 64)
		words *= 2;
	bits = calloc(3 * (size_t)words, sizeof(*bits));
	below = m->type == SEGMENT_MAP ? calloc(64 * (size_t)words, sizeof(*below)) : NULL;
	if (!bits || (m->type == SEGMENT_MAP && !below)) {
		free(bits);
		free(below);
		return error_nomem(err);
	}
	if (had) {
		memcpy(bits, m->seen, had * sizeof(*bits));
		memcpy(bits + words, m->shared, had * sizeof(*bits));
		memcpy(bits + 2 * (size_t)words, m->mine, had * sizeof(*bits));
	}
	if (had && below)
		memcpy(below, m->below, 64 * (size_t)had * sizeof(*below));
	free(m->seen);
	free(m->below);
	m->seen = bits;
	m->shared = bits + words;
	m->mine = bits + 2 * (size_t)words;
	m->below = below;
	m->words = words;
	return 0;
}

/* Where the segment's marks are or go. */
static struct marks **marks_find(const struct counter *c, const struct tm_id *sid, uint8_t type,
				 uint32_t index)
{
	size_t at = marks_hash(sid, type, index) & (c->cap - 1);

	while (c->v[at] && (c->v[at]->index != index || c->v[at]->type != type ||
			    !id_equal(&c->v[at]->sid, sid)))
		at = (at + 1) & (c->cap - 1);
	return &c->v[at];
}

/* The marks of the segment that ref leads to, and the slot there. */
static int marks_get(struct counter *c, uint64_t ref, uint8_t type, struct marks **ret,
		     uint32_t *ret_slot, struct error *err)
{
	const struct tm_id *sid = &c->disk->map->table[ref_session(ref)].session;
	unsigned log2 = seg_slots_log2(type);
	uint32_t index = (uint32_t)(ref_ordinal(ref) >> log2);
	int r = 2 * (c->n + 1) > c->cap ? marks_grow(c, err) : 0;
	struct marks **m;

	if (r < 0)
		return r;
	m = marks_find(c, sid, type, index);
	if (!*m) {
		*m = calloc(1, sizeof(**m));
		if (!*m)
			return error_nomem(err);
		**m = (struct marks){.sid = *sid, .type = type, .index = index};
		c->n++;
	}
	*ret = *m;
	*ret_slot = (uint32_t)(ref_ordinal(ref) & ((UINT64_C(1) << log2) - 1));
	return marks_room(*m, *ret_slot, err);
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
		memset(m->mine, 0, m->words * sizeof(*m->mine));
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
	struct marks *m;
	uint32_t slot;
	int r = marks_get(c, ref, SEGMENT_DATA, &m, &slot, err);

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
	struct error one = {0};
	uint64_t below = 0;
	struct marks *m;
	struct node n;
	uint32_t slot;
	int r = marks_get(c, ref, SEGMENT_MAP, &m, &slot, err);

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
	struct marks *m;
	uint32_t slot;
	int r;

	if (n->level > 0)
		return own_node(c, n->e[i], n->level - 1, n->pos * NODE_CHILDREN + i, err);
	r = marks_get(c, n->e[i], SEGMENT_DATA, &m, &slot, err);
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
	uint32_t slot;
	int r = marks_get(c, ref, SEGMENT_MAP, &m, &slot, err);

	if (r < 0 || bit(m->shared, slot))
		return r;
	r = get_node(c, ref, level, pos, &n, &one);
	if (is_damage(r))
		return 0;
	(void)error_pass(err, r, &one);
	for (unsigned i = 0; r == 0 && i < node_entries(level); i++)
		if (n.e[i] != REF_HOLE)
			r = own_entry(c, &n, i, err);
	return r;
}

/* A slot's part of its frame, for all slots of the segment that are the point's own. */
static uint64_t own_bytes(const struct marks *m, const struct seg_tables *t)
{
	uint64_t sum = 0;

	for (uint32_t k = 0; k < t->nframes; k++) {
		const struct seg_frame *f = &t->frames[k];
		uint64_t n = 0;

		for (uint32_t i = f->first_slot; i < (uint32_t)f->first_slot + f->nslots; i++)
			n += i / 64 < m->words && bit(m->mine, i);
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

static int compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct tm_id)); /* a place begins with it */
}

static int note_places(struct counter *c, struct error *err)
{
	const struct point_list *l = &c->stats->points;

	c->place = calloc(l->n + 1, sizeof(*c->place));
	if (!c->place)
		return error_nomem(err);
	for (size_t i = 0; i < l->n; i++)
		c->place[i] = (struct place){.id = l->v[i]->id, .at = i};
	if (l->n > 1)
		qsort(c->place, l->n, sizeof(*c->place), compare_ids);
	return 0;
}

struct walk {
	struct points_reader reader;
	struct counter *c;
	int (*point)(struct counter *c, const struct point *p, struct repo_point_stats *ret,
		     struct error *err);
};

/* One that came since the list was made is not in it. */
static int walk_one(struct points_reader *reader, const struct point_name *name, struct point *p,
		    const struct error *why, struct error *err)
{
	struct walk *w = container_of(reader, struct walk, reader);
	struct counter *c = w->c;
	const struct place *place =
		p ? bsearch(&p->id, c->place, c->stats->points.n, sizeof(*place), compare_ids)
		  : NULL;
	int r = place ? w->point(c, p, &c->stats->point[place->at], err) : 0;

	(void)name;
	(void)why;
	point_free(p);
	return r;
}

static int walk_points(struct counter *c, const struct name_list *names,
		       int (*point)(struct counter *, const struct point *,
				    struct repo_point_stats *, struct error *),
		       struct error *err)
{
	struct walk w = {.reader = {.repo = c->repo, .each = walk_one}, .c = c, .point = point};

	return points_read(&w.reader, names->v, names->n, false, err);
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
	struct name_list names = {0};
	char folder[KEY_MAX];
	size_t damaged = 0;
	int r = repo_points_brief(repo, NULL, &s.points, &damaged, err);

	s.damaged = damaged;
	s.point = calloc(s.points.n + 1, sizeof(*s.point));
	if (r == 0 && !s.point)
		r = error_nomem(err);
	r = r ? r : note_places(&c, err);
	r = r ? r : points_names(repo, NULL, &names, err);
	r = r ? r : walk_points(&c, &names, mark_point, err);
	r = r ? r : walk_points(&c, &names, count_point, err);
	name_list_done(&names);
	name_domain_folder(repo, folder);
	r = r ? r : repo->st->ops->list(repo->st, folder, add_object, &s, err);
	for (size_t i = 0; i < c.cap; i++)
		marks_free(c.v[i]);
	free(c.v);
	free(c.place);
	if (r < 0)
		repo_stats_done(&s);
	else
		*ret = s;
	return r;
}
