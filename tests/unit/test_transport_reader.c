/* SPDX-License-Identifier: Apache-2.0 */
/* The reader against a source and a sink of memory, with random maps and faults. */
#include "bench/sim_disk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define BLOCK   4096U
#define GRAIN   512U /* of the maps */
#define PENDING 256

/* ---- a source ---- */

struct fake_request {
	struct source_req *req;
	void *buf;
	uint32_t len;
	uint64_t offset;
	/* maps */
	enum source_map map;
	uint64_t length;
	struct extents *ret;
	uint64_t *ret_end;
	unsigned delay; /* turns */
};

struct fake_source {
	struct block_source src;
	struct loop *loop;
	struct loop_op turn;
	uint8_t *disk;
	bool *dirty, *data; /* one per GRAIN */
	unsigned state;     /* of rand_r */
	struct fake_request pending[PENDING];
	unsigned npending;
	unsigned reads, most_reads; /* in flight, and the most there ever were */
	unsigned max_delay;
	unsigned requests, fail_at; /* the n-th request fails; 0: none */
	bool no_advance, outside, silent, aborted;
	uint64_t max_map; /* answers are cut there */
};

static struct fake_source *fake_of(struct block_source *src)
{
	return (struct fake_source *)(void *)((char *)src - offsetof(struct fake_source, src));
}

static void answer_map(struct fake_source *f, struct fake_request *q)
{
	const bool *bits = q->map == SOURCE_MAP_DIRTY ? f->dirty : f->data;
	uint64_t end = q->offset + min_u64(q->length, f->max_map);

	for (uint64_t at = q->offset; at < end;) {
		uint64_t next = min_u64((at / GRAIN + 1) * GRAIN, end);

		if (bits[at / GRAIN])
			assert_int_equal(extents_add(q->ret, at, next - at, NULL), 0);
		at = next;
	}
	*q->ret_end = f->no_advance ? q->offset : end;
	if (f->outside)
		assert_int_equal(extents_add(q->ret, end, GRAIN, NULL), 0);
}

static void answer(struct fake_source *f, struct fake_request *q)
{
	error_clear(&q->req->err);
	f->reads -= q->buf != NULL;
	if (f->aborted) {
		q->req->done(q->req, error_set(&q->req->err, TM_E_CANCELED, "given up"));
		return;
	}
	if (++f->requests == f->fail_at) {
		q->req->done(q->req, error_set(&q->req->err, TM_E_PEER, "broken at %llu",
					       (unsigned long long)q->offset));
		return;
	}
	if (q->buf)
		(void)memcpy(q->buf, f->disk + q->offset, q->len);
	else
		answer_map(f, q);
	q->req->done(q->req, 0);
}

static void turn(struct loop_op *op, int res)
{
	struct fake_source *f =
		(struct fake_source *)(void *)((char *)op - offsetof(struct fake_source, turn));
	struct fake_request now[PENDING];
	unsigned n = 0;

	(void)res;
	for (unsigned i = 0; i < f->npending;) {
		if (!f->aborted && (f->silent || f->pending[i].delay--)) {
			i++;
			continue;
		}
		now[n++] = f->pending[i];
		f->pending[i] = f->pending[--f->npending];
	}
	for (unsigned i = 0; i < n; i++)
		answer(f, &now[i]);
	if (f->npending && !f->turn.armed && !f->silent)
		loop_defer(f->loop, &f->turn);
}

static void enqueue(struct fake_source *f, struct fake_request q)
{
	assert_true(f->npending < PENDING);
	q.delay = f->max_delay ? (unsigned)rand_r(&f->state) % f->max_delay : 0;
	f->pending[f->npending++] = q;
	if (!f->turn.armed)
		loop_defer(f->loop, &f->turn);
}

static void fake_map(struct block_source *src, enum source_map map, uint64_t offset,
		     uint64_t length, struct extents *ret, uint64_t *ret_end,
		     struct source_req *req)
{
	assert_true(length > 0 && range_inside(offset, length, src->size));
	enqueue(fake_of(src), (struct fake_request){.req = req,
						    .map = map,
						    .offset = offset,
						    .length = length,
						    .ret = ret,
						    .ret_end = ret_end});
}

