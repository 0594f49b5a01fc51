/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading a disk.  Plans wait in order for their fetches and a free piece; decoding runs
 * on workers, and a cluster leaves only after its frame's seal was opened.
 */
#include "read.h"

#include <inttypes.h>
#include <string.h>

#define DEFAULT_PIECES 16
#define TICK_MS        100
/* Compactions that may happen while a fetch is on its way. */
#define MAX_RETRIES 8

void reader_fail(struct reader *r, int code, const struct error *err)
{
	if (r->code < 0)
		return;
	r->code = code;
	r->err = *err;
}

/* ---- fetching ---- */

static void fetch_got(struct store_req *req, int code);

/* 0, TM_E_CORRUPT when t lacks a frame, TM_E_STALE when one was put together anew. */
static int move_plan(struct fetch *f, struct plan *p, struct tables *t, uint64_t *begin,
		     uint64_t *end)
{
	for (unsigned i = 0; i < p->nwants; i++) {
		struct want *w = &p->want[i];
		const struct seg_frame *frame;

		if (w->fetch != f)
			continue;
		frame = seg_find(t->t, w->f->first_slot);
		if (!frame)
			return TM_E_CORRUPT;
		if (frame->first_slot != w->f->first_slot || frame->nslots != w->f->nslots ||
		    frame->stored_len != w->f->stored_len)
			return TM_E_STALE;
		tables_ref(t);
		tables_unref(w->t);
		w->t = t;
		w->f = frame;
		*begin = min_u64(*begin, frame->offset);
		*end = max_u64(*end, frame->offset + frame->stored_len);
	}
	return 0;
}

/* All that waits for f turns to the same frames in another generation, where they lie closer. */
static int fetch_move(struct fetch *f, struct tables *t, struct error *err)
{
	struct plan_list *lists[] = {&f->r->batch, &f->r->ready};
	uint64_t begin = UINT64_MAX, end = 0;
	int r = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(lists); i++)
		for (struct plan *p = lists[i]->first; r == 0 && p; p = p->next)
			r = move_plan(f, p, t, &begin, &end);
	if (r == TM_E_STALE || (r == 0 && (begin > end || end - begin > f->len)))
		return error_set(err, TM_E_STALE,
				 "object %s was replaced by one with other frames meanwhile; try "
				 "again",
				 f->t->key);
	if (r < 0)
		return error_set(err, TM_E_CORRUPT,
				 "object %s was replaced by one that lacks clusters", f->t->key);
	tables_ref(t);
	tables_unref(f->t);
	f->t = t;
	f->offset = begin;
	f->len = (size_t)(end - begin);
	return 0;
}

static void fetch_tables_there(struct cache_wait *w, int code)
{
	struct fetch *f = container_of(w, struct fetch, wait);
	struct store *st = f->r->repo->st;
	struct tables *t = NULL;
	struct error err = w->err;

	if (code == 0)
		t = cache_tables(f->r->repo->cache, &f->t->t->addr.session, SEGMENT_DATA,
				 f->t->t->addr.index);
	if (code == 0 && f->refs > 0)
		code = t ? fetch_move(f, t, &err)
			 : error_set(&err, TM_E_NOMEM, "the table cache is too small");
	tables_unref(t);
	if (code == 0 && f->refs > 0) {
		st->ops->get(st, f->t->key, f->buf, f->len, f->offset, &f->req);
		return;
	}
	f->retries = MAX_RETRIES;
	f->req.err = err;
	f->req.got = f->len;
	fetch_got(&f->req, code);
}

static void fetch_got(struct store_req *req, int code)
{
	struct fetch *f = container_of(req, struct fetch, req);
	struct reader *r = f->r;

	if (code == TM_E_NOTFOUND && f->retries < MAX_RETRIES) { /* compacted meanwhile */
		f->retries++;
		f->wait.done = fetch_tables_there;
		cache_forget_tables(r->repo->cache, f->t);
		cache_load_tables(r->repo->cache, &f->t->t->addr.session, SEGMENT_DATA,
				  f->t->t->addr.index, &f->wait);
		return;
	}
	r->gets--;
	f->there = true;
	if (code == TM_E_NOTFOUND)
		code = TM_E_CORRUPT;
	if (code == 0 && req->got != f->len)
		code = error_set(&req->err, TM_E_CORRUPT, "object %s ends at %" PRIu64, f->t->key,
				 f->offset + req->got);
	if (code < 0)
		reader_fail(r, code, &req->err);
	if (f->refs == 0) /* its plans were dropped */
		fetch_free(f);
	reader_pump(r);
}

