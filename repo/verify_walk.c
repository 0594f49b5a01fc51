/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Walks over maps.  The first one marks what is used and skips what another point has
 * shown already; the second one, only when there is damage, goes everywhere.
 */
#include "verify.h"

#include <inttypes.h>
#include <string.h>

struct walk {
	struct verifier *v;
	const struct point *p;
	const struct point_disk *d;
	bool blame;
};

int verify_node_bytes(struct verifier *v, const struct point_disk *d, uint64_t ref,
		      const uint8_t **ret, size_t *ret_len, struct error *err)
{
	const struct tm_id *sid = &d->map->table[ref_session(ref)].session;
	struct cache *c = v->repo->cache;
	struct verify_cache_wait w = {.wait.done = verify_cache_there};
	int r;

	*ret = cache_node(c, sid, ref_ordinal(ref), ret_len);
	if (*ret)
		return 0;
	cache_load_node(c, sid, ref_ordinal(ref), &w.wait);
	r = verify_cache_wait(v, &w, err);
	if (r < 0)
		return r;
	*ret = cache_node(c, sid, ref_ordinal(ref), ret_len);
	return *ret ? 0 : error_set(err, TM_E_NOMEM, "the map cache is too small");
}

/* Loads and decodes a node. */
static int get_node(struct walk *k, uint64_t ref, unsigned level, uint64_t pos, struct node *ret,
		    struct error *err)
{
	const uint8_t *bytes;
	size_t len;
	int r = verify_node_bytes(k->v, k->d, ref, &bytes, &len, err);

	return r ? r : node_decode(bytes, len, level, pos, k->d->map->nsessions, ret, err);
}

static int blame(struct walk *k, const struct vseg *s, uint64_t block, uint64_t count,
		 struct error *err)
{
	unsigned bits = k->v->repo->block_bits;
	uint64_t blocks = disk_blocks(k->d->size, bits), offset = block << bits, end;

	if (block >= blocks || s->damage < 0)
		return 0;
	end = min_u64(min_u64(block + count, blocks) << bits, k->d->size);
	return damage_add_range(&k->v->report->damaged[s->damage], &k->p->id, k->d->name, offset,
				end - offset, err);
}

/* A reference that leads outside what its session wrote is damage of the referring map. */
static int bad_reference(struct walk *k, const struct vseg *from, uint32_t slot, struct error *err)
{
	struct vseg *s;
	int r = vseg_get(k->v, &from->sid, from->type, from->index, &s, err);

	return r ? r
		 : vseg_damaged(k->v, s, slot, 1,
				"the map refers to a segment that was never written", err);
}

static int mark_leaf(struct walk *k, const struct node *n, const struct vseg *from, uint32_t slot,
		     struct error *err)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < NODE_LEAF_BLOCKS; i++) {
		uint64_t ordinal = ref_ordinal(n->e[i]);
		const struct table_entry *e;
		struct vseg *s;

		if (n->e[i] == REF_HOLE)
			continue;
		e = &k->d->map->table[ref_session(n->e[i])];
		if (ordinal >> DATA_SLOTS_LOG2 >= e->ndata) {
			if (!k->blame)
				r = bad_reference(k, from, slot, err);
			continue;
		}
		r = vseg_get(k->v, &e->session, SEGMENT_DATA,
			     (uint32_t)(ordinal >> DATA_SLOTS_LOG2), &s, err);
		if (r < 0)
			return r;
		if (!k->blame)
			bit_set(s->used, (uint32_t)(ordinal & (DATA_SLOTS - 1)));
		else if (s->all_bad || bit_get(s->bad, (uint32_t)(ordinal & (DATA_SLOTS - 1))))
			r = blame(k, s, n->pos * NODE_LEAF_BLOCKS + i, 1, err);
	}
	return r;
}

static int walk_node(struct walk *k, uint64_t ref, unsigned level, uint64_t pos, struct error *err);

static int walk_children(struct walk *k, const struct node *n, const struct vseg *from,
			 uint32_t slot, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < NODE_CHILDREN; i++) {
		const struct table_entry *e;

		if (n->e[i] == REF_HOLE)
			continue;
		e = &k->d->map->table[ref_session(n->e[i])];
		if (ref_ordinal(n->e[i]) >> MAP_SLOTS_LOG2 >= e->nmap)
			r = k->blame ? 0 : bad_reference(k, from, slot, err);
		else
			r = walk_node(k, n->e[i], n->level - 1, n->pos * NODE_CHILDREN + i, err);
	}
	return r;
}

static int walk_node(struct walk *k, uint64_t ref, unsigned level, uint64_t pos, struct error *err)
{
	uint32_t slot = (uint32_t)(ref_ordinal(ref) & (MAP_SLOTS - 1));
	struct error one = {0};
	struct vseg *s;
	struct node n;
	int r = vseg_get(k->v, &k->d->map->table[ref_session(ref)].session, SEGMENT_MAP,
			 (uint32_t)(ref_ordinal(ref) >> MAP_SLOTS_LOG2), &s, err);

	if (r < 0)
		return r;
	if (k->blame && (s->all_bad || bit_get(s->bad, slot)))
		return blame(k, s, pos * node_blocks(level), node_blocks(level), err);
	if (!k->blame && bit_get(s->used, slot))
		return k->v->code;
	bit_set(s->used, slot);
	r = get_node(k, ref, level, pos, &n, &one);
	if (verify_is_damage(r))
		return vseg_damaged(k->v, s, slot, 1, one.text, err);
	if (r != 0)
		return error_pass(err, r, &one);
	if (k->v->code < 0)
		return k->v->code;
	return level == 0 ? mark_leaf(k, &n, s, slot, err) : walk_children(k, &n, s, slot, err);
}

static int walk_disk(struct walk *k, struct error *err)
{
	const struct disk_map *m = k->d->map;
	uint64_t blocks = disk_blocks(k->d->size, k->v->repo->block_bits);

	if (m->root == REF_HOLE)
		return 0;
	if (ref_ordinal(m->root) >> MAP_SLOTS_LOG2 >= m->table[ref_session(m->root)].nmap)
		return k->blame ? 0
				: damage_add(
					  k->v->report, k->p->object,
					  "a disk's map begins in a segment that was never written",
					  err);
	return walk_node(k, m->root, root_level(blocks), 0, err);
}

int verify_mark(struct verifier *v, const struct point *p, const struct point_disk *d,
		struct error *err)
{
	struct walk k = {.v = v, .p = p, .d = d};

	return walk_disk(&k, err);
}

int verify_blame(struct verifier *v, const struct point *p, const struct point_disk *d,
		 struct error *err)
{
	struct walk k = {.v = v, .p = p, .d = d, .blame = true};

	return walk_disk(&k, err);
}
