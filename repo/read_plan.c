/* SPDX-License-Identifier: Apache-2.0 */
/* What the pieces of a disk are made of: clusters as the map has them, the frames that hold them,
 * and ranges of segments to fetch, for a batch of pieces at a time. */
#include "read.h"

#include <inttypes.h>
#include <string.h>

void plan_list_init(struct plan_list *l)
{
	l->first = NULL;
	l->end = &l->first;
	l->n = 0;
}

void plan_list_add(struct plan_list *l, struct plan *p)
{
	assert(l->end);
	p->next = NULL;
	*l->end = p;
	l->end = &p->next;
	l->n++;
}

void fetch_free(struct fetch *f)
{
	f->r->held -= f->held;
	free(f->buf);
	tables_unref(f->t);
	free(f);
}

void want_release(struct want *w)
{
	if (w->fetch && --w->fetch->refs == 0 && w->fetch->there)
		fetch_free(w->fetch);
	w->fetch = NULL;
	tables_unref(w->t);
	w->t = NULL;
}

void plan_release(struct reader *r, struct plan *p)
{
	for (unsigned i = 0; i < p->nwants; i++)
		want_release(&p->want[i]);
	p->nwants = 0;
	p->next = r->idle_plans;
	r->idle_plans = p;
}

/* ---- collecting ---- */

static struct plan *batch_last(struct reader *r)
{
	if (!r->batch.first)
		return NULL;
	return container_of(r->batch.end, struct plan, next);
}

static struct plan *plan_new(struct reader *r)
{
	struct plan *p = r->idle_plans;

	if (p)
		r->idle_plans = p->next;
	else
		p = malloc(sizeof(*p));
	if (!p)
		return NULL;
	p->seq = r->next_seq++;
	p->nruns = p->nclusters = p->nwants = p->resolved = 0;
	p->done_bytes = 0;
	plan_list_add(&r->batch, p);
	return p;
}

/*
 * A plan for a cluster at `block`: the last one, unless it is full or ends where a frame
 * may begin and could not take the whole frame.
 */
static struct plan *plan_for_data(struct reader *r, uint64_t block)
{
	struct plan *p = batch_last(r);
	bool joins;

	if (!p)
		return plan_new(r);
	joins = p->nruns > 0 && !p->run[p->nruns - 1].zero &&
		p->run[p->nruns - 1].block + p->run[p->nruns - 1].count == block;
	if (p->nclusters == PIECE_CLUSTERS || (!joins && p->nruns == PIECE_RUNS))
		return plan_new(r);
	if (block % r->group == 0 && p->nclusters + r->group > PIECE_CLUSTERS)
		return plan_new(r);
	return p;
}

static int collect_cluster(struct reader *r, uint64_t block, uint64_t ref, struct error *err)
{
	struct plan *p = plan_for_data(r, block);
	struct piece_run *last;

	if (!p)
		return error_nomem(err);
	last = p->nruns > 0 ? &p->run[p->nruns - 1] : NULL;
	if (last && !last->zero && last->block + last->count == block)
		last->count++;
	else
		p->run[p->nruns++] =
			(struct piece_run){.block = block, .count = 1, .first = p->nclusters};
	p->cluster[p->nclusters++] = (struct plan_cluster){.block = block, .ref = ref};
	p->done_bytes = (block + 1) << r->repo->block_bits;
	r->batch_clusters++;
	return 0;
}

static int collect_hole(struct reader *r, uint64_t block, uint64_t count, struct error *err)
{
	struct plan *p = batch_last(r);

	if (!p || p->nruns == PIECE_RUNS)
		p = plan_new(r);
	if (!p)
		return error_nomem(err);
	p->run[p->nruns++] = (struct piece_run){.block = block, .count = count, .zero = true};
	p->done_bytes = (block + count) << r->repo->block_bits;
	return 0;
}

static void node_there(struct cache_wait *w, int code)
{
	struct reader *r = container_of(w, struct reader, node_wait);

	r->node_loading = false;
	if (code < 0)
		reader_fail(r, code, &w->err);
	reader_pump(r);
}

/* True when the node has to be loaded first. */
static bool supply(struct reader *r, int *code, struct error *err)
{
	const struct map_need *need = &r->cursor.need;
	const struct table_entry *e = &r->disk->map->table[ref_session(need->ref)];
	uint64_t ordinal = ref_ordinal(need->ref);
	const uint8_t *bytes;
	size_t len;

	*code = 0;
	if (ordinal >> MAP_SLOTS_LOG2 >= e->nmap) {
		*code = error_set(err, TM_E_CORRUPT,
				  "the map refers to a segment that was never written");
		return false;
	}
	bytes = cache_node(r->repo->cache, &e->session, ordinal, &len);
	if (bytes) {
		*code = map_cursor_supply(&r->cursor, bytes, len, err);
		return false;
	}
	r->node_loading = true;
	r->node_wait.done = node_there;
	cache_load_node(r->repo->cache, &e->session, ordinal, &r->node_wait);
	return true;
}