static void fetch_drop(struct fetch *f)
{
	f->there = true; /* whoever lets go last frees it */
	if (f->refs == 0)
		fetch_free(f);
}

/*
 * Frames that hold little of what is wanted (as of a disk whose content lies scattered among
 * others') must not fill the memory.  Fetches are issued in the order in which they are needed,
 * so that all of the first plan are there or on their way when its turn comes.
 */
static bool may_hold(const struct reader *r, const struct fetch *f)
{
	return r->held + f->len <= HELD_BYTES || f->first_seq == r->ready.first->seq;
}

static void issue_fetches(struct reader *r)
{
	struct store *st = r->repo->st;

	while (r->code == 0 && r->gets < MAX_GETS && r->issue && may_hold(r, r->issue)) {
		struct fetch *f = r->issue;

		f->buf = malloc(f->len);
		if (!f->buf) {
			struct error err = {0};

			reader_fail(r, error_nomem(&err), &err);
			return;
		}
		f->held = f->len;
		r->held += f->held;
		r->issue = f->next;
		if (!r->issue)
			r->issue_end = &r->issue;
		f->req.done = fetch_got;
		r->gets++;
		st->ops->get(st, f->t->key, f->buf, f->len, f->offset, &f->req);
	}
}

/* ---- decoding ---- */

static void name_place(const struct reader *r, const struct plan *p, unsigned want,
		       struct error *err)
{
	uint64_t bs = UINT64_C(1) << r->repo->block_bits, first = UINT64_MAX, last = 0;

	for (unsigned i = 0; i < p->nclusters; i++) {
		if (p->cluster[i].want == want) {
			first = min_u64(first, p->cluster[i].block);
			last = max_u64(last, p->cluster[i].block);
		}
	}
	error_prefix(err, "bytes %" PRIu64 " to %" PRIu64 ": object %s", first * bs,
		     min_u64((last + 1) * bs, r->disk->size), p->want[want].t->key);
}

/* Where the frame's clusters go as they are: the first of them, when all are wanted in a row. */
static uint8_t *direct_place(const struct read_piece *rp, unsigned want, size_t bs)
{
	const struct plan *p = rp->plan;
	const struct seg_frame *f = p->want[want].f;
	unsigned first = 0;

	while (first < p->nclusters && p->cluster[first].want != want)
		first++;
	for (unsigned i = 0; i < f->nslots; i++)
		if (first + i >= p->nclusters || p->cluster[first + i].want != want ||
		    p->cluster[first + i].slot != f->first_slot + i)
			return NULL;
	return rp->p.data + first * bs;
}

static int decode_want(struct worker *w, struct read_piece *rp, unsigned want, struct error *err)
{
	const struct plan *p = rp->plan;
	const struct want *wt = &p->want[want];
	size_t bs = (size_t)1 << rp->r->repo->block_bits;
	uint8_t *direct = direct_place(rp, want, bs);
	uint8_t *out = direct ? direct : w->data;
	int r;

	assert(wt->t);
	r = frame_decode(w, wt->t->t, wt->f, wt->fetch->buf + (wt->f->offset - wt->fetch->offset),
			 out, err);
	for (unsigned i = 0; r == 0 && i < p->nclusters; i++) {
		const struct plan_cluster *c = &p->cluster[i];
		const uint8_t *cluster;

		if (c->want != want)
			continue;
		cluster = out + (c->slot - wt->f->first_slot) * bs;
		/* A piece may hold the same cluster twice. */
		if (cluster != rp->p.data + i * bs)
			memcpy(rp->p.data + i * bs, cluster, bs);
	}
	return r;
}

