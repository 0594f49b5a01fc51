/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Marking: a bit for each slot that some root reaches, by address; 128 bytes a data
 * segment, 2 KiB a map segment.  A node whose bit is set was walked before, with all below
 * it.  Anything that cannot be read ends the whole run: what it leads to is not known.
 */
#include "prune.h"

#include "map.h"

#include <inttypes.h>
#include <string.h>

struct walk {
	struct prune *p;
	const struct point_disk *d;
	struct mark **by_index; /* of the disk's session table */
	struct node_runs path[NODE_MAX_LEVEL + 1];
};

/* ---- marks ---- */

static size_t mark_hash(const struct tm_id *sid, size_t cap)
{
	uint64_t h;

	memcpy(&h, sid->b + 8, sizeof(h)); /* random bytes */
	return (size_t)((h ^ h >> 29) * UINT64_C(0x9e3779b97f4a7c15) >> 20) & (cap - 1);
}

static struct mark **mark_place(struct mark **v, size_t cap, const struct tm_id *sid)
{
	size_t at = mark_hash(sid, cap);

	while (v[at] && !id_equal(&v[at]->sid, sid))
		at = (at + 1) & (cap - 1);
	return &v[at];
}

struct mark *mark_find(const struct prune *p, const struct tm_id *sid)
{
	return p->cap ? *mark_place(p->marks, p->cap, sid) : NULL;
}

bool mark_any(const struct mark *m)
{
	for (unsigned t = 0; m && t < 2; t++)
		for (uint32_t i = 0; i < m->seg[t].n; i++)
			if (m->seg[t].bits[i])
				return true;
	return false;
}

static int marks_grow(struct prune *p, struct error *err)
{
	size_t cap = p->cap ? 2 * p->cap : 64;
	struct mark **v = calloc(cap, sizeof(struct mark *));

	if (!v)
		return error_nomem(err);
	for (size_t i = 0; i < p->cap; i++)
		if (p->marks[i])
			*mark_place(v, cap, &p->marks[i]->sid) = p->marks[i];
	free(p->marks);
	p->marks = v;
	p->cap = cap;
	return 0;
}

static int mark_get(struct prune *p, const struct tm_id *sid, struct mark **ret, struct error *err)
{
	struct mark **place;
	int r = 2 * (p->nmarks + 1) > p->cap ? marks_grow(p, err) : 0;

	if (r < 0)
		return r;
	place = mark_place(p->marks, p->cap, sid);
	if (!*place) {
		*place = calloc(1, sizeof(**place));
		if (!*place)
			return error_nomem(err);
		(*place)->sid = *sid;
		p->nmarks++;
	}
	*ret = *place;
	return 0;
}

static int segments_reserve(struct mark_segments *s, uint32_t n, struct error *err)
{
	uint64_t **bits;
	uint32_t *nslots;

	if (n <= s->n)
		return 0;
	bits = reallocarray(s->bits, n, sizeof(uint64_t *));
	if (bits)
		s->bits = bits;
	nslots = bits ? reallocarray(s->nslots, n, sizeof(*nslots)) : NULL;
	if (!nslots)
		return error_nomem(err);
	s->nslots = nslots;
	for (uint32_t i = s->n; i < n; i++) {
		s->bits[i] = NULL;
		s->nslots[i] = 0;
	}
	s->n = n;
	return 0;
}

void marks_free(struct prune *p)
{
	for (size_t i = 0; i < p->cap; i++) {
		struct mark *m = p->marks[i];

		for (unsigned t = 0; m && t < 2; t++) {
			for (uint32_t k = 0; k < m->seg[t].n; k++)
				free(m->seg[t].bits[k]);
			free(m->seg[t].bits);
			free(m->seg[t].nslots);
		}
		free(m);
	}
	free(p->marks);
	p->marks = NULL;
	p->nmarks = p->cap = 0;
}

/* The bits of the segment that ref leads to. */
static int segment_bits(struct walk *k, uint64_t ref, uint8_t type, uint64_t **ret,
			struct error *err)
{
	const struct table_entry *e = &k->d->map->table[ref_session(ref)];
	struct mark_segments *s = mark_segments(k->by_index[ref_session(ref)], type);
	uint64_t index = ref_ordinal(ref) >> seg_slots_log2(type);

	if (index >= (type == SEGMENT_DATA ? e->ndata : e->nmap))
		return error_set(err, TM_E_CORRUPT,
				 "the map refers to a segment that was never written");
	assert(index < s->n);
	if (!s->bits[index])
		s->bits[index] = calloc(mark_words(type), sizeof(uint64_t));
	if (!s->bits[index])
		return error_nomem(err);
	*ret = s->bits[index];
	return 0;
}

/* Sets the bit of a slot; *ret_was tells whether it was set before.  Called for every cluster of
 * every point, hence the short way to bits that are there. */
static inline int mark_slot(struct walk *k, uint64_t ref, uint8_t type, bool *ret_was,
			    struct error *err)
{
	const struct table_entry *e = &k->d->map->table[ref_session(ref)];
	const struct mark_segments *s = mark_segments(k->by_index[ref_session(ref)], type);
	uint64_t index = ref_ordinal(ref) >> seg_slots_log2(type), *bits = NULL;
	uint32_t slot = (uint32_t)ref_ordinal(ref) & ((1U << seg_slots_log2(type)) - 1);
	int r = 0;

