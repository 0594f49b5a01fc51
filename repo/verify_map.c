/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Does a map say what its session meant?  Seals prove that a cluster is the one that was stored in
 * its slot, not that the map leads to the right slot.  The descriptor tables of a session say,
 * apart from the map, which blocks it changed; so every point's map has to be its parent's map with
 * those changes, block for block.  A map that leads to another version, block or disk does not fit.
 *
 * When the parent is gone, only what the session itself wrote can be compared.
 */
#include "verify.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* A disk's map, run by run. */
struct side {
	const struct point_disk *d;
	struct map_cursor cursor;
	struct map_run run; /* what is left of it */
};

struct compare {
	struct verifier *v;
	const struct point *p;
	const struct point_disk *d;
	uint32_t own; /* index of the point's session; UINT32_MAX: not in the table */
	bool partial; /* the parent is gone */
	struct changes changes;
	size_t at; /* the first change that does not end before the present block */
	struct side child, parent;
};

/* ---- what the session says ---- */

static int add_change(struct changes *l, const struct change *c, struct error *err)
{
	if (l->n == l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 256;
		struct change *v = reallocarray(l->v, cap, sizeof(*v));

		if (!v)
			return error_nomem(err);
		l->v = v;
		l->cap = cap;
	}
	l->v[l->n++] = *c;
	return 0;
}

static struct change change_of(uint32_t own, const struct format_desc *d, uint32_t index,
			       uint32_t slot)
{
	struct change r = {.block = desc_block(d), .count = 1, .ref = REF_HOLE};
	struct le32 number;
	struct le64 ordinal;

	if (desc_kind(d) == DESC_SLOT) {
		r.ref = ref_of(own, (uint64_t)index << DATA_SLOTS_LOG2 | slot);
		return r;
	}
	memcpy(&number, d->b, sizeof(number));
	r.count = le32_get(number);
	if (desc_kind(d) == DESC_ALIAS) {
		memcpy(&number, d->b + 4, sizeof(number));
		memcpy(&ordinal, d->b + 8, sizeof(ordinal));
		r.ref = ref_of(le32_get(number), le64_get(ordinal));
	}
	return r;
}

static int compare_changes(const void *a, const void *b)
{
	const struct change *x = a, *y = b;

	return (x->block > y->block) - (x->block < y->block);
}

int changes_load(struct verifier *v, const struct point *p, const struct point_disk *d,
		 uint32_t own, struct changes *ret, struct error *err)
{
	unsigned number = (unsigned)(d - p->disks);
	int r = 0;

	for (uint32_t i = 0; r == 0 && own != UINT32_MAX && i < d->map->table[own].ndata; i++) {
		struct vseg s = {.sid = p->id, .type = SEGMENT_DATA, .index = i};
		struct tables *t = NULL;

		r = verify_load_tables(v, &s, &t, err);
		for (uint32_t k = 0; r == 0 && k < t->t->nslots + t->t->nextras; k++) {
			const struct format_desc *desc = &t->t->descs[k];
			struct change change = change_of(own, desc, i, k);

			if (desc_disk(desc) == number)
				r = add_change(ret, &change, err);
		}
		tables_unref(t);
	}
	if (ret->n > 1)
		qsort(ret->v, ret->n, sizeof(*ret->v), compare_changes);
	return r;
}

uint32_t verify_own_index(const struct point *p, const struct point_disk *d)
{
	for (uint32_t i = 0; i < d->map->nsessions; i++)
		if (id_equal(&d->map->table[i].session, &p->id))
			return i;
	return UINT32_MAX;
}

/* ---- maps ---- */

static void side_init(struct side *s, const struct verifier *v, const struct point_disk *d)
{
	const struct map_root root = {.ref = d->map->root,
				      .blocks = disk_blocks(d->size, v->repo->block_bits),
				      .nsessions = d->map->nsessions};

	s->d = d;
	map_cursor_init(&s->cursor, &root);
}

static int side_next(struct verifier *v, struct side *s, struct error *err)
{
	int r;

	while ((r = map_cursor_next(&s->cursor, &s->run, err)) == MAP_NEED) {
		const struct map_need *n = &s->cursor.need;
		const uint8_t *bytes;
		size_t len;

		if (ref_ordinal(n->ref) >> MAP_SLOTS_LOG2 >=
		    s->d->map->table[ref_session(n->ref)].nmap)
			return error_set(err, TM_E_CORRUPT, "a node that was never written");
		r = verify_node_bytes(v, s->d, n->ref, &bytes, &len, err);
		r = r ? r : map_cursor_supply(&s->cursor, bytes, len, err);
		if (r < 0)
			return r;
	}
	return r;
}