static void fake_read(struct block_source *src, void *buf, uint32_t len, uint64_t offset,
		      struct source_req *req)
{
	struct fake_source *f = fake_of(src);

	assert_true(len > 0 && len <= src->max_read && range_inside(offset, len, src->size));
	f->reads++;
	f->most_reads = f->reads > f->most_reads ? f->reads : f->most_reads;
	enqueue(f, (struct fake_request){.req = req, .buf = buf, .len = len, .offset = offset});
}

static void fake_abort(struct block_source *src)
{
	struct fake_source *f = fake_of(src);

	f->aborted = true;
	if (f->npending && !f->turn.armed)
		loop_defer(f->loop, &f->turn);
}

static void fake_free(struct block_source *src)
{
	struct fake_source *f = fake_of(src);

	assert_int_equal(f->npending, 0);
	free(f->disk);
	free(f->dirty);
	free(f->data);
	free(f);
}

static const struct block_source_ops fake_ops = {
	.map = fake_map,
	.read = fake_read,
	.abort = fake_abort,
	.free = fake_free,
};

static struct fake_source *fake_new(struct loop *loop, uint64_t size, unsigned seed)
{
	struct fake_source *f = calloc(1, sizeof(*f));
	uint64_t grains = div_round_up(size, GRAIN);

	f->src = (struct block_source){.ops = &fake_ops,
				       .size = size,
				       .max_read = 3 * BLOCK,
				       .depth = 7,
				       .has_dirty = true,
				       .has_data = true};
	f->loop = loop;
	f->turn.done = turn;
	f->state = seed;
	f->max_delay = 5;
	f->max_map = UINT64_MAX;
	f->disk = malloc(size + 1);
	f->dirty = calloc(grains + 1, sizeof(bool));
	f->data = calloc(grains + 1, sizeof(bool));
	for (uint64_t i = 0; i < grains;) {
		uint64_t n = 1 + (uint64_t)rand_r(&f->state) % (rand_r(&f->state) % 4 ? 20 : 9000);
		bool dirty = rand_r(&f->state) % 2, data = rand_r(&f->state) % 3;

		for (; n-- && i < grains; i++) {
			f->dirty[i] = dirty;
			f->data[i] = data;
		}
	}
	for (uint64_t i = 0; i < size; i++)
		f->disk[i] =
			f->data[i / GRAIN] ? (uint8_t)((unsigned)rand_r(&f->state) % 255 + 1) : 0;
	return f;
}

/* ---- a sink ---- */

struct fake_sink {
	struct piece_sink sink;
	struct fake_source *f;
	struct loop *loop;
	unsigned *seen; /* per block: times reported */
	uint8_t *got;   /* the copy */
	bool *seq_seen;
	uint64_t nseq;
	struct piece *kept[64];
	unsigned nkept, keep; /* pieces kept for some time */
	unsigned hold;        /* pieces kept until there are so many */
	struct loop_op later;
	unsigned puts, fail_at;
};

static void take(struct fake_sink *s, const struct piece *p)
{
	uint64_t blocks = div_round_up(s->f->src.size, BLOCK), after = 0;

	assert_true(p->nruns > 0 && p->nruns <= PIECE_RUNS && p->nclusters <= PIECE_CLUSTERS);
	for (uint32_t i = 0; i < p->nruns; i++) {
		const struct piece_run *run = &p->run[i];

		assert_true(run->count > 0 && run->block >= after);
		assert_true(range_inside(run->block, run->count, blocks));
		after = run->block + run->count;
		for (uint64_t b = 0; b < run->count; b++) {
			uint8_t *to = s->got + (run->block + b) * BLOCK;

			s->seen[run->block + b]++;
			if (run->zero)
				(void)memset(to, 0, BLOCK);
			else
				(void)memcpy(to, p->data + (run->first + b) * BLOCK, BLOCK);
		}
	}
	assert_true(p->seq < 100000 && !s->seq_seen[p->seq]);
	s->seq_seen[p->seq] = true;
	s->nseq++;
}

