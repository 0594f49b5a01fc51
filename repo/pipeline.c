/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From pieces to frames.  Per piece:
 *
 *	hash (worker) ─▸ decide (loop, in order) ─▸ compress (worker) ─▸ append (loop, in order)
 *
 * Deciding in order is what lets a cluster be looked up by its content before it is
 * compressed; appending in order makes the output depend on the input alone.  The piece is
 * given back when its last frame is in a segment, so that the producer cannot run ahead of
 * the store.
 */
#include "session.h"

#include <inttypes.h>
#include <string.h>

static size_t block_size(const struct repo_session *s)
{
	return (size_t)1 << s->repo->block_bits;
}

static uint64_t disk_end(const struct repo_session *s)
{
	return disk_blocks(s->disks[s->ndisks - 1].size, s->repo->block_bits);
}

/* ---- on workers ---- */

static void hash_run(struct pool_task *task, unsigned worker)
{
	struct work *w = container_of(task, struct work, task);
	size_t len = block_size(w->s);
	const uint8_t *data[PIECE_CLUSTERS];
	uint8_t *id[PIECE_CLUSTERS];
	unsigned n = 0;

	for (unsigned i = 0; i < w->nclusters; i++) {
		struct cluster *c = &w->cluster[i];

		c->zero = cluster_is_zero(c->data, len);
		if (!c->zero) {
			data[n] = c->data;
			id[n++] = c->id;
		}
	}
	w->code = content_ids(&w->s->workers.v[worker], n, data, len, id, &w->err);
}

/* How unequal n bytes are: about n + n²/256 for noise, with a standard deviation of n/11. */
static uint64_t squared_histogram(const uint32_t count[256])
{
	uint64_t sum = 0;

	for (size_t i = 0; i < 256; i++)
		sum += (uint64_t)count[i] * count[i];
	return sum;
}

/*
 * Whether bytes look like noise: those of a sample are about equally frequent.  The sample is of
 * short runs, each elsewhere in its part, so that a column of random numbers in a table is not
 * taken for all of it.  Most data differ from noise so much that a quarter of it tells.
 */
static bool looks_random(const uint8_t *p, size_t len)
{
	enum { RUNS = 128, RUN = 32, QUARTERS = 4 };
	size_t part = len / RUNS;
	uint32_t count[256] = {0};

	static_assert(RUNS * RUN == 4096, "the limits are for 1024 and 4096 bytes");
	if (part / 2 < RUN)
		return false;
	for (size_t quarter = 0; quarter < QUARTERS; quarter++) {
		for (size_t i = quarter; i < RUNS; i += QUARTERS) {
			const uint8_t *run = p + i * part + i * 7919 % (part - RUN);

			for (size_t k = 0; k < RUN; k++)
				count[run[k]]++;
		}
		if (quarter == 0 && squared_histogram(count) > 6000)
			return false;
	}
	return squared_histogram(count) < 72000;
}

/* Encodes f, whose clusters are at in. */
static void compress_frame(struct worker *w, const uint8_t *in, size_t len, uint8_t *out,
			   struct work_frame *f)
{
	if (!looks_random(in, len)) {
		size_t n = ZSTD_compress2(w->cctx, out, len, in, len);

		/* A bare percent is not worth decompressing it each time. */
		if (!ZSTD_isError(n) && n + n / 64 < len) {
			f->method = FRAME_ZSTD;
			f->data = out;
			f->len = n;
			return;
		}
	}
	f->method = FRAME_RAW;
	f->data = in;
	f->len = len;
}

static void compress_run(struct pool_task *task, unsigned worker)
{
	struct work *w = container_of(task, struct work, task);
	size_t bs = block_size(w->s), used = 0;

	for (unsigned i = 0; i < w->nframes; i++) {
		struct work_frame *f = &w->frame[i];

		compress_frame(&w->s->workers.v[worker], w->cluster[f->first].data, f->n * bs,
			       w->out + used, f);
		used += f->method == FRAME_RAW ? 0 : f->len;
	}
}

/* ---- appending ---- */

static void node_loaded(struct cache_wait *wait, int code)
{
	struct repo_session *s = container_of(wait, struct repo_session, load);

	s->loading = false;
	if (code < 0)
		session_fail(s, code, &wait->err);
	session_pump(s);
}