/* That the piece has the clusters that were stored. */
static int prove_piece(struct worker *w, const struct read_piece *rp, struct error *err)
{
	const struct plan *p = rp->plan;
	struct stored_cluster v[PIECE_CLUSTERS];
	size_t bs = (size_t)1 << rp->r->repo->block_bits;
	uint32_t wrong;
	int r;

	for (unsigned i = 0; i < p->nclusters; i++)
		v[i] = (struct stored_cluster){
			rp->p.data + i * bs, p->want[p->cluster[i].want].t->t, p->cluster[i].slot};
	r = clusters_prove(w, p->nclusters, v, &wrong, err);
	if (r < 0)
		name_place(rp->r, p, p->cluster[wrong ? __builtin_ctz(wrong) : 0].want, err);
	return r;
}

static void decode_run(struct pool_task *task, unsigned worker)
{
	struct read_piece *rp = container_of(task, struct read_piece, task);
	struct worker *w = &rp->r->workers.v[worker];
	const struct plan *p = rp->plan;
	const struct tables *keyed = NULL;

	for (unsigned i = 0; rp->code == 0 && i < p->nwants; i++) {
		if (p->want[i].t != keyed)
			rp->code = aead_set_key(w->aead, &p->want[i].t->t->key, &rp->err);
		keyed = p->want[i].t;
		if (rp->code == 0)
			rp->code = decode_want(w, rp, i, &rp->err);
		if (rp->code < 0)
			name_place(rp->r, p, i, &rp->err);
	}
	if (rp->code == 0 && rp->r->prove)
		rp->code = prove_piece(w, rp, &rp->err);
}

static void piece_back(struct piece *piece)
{
	struct read_piece *rp = container_of(piece, struct read_piece, p);
	struct reader *r = rp->r;

	rp->next = r->idle_pieces;
	r->idle_pieces = rp;
	r->out--;
	reader_pump(r);
}

/* To the sink, or back when something has failed. */
static void deliver(struct read_piece *rp)
{
	struct reader *r = rp->r;
	struct error err = {0};
	uint64_t done = rp->plan->done_bytes;
	int code;

	plan_release(r, rp->plan);
	rp->plan = NULL;
	if (r->code < 0) {
		piece_back(&rp->p);
		return;
	}
	code = piece_sink_put(r->sink, &rp->p, &err);
	if (code < 0) {
		reader_fail(r, code, &err);
		piece_back(&rp->p);
		return;
	}
	r->done_bytes = max_u64(r->done_bytes, done);
}

static void decode_done(struct pool_task *task)
{
	struct read_piece *rp = container_of(task, struct read_piece, task);

	if (rp->code < 0)
		reader_fail(rp->r, rp->code, &rp->err);
	deliver(rp);
	reader_pump(rp->r);
}

static bool plan_is_there(const struct plan *p)
{
	for (unsigned i = 0; i < p->nwants; i++)
		if (!p->want[i].fetch->there)
			return false;
	return true;
}

static void start_piece(struct reader *r, struct plan *p)
{
	struct read_piece *rp = r->idle_pieces;

	r->idle_pieces = rp->next;
	r->out++;
	rp->plan = p;
	rp->code = 0;
	error_clear(&rp->err);
	rp->p.seq = p->seq;
	rp->p.nruns = p->nruns;
	rp->p.nclusters = p->nclusters;
	memcpy(rp->p.run, p->run, p->nruns * sizeof(p->run[0]));
	rp->task = (struct pool_task){.run = decode_run, .done = decode_done};
	if (p->nwants > 0)
		pool_submit(r->pool, &rp->task);
	else
		deliver(rp);
}

static void start_pieces(struct reader *r)
{
	while (r->code == 0 && r->idle_pieces && r->ready.first && plan_is_there(r->ready.first)) {
		struct plan *p = r->ready.first;

		r->ready.first = p->next;
		r->ready.n--;
		if (!r->ready.first)
			r->ready.end = &r->ready.first;
		start_piece(r, p);
	}
}

void reader_pump(struct reader *r)
{
	r->pump_again = true;
	if (r->pumping)
		return;
	r->pumping = true;
	while (r->pump_again) {
		r->pump_again = false;
		reader_plan(r);
		issue_fetches(r);
		start_pieces(r);
	}
	r->pumping = false;
}

/* ---- begin and end ---- */

static void plans_free(struct plan *p)
{
	while (p) {
		struct plan *next = p->next;

		free(p);
		p = next;
	}
}

static void plans_release(struct reader *r, struct plan_list *l)
{
	struct plan *p = l->first;

	plan_list_init(l);
	while (p) {
		struct plan *next = p->next;

		plan_release(r, p);
		p = next;
	}
}

