/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments: tables and sizes, and with read_data every frame: checksum, seal,
 * decompression, content ids.  A few ranges are read and checked at a time.
 */
#include "verify.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define JOBS      3
#define JOB_BYTES (8u << 20)
/* Compactions that may happen to a segment while it is looked at. */
#define MAX_RETRIES 8

void verify_cache_there(struct cache_wait *wait, int code)
{
	struct verify_cache_wait *w = container_of(wait, struct verify_cache_wait, wait);

	w->code = code;
	w->done = true;
}

int verify_cache_wait(struct verifier *v, struct verify_cache_wait *w, struct error *err)
{
	while (!w->done)
		verify_wait(v);
	return w->code < 0 ? error_pass(err, w->code, &w->wait.err) : 0;
}

int verify_load_tables(struct verifier *v, const struct vseg *s, struct tables **ret,
		       struct error *err)
{
	struct verify_cache_wait w = {.wait.done = verify_cache_there};
	int r;

	*ret = cache_tables(v->repo->cache, &s->sid, s->type, s->index);
	if (*ret)
		return 0;
	cache_load_tables(v->repo->cache, &s->sid, s->type, s->index, &w.wait);
	r = verify_cache_wait(v, &w, err);
	if (r < 0)
		return r;
	*ret = cache_tables(v->repo->cache, &s->sid, s->type, s->index);
	return *ret ? 0 : error_set(err, TM_E_NOMEM, "the table cache is too small");
}

int verify_size(struct verifier *v, struct vseg *s, const struct seg_tables *t, uint64_t size,
		struct error *err)
{
	char reason[160];
	int r;

	if (size == t->object_len)
		return 0;
	(void)snprintf(reason, sizeof(reason),
		       "the object is %" PRIu64 " bytes, its tables say %" PRIu64, size,
		       t->object_len);
	r = vseg_damaged(v, s, 0, 0, reason, err);
	for (uint32_t i = 0; r == 0 && i < t->nframes; i++)
		if (t->frames[i].offset + t->frames[i].stored_len > size)
			r = vseg_damaged(v, s, t->frames[i].first_slot, t->frames[i].nslots, reason,
					 err);
	return r;
}

/* Slots that points use are there, and the object is as long as its tables say. */
static int check_segment(struct verifier *v, struct vseg *s, struct tables *t, struct error *err)
{
	char *key = strdup(t->key);
	struct error one = {0};
	uint64_t size;
	int r;

	if (!key)
		return error_nomem(err);
	free(s->key);
	s->key = key;
	r = v->repo->st->ops->head(v->repo->st, key, &size, &one);
	if (r == TM_E_NOTFOUND && s->retries++ < MAX_RETRIES) {
		cache_forget_tables(v->repo->cache, t);
		return TM_E_STALE; /* compacted meanwhile */
	}
	if (r == TM_E_NOTFOUND || verify_is_damage(r))
		return vseg_damaged(v, s, UINT32_MAX, 0, one.text, err);
	if (r < 0)
		return error_pass(err, r, &one);
	s->size = size;
	r = verify_size(v, s, t->t, size, err);
	for (uint32_t slot = 0; r == 0 && slot < s->nwords * 64; slot++) {
		if (bit_get(s->used, slot) && !seg_find(t->t, slot))
			r = vseg_damaged(v, s, slot, 1, "a slot that is in use is not there", err);
	}
	return r;
}

static uint64_t tables_bytes(const struct seg_tables *t)
{
	return t->nframes ? t->frames[0].offset : t->object_len;
}

int verify_tables(struct verifier *v, struct vseg *s, struct error *err)
{
	struct error one = {0};
	struct tables *t;
	int r = verify_load_tables(v, s, &t, &one);

	if (verify_is_damage(r))
		return vseg_damaged(v, s, UINT32_MAX, 0, one.text, err);
	if (r < 0)
		return error_pass(err, r, &one);
	r = check_segment(v, s, t, err);
	/* The walk over the maps has read their segments. */
	s->checked = s->type == SEGMENT_MAP ? s->size : tables_bytes(t->t);
	tables_unref(t);
	return r == TM_E_STALE ? verify_tables(v, s, err) : r;
}

/* ---- reading everything ---- */

struct vdata;

struct job {
	struct store_req req;
	struct pool_task task;
	struct vdata *d;
	struct vseg *s;
	struct tables *t;
	uint32_t first, n; /* frames */
	uint64_t offset;
	size_t len;
	uint8_t *buf;
	size_t cap;
	bool busy;
	int code;
	struct error err;
	uint64_t bad[SEG_MAX_FRAMES / 64]; /* frames */
};

struct vdata {
	struct verifier *v;
	struct workers workers;
	struct job job[JOBS];
	unsigned busy;
	int code;
	struct error err;
};

/* Of damage the first one is told; what is none ends the job. */
static void note_bad(struct job *j, uint32_t frame, int code, const struct error *why)
{
	if (!j->err.code || !verify_is_damage(code))
		j->err = *why;
	if (!verify_is_damage(code))
		j->code = code;
	bit_set(j->bad, frame);
}