bool session_supply(struct repo_session *s, int *code, struct error *err)
{
	const struct map_need *need = &s->map_writer.need;
	const struct tm_id *sid = &session_disk(s)->map.table[ref_session(need->ref)].session;
	const uint8_t *bytes;
	size_t len;

	*code = 0;
	/* What the look has found lost before: every block of it is being named. */
	if (s->whole && lost_has(&s->lost, sid, SEGMENT_MAP, ref_ordinal(need->ref))) {
		map_writer_supply_lost(&s->map_writer);
		return false;
	}
	bytes = cache_node(s->repo->cache, sid, ref_ordinal(need->ref), &len);
	if (bytes) {
		*code = map_writer_supply(&s->map_writer, bytes, len, err);
		return false;
	}
	s->loading = true;
	s->load.done = node_loaded;
	cache_load_node(s->repo->cache, sid, ref_ordinal(need->ref), &s->load);
	return true;
}

enum progress {
	WENT_ON,
	HAS_TO_WAIT,
};

static int map_set(struct repo_session *s, const struct work *w, enum progress *ret,
		   struct error *err)
{
	const struct work_step *st = &w->step[w->at];
	uint64_t ref = st->kind == STEP_HOLE ? REF_HOLE : w->ref;
	int r;

	*ret = WENT_ON;
	while ((r = map_writer_set(&s->map_writer, st->block, st->count, ref, err)) == MAP_NEED) {
		if (session_supply(s, &r, err)) {
			*ret = HAS_TO_WAIT;
			return 0;
		}
		if (r < 0)
			break;
	}
	return r;
}

/* Puts what the step needs into a segment.  0, OUT_WAIT or an error. */
static int store_step(struct repo_session *s, struct work *w, struct error *err)
{
	const struct work_step *st = &w->step[w->at];
	const struct work_frame *f = &w->frame[st->at];
	uint64_t ordinal = 0;
	int r;

	switch (st->kind) {
	case STEP_HOLE:
		return output_hole(s, st->block, st->count, err);
	case STEP_TWIN:
		r = decide_twin(s, &w->cluster[st->at], &w->ref, err);
		return r ? r : output_alias(s, st->block, w->ref, err);
	case STEP_FRAME:
		break;
	}
	r = output_frame(s, w, f, &ordinal, err);
	for (unsigned i = 0; r == 0 && i < f->n; i++)
		r = decide_stored(s, &w->cluster[f->first + i], ordinal + i, err);
	w->ref = ref_of(s->map_writer.own, ordinal);
	return r;
}

static int append_step(struct repo_session *s, struct work *w, enum progress *ret,
		       struct error *err)
{
	int r;

	*ret = WENT_ON;
	if (!w->stored) {
		r = store_step(s, w, err);
		if (r == OUT_WAIT)
			*ret = HAS_TO_WAIT;
		if (r != 0)
			return r == OUT_WAIT ? 0 : r;
		w->stored = true;
	}
	r = map_set(s, w, ret, err);
	if (r == 0 && *ret == WENT_ON) {
		w->stored = false;
		w->at++;
	}
	return r;
}

/* ---- works ---- */

static void work_end(struct repo_session *s, struct work *w)
{
	struct piece *piece = w->piece;

	for (struct work **p = &s->works; *p; p = &(*p)->next) {
		if (*p == w) {
			*p = w->next;
			break;
		}
	}
	w->piece = NULL;
	w->next = s->idle_works;
	s->idle_works = w;
	piece_release(piece);
}

static struct work *find_work(struct repo_session *s, enum work_state state, uint64_t seq)
{
	for (struct work *w = s->works; w; w = w->next)
		if (w->state == state && w->piece->seq == seq)
			return w;
	return NULL;
}

static struct work *find_resting(struct repo_session *s)
{
	for (struct work *w = s->works; w; w = w->next)
		if (w->state == WORK_HASHED || w->state == WORK_COMPRESSED)
			return w;
	return NULL;
}

static void work_back(struct work *w, enum work_state state)
{
	w->state = state;
	if (w->code < 0)
		session_fail(w->s, w->code, &w->err);
	session_pump(w->s);
}

static void hash_done(struct pool_task *task)
{
	work_back(container_of(task, struct work, task), WORK_HASHED);
}

static void compress_done(struct pool_task *task)
{
	work_back(container_of(task, struct work, task), WORK_COMPRESSED);
}

/* False when the piece has to wait. */
static bool decide_piece(struct repo_session *s, struct work *w)
{
	struct error err = {0};
	int r = decide(s, w, &err);

	if (r < 0)
		session_fail(s, r, &err);
	if (r != 0)
		return false;
	s->next_decide++;
	if (w->nframes == 0) {
		w->state = WORK_COMPRESSED;
		return true;
	}
	w->state = WORK_COMPRESSING;
	w->task = (struct pool_task){.run = compress_run, .done = compress_done};
	pool_submit(s->pool, &w->task);
	return true;
}