static void reader_done(struct reader *r)
{
	struct fetch *f = r->issue;

	/* Fetches that were never issued count as arrived, so that their plans free them. */
	r->issue = NULL;
	while (f) {
		struct fetch *next = f->next;

		fetch_drop(f);
		f = next;
	}
	plans_release(r, &r->batch);
	plans_release(r, &r->ready);
	plans_free(r->idle_plans);
	for (unsigned i = 0; i < r->npieces && r->pieces; i++)
		free(r->pieces[i].p.data);
	free(r->pieces);
	workers_done(&r->workers);
}

static int reader_init(struct reader *r, const struct repo_read_options *opt, struct error *err)
{
	size_t bs = (size_t)1 << r->repo->block_bits;
	const struct map_root root = {
		.ref = r->disk->map->root,
		.blocks = disk_blocks(r->disk->size, r->repo->block_bits),
		.nsessions = r->disk->map->nsessions,
	};

	map_cursor_init(&r->cursor, &root);
	plan_list_init(&r->batch);
	plan_list_init(&r->ready);
	r->issue_end = &r->issue;
	r->group = (unsigned)max_u64(1, min_u64(PIECE_CLUSTERS, FRAME_TARGET_BYTES / bs));
	r->npieces = opt->pieces ? opt->pieces : DEFAULT_PIECES;
	r->pieces = calloc(r->npieces, sizeof(*r->pieces));
	if (!r->pieces)
		return error_nomem(err);
	for (unsigned i = 0; i < r->npieces; i++) {
		struct read_piece *rp = &r->pieces[i];

		rp->r = r;
		rp->p.data = malloc(PIECE_CLUSTERS * bs);
		rp->p.release = piece_back;
		if (!rp->p.data)
			return error_nomem(err);
		rp->next = r->idle_pieces;
		r->idle_pieces = rp;
	}
	return workers_init(&r->workers, pool_workers(r->pool), &r->repo->keys.id, 0,
			    FRAME_MAX_SLOTS * bs, err);
}

static bool reader_busy(const struct reader *r)
{
	if (r->out > 0 || r->gets > 0 || r->loading > 0 || r->node_loading)
		return true;
	return r->code == 0 && (r->phase != PLAN_DONE || r->ready.first);
}

static void call_tick(struct reader *r, const struct repo_read_options *opt, uint64_t done)
{
	struct error err = {0};
	int code = opt->tick ? opt->tick(opt->data, done, r->disk->size, &err) : 0;

	if (code < 0)
		reader_fail(r, code, &err);
}

static void reader_run(struct reader *r, const struct repo_read_options *opt)
{
	uint64_t next_tick = 0;

	reader_pump(r);
	while (reader_busy(r)) {
		struct error err = {0};
		uint64_t now = clock_monotonic_ms(&clock_system);
		int code;

		if (now >= next_tick) {
			next_tick = now + TICK_MS;
			call_tick(r, opt, min_u64(r->done_bytes, r->disk->size));
			reader_pump(r);
			continue;
		}
		code = loop_run_once(r->repo->loop, (int)(next_tick - now), &err);
		if (code < 0)
			reader_fail(r, code, &err);
	}
	if (r->code == 0)
		call_tick(r, opt, r->disk->size);
}

int repo_read_disk(struct repo *repo, const struct point *p, const struct point_disk *disk,
		   struct piece_sink *sink, const struct repo_read_options *opt, struct error *err)
{
	struct reader *r;
	int code = repo_check_right(repo, REPO_MAY_READ, err);

	if (code < 0)
		return code;
	r = calloc(1, sizeof(*r));
	if (!r)
		return error_nomem(err);
	*r = (struct reader){
		.repo = repo,
		.pool = opt->pool,
		.disk = disk,
		.sink = sink,
		.zero_runs = opt->zero_runs,
		.prove = opt->prove,
		.phase = PLAN_COLLECT,
	};
	code = reader_init(r, opt, err);
	if (code == 0) {
		reader_run(r, opt);
		error_prefix(&r->err, "point %.12s of %s", id_text(&p->id).s, p->guest);
		code = error_pass(err, r->code, &r->err);
	}
	reader_done(r);
	free(r);
	return code;
}