/* Clusters that were opened and whose content is still to be looked at. */
struct opened {
	unsigned n;
	struct stored_cluster v[FRAME_MAX_SLOTS]; /* what a worker has room for */
	uint32_t frame[FRAME_MAX_SLOTS];
};

static void prove_opened(struct job *j, struct worker *w, struct opened *o)
{
	static_assert(FRAME_MAX_SLOTS <= PIECE_CLUSTERS, "they are proved at once");
	struct error one = {0};
	uint32_t wrong;
	int r = clusters_prove(w, o->n, o->v, &wrong, &one);

	if (r < 0 && !wrong) {
		j->code = r;
		j->err = one;
	}
	for (unsigned i = 0; i < o->n; i++)
		if (wrong >> i & 1)
			note_bad(j, o->frame[i], r, &one);
	o->n = 0;
}

/* Of data its clusters wait to be proved, for which those that waited before may have to go first.
 */
static int open_frame(struct job *j, struct worker *w, uint32_t frame, struct opened *o,
		      struct error *err)
{
	const struct seg_tables *t = j->t->t;
	const struct seg_frame *f = &t->frames[frame];
	const uint8_t *stored = j->buf + (f->offset - j->offset);
	size_t bs = (size_t)1 << t->addr.block_bits;
	uint8_t *out;
	int r = frame_check_crc(f, stored, err);

	if (r < 0 || t->addr.type != SEGMENT_DATA || !t->has_key)
		return r;
	if (o->n + f->nslots > FRAME_MAX_SLOTS)
		prove_opened(j, w, o);
	out = w->data + o->n * bs;
	r = frame_decode(w, t, f, stored, out, err);
	for (unsigned i = 0; r == 0 && i < f->nslots; i++) {
		o->frame[o->n] = frame;
		o->v[o->n++] = (struct stored_cluster){out + i * bs, t, f->first_slot + i};
	}
	return r;
}

static void job_run(struct pool_task *task, unsigned worker)
{
	struct job *j = container_of(task, struct job, task);
	struct worker *w = &j->d->workers.v[worker];
	const struct seg_tables *t = j->t->t;
	struct opened opened = {0};

	if (t->has_key)
		j->code = aead_set_key(w->aead, &t->key, &j->err);
	for (uint32_t i = j->first; j->code == 0 && i < j->first + j->n; i++) {
		struct error one = {0};
		int r;

		if (t->frames[i].stored_len == 0 || bit_get(j->bad, i))
			continue;
		r = open_frame(j, w, i, &opened, &one);
		if (r < 0)
			note_bad(j, i, r, &one);
	}
	if (j->code == 0)
		prove_opened(j, w, &opened);
}

static void job_end(struct job *j, int code)
{
	struct vdata *d = j->d;
	struct error err = {0};

	if (code < 0 && verify_is_damage(code)) {
		for (uint32_t i = j->first; i < j->first + j->n; i++)
			bit_set(j->bad, i);
		code = 0;
	}
	for (uint32_t i = j->first; code == 0 && i < j->first + j->n; i++) {
		const struct seg_frame *f = &j->t->t->frames[i];

		if (bit_get(j->bad, i))
			code = vseg_damaged(d->v, j->s, f->first_slot, f->nslots, j->err.text,
					    &err);
	}
	if (code < 0 && d->code == 0) {
		d->code = code;
		d->err = err.code ? err : j->err;
	}
	d->v->done += j->len;
	tables_unref(j->t);
	j->t = NULL;
	j->busy = false;
	d->busy--;
}

static void job_done(struct pool_task *task)
{
	struct job *j = container_of(task, struct job, task);

	job_end(j, j->code);
}

/* Frames that end behind the object are lost, the others are looked at. */
static void note_cut(struct job *j, size_t got)
{
	if (got == j->len)
		return;
	(void)error_set(&j->err, TM_E_CORRUPT, "the object ends at %" PRIu64, j->offset + got);
	for (uint32_t i = j->first; i < j->first + j->n; i++) {
		const struct seg_frame *f = &j->t->t->frames[i];

		if (f->offset + f->stored_len > j->offset + got)
			bit_set(j->bad, i);
	}
}

static void job_got(struct store_req *req, int code)
{
	struct job *j = container_of(req, struct job, req);

	if (code == TM_E_NOTFOUND && (j->s->again || j->s->retries < MAX_RETRIES)) {
		j->s->again = true; /* it may have been compacted */
		cache_forget_tables(j->d->v->repo->cache, j->t);
		j->n = 0;
		j->len = 0;
		job_end(j, 0);
		return;
	}
	if (code == TM_E_NOTFOUND)
		code = TM_E_CORRUPT;
	if (code < 0) {
		j->err = req->err;
		job_end(j, code);
		return;
	}
	note_cut(j, req->got);
	j->task = (struct pool_task){.run = job_run, .done = job_done};
	pool_submit(j->d->v->opt->pool, &j->task);
}