/* False when the piece has to wait. */
static bool append_piece(struct repo_session *s, struct work *w)
{
	enum progress progress = WENT_ON;
	struct error err = {0};
	int r = 0;

	while (r == 0 && progress == WENT_ON && w->at < w->nsteps)
		r = append_step(s, w, &progress, &err);
	if (r < 0) {
		session_fail(s, r, &err);
		return false;
	}
	if (progress == HAS_TO_WAIT)
		return false;
	s->next_append++;
	work_end(s, w);
	return true;
}

static void pump_once(struct repo_session *s)
{
	struct work *w;

	while (s->code == 0 && !session_looks(s) && (w = find_work(s, WORK_HASHED, s->next_decide)))
		if (!decide_piece(s, w))
			break;
	while (s->code == 0 && !s->loading && (w = find_work(s, WORK_COMPRESSED, s->next_append)))
		if (!append_piece(s, w))
			break;
	pipeline_ahead(s);
	while (s->code < 0 && (w = find_resting(s)))
		work_end(s, w);
}

/* Moves everything on as far as it goes.  Callbacks may call it again. */
void session_pump(struct repo_session *s)
{
	s->pump_again = true;
	if (s->pumping)
		return;
	s->pumping = true;
	while (s->pump_again) {
		s->pump_again = false;
		pump_once(s);
	}
	s->pumping = false;
}

/* ---- loading ahead ---- */

static struct work *find_seq(struct repo_session *s, uint64_t seq)
{
	for (struct work *w = s->works; w; w = w->next)
		if (w->piece->seq == seq)
			return w;
	return NULL;
}

/* Leaves of the parent's map.  False when it has to wait. */
static bool ahead_piece(struct repo_session *s, const struct piece *p)
{
	const struct table_entry *table = session_disk(s)->map.table;

	for (; s->ahead_at.run < p->nruns; s->ahead_at.run++, s->ahead_at.in_run = 0) {
		const struct piece_run *run = &p->run[s->ahead_at.run];
		uint64_t n = run->zero ? 1 : run->count;

		for (; s->ahead_at.in_run < n; s->ahead_at.in_run++)
			if (!ahead_leaf(&s->ahead, table, run->block + s->ahead_at.in_run))
				return false;
	}
	return true;
}

static void ahead_go_to(struct repo_session *s, uint64_t seq)
{
	s->ahead_at.seq = seq;
	s->ahead_at.in_run = 0;
	s->ahead_at.run = 0;
}

static void ahead_leaves(struct repo_session *s)
{
	while (!s->ahead.off) {
		const struct work *w;

		if (s->ahead_at.seq < s->next_append)
			ahead_go_to(s, s->next_append);
		w = find_seq(s, s->ahead_at.seq);
		if (!w || !ahead_piece(s, w->piece))
			return;
		ahead_go_to(s, s->ahead_at.seq + 1);
	}
}

/* Tables that a hashed piece will be compared with.  False when it has to wait. */
static bool ahead_clusters(struct repo_session *s, struct work *w)
{
	const struct table_entry *table = session_disk(s)->map.table;

	for (; s->ahead_at.cluster < w->nclusters; s->ahead_at.cluster++) {
		struct cluster *c = &w->cluster[s->ahead_at.cluster];
		uint64_t ref;
		bool worth;

		if (c->zero)
			continue;
		if (!ahead_ref(&s->ahead, table, c->block, &ref))
			return false;
		if (ref == REF_HOLE || look_lost(&s->look, ref))
			continue;
		if (decide_worth(s, c, ref, &worth, NULL) < 0)
			s->ahead.off = true;
		else if (worth && !ahead_tables(&s->ahead, table, ref))
			return false;
	}
	return true;
}

static void ahead_works(struct repo_session *s)
{
	while (!s->ahead.off) {
		struct work *w;

		if (s->ahead_at.tables_seq < s->next_decide) {
			s->ahead_at.tables_seq = s->next_decide;
			s->ahead_at.cluster = 0;
		}
		w = find_work(s, WORK_HASHED, s->ahead_at.tables_seq);
		if (!w)
			return;
		if (s->ahead_at.cluster < w->cluster_at)
			s->ahead_at.cluster = w->cluster_at;
		if (!ahead_clusters(s, w))
			return;
		s->ahead_at.tables_seq++;
		s->ahead_at.cluster = 0;
	}
}