static void give_back(struct loop_op *op, int res)
{
	struct fake_sink *s =
		(struct fake_sink *)(void *)((char *)op - offsetof(struct fake_sink, later));

	(void)res;
	while (s->nkept)
		piece_release(s->kept[--s->nkept]);
}

static int fake_put(struct piece_sink *sink, struct piece *p, struct error *err)
{
	struct fake_sink *s = (struct fake_sink *)(void *)sink;

	if (++s->puts == s->fail_at)
		return error_set(err, TM_E_NOSPACE, "full");
	take(s, p);
	if (!s->keep && !s->hold) {
		piece_release(p);
		return 0;
	}
	s->kept[s->nkept++] = p;
	if (s->hold && s->nkept < s->hold)
		return 0;
	if (!s->later.armed)
		loop_timer(s->loop, &s->later, 1);
	return 0;
}

static void sink_init(struct fake_sink *s, struct fake_source *f)
{
	uint64_t blocks = div_round_up(f->src.size, BLOCK) + 1;

	*s = (struct fake_sink){.sink.put = fake_put, .f = f, .loop = f->loop};
	s->later.done = give_back;
	s->seen = calloc(blocks, sizeof(*s->seen));
	s->got = calloc(blocks, BLOCK);
	s->seq_seen = calloc(100000, sizeof(bool));
	(void)memset(s->got, 0xee, blocks * BLOCK);
}

static void sink_done(struct fake_sink *s)
{
	assert_int_equal(s->nkept, 0);
	free(s->seen);
	free(s->got);
	free(s->seq_seen);
}

/* Every block that is dirty (or any, for the whole disk) has come once, and right. */
static void check_copy(const struct fake_sink *s, enum source_map map,
		       const struct reader_counts *c)
{
	const struct fake_source *f = s->f;
	uint64_t size = f->src.size, bytes = 0;

	for (uint64_t b = 0; b * BLOCK < size; b++) {
		uint64_t len = min_u64(BLOCK, size - b * BLOCK);
		bool dirty = map == SOURCE_MAP_DATA;

		for (uint64_t i = 0; i < len; i += GRAIN)
			dirty = dirty || f->dirty[(b * BLOCK + i) / GRAIN];
		assert_int_equal(s->seen[b], dirty ? 1 : 0);
		if (!dirty)
			continue;
		bytes += len;
		assert_memory_equal(s->got + b * BLOCK, f->disk + b * BLOCK, len);
		for (uint64_t i = len; i < BLOCK; i++)
			assert_int_equal(s->got[b * BLOCK + i], 0);
	}
	for (uint64_t i = 0; i < s->nseq; i++)
		assert_true(s->seq_seen[i]);
	assert_int_equal(c->dirty_bytes, bytes);
	assert_int_equal(c->done_bytes, bytes);
	assert_int_equal(c->read_bytes + c->zero_bytes, bytes);
	assert_true(c->mapped);
}

/* ---- tests ---- */

static unsigned seed_of_run(void)
{
	const char *env = getenv("SEED");
	unsigned seed =
		env ? (unsigned)strtoul(env, NULL, 0) : (unsigned)clock_unix_ms(&clock_system);

	print_message("SEED=%u\n", seed);
	return seed;
}

static struct loop *loop;

static int set_up(void **state)
{
	(void)state;
	return loop_new(64, &loop, NULL);
}

static int tear_down(void **state)
{
	(void)state;
	loop_free(loop);
	return 0;
}

static void every_dirty_byte_comes_once(void **unused)
{
	unsigned state = seed_of_run();

	(void)unused;
	for (unsigned round = 0; round < 40; round++) {
		uint64_t size = (uint64_t)rand_r(&state) % (8 << 20);
		struct fake_source *f = fake_new(loop, size, (unsigned)rand_r(&state));
		enum source_map map = round % 2 ? SOURCE_MAP_DATA : SOURCE_MAP_DIRTY;
		struct reader_options opt = {
			.map = map, .block_size = BLOCK, .pieces = 1 + round % 9};
		struct error err = {0};
		struct reader_counts c;
		struct fake_sink s;
		uint64_t estimate;

		sink_init(&s, f);
		s.keep = round % 3;
		f->max_map = round % 4 ? UINT64_MAX : 100 * GRAIN;
		f->src.has_data = round % 5 != 0;
		f->src.max_read = round % 7 ? 3 * BLOCK : 1000;
		assert_int_equal(reader_estimate(loop, &f->src, &opt, &estimate, &err), 0);
		assert_int_equal(reader_run(loop, &f->src, &s.sink, &opt, &c, &err), 0);
		check_copy(&s, map, &c);
		assert_int_equal(estimate, map == SOURCE_MAP_DIRTY ? c.dirty_bytes : c.read_bytes);
		sink_done(&s);
		block_source_free(&f->src);
	}
}