/* Frames from *next on: as many as fit a job, at least one. */
static int job_start(struct vdata *d, struct vseg *s, struct tables *t, uint32_t *next,
		     struct error *err)
{
	uint32_t first = *next;
	const struct seg_frame *f = t->t->frames;
	struct store *st = d->v->repo->st;
	struct job *j = d->job;

	while (j->busy)
		j++;
	memset(j->bad, 0, sizeof(j->bad));
	j->offset = f[first].offset;
	for (j->n = 0, j->len = 0; first + j->n < t->t->nframes; j->n++) {
		if (j->n > 0 && j->len + f[first + j->n].stored_len > JOB_BYTES)
			break;
		j->len += f[first + j->n].stored_len;
	}
	if (j->len > j->cap) {
		uint8_t *buf = realloc(j->buf, j->len);

		if (!buf)
			return error_nomem(err);
		j->buf = buf;
		j->cap = j->len;
	}
	j->d = d;
	j->s = s;
	j->t = t;
	tables_ref(t);
	j->first = first;
	j->code = 0;
	error_clear(&j->err);
	j->busy = true;
	d->busy++;
	*next = first + j->n;
	j->req.done = job_got;
	st->ops->get(st, t->key, j->buf, j->len, j->offset, &j->req);
	return 0;
}

static int wait_below(struct vdata *d, unsigned busy, struct error *err)
{
	while (d->busy > busy)
		verify_wait(d->v);
	if (d->v->code < 0)
		return d->v->code;
	return d->code < 0 ? error_pass(err, d->code, &d->err) : 0;
}

static int read_segment(struct vdata *d, struct vseg *s, struct error *err)
{
	struct tables *t;
	struct error one = {0};
	uint32_t next = 0;
	int r = verify_load_tables(d->v, s, &t, &one);

	if (verify_is_damage(r))
		return vseg_damaged(d->v, s, UINT32_MAX, 0, one.text, err);
	if (r < 0)
		return error_pass(err, r, &one);
	s->checked = s->size;
	while (r == 0 && next < t->t->nframes) {
		r = wait_below(d, JOBS - 1, err);
		r = r ? r : job_start(d, s, t, &next, err);
	}
	tables_unref(t);
	return r;
}

static int compare_keys(const void *a, const void *b)
{
	return strcmp((*(struct vseg *const *)a)->key, (*(struct vseg *const *)b)->key);
}

/* In the order of their names, from where the last run under a budget ended. */
static int read_segments(struct vdata *d, struct error *err)
{
	struct verifier *v = d->v;
	auto_free struct vseg **all = calloc(v->nseg ? v->nseg : 1, sizeof(struct vseg *));
	struct ring ring;
	size_t n = 0, start = 0;
	int r;

	if (!all)
		return error_nomem(err);
	r = ring_open(&ring, v, 'r', err);
	for (size_t i = 0; i < v->cap; i++)
		if (v->seg[i] && v->seg[i]->needed)
			all[n++] = v->seg[i];
	qsort(all, n, sizeof(struct vseg *), compare_keys);
	while (start < n && strcmp(all[start]->key, ring.last) <= 0)
		start++;
	for (size_t i = 0; r == 0 && i < n && ring_goes_on(&ring); i++) {
		struct vseg *s = all[(start + i) % n];

		if (!s->all_bad)
			r = read_segment(d, s, err);
		ring_did(&ring, s->key);
	}
	r = r ? r : wait_below(d, 0, err);
	return r ? r : ring_close(&ring, err);
}

/* Segments that were compacted while they were read. */
static int read_again(struct vdata *d, bool *ret_any, struct error *err)
{
	struct verifier *v = d->v;
	int r = 0;

	*ret_any = false;
	for (size_t i = 0; r == 0 && i < v->cap; i++) {
		if (!v->seg[i] || !v->seg[i]->again)
			continue;
		*ret_any = true;
		v->seg[i]->again = false;
		v->seg[i]->retries++;
		r = read_segment(d, v->seg[i], err);
	}
	return r ? r : wait_below(d, 0, err);
}

int verify_read(struct verifier *v, struct error *err)
{
	struct vdata d = {.v = v};
	size_t bs = (size_t)1 << v->repo->block_bits;
	struct error own = {0};
	bool again = true;
	int r = workers_init(&d.workers, pool_workers(v->opt->pool), &v->repo->keys.id, 0,
			     FRAME_MAX_SLOTS * bs, err);

	if (r < 0)
		return r;
	r = read_segments(&d, &own);
	if (wait_below(&d, 0, r < 0 ? NULL : &own) < 0 && r == 0)
		r = d.code < 0 ? d.code : v->code;
	while (r == 0 && again)
		r = read_again(&d, &again, &own);
	for (unsigned i = 0; i < JOBS; i++)
		free(d.job[i].buf);
	workers_done(&d.workers);
	return error_pass(err, r, &own);
}