/* The next run into r->run; false when it has to wait. */
static bool next_run(struct reader *r, int *code, struct error *err)
{
	while ((*code = map_cursor_next(&r->cursor, &r->run, err)) == MAP_NEED) {
		if (supply(r, code, err))
			return false;
		if (*code < 0)
			return true;
	}
	r->at_end = *code == 0 && r->run.count == 0;
	return true;
}

static int take_run(struct reader *r, unsigned max_clusters, struct error *err)
{
	int code = 0;

	if (r->run.ref == REF_HOLE) {
		if (r->zero_runs)
			code = collect_hole(r, r->run.block, r->run.count, err);
		r->run.count = 0;
		return code;
	}
	while (code == 0 && r->run.count > 0 && r->batch_clusters < max_clusters) {
		code = collect_cluster(r, r->run.block, r->run.ref, err);
		r->run.block++;
		r->run.ref++;
		r->run.count--;
	}
	return code;
}

static int collect(struct reader *r, struct error *err)
{
	unsigned max = BATCH_BYTES >> r->repo->block_bits;
	int code = 0;

	while (code == 0 && r->batch_clusters < max && r->batch.n < MAX_PLANS) {
		if (r->run.count == 0 && !next_run(r, &code, err))
			return 0; /* comes again */
		if (code < 0)
			return code;
		if (r->at_end)
			break;
		code = take_run(r, max, err);
	}
	r->phase = PLAN_RESOLVE;
	r->resolve_at = r->batch.first;
	return code;
}

/* ---- resolving: from references to frames ---- */

struct tables_wait {
	struct cache_wait wait;
	struct reader *r;
};

static void tables_there(struct cache_wait *wait, int code)
{
	struct tables_wait *w = container_of(wait, struct tables_wait, wait);
	struct reader *r = w->r;

	r->loading--;
	if (code < 0)
		reader_fail(r, code, &wait->err);
	free(w);
	reader_pump(r);
}

static int load_tables(struct reader *r, const struct tm_id *sid, uint32_t index, struct error *err)
{
	struct tables_wait *w = malloc(sizeof(*w));

	if (!w)
		return error_nomem(err);
	w->r = r;
	w->wait.done = tables_there;
	r->loading++;
	cache_load_tables(r->repo->cache, sid, SEGMENT_DATA, index, &w->wait);
	return 0;
}

static int check_ref(const struct reader *r, const struct plan_cluster *c, struct error *err)
{
	const struct table_entry *e = &r->disk->map->table[ref_session(c->ref)];

	if (ref_ordinal(c->ref) >> DATA_SLOTS_LOG2 >= e->ndata)
		return error_set(err, TM_E_CORRUPT,
				 "block %" PRIu64 " refers to a segment that was never written",
				 c->block);
	return 0;
}

static int add_want(struct reader *r, struct plan *p, struct plan_cluster *c, struct tables *t,
		    struct error *err)
{
	const struct seg_frame *f;

	c->slot = (uint32_t)(ref_ordinal(c->ref) & (DATA_SLOTS - 1));
	f = seg_find(t->t, c->slot);
	if (!f)
		return error_set(err, TM_E_CORRUPT,
				 "object %s does not hold slot %" PRIu32 " for block %" PRIu64,
				 t->key, c->slot, c->block);
	if (!t->t->has_key)
		return key_check_reads_all(r->repo, err); /* it does not */
	for (unsigned i = 0; i < p->nwants; i++) {
		if (p->want[i].f == f) {
			c->want = i;
			return 0;
		}
	}
	tables_ref(t);
	c->want = p->nwants;
	p->want[p->nwants++] = (struct want){.t = t, .f = f, .seq = p->seq};
	return 0;
}

/* 1: its tables are being loaded. */
static int resolve_cluster(struct reader *r, struct plan *p, struct plan_cluster *c,
			   struct error *err)
{
	const struct tm_id *sid = &r->disk->map->table[ref_session(c->ref)].session;
	uint32_t index = (uint32_t)(ref_ordinal(c->ref) >> DATA_SLOTS_LOG2);
	struct tables *t;
	int code = check_ref(r, c, err);

	if (code < 0)
		return code;
	t = cache_tables(r->repo->cache, sid, SEGMENT_DATA, index);
	if (!t) {
		code = load_tables(r, sid, index, err);
		return code < 0 ? code : 1;
	}
	code = add_want(r, p, c, t, err);
	tables_unref(t);
	return code;
}

/* Starts loading what later clusters will need. */
static int load_ahead(struct reader *r, const struct plan *p, uint64_t last_segment,
		      struct error *err)
{
	for (; p && r->loading < MAX_LOADS; p = p->next) {
		for (unsigned i = p == r->resolve_at ? p->resolved : 0; i < p->nclusters; i++) {
			const struct plan_cluster *c = &p->cluster[i];
			const struct tm_id *sid = &r->disk->map->table[ref_session(c->ref)].session;
			uint64_t segment = c->ref >> DATA_SLOTS_LOG2;
			struct tables *t;
			int code;

			if (segment == last_segment || check_ref(r, c, NULL) < 0)
				continue;
			last_segment = segment;
			t = cache_tables(r->repo->cache, sid, SEGMENT_DATA,
					 (uint32_t)(ref_ordinal(c->ref) >> DATA_SLOTS_LOG2));
			tables_unref(t);
			if (t)
				continue;
			code = load_tables(r, sid,
					   (uint32_t)(ref_ordinal(c->ref) >> DATA_SLOTS_LOG2), err);
			if (code < 0 || r->loading >= MAX_LOADS)
				return code;
		}
	}
	return 0;
}

