/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Siblings: points whose content a session may refer to although they are not its parent.
 *
 *	candidate   a disk of the newest point of some guest; its sketch is in memory
 *	wanted      so many ids of its sketch have been met, or it was asked for
 *	taken       pinned, looked at again, and its clusters added to the content index
 *
 * Each cluster that would have to be stored is looked up in all sketches at once.  Of disks
 * with much in common a few ids meet after a small part of the disk; what was stored until
 * then is the price for reading nothing twice.  While a candidate is being taken, deciding
 * waits, so that what is found depends on the input alone.
 */
#include "session.h"

#include "points.h"

#include <string.h>

#define MAX_GUESTS     256 /* whose newest points are looked at */
#define MAX_CANDIDATES 512
#define MAX_TAKEN      4
#define HITS_WANTED    2
/* The rest of the index is for what the session itself stores. */
#define SIBLING_ENTRIES (CONTENT_MAX_ENTRIES / 4 * 3)

static uint64_t sketch_value(const uint8_t *id)
{
	struct le64 v;

	memcpy(&v, id, sizeof(v));
	return le64_get(v);
}

void sketch_add(struct sketch *k, const uint8_t id[CONTENT_BYTES])
{
	uint64_t v = sketch_value(id);
	uint32_t lo = 0, hi = k->n;

	if (k->n == SKETCH_IDS && v >= k->v[k->n - 1])
		return;
	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (k->v[mid] < v)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo < k->n && k->v[lo] == v)
		return;
	if (k->n < SKETCH_IDS)
		k->n++;
	memmove(&k->v[lo + 1], &k->v[lo], (k->n - 1 - lo) * sizeof(k->v[0]));
	k->v[lo] = v;
}

/* ---- candidates ---- */

static int candidate_add(struct repo_session *s, const struct point *p, const struct point_disk *d,
			 bool wanted, struct error *err)
{
	struct siblings *b = &s->siblings;
	struct candidate *c = &b->v[b->n];

	if (b->n == MAX_CANDIDATES || d->block_size != UINT32_C(1) << s->repo->block_bits ||
	    d->map->root == REF_HOLE || (!wanted && !d->map->sketch))
		return 0;
	*c = (struct candidate){.point = p->id,
				.blocks = disk_blocks(d->size, s->repo->block_bits),
				.map = *d->map,
				.wanted = wanted};
	memcpy(c->object, p->object, strlen(p->object) + 1);
	c->map.sketch = NULL;
	c->map.table = calloc(d->map->nsessions, sizeof(*c->map.table));
	c->source = calloc(d->map->nsessions, sizeof(*c->source));
	if (!c->map.table || !c->source) {
		free(c->map.table);
		free(c->source);
		return error_nomem(err);
	}
	memcpy(c->map.table, d->map->table, d->map->nsessions * sizeof(*c->map.table));
	for (uint32_t i = 0; !wanted && i < d->map->sketch->n; i++)
		b->hit[b->nhits++] =
			(struct sketch_hit){.v = d->map->sketch->v[i], .candidate = b->n};
	b->nwanted += wanted;
	b->n++;
	return 0;
}

static int compare_hits(const void *a, const void *b)
{
	const struct sketch_hit *x = a, *y = b;

	if (x->v != y->v)
		return x->v < y->v ? -1 : 1;
	return x->candidate < y->candidate ? -1 : x->candidate > y->candidate;
}

static int compare_newest(const void *a, const void *b)
{
	const struct point_name *x = a, *y = b;

	return memcmp(&y->session, &x->session, sizeof(x->session));
}

/* Keeps the last point of each source, newest first. */
static void newest_of_each(struct name_list *l)
{
	size_t n = 0;

	for (size_t i = 0; i < l->n; i++)
		if (i + 1 == l->n || !id_equal(&l->v[i].source, &l->v[i + 1].source))
			l->v[n++] = l->v[i];
	l->n = n;
	if (n > 1)
		qsort(l->v, n, sizeof(*l->v), compare_newest);
}

static int candidates_of(struct repo_session *s, const struct point *p, bool wanted,
			 struct error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < p->ndisks; i++)
		r = candidate_add(s, p, &p->disks[i], wanted, err);
	return r;
}

