/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clusters that are lost may be stored elsewhere under the same content id: by a later point, which
 * read them from the guest again, or by another guest.  A segment gets the next generation with
 * those in their old slots and all that is intact as it was, each proved by its content id, and
 * sealed under new keys.  So older points are whole again without a change to their maps.
 */
#include "repair.h"

#include "worker.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define LEVEL 3

/* A lost cluster. */
struct want {
	uint8_t id[CONTENT_BYTES];
	const struct vseg *from; /* a segment that has the same content, or NULL */
	uint32_t slot;           /* in it */
};

struct search {
	struct repair *p;
	struct want *v; /* by id */
	size_t n, cap;
	struct workers workers; /* one */
};

static bool is_lost(const struct vseg *s, uint32_t slot)
{
	return s->all_bad || bit_get(s->bad, slot);
}

/* ---- what is wanted, and where it is ---- */

static int add_want(struct search *q, const uint8_t *id, struct error *err)
{
	if (q->n == q->cap) {
		size_t cap = q->cap ? 2 * q->cap : 64;
		struct want *v = reallocarray(q->v, cap, sizeof(*v));

		if (!v)
			return error_nomem(err);
		q->v = v;
		q->cap = cap;
	}
	q->v[q->n] = (struct want){.from = NULL};
	memcpy(q->v[q->n++].id, id, CONTENT_BYTES);
	return 0;
}

static int compare_wants(const void *a, const void *b)
{
	const struct want *x = a, *y = b;

	return memcmp(x->id, y->id, sizeof(x->id));
}

static struct want *find_want(const struct search *q, const uint8_t *id)
{
	struct want key;

	memcpy(key.id, id, sizeof(key.id));
	return q->n ? bsearch(&key, q->v, q->n, sizeof(key), compare_wants) : NULL;
}

/* Tables that cannot be read have nothing to tell here. */
static int load_tables(struct repair *p, const struct vseg *s, struct tables **ret,
		       struct error *err)
{
	struct error one = {0};
	int r = verify_load_tables(p->v, s, ret, &one);

	if (r == 0)
		return 0;
	*ret = NULL;
	if (verify_is_damage(r) || r == TM_E_NOTFOUND)
		return 0;
	return error_pass(err, r, &one);
}

static int want_lost(struct search *q, const struct vseg *s, struct error *err)
{
	struct tables *t;
	int r = load_tables(q->p, s, &t, err);

	for (uint32_t i = 0; r == 0 && t && i < t->t->nslots; i++)
		if (is_lost(s, i))
			r = add_want(q, t->t->descs[i].b, err);
	tables_unref(t);
	return r;
}

static int look_in(struct search *q, const struct vseg *s, struct error *err)
{
	struct tables *t;
	int r = load_tables(q->p, s, &t, err);

	for (uint32_t i = 0; r == 0 && t && i < t->t->nslots; i++) {
		struct want *w = is_lost(s, i) ? NULL : find_want(q, t->t->descs[i].b);

		if (!w || w->from || !seg_find(t->t, i))
			continue;
		w->from = s;
		w->slot = i;
	}
	tables_unref(t);
	return r;
}

static int look_everywhere(struct search *q, struct error *err)
{
	const struct verifier *v = q->p->v;
	int r = 0;

	if (q->n > 1)
		qsort(q->v, q->n, sizeof(*q->v), compare_wants);
	for (size_t i = 0; r == 0 && i < v->cap; i++)
		if (v->seg[i] && v->seg[i]->type == SEGMENT_DATA && v->seg[i]->needed)
			r = look_in(q, v->seg[i], err);
	return r;
}

/* ---- one segment ---- */

struct mend {
	struct search *q;
	const struct vseg *s;
	struct tables *t;
	struct buf object; /* as it is, perhaps cut */
	struct seg_writer *w;
	struct worker *worker;
	uint8_t *plain;                 /* of a frame: method byte and data */
	uint64_t lost[DATA_SLOTS / 64]; /* what stays lost */
	unsigned found, missing;        /* of the slots in use */
	unsigned back;                  /* frames that were found lost and can be read */
};