static int compare_wants(const void *a, const void *b)
{
	const struct want *x = *(struct want *const *)a, *y = *(struct want *const *)b;
	int c;

	if (x->t != y->t) {
		c = strcmp(x->t->key, y->t->key);
		return c ? c : x->t < y->t ? -1 : 1;
	}
	if (x->f->offset != y->f->offset)
		return x->f->offset < y->f->offset ? -1 : 1;
	return x->seq < y->seq ? -1 : x->seq > y->seq;
}

static int compare_fetches(const void *a, const void *b)
{
	const struct fetch *x = *(struct fetch *const *)a, *y = *(struct fetch *const *)b;

	return x->first_seq < y->first_seq ? -1 : x->first_seq > y->first_seq;
}

static bool fetch_takes(const struct fetch *f, const struct want *w)
{
	uint64_t end = f->offset + f->len;

	return f->t == w->t && w->f->offset <= end + FETCH_GAP &&
	       w->f->offset + w->f->stored_len - f->offset <= FETCH_BYTES;
}

/* Groups the batch's wants, sorted, into fetches; returns how many. */
static int group_wants(struct reader *r, struct want **wants, size_t n, struct fetch **fetches,
		       size_t *ret, struct error *err)
{
	struct fetch *f = NULL;

	*ret = 0;
	for (size_t i = 0; i < n; i++) {
		struct want *w = wants[i];

		if (!f || !fetch_takes(f, w)) {
			f = calloc(1, sizeof(*f));
			if (!f)
				return error_nomem(err);
			f->r = r;
			f->t = w->t;
			tables_ref(f->t);
			f->offset = w->f->offset;
			f->first_seq = w->seq;
			fetches[(*ret)++] = f;
		}
		f->len = (size_t)max_u64(f->len, w->f->offset + w->f->stored_len - f->offset);
		f->first_seq = min_u64(f->first_seq, w->seq);
		f->refs++;
		w->fetch = f;
	}
	return 0;
}

static int make_fetches(struct reader *r, struct error *err)
{
	auto_free struct want **wants = NULL;
	auto_free struct fetch **fetches = NULL;
	size_t n = 0, nfetches = 0;
	int code;

	for (const struct plan *p = r->batch.first; p; p = p->next)
		n += p->nwants;
	wants = calloc(n + 1, sizeof(struct want *));
	fetches = calloc(n + 1, sizeof(struct fetch *));
	if (!wants || !fetches)
		return error_nomem(err);
	n = 0;
	for (struct plan *p = r->batch.first; p; p = p->next)
		for (unsigned i = 0; i < p->nwants; i++)
			wants[n++] = &p->want[i];
	qsort(wants, n, sizeof(struct want *), compare_wants);
	code = group_wants(r, wants, n, fetches, &nfetches, err);
	qsort(fetches, nfetches, sizeof(struct fetch *), compare_fetches);
	for (size_t i = 0; i < nfetches; i++) {
		*r->issue_end = fetches[i];
		r->issue_end = &fetches[i]->next;
	}
	return code;
}

static void batch_ready(struct reader *r)
{
	if (r->batch.first) {
		*r->ready.end = r->batch.first;
		r->ready.end = r->batch.end;
		r->ready.n += r->batch.n;
	}
	plan_list_init(&r->batch);
	r->batch_clusters = 0;
	r->phase = r->at_end ? PLAN_DONE : PLAN_COLLECT;
}

static int resolve(struct reader *r, struct error *err)
{
	int code = 0;

	while (r->resolve_at) {
		struct plan *p = r->resolve_at;

		while (p->resolved < p->nclusters) {
			struct plan_cluster *c = &p->cluster[p->resolved];

			code = resolve_cluster(r, p, c, err);
			if (code == 1)
				return load_ahead(r, p, c->ref >> DATA_SLOTS_LOG2, err);
			if (code < 0)
				return code;
			p->resolved++;
		}
		r->resolve_at = p->next;
	}
	code = make_fetches(r, err);
	batch_ready(r);
	return code;
}

void reader_plan(struct reader *r)
{
	struct error err = {0};
	int code = 0;

	while (code == 0 && r->code == 0 && r->phase != PLAN_DONE && !r->node_loading &&
	       r->loading == 0) {
		/* the next batch when half of the present one is gone */
		if (r->phase == PLAN_COLLECT && !r->batch.first &&
		    r->ready.n * PIECE_CLUSTERS > (BATCH_BYTES >> r->repo->block_bits) / 2)
			return;
		code = r->phase == PLAN_COLLECT ? collect(r, &err) : resolve(r, &err);
	}
	if (code < 0)
		reader_fail(r, code, &err);
}