/* Every sampled block without a dirty byte has come once, and right; no other. */
static void check_sample(const struct fake_sink *s, const struct extents *sample,
			 const struct reader_counts *c)
{
	const struct fake_source *f = s->f;
	uint64_t size = f->src.size, bytes = 0;

	for (uint64_t b = 0; b * BLOCK < size; b++) {
		uint64_t len = min_u64(BLOCK, size - b * BLOCK);
		bool due = extents_contain(sample, b * BLOCK);

		for (uint64_t i = 0; i < len; i += GRAIN)
			due = due && !f->dirty[(b * BLOCK + i) / GRAIN];
		assert_int_equal(s->seen[b], due ? 1 : 0);
		if (due)
			assert_memory_equal(s->got + b * BLOCK, f->disk + b * BLOCK, len);
		bytes += due ? len : 0;
	}
	assert_int_equal(c->dirty_bytes, bytes);
	assert_int_equal(c->done_bytes, bytes);
	assert_int_equal(c->read_bytes + c->zero_bytes, bytes);
	assert_true(c->mapped);
}

static void make_sample(struct extents *ret, uint64_t size, unsigned *state)
{
	unsigned blocks = (unsigned)div_round_up(size, BLOCK), n = (unsigned)rand_r(state) % 50;

	for (unsigned i = 0; blocks && i < n; i++) {
		uint64_t at = (uint64_t)((unsigned)rand_r(state) % blocks) * BLOCK;
		uint64_t len = (1 + (unsigned)rand_r(state) % 9 / 8 * 700) * (uint64_t)BLOCK;

		assert_int_equal(extents_add(ret, at, min_u64(len, size - at), NULL), 0);
	}
}

/* The end of the last block that came. */
static void check_reach(const struct fake_sink *s, uint64_t reach)
{
	uint64_t size = s->f->src.size, end = 0;

	for (uint64_t b = 0; b * BLOCK < size; b++) {
		if (s->seen[b])
			end = min_u64((b + 1) * BLOCK, size);
	}
	assert_int_equal(reach, end);
}

static void of_a_sample_what_is_clean_comes_once(void **unused)
{
	unsigned state = seed_of_run();

	(void)unused;
	for (unsigned round = 0; round < 60; round++) {
		uint64_t size = (uint64_t)rand_r(&state) % (8 << 20);
		struct fake_source *f = fake_new(loop, size, (unsigned)rand_r(&state));
		auto_extents struct extents sample = {0};
		struct reader_options opt = {.map = SOURCE_MAP_DIRTY,
					     .sample = &sample,
					     .block_size = BLOCK,
					     .pieces = 1 + round % 9};
		struct error err = {0};
		struct reader_counts c;
		struct fake_sink s;
		uint64_t reach;

		make_sample(&sample, size, &state);
		sink_init(&s, f);
		s.keep = round % 3;
		f->max_map = round % 4 ? UINT64_MAX : 5 * GRAIN;
		f->src.has_data = round % 5 != 0;
		assert_int_equal(reader_reach(loop, &f->src, &opt, &reach, &err), 0);
		assert_int_equal(reader_run(loop, &f->src, &s.sink, &opt, &c, &err), 0);
		check_sample(&s, &sample, &c);
		check_reach(&s, reach);
		sink_done(&s);
		block_source_free(&f->src);
	}
}