/* The cluster of a want, proved, in place.  False: it is not there after all. */
static bool fetch(struct mend *m, const struct want *w, uint8_t *ret)
{
	struct repo *repo = m->q->p->v->repo;
	size_t bs = (size_t)1 << repo->block_bits, got = 0;
	struct error err = {0};
	struct tables *t = NULL;
	const struct seg_frame *f;
	uint8_t *stored = NULL;
	uint32_t wrong;
	bool ok;

	if (!w || !w->from || load_tables(m->q->p, w->from, &t, &err) < 0 || !t)
		return false;
	f = seg_find(t->t, w->slot);
	stored = f && t->t->has_key ? malloc(f->stored_len) : NULL;
	ok = stored &&
	     store_get_wait(repo->st, t->key, stored, f->stored_len, f->offset, &got, &err) == 0 &&
	     got == f->stored_len && aead_set_key(m->worker->aead, &t->t->key, &err) == 0 &&
	     frame_decode(m->worker, t->t, f, stored, m->worker->data, &err) == 0;
	if (ok) {
		memcpy(ret, m->worker->data + (w->slot - f->first_slot) * bs, bs);
		ok = clusters_prove(m->worker, 1, &(struct stored_cluster){ret, t->t, w->slot},
				    &wrong, &err) == 0;
	}
	free(stored);
	tables_unref(t);
	return ok;
}

static int no_room(struct error *err)
{
	return error_set(err, TM_E_RANGE, "the segment has become too large");
}

/* n clusters at plain become a frame. */
static int add_clusters(struct mend *m, unsigned n, struct error *err)
{
	size_t len = (size_t)n << m->q->p->v->repo->block_bits, packed;
	bool shrinks;

	if (n == 0)
		return 0;
	packed = ZSTD_compressCCtx(m->worker->cctx, m->worker->frame, len, m->plain, len, LEVEL);
	shrinks = !ZSTD_isError(packed) && packed + packed / 64 < len;
	if (!seg_has_room(m->w, n, shrinks ? packed : len))
		return no_room(err);
	if (shrinks)
		seg_add_frame(m->w, n, FRAME_ZSTD, m->worker->frame, packed);
	else
		seg_add_frame(m->w, n, FRAME_RAW, m->plain, len);
	return 0;
}

/* A frame that is lost: what is found of it becomes frames, the rest gaps. */
static int mend_frame(struct mend *m, const struct seg_frame *f, struct error *err)
{
	size_t bs = (size_t)1 << m->q->p->v->repo->block_bits;
	unsigned n = 0;
	int r = 0;

	for (uint32_t slot = f->first_slot; r == 0 && slot < (uint32_t)f->first_slot + f->nslots;
	     slot++) {
		const struct want *w = find_want(m->q, m->t->t->descs[slot].b);
		bool there = fetch(m, w, m->plain + n * bs);

		m->found += there && bit_get(m->s->used, slot);
		m->missing += !there && bit_get(m->s->used, slot);
		if (there) {
			n++;
			continue;
		}
		bit_set(m->lost, slot);
		r = add_clusters(m, n, err);
		n = 0;
		if (r == 0 && !seg_add_gap(m->w, 1))
			r = no_room(err);
	}
	return r ? r : add_clusters(m, n, err);
}

/* A frame that is whole goes over as it is, under the new key and a new checksum: its seal, which
 * proves more than the old one, is opened. */
static int keep_frame(struct mend *m, const struct seg_frame *f, struct error *err)
{
	size_t len = f->stored_len - TAG_BYTES - 1;
	int r = aead_set_key(m->worker->aead, &m->t->t->key, err);

	r = r ? r
	      : frame_open(m->t->t, f, m->worker->aead, m->object.data + f->offset, m->plain, err);
	if (r == 0 && !seg_has_room(m->w, f->nslots, len))
		return no_room(err);
	if (r == 0)
		seg_add_frame(m->w, f->nslots, m->plain[0], m->plain + 1, len);
	return r;
}

/* Whether a frame that was found lost can be read by now: the store failed for a while.  What is
 * there must not be given up for that. */
static bool is_back(struct mend *m, const struct seg_frame *f)
{
	size_t bs = (size_t)1 << m->q->p->v->repo->block_bits;
	const struct seg_tables *t = m->t->t;
	struct stored_cluster v[FRAME_MAX_SLOTS];
	struct error err = {0};
	uint32_t wrong;
	bool ok = f->stored_len > 0 && f->offset + f->stored_len <= m->object.len &&
		  aead_set_key(m->worker->aead, &t->key, &err) == 0 &&
		  frame_decode(m->worker, t, f, m->object.data + f->offset, m->worker->data,
			       &err) == 0;

	for (uint32_t i = 0; ok && i < f->nslots; i++)
		v[i] = (struct stored_cluster){m->worker->data + i * bs, t, f->first_slot + i};
	return ok && clusters_prove(m->worker, f->nslots, v, &wrong, &err) == 0;
}

static bool any_lost(const struct vseg *s, const struct seg_frame *f)
{
	for (uint32_t i = 0; i < f->nslots; i++)
		if (is_lost(s, f->first_slot + i))
			return true;
	return false;
}