/* What the child's run at `block` has to refer to; *count gets smaller where that changes. */
static uint64_t expected(struct compare *c, uint64_t block, uint64_t *count, bool *known)
{
	const struct changes *l = &c->changes;
	const struct map_run *p = &c->parent.run;

	while (c->at < l->n && l->v[c->at].block + l->v[c->at].count <= block)
		c->at++;
	*known = true;
	if (c->at < l->n && l->v[c->at].block <= block) {
		const struct change *x = &l->v[c->at];

		*count = min_u64(*count, x->block + x->count - block);
		return x->ref == REF_HOLE ? REF_HOLE : x->ref + (block - x->block);
	}
	if (c->at < l->n)
		*count = min_u64(*count, l->v[c->at].block - block);
	*known = !c->partial;
	if (!c->parent.d || p->count == 0)
		return REF_HOLE;
	*count = min_u64(*count, p->block + p->count - block);
	return p->ref == REF_HOLE ? REF_HOLE : p->ref + (block - p->block);
}

static int say_wrong(struct compare *c, uint64_t block, uint64_t count, struct error *err)
{
	unsigned bits = c->v->repo->block_bits;
	uint64_t end = min_u64((block + count) << bits, c->d->size);
	struct repo_verify_report *report = c->v->report;
	struct repo_damage *last = report->ndamaged ? &report->damaged[report->ndamaged - 1] : NULL;
	char reason[200];
	int r = 0;

	if (!last || strcmp(last->object, c->p->object) != 0) {
		(void)snprintf(reason, sizeof(reason),
			       "the map of disk %.64s is not what its session stored, first at "
			       "block %" PRIu64,
			       c->d->name, block);
		r = damage_add(report, c->p->object, reason, err);
	}
	return r ? r
		 : damage_add_range(&report->damaged[report->ndamaged - 1], &c->p->id, c->d->name,
				    block << bits, end - (block << bits), err);
}

/* One run of the child against what it should be. */
static int compare_run(struct compare *c, struct error *err)
{
	struct map_run run = c->child.run;
	int r = 0;

	while (r == 0 && run.count > 0) {
		uint64_t n = run.count, want;
		bool known;

		while (r == 0 && c->parent.d && c->parent.run.count > 0 &&
		       c->parent.run.block + c->parent.run.count <= run.block)
			r = side_next(c->v, &c->parent, err);
		if (r < 0)
			return r;
		want = expected(c, run.block, &n, &known);
		if (known ? run.ref != want : run.ref != REF_HOLE && ref_session(run.ref) == c->own)
			r = say_wrong(c, run.block, n, err);
		run.block += n;
		run.count -= n;
		if (run.ref != REF_HOLE)
			run.ref += n;
	}
	return r;
}

static bool extends(const struct disk_map *m, const struct disk_map *parent)
{
	for (uint32_t i = 0; i < parent->nsessions; i++)
		if (i >= m->nsessions || !id_equal(&parent->table[i].session, &m->table[i].session))
			return false;
	return true;
}

/* The disk that this one's map was made from; NULL: there was none, or it is gone. */
static int find_parent(struct compare *c, struct point **ret_owner, struct error *err)
{
	const struct disk_map *m = c->d->map;
	int r;

	if (id_is_zero(&c->d->parent))
		return 0;
	c->partial = true;
	r = repo_point_get(c->v->repo, c->p->guest, &c->d->parent, ret_owner, err);
	for (size_t i = 0; r == 0 && i < (*ret_owner)->ndisks; i++) {
		const struct point_disk *d = &(*ret_owner)->disks[i];

		/* Names may have changed hands. */
		if (m->parent_number ? i + 1 != m->parent_number : strcmp(d->name, c->d->name) != 0)
			continue;
		if (!extends(m, d->map))
			return damage_add(c->v->report, c->p->object,
					  "a disk's session table does not begin with its parent's",
					  err);
		c->partial = false;
		side_init(&c->parent, c->v, d);
	}
	return r;
}

static int compare_maps(struct compare *c, struct error *err)
{
	int r = c->parent.d ? side_next(c->v, &c->parent, err) : 0;

	side_init(&c->child, c->v, c->d);
	while (r == 0) {
		r = side_next(c->v, &c->child, err);
		if (r == 0 && c->child.run.count == 0)
			break;
		r = r ? r : compare_run(c, err);
		r = r ? r : c->v->code;
	}
	return r;
}

int verify_map(struct verifier *v, const struct point *p, const struct point_disk *d,
	       struct error *err)
{
	struct compare c = {.v = v, .p = p, .d = d, .own = verify_own_index(p, d)};
	auto_clean(point_free) struct point *parent = NULL;
	struct error one = {0};
	int r;

	r = find_parent(&c, &parent, &one);
	if (r == TM_E_NOTFOUND || verify_is_damage(r)) {
		error_clear(&one);
		r = 0; /* partial */
	}
	r = r ? r : changes_load(v, p, d, c.own, &c.changes, &one);
	r = r ? r : compare_maps(&c, &one);
	free(c.changes.v);
	if (r == TM_E_NOTFOUND || verify_is_damage(r))
		return 0; /* what cannot be read has been reported */
	return error_pass(err, r, &one);
}