static void a_sample_is_checked(void **unused)
{
	struct fake_source *f = fake_new(loop, 10 * BLOCK + 7, 3);
	struct extent e;
	const struct extents sample = {.v = &e, .n = 1};
	struct reader_options opt = {
		.map = SOURCE_MAP_DIRTY, .sample = &sample, .block_size = BLOCK, .pieces = 4};
	const struct extent bad[] = {
		{7, BLOCK}, {BLOCK, 7}, {10 * BLOCK, BLOCK}, {11 * BLOCK, BLOCK}};
	struct reader_counts c;
	struct fake_sink s;

	(void)unused;
	sink_init(&s, f);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		e = bad[i];
		assert_int_equal(reader_run(loop, &f->src, &s.sink, &opt, &c, NULL), TM_E_RANGE);
	}
	e = (struct extent){10 * BLOCK, 7};
	assert_int_equal(reader_run(loop, &f->src, &s.sink, &opt, &c, NULL), 0);
	opt.map = SOURCE_MAP_DATA;
	assert_int_equal(reader_run(loop, &f->src, &s.sink, &opt, &c, NULL), TM_E_RANGE);
	sink_done(&s);
	block_source_free(&f->src);
}

static void a_failing_request_ends_the_run_with_its_place(void **unused)
{
	unsigned seed = seed_of_run(), n = 1;
	int r;

	(void)unused;
	do {
		struct fake_source *f = fake_new(loop, (1 << 20) + 77, seed);
		struct reader_options opt = {.map = n % 2 ? SOURCE_MAP_DATA : SOURCE_MAP_DIRTY,
					     .block_size = BLOCK,
					     .pieces = 3};
		struct error err = {0};
		struct reader_counts c;
		struct fake_sink s;

		f->fail_at = n++;
		sink_init(&s, f);
		s.keep = n % 2;
		r = reader_run(loop, &f->src, &s.sink, &opt, &c, &err);
		if (f->requests < f->fail_at) {
			assert_int_equal(r, 0);
		} else {
			assert_int_equal(r, TM_E_PEER);
			assert_non_null(strstr(err.text, "broken at"));
			r = 1;
		}
		sink_done(&s);
		block_source_free(&f->src);
	} while (r || n < 4);
}

static void a_failing_sink_ends_the_run(void **unused)
{
	unsigned seed = seed_of_run();

	(void)unused;
	for (unsigned n = 1; n < 6; n++) {
		struct fake_source *f = fake_new(loop, 4 << 20, seed);
		struct reader_options opt = {
			.map = SOURCE_MAP_DATA, .block_size = BLOCK, .pieces = 4};
		struct error err = {0};
		struct reader_counts c;
		struct fake_sink s;

		sink_init(&s, f);
		s.keep = n % 2;
		s.fail_at = n;
		(void)memset(f->data, 1, div_round_up(f->src.size, GRAIN));
		assert_int_equal(reader_run(loop, &f->src, &s.sink, &opt, &c, &err), TM_E_NOSPACE);
		sink_done(&s);
		block_source_free(&f->src);
	}
}

static void bad_maps_are_the_peers_fault(void **unused)
{
	(void)unused;
	for (unsigned i = 0; i < 4; i++) {
		struct fake_source *f = fake_new(loop, 4 << 20, 5);
		struct reader_options opt = {.map = i % 2 ? SOURCE_MAP_DATA : SOURCE_MAP_DIRTY,
					     .block_size = BLOCK,
					     .pieces = 4};
		struct error err = {0};
		struct reader_counts c;
		struct fake_sink s;

		sink_init(&s, f);
		f->no_advance = i / 2;
		f->outside = !f->no_advance;
		assert_int_equal(reader_run(loop, &f->src, &s.sink, &opt, &c, &err), TM_E_PEER);
		sink_done(&s);
		block_source_free(&f->src);
	}
}

static int stop_at_once(void *data, const struct reader_counts *counts, struct error *err)
{
	(void)data;
	(void)counts;
	return error_set(err, TM_E_CANCELED, "interrupted");
}