	if (index < (type == SEGMENT_DATA ? e->ndata : e->nmap))
		bits = s->bits[index];
	if (!bits)
		r = segment_bits(k, ref, type, &bits, err);
	if (r < 0)
		return r;
	*ret_was = slot_live(bits, slot);
	bits[slot / 64] |= UINT64_C(1) << slot % 64;
	return 0;
}

/* ---- walking ---- */

static int get_node(struct walk *k, uint64_t ref, unsigned level, uint64_t pos, struct error *err)
{
	const struct tm_id *sid = &k->d->map->table[ref_session(ref)].session;
	struct repo *repo = k->p->repo;
	struct cache_await w = {.wait.done = cache_await_done};
	size_t len;
	const uint8_t *bytes = cache_node(repo->cache, sid, ref_ordinal(ref), &len);

	if (!bytes) {
		int r;

		cache_load_node(repo->cache, sid, ref_ordinal(ref), &w.wait);
		r = cache_await(repo, &w, err);
		if (r < 0)
			return r;
		bytes = cache_node(repo->cache, sid, ref_ordinal(ref), &len);
		if (!bytes)
			return error_set(err, TM_E_NOMEM, "the map cache is too small");
	}
	return node_decode_runs(bytes, len, level, pos, k->d->map->nsessions, &k->path[level], err);
}

static int mark_clusters(struct walk *k, const struct node_run *run, struct error *err)
{
	bool was;
	int r = 0;

	for (unsigned i = 0; r == 0 && i < run->count; i++)
		r = mark_slot(k, run->ref + i, SEGMENT_DATA, &was, err);
	return r;
}

static int walk_node(struct walk *k, uint64_t ref, unsigned level, uint64_t pos, struct error *err);

static int walk_children(struct walk *k, const struct node_run *run, unsigned level, uint64_t pos,
			 struct error *err)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < run->count; i++) {
		bool was;

		r = mark_slot(k, run->ref + i, SEGMENT_MAP, &was, err);
		if (r == 0 && !was)
			r = walk_node(k, run->ref + i, level, pos + i, err);
	}
	return r;
}

/* A node that was not marked before. */
static int walk_node(struct walk *k, uint64_t ref, unsigned level, uint64_t pos, struct error *err)
{
	const struct node_runs *n = &k->path[level];
	int r = get_node(k, ref, level, pos, err);

	r = r ? r : prune_tick(k->p, err);
	for (unsigned i = 0; r == 0 && i < n->n; i++)
		r = level == 0 ? mark_clusters(k, &n->v[i], err)
			       : walk_children(k, &n->v[i], level - 1,
					       pos * NODE_CHILDREN + n->v[i].first, err);
	return r;
}

static int mark_disk(struct prune *p, const struct point_disk *d, struct error *err)
{
	auto_free struct mark **by_index = NULL;
	const struct disk_map *m = d->map;
	const struct node_run root = {.ref = m->root, .count = 1};
	struct walk k = {.p = p, .d = d};
	int r = 0;

	if (m->root == REF_HOLE)
		return 0;
	by_index = calloc(m->nsessions, sizeof(struct mark *));
	if (!by_index)
		return error_nomem(err);
	for (uint32_t i = 0; r == 0 && i < m->nsessions; i++) {
		r = mark_get(p, &m->table[i].session, &by_index[i], err);
		r = r ? r
		      : segments_reserve(mark_segments(by_index[i], SEGMENT_DATA),
					 m->table[i].ndata, err);
		r = r ? r
		      : segments_reserve(mark_segments(by_index[i], SEGMENT_MAP), m->table[i].nmap,
					 err);
	}
	k.by_index = by_index;
	return r ? r
		 : walk_children(&k, &root, root_level(disk_blocks(d->size, p->repo->block_bits)),
				 0, err);
}

/* ---- points ---- */

static int note_slots(struct mark_segments *s, const struct own_segments *own, struct error *err)
{
	int r = segments_reserve(s, own->n, err);

	for (uint32_t i = 0; r == 0 && i < own->n; i++)
		s->nslots[i] = own->v[i].nslots;
	return r;
}

static int note_own(struct prune *p, const struct tm_id *sid, const struct manifest_own *own,
		    struct error *err)
{
	struct mark *m;
	int r = mark_get(p, sid, &m, err);

	r = r ? r : note_slots(mark_segments(m, SEGMENT_DATA), &own->data, err);
	return r ? r : note_slots(mark_segments(m, SEGMENT_MAP), &own->map, err);
}

int mark_point(struct prune *p, const struct point_name *name, struct error *err)
{
	auto_clean(point_free) struct point *point = NULL;
	struct manifest_own own = {0};
	auto_buf struct buf b = {0};
	char key[KEY_MAX];
	int r;

	name_point(p->repo, &name->source, name->seq, &name->session, key);
	r = store_read(p->repo->st, key, MAX_MANIFEST, &b, err);
	r = r ? r : manifest_decode(p->repo, name, key, b.data, b.len, &point, &own, err);
	r = r ? r : note_own(p, &name->session, &own, err);
	for (size_t i = 0; r == 0 && i < point->ndisks; i++) {
		r = mark_disk(p, &point->disks[i], err);
		if (r < 0)
			error_prefix(err, "point %.12s of %s, disk %s", id_text(&point->id).s,
				     point->guest, point->disks[i].name);
	}
	own_segments_done(&own.data);
	own_segments_done(&own.map);
	return r;
}