struct candidate_reader {
	struct points_reader reader;
	struct repo_session *s;
};

/* What cannot be read is no candidate. */
static int candidate_read(struct points_reader *reader, const struct point_name *name,
			  struct point *p, const struct error *why, struct error *err)
{
	struct candidate_reader *c = container_of(reader, struct candidate_reader, reader);
	int r = 0;

	(void)name;
	if (p)
		r = candidates_of(c->s, p, false, err);
	else
		log_debug("no sibling: %s", why->text);
	point_free(p);
	return r;
}

/* Leaves out a name, and what is behind the most that are looked at. */
static void drop_name(struct name_list *l, const struct tm_id *id)
{
	size_t n = 0;

	for (size_t i = 0; i < l->n && i < MAX_GUESTS; i++)
		if (!id || !id_equal(&l->v[i].session, id))
			l->v[n++] = l->v[i];
	l->n = n;
}

int repo_session_siblings(struct repo_session *s, const struct point *like, struct error *err)
{
	struct candidate_reader c = {.reader = {.repo = s->repo, .each = candidate_read}, .s = s};
	struct siblings *b = &s->siblings;
	struct name_list names = {0};
	int r;

	if (b->listed)
		return 0;
	b->listed = true;
	b->v = calloc(MAX_CANDIDATES, sizeof(*b->v));
	b->hit = calloc((size_t)MAX_CANDIDATES * SKETCH_IDS, sizeof(*b->hit));
	if (!b->v || !b->hit)
		return error_nomem(err);
	r = like ? candidates_of(s, like, true, err) : 0;
	r = r ? r : points_names(s->repo, NULL, &names, err);
	if (r == 0) {
		newest_of_each(&names);
		drop_name(&names, like ? &like->id : NULL);
		r = points_read(&c.reader, names.v, names.n, false, err);
	}
	name_list_done(&names);
	if (b->nhits > 1)
		qsort(b->hit, b->nhits, sizeof(*b->hit), compare_hits);
	if (r < 0)
		error_prefix(err, "looking for similar points");
	return r;
}

void siblings_ask(struct repo_session *s, const uint8_t id[CONTENT_BYTES])
{
	struct siblings *b = &s->siblings;
	uint64_t v = sketch_value(id);
	size_t lo = 0, hi = b->nhits;

	if (b->nhits == 0 || v > b->hit[b->nhits - 1].v)
		return;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (b->hit[mid].v < v)
			lo = mid + 1;
		else
			hi = mid;
	}
	for (; lo < b->nhits && b->hit[lo].v == v; lo++) {
		struct candidate *c = &b->v[b->hit[lo].candidate];

		c->hits++;
		if (c->wanted || c->taken || c->hits < HITS_WANTED ||
		    b->ntaken + b->nwanted >= MAX_TAKEN)
			continue;
		c->wanted = true;
		b->nwanted++;
	}
}

/* ---- taking one ---- */

static void candidate_end(struct siblings *b)
{
	look_done(&b->look);
	b->now = NULL;
	b->pinned = b->broken = false;
}

static void pin_stored(struct store_req *req, int code)
{
	struct siblings *b = container_of(req, struct siblings, req);
	struct repo_session *s = container_of(b, struct repo_session, siblings);
	struct error err = {0};

	b->pinning = false;
	buf_done(&b->pin);
	b->pin = (struct buf){0};
	if (code < 0) {
		session_fail(s, code, &req->err);
	} else {
		code = marker_check_pin(s, &b->now->point, b->now->object, &err);
		b->pinned = code == 0;
		b->broken = code == TM_E_STALE; /* it is being deleted */
		if (code < 0 && code != TM_E_STALE)
			session_fail(s, code, &err);
	}
	session_pump(s);
}

static void sibling_looked(struct look *l, int code, const struct error *err)
{
	struct siblings *b = container_of(l, struct siblings, look);
	struct repo_session *s = container_of(b, struct repo_session, siblings);

	if (code == TM_E_CORRUPT || code == TM_E_UNSUPPORTED) {
		log_debug("no sibling: %s", err->text);
		b->broken = true;
	} else if (code < 0) {
		session_fail(s, code, err);
	}
	session_pump(s);
}