static void tick_ends_a_run_whose_source_stands_still(void **unused)
{
	struct fake_source *f = fake_new(loop, 1 << 20, 3);
	struct reader_options opt = {
		.map = SOURCE_MAP_DIRTY, .block_size = BLOCK, .pieces = 4, .tick = stop_at_once};
	struct error err = {0};
	struct reader_counts c;
	struct fake_sink s;

	(void)unused;
	sink_init(&s, f);
	f->silent = true;
	assert_int_equal(reader_run(loop, &f->src, &s.sink, &opt, &c, &err), TM_E_CANCELED);
	sink_done(&s);
	block_source_free(&f->src);
}

static void a_silent_source_runs_into_the_stall_limit(void **unused)
{
	struct fake_source *f = fake_new(loop, 1 << 20, 3);
	struct reader_options opt = {
		.map = SOURCE_MAP_DATA, .block_size = BLOCK, .pieces = 4, .stall_ms = 250};
	struct error err = {0};
	struct reader_counts c;
	struct fake_sink s;

	(void)unused;
	sink_init(&s, f);
	f->silent = true;
	assert_int_equal(reader_run(loop, &f->src, &s.sink, &opt, &c, &err), TM_E_TIMEOUT);
	sink_done(&s);
	block_source_free(&f->src);
}

/* Counting what changed, too, without anybody who would interrupt it. */
static void a_silent_source_is_not_counted_for_ever(void **unused)
{
	struct fake_source *f = fake_new(loop, 1 << 20, 3);
	struct reader_options opt = {
		.map = SOURCE_MAP_DIRTY, .block_size = BLOCK, .pieces = 1, .stall_ms = 250};
	struct error err = {0};
	uint64_t bytes = 77;

	(void)unused;
	f->silent = true;
	assert_int_equal(reader_estimate(loop, &f->src, &opt, &bytes, &err), TM_E_TIMEOUT);
	assert_non_null(strstr(err.text, "has not answered"));
	assert_int_equal(bytes, 77);
	assert_int_equal(f->npending, 0);
	block_source_free(&f->src);
}

static void counting_ends_when_its_tick_says_so(void **unused)
{
	struct fake_source *f = fake_new(loop, 1 << 20, 3);
	struct reader_options opt = {
		.map = SOURCE_MAP_DIRTY, .block_size = BLOCK, .pieces = 1, .tick = stop_at_once};
	struct error err = {0};
	uint64_t bytes;

	(void)unused;
	f->silent = true;
	assert_int_equal(reader_estimate(loop, &f->src, &opt, &bytes, &err), TM_E_CANCELED);
	block_source_free(&f->src);
}

static void the_rate_is_kept(void **unused)
{
	struct fake_source *f = fake_new(loop, 3 << 20, 3);
	const uint64_t rate = 4 << 20;
	struct reader_options opt = {
		.map = SOURCE_MAP_DATA, .block_size = BLOCK, .pieces = 64, .rate = &rate};
	uint64_t begin = clock_monotonic_ms(&clock_system), ms;
	struct error err = {0};
	struct reader_counts c;
	struct fake_sink s;

	(void)unused;
	(void)memset(f->data, 1, div_round_up(f->src.size, GRAIN));
	sink_init(&s, f);
	assert_int_equal(reader_run(loop, &f->src, &s.sink, &opt, &c, &err), 0);
	ms = clock_monotonic_ms(&clock_system) - begin;
	assert_true(ms >= 650);
	sink_done(&s);
	block_source_free(&f->src);
}

/* The most reads in flight for a sink that holds `hold` of eight pieces before it works. */
static unsigned most_reads(unsigned hold)
{
	enum { PIECES = 8 };
	struct fake_source *f = fake_new(loop, (uint64_t)4 * PIECES * PIECE_CLUSTERS * BLOCK, 3);
	struct reader_options opt = {.map = SOURCE_MAP_DATA, .block_size = BLOCK, .pieces = PIECES};
	struct error err = {0};
	struct reader_counts c;
	struct fake_sink s;
	unsigned most;

	(void)memset(f->data, 1, div_round_up(f->src.size, GRAIN));
	f->src.depth = 20;
	f->src.max_read = BLOCK;
	sink_init(&s, f);
	s.hold = hold;
	assert_int_equal(reader_run(loop, &f->src, &s.sink, &opt, &c, &err), 0);
	check_copy(&s, SOURCE_MAP_DATA, &c);
	most = f->most_reads;
	sink_done(&s);
	block_source_free(&f->src);
	return most;
}