void pipeline_ahead(struct repo_session *s)
{
	if (s->code < 0 || !s->works)
		return;
	ahead_leaves(s);
	ahead_works(s);
}

/* ---- taking pieces ---- */

static int check_run(const struct repo_session *s, const struct piece *p,
		     const struct piece_run *run, uint64_t *next, struct error *err)
{
	uint64_t end;

	if (run->count == 0 || !range_end(run->block, run->count, &end) || end > disk_end(s))
		return error_set(err, TM_E_RANGE,
				 "piece %" PRIu64 ": blocks %" PRIu64 " + %" PRIu64
				 " are not on the disk",
				 p->seq, run->block, run->count);
	if (run->block < *next)
		return error_set(err, TM_E_RANGE, "piece %" PRIu64 ": block %" PRIu64 " comes late",
				 p->seq, run->block);
	if (!run->zero && !range_inside(run->first, run->count, p->nclusters))
		return error_set(err, TM_E_RANGE,
				 "piece %" PRIu64 ": clusters %" PRIu32 " + %" PRIu64
				 " of %" PRIu32,
				 p->seq, run->first, run->count, p->nclusters);
	*next = end;
	return 0;
}

static int check_piece(const struct repo_session *s, const struct piece *p, struct error *err)
{
	uint64_t next = 0, data = 0;

	if (p->nruns > PIECE_RUNS || p->nclusters > PIECE_CLUSTERS)
		return error_set(err, TM_E_RANGE, "piece %" PRIu64 " has too many runs or clusters",
				 p->seq);
	for (uint32_t i = 0; i < p->nruns; i++) {
		int r = check_run(s, p, &p->run[i], &next, err);

		if (r < 0)
			return r;
		if (!p->run[i].zero)
			data += p->run[i].count;
	}
	if (data > PIECE_CLUSTERS)
		return error_set(err, TM_E_RANGE, "piece %" PRIu64 " has too many clusters",
				 p->seq);
	return 0;
}

static int work_new(struct repo_session *s, struct work **ret, struct error *err)
{
	struct work *w = s->idle_works;

	if (w) {
		s->idle_works = w->next;
		*ret = w;
		return 0;
	}
	w = calloc(1, sizeof(*w));
	if (!w)
		return error_nomem(err);
	w->out = malloc(PIECE_CLUSTERS * block_size(s));
	if (!w->out) {
		free(w);
		return error_nomem(err);
	}
	w->s = s;
	*ret = w;
	return 0;
}

static void work_fill(struct work *w, struct piece *piece)
{
	size_t bs = block_size(w->s);

	w->piece = piece;
	w->code = 0;
	error_clear(&w->err);
	w->run = w->cluster_at = w->at = 0;
	w->in_run = 0;
	w->stored = false;
	w->nclusters = w->nframes = w->nsteps = 0;
	for (uint32_t i = 0; i < piece->nruns; i++) {
		const struct piece_run *run = &piece->run[i];

		for (uint64_t k = 0; !run->zero && k < run->count; k++)
			w->cluster[w->nclusters++] = (struct cluster){
				.block = run->block + k,
				.data = piece->data + (run->first + k) * bs,
			};
	}
}

int pipeline_put(struct piece_sink *sink, struct piece *piece, struct error *err)
{
	struct repo_session *s = container_of(sink, struct repo_session, sink);
	struct work *w = NULL;
	int r;

	if (s->code < 0)
		return session_failure(s, err);
	if (!s->disk_open)
		return error_set(err, TM_E_RANGE, "a piece for a disk that has ended");
	marker_beat(s);
	r = check_piece(s, piece, err);
	if (r == 0 && piece->seq < s->next_decide)
		r = error_set(err, TM_E_RANGE, "piece %" PRIu64 " came before", piece->seq);
	r = r ? r : work_new(s, &w, err);
	if (r < 0)
		return r;
	if (piece->nruns > 0) {
		const struct piece_run *last = &piece->run[piece->nruns - 1];

		if (last->block + last->count == disk_end(s))
			s->last_block_seen = true;
	}
	assert(w);
	work_fill(w, piece);
	w->next = s->works;
	s->works = w;
	w->state = WORK_HASHING;
	w->task = (struct pool_task){.run = hash_run, .done = hash_done};
	pool_submit(s->pool, &w->task);
	pipeline_ahead(s);
	return 0;
}

void pipeline_free(struct repo_session *s)
{
	assert(!s->works);
	while (s->idle_works) {
		struct work *w = s->idle_works;

		s->idle_works = w->next;
		free(w->out);
		free(w);
	}
}