static int mend_frames(struct mend *m, struct error *err)
{
	const struct seg_tables *t = m->t->t;
	int r = 0;

	for (uint32_t i = 0; r == 0 && i < t->nframes; i++) {
		const struct seg_frame *f = &t->frames[i];
		bool lost = any_lost(m->s, f), back = lost && is_back(m, f);

		m->back += back;
		if ((lost && !back) || f->offset + f->stored_len > m->object.len)
			r = mend_frame(m, f, err);
		else if (f->stored_len == 0)
			r = seg_add_gap(m->w, f->nslots) ? 0 : no_room(err);
		else
			r = keep_frame(m, f, err);
	}
	memcpy(m->w->descs, t->descs, t->nslots * sizeof(*t->descs));
	memcpy(m->w->extras, t->descs + t->nslots, t->nextras * sizeof(*t->descs));
	m->w->nextras = t->nextras;
	return r;
}

static int mend_segment(struct mend *m, struct error *err)
{
	struct repair *p = m->q->p;
	const struct seg_address addr = repair_address(p->v->repo, m->s);
	struct seg_sealing sealing;
	int r;

	if (!m->t)
		return error_set(err, TM_E_CORRUPT, "its tables are lost");
	if (!m->t->t->has_key)
		return error_set(err, TM_E_CORRUPT, "this key cannot read data; a full key may");
	r = store_read(p->v->repo->st, m->t->key, SEGMENT_MAX_PAYLOAD + SEG_HEADROOM, &m->object,
		       err);
	r = r ? r : repair_sealing(p, m->s, &sealing, err);
	r = r ? r : seg_writer_new(&m->w, err);
	if (r < 0)
		return r;
	seg_begin(m->w, &addr, &sealing);
	r = mend_frames(m, err);
	if (r == 0 && m->found == 0 && m->missing > 0)
		return error_set(err, TM_E_CORRUPT,
				 "the same content is nowhere else; the next backup stores what "
				 "its guest still has");
	r = r ? r : seg_seal(m->w, m->worker->aead, &m->t->t->keys, err);
	return r ? r : repair_put(p, m->s, m->w, m->missing ? m->lost : NULL, err);
}

static int mend(struct search *q, const struct vseg *s, struct remedy *ret, struct error *err)
{
	size_t bs = (size_t)1 << q->p->v->repo->block_bits;
	struct mend m = {.q = q, .s = s, .worker = &q->workers.v[0]};
	struct error one = {0};
	int r = load_tables(q->p, s, &m.t, err);

	m.plain = malloc(1 + FRAME_MAX_SLOTS * bs + TAG_BYTES);
	if (r == 0 && !m.plain)
		r = error_nomem(err);
	if (r == 0) {
		r = mend_segment(&m, &one);
		ret->done = r == 0;
		(void)snprintf(ret->text, sizeof(ret->text), "%.200s", one.text);
	}
	if (ret->done && m.found)
		(void)snprintf(ret->text, sizeof(ret->text),
			       "%u clusters restored from the same content elsewhere%s", m.found,
			       m.missing ? "; others are lost" : "");
	else if (ret->done)
		(void)snprintf(ret->text, sizeof(ret->text),
			       m.back ? "written again; its data can be read"
				      : "written again without what nobody needs");
	seg_writer_free(m.w);
	buf_done(&m.object);
	free(m.plain);
	tables_unref(m.t);
	if (r == TM_E_NOTFOUND) /* by another repair or a prune */
		(void)snprintf(ret->text, sizeof(ret->text),
			       "it was replaced or removed meanwhile; the next repair looks again");
	if (r == 0 || verify_is_damage(r) || r == TM_E_RANGE || r == TM_E_NOTFOUND)
		return 0;
	return error_pass(err, r, &one);
}

int repair_data(struct repair *p, struct vseg *const *v, size_t n, struct remedy *ret,
		struct error *err)
{
	struct search q = {.p = p};
	size_t bs = (size_t)1 << p->v->repo->block_bits;
	int r = 0;

	for (size_t i = 0; r == 0 && i < n; i++)
		r = want_lost(&q, v[i], err);
	r = r ? r : look_everywhere(&q, err);
	r = r ? r
	      : workers_init(&q.workers, 1, &p->v->repo->keys.id, LEVEL, FRAME_MAX_SLOTS * bs, err);
	for (size_t i = 0; r == 0 && i < n; i++)
		r = mend(&q, v[i], &ret[i], err);
	workers_done(&q.workers);
	free(q.v);
	return r;
}