static void reads_in_flight_follow_the_sink(void **unused)
{
	(void)unused;
	assert_int_equal(most_reads(0), 20);  /* it waits for us: all that are worth having */
	assert_in_range(most_reads(8), 8, 9); /* we wait for it */
}

struct changing_rate {
	uint64_t rate;
	unsigned ticks;
};

/* Nothing is read in two seconds of such a rate; the third tick takes it back. */
static int take_the_rate_back(void *data, const struct reader_counts *counts, struct error *err)
{
	struct changing_rate *c = data;

	(void)err;
	if (++c->ticks < 3)
		assert_true(counts->read_bytes < 3 << 20);
	else
		c->rate = 0;
	return 0;
}

static void the_tick_may_change_the_rate(void **unused)
{
	struct fake_source *f = fake_new(loop, 3 << 20, 3);
	struct changing_rate rate = {.rate = 1};
	struct reader_options opt = {.map = SOURCE_MAP_DATA,
				     .block_size = BLOCK,
				     .pieces = 64,
				     .rate = &rate.rate,
				     .tick = take_the_rate_back,
				     .data = &rate};
	struct error err = {0};
	struct reader_counts c;
	struct fake_sink s;

	(void)unused;
	(void)memset(f->data, 1, div_round_up(f->src.size, GRAIN));
	sink_init(&s, f);
	assert_int_equal(reader_run(loop, &f->src, &s.sink, &opt, &c, &err), 0);
	assert_true(rate.ticks >= 3);
	assert_true(c.read_bytes == f->src.size);
	sink_done(&s);
	block_source_free(&f->src);
}

/* ---- large and sparse ---- */

struct counting_sink {
	struct piece_sink sink;
	uint64_t clusters;
};

static int counting_put(struct piece_sink *sink, struct piece *p, struct error *err)
{
	(void)err;
	((struct counting_sink *)(void *)sink)->clusters += p->nclusters;
	piece_release(p);
	return 0;
}

static int count_tick(void *data, const struct reader_counts *counts, struct error *err)
{
	(void)counts;
	(void)err;
	++*(unsigned *)data;
	return 0;
}

/* Thousands of windows with nothing in them: none may wait for the next tick. */
static void an_empty_map_is_passed_without_a_pause(void **state)
{
	struct counting_sink sink = {.sink.put = counting_put};
	unsigned ticks = 0;
	const struct reader_options opt = {
		.block_size = 65536, .pieces = 4, .tick = count_tick, .data = &ticks};
	struct reader_counts counts;
	struct sim_disk disk;

	(void)state;
	sim_disk_init(&disk, loop, UINT64_C(16) << 40, 65536);
	sim_disk_choose(&disk, 3, 1, 1);
	assert_int_equal(reader_run(loop, &disk.src, &sink.sink, &opt, &counts, NULL), 0);
	assert_int_equal(sink.clusters, 3);
	assert_true(ticks < 500); /* a pause in each round of windows: 1024 */
	sim_disk_done(&disk);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_dirty_byte_comes_once),
		cmocka_unit_test(of_a_sample_what_is_clean_comes_once),
		cmocka_unit_test(a_sample_is_checked),
		cmocka_unit_test(an_empty_map_is_passed_without_a_pause),
		cmocka_unit_test(a_failing_request_ends_the_run_with_its_place),
		cmocka_unit_test(a_failing_sink_ends_the_run),
		cmocka_unit_test(bad_maps_are_the_peers_fault),
		cmocka_unit_test(tick_ends_a_run_whose_source_stands_still),
		cmocka_unit_test(a_silent_source_runs_into_the_stall_limit),
		cmocka_unit_test(a_silent_source_is_not_counted_for_ever),
		cmocka_unit_test(counting_ends_when_its_tick_says_so),
		cmocka_unit_test(reads_in_flight_follow_the_sink),
		cmocka_unit_test(the_rate_is_kept),
		cmocka_unit_test(the_tick_may_change_the_rate),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