/* The candidate that comes next is pinned.  0 or an error. */
static int candidate_begin(struct repo_session *s, struct error *err)
{
	struct siblings *b = &s->siblings;
	struct candidate *c = b->v;
	struct map_root root;
	int r;

	while (!c->wanted)
		c++;
	c->wanted = false;
	c->taken = true;
	b->nwanted--;
	b->ntaken++;
	b->now = c;
	b->block = 0;
	root = (struct map_root){
		.ref = c->map.root, .blocks = c->blocks, .nsessions = c->map.nsessions};
	b->look.done = sibling_looked;
	look_init(&b->look, s->repo, &root, c->map.table, &s->lost);
	b->pinned = marker_pinned(s, &c->point);
	if (b->pinned)
		return 0;
	r = marker_make_pin(s, &c->point, b->key, &b->pin, err);
	if (r < 0)
		return r;
	b->pinning = true;
	b->req.done = pin_stored;
	s->repo->st->ops->put_new(s->repo->st, b->key, b->pin.data, b->pin.len, &b->req);
	return 0;
}

/* The content source of a session of the candidate's table. */
static int source_of(struct repo_session *s, struct candidate *c, uint32_t index, uint32_t *ret,
		     struct error *err)
{
	const struct table_entry *e = &c->map.table[index];
	struct content_source *v;

	*ret = c->source[index];
	for (uint32_t i = 1; *ret == 0 && i < s->nsources; i++)
		if (id_equal(&s->sources[i].e.session, &e->session))
			*ret = i;
	c->source[index] = *ret;
	if (*ret > 0)
		return 0;
	if (s->nsources == MAX_SESSIONS)
		return error_set(err, TM_E_RANGE, "siblings have too many sessions");
	v = reallocarray(s->sources, s->nsources + 1, sizeof(*v));
	if (!v)
		return error_nomem(err);
	s->sources = v;
	v[s->nsources] = (struct content_source){.e = *e};
	*ret = c->source[index] = s->nsources++;
	return 0;
}

/* Adds a cluster of the candidate to the index. */
static int add_content(struct repo_session *s, uint64_t ref, struct error *err)
{
	struct siblings *b = &s->siblings;
	const uint8_t *id;
	uint64_t place;
	uint32_t source;
	int r = look_content(&b->look, ref, &id, err);

	if (r != 0 || !id || content_find(&s->content, id, &place))
		return r;
	r = source_of(s, b->now, ref_session(ref), &source, err);
	return r ? r : content_put(&s->content, id, ref_of(source, ref_ordinal(ref)), err);
}

/* All clusters of the candidate, in the order of its map.  0, LOOK_WAIT or an error. */
static int add_contents(struct repo_session *s, struct error *err)
{
	struct siblings *b = &s->siblings;

	while (!b->broken && s->content.n < SIBLING_ENTRIES) {
		const struct map_run *run = &b->look.run;
		int r = look_run(&b->look, b->block, err);

		if (r != 0 || run->count == 0)
			return r;
		if (run->ref == REF_HOLE) {
			b->block = run->block + run->count;
			continue;
		}
		r = add_content(s, run->ref + (b->block - run->block), err);
		if (r != 0)
			return r;
		b->block++;
	}
	return 0;
}

int siblings_take(struct repo_session *s, struct error *err)
{
	struct siblings *b = &s->siblings;
	int r;

	while (b->now || b->nwanted > 0) {
		struct error one = {0};

		if (b->pinning)
			return LOOK_WAIT;
		if (!b->now) {
			r = candidate_begin(s, err);
			if (r < 0)
				return r;
			continue;
		}
		r = b->pinned ? add_contents(s, &one) : 0;
		if (r == LOOK_WAIT)
			return r;
		if (r < 0 && r != TM_E_CORRUPT && r != TM_E_UNSUPPORTED)
			return error_pass(err, r, &one);
		candidate_end(b);
	}
	return 0;
}

void siblings_free(struct repo_session *s)
{
	struct siblings *b = &s->siblings;

	look_done(&b->look);
	for (uint32_t i = 0; i < b->n; i++) {
		free(b->v[i].map.table);
		free(b->v[i].source);
	}
	free(b->v);
	free(b->hit);
	buf_done(&b->pin);
}
