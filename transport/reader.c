/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a source to pieces.  A piece goes round:
 *
 *	free ──▸ filling ──▸ reading ──▸ ready ──▸ lent to the sink ──▸ free
 *
 * At most one piece is being filled with runs; a full one waits in `reading` until
 * all its reads were issued, and is ready when all have come back.  Callbacks (of
 * reads, maps, and the sink's release) only change state; the main loop in
 * reader_run() moves everything on, so nothing is ever called recursively.
 */
#include "alive.h"
#include "mapper.h"
#include "rate.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define TICK_MS      100   /* promised are 200 */
#define SINK_END_MS  30000 /* for a sink to give its pieces back after a failure */
#define ABORT_END_MS 30000 /* for an aborted source to end its requests */
#define READ_AHEAD   4     /* pieces that wait for a read to become possible */
#define FIRST_WINDOW 8     /* reads: 4 MiB, which keep most disks busy */

struct reader_piece {
	struct piece p; /* first: release() gets its address */
	struct reader *r;
	uint64_t bytes;  /* that it stands for, clipped to the disk */
	uint64_t issued; /* bytes of p.data whose reads have been issued */
	unsigned reads;  /* in flight */
	bool ours;       /* neither free nor lent */
	int code;        /* of the first failed read */
};

struct reader_read {
	struct source_req req;
	struct reader_piece *rp;
	struct reader_read *next;
};

struct piece_queue {
	struct piece *first, **end;
};

struct reader {
	struct loop *loop;
	struct block_source *src;
	struct piece_sink *sink;
	struct reader_options opt;
	struct reader_counts counts;
	struct mapper mapper;

	struct reader_piece *pieces;
	uint8_t *memory; /* all pieces' data */
	size_t memory_bytes;
	struct piece *free; /* last in, first out: its memory is warm */
	unsigned nfree;
	struct reader_piece *filling;
	struct piece_queue reading, ready;
	unsigned nreading; /* pieces in `reading` */
	uint64_t seq;
	struct map_range range; /* rest of the range that is being cut into runs */
	bool range_end;         /* there are no more */

	struct reader_read *reads, *idle_reads;
	unsigned in_flight, window; /* reads, and how many there may be */
	unsigned lent;              /* pieces that the sink has */
	uint64_t answers;           /* counts reads that came back */

	uint64_t now_ms;
	uint64_t tick_at_ms;
	struct alive alive;
	struct rate rate;

	int code; /* of the first failure */
	struct error err;
};

static void fail(struct reader *r, int code, const struct error *err)
{
	if (r->code)
		return;
	r->code = code;
	r->err = *err;
}

/* ---- queues ---- */

static void queue_init(struct piece_queue *q)
{
	q->first = NULL;
	q->end = &q->first;
}

static void queue_push(struct piece_queue *q, struct piece *p)
{
	p->next = NULL;
	*q->end = p;
	q->end = &p->next;
}

static struct piece *queue_pop(struct piece_queue *q)
{
	struct piece *p = q->first;

	q->first = p->next;
	if (!q->first)
		q->end = &q->first;
	return p;
}

#define reader_piece_of(piece) container_of((piece), struct reader_piece, p)

static void piece_free(struct reader *r, struct piece *p)
{
	reader_piece_of(p)->ours = false;
	p->next = r->free;
	r->free = p;
	r->nfree++;
}

static void piece_returned(struct piece *p)
{
	struct reader *r = reader_piece_of(p)->r;

	r->lent--;
	piece_free(r, p);
}

/* ---- filling pieces with runs ---- */

static struct reader_piece *start_piece(struct reader *r)
{
	struct reader_piece *rp = reader_piece_of(r->free);

	r->free = rp->p.next;
	r->nfree--;
	rp->p.seq = r->seq++;
	rp->p.nruns = 0;
	rp->p.nclusters = 0;
	rp->bytes = 0;
	rp->issued = 0;
	rp->reads = 0;
	rp->code = 0;
	rp->ours = true;
	return rp;
}

/* The disk's ragged end: zeroes behind it, up to the end of the last block. */
static void pad_piece(const struct reader *r, struct reader_piece *rp)
{
	const struct piece_run *run = &rp->p.run[rp->p.nruns - 1];
	uint64_t size = r->src->size, end = (run->block + run->count) * r->opt.block_size;

	if (!run->zero && end > size)
		(void)memset(rp->p.data + (size_t)rp->p.nclusters * r->opt.block_size -
				     (end - size),
			     0, end - size);
}

static void close_piece(struct reader *r)
{
	struct reader_piece *rp = tm_steal(r->filling);

	pad_piece(r, rp);
	queue_push(rp->p.nclusters ? &r->reading : &r->ready, &rp->p);
	r->nreading += rp->p.nclusters != 0;
}

/* Puts as much of the range as fits into the piece.  False: it is full. */
static bool add_run(struct reader *r, struct piece *p)
{
	uint64_t bs = r->opt.block_size, block = r->range.offset / bs;
	uint64_t count = div_round_up(r->range.length, bs), bytes;
	struct piece_run *last = p->nruns ? &p->run[p->nruns - 1] : NULL;

	if (!r->range.zero)
		count = min_u64(count, PIECE_CLUSTERS - p->nclusters);
	if (!count)
		return false;
	if (last && last->zero == r->range.zero && last->block + last->count == block) {
		last->count += count;
	} else if (p->nruns < PIECE_RUNS) {
		p->run[p->nruns++] = (struct piece_run){
			.block = block,
			.count = count,
			.first = r->range.zero ? 0 : p->nclusters,
			.zero = r->range.zero,
		};
	} else {
		return false;
	}
	if (!r->range.zero)
		p->nclusters += (uint32_t)count;
	bytes = min_u64(count * bs, r->range.length);
	if (r->range.zero)
		r->counts.zero_bytes += bytes;
	reader_piece_of(p)->bytes += bytes;
	r->range.offset += bytes;
	r->range.length -= bytes;
	return true;
}

/* Fills pieces from what is mapped.  True: something has moved. */
static bool fill_pieces(struct reader *r)
{
	bool moved = false;

	while (!r->range_end) {
		if (!r->range.length) {
			enum mapper_state state = mapper_next(&r->mapper, &r->range);

			r->range_end = state == MAPPER_END;
			if (state != MAPPER_RANGE) {
				r->range.length = 0;
				break;
			}
			moved = true;
		}
		/* Not more pieces than are of use now: those that come back are warm. */
		if (!r->filling && (!r->free || r->nreading >= READ_AHEAD))
			return moved;
		if (!r->filling)
			r->filling = start_piece(r);
		if (add_run(r, &r->filling->p))
			moved = true;
		else
			close_piece(r);
	}
	/* A piece that waits for the map stays open: where pieces end depends on the disk alone. */
	if (r->filling && r->range_end) {
		close_piece(r);
		moved = true;
	}
	return moved;
}

/* ---- reading ---- */

static void read_done(struct source_req *req, int code)
{
	struct reader_read *rr = container_of(req, struct reader_read, req);
	struct reader_piece *rp = rr->rp;
	struct reader *r = rp->r;

	if (code)
		fail(r, code, &req->err);
	if (code && !rp->code)
		rp->code = code;
	rr->next = r->idle_reads;
	r->idle_reads = rr;
	r->in_flight--;
	r->answers++;
	rp->reads--;
	if (!rp->reads && rp->issued == (uint64_t)rp->p.nclusters * r->opt.block_size && !rp->code)
		queue_push(&r->ready, &rp->p);
}

/* Where the next read of a piece begins on disk and how long it may be. */
static struct map_range next_read(const struct reader *r, const struct reader_piece *rp)
{
	uint64_t bs = r->opt.block_size, offset, length;
	const struct piece_run *run = rp->p.run;

	while (run->zero || (run->first + run->count) * bs <= rp->issued)
		run++;
	offset = run->block * bs + (rp->issued - run->first * bs);
	length = (run->first + run->count) * bs - rp->issued;
	return (struct map_range){
		.offset = offset,
		.length = min_u64(min_u64(length, r->src->max_read), r->src->size - offset),
	};
}

/* The padding behind the disk's end needs no read. */
static void skip_padding(const struct reader *r, struct reader_piece *rp)
{
	const struct piece_run *last = &rp->p.run[rp->p.nruns - 1];

	if (rp->issued % r->opt.block_size && !last->zero &&
	    (last->block + last->count) * r->opt.block_size > r->src->size &&
	    (uint64_t)rp->p.nclusters * r->opt.block_size - rp->issued ==
		    (last->block + last->count) * r->opt.block_size - r->src->size)
		rp->issued = (uint64_t)rp->p.nclusters * r->opt.block_size;
}

static void start_read(struct reader *r, struct reader_piece *rp)
{
	struct map_range next = next_read(r, rp);
	struct reader_read *rr = r->idle_reads;
	uint8_t *to = rp->p.data + rp->issued;

	r->idle_reads = rr->next;
	rr->rp = rp;
	rp->issued += next.length;
	skip_padding(r, rp);
	rp->reads++;
	r->in_flight++;
	r->counts.read_bytes += next.length;
	rate_take(&r->rate, next.length);
	r->src->ops->read(r->src, to, (uint32_t)next.length, next.offset, &rr->req);
}

static bool issue_reads(struct reader *r)
{
	bool moved = false;

	while (r->reading.first && r->in_flight < r->window && rate_allows(&r->rate)) {
		struct reader_piece *rp = reader_piece_of(r->reading.first);
		uint64_t all = (uint64_t)rp->p.nclusters * r->opt.block_size;

		start_read(r, rp);
		/* Its reads end on a later turn of the loop at the earliest. */
		if (rp->issued == all) {
			(void)queue_pop(&r->reading);
			r->nreading--;
		}
		moved = true;
	}
	return moved;
}

/* ---- to the sink ---- */

static unsigned first_window(const struct reader *r)
{
	return r->src->depth < FIRST_WINDOW ? r->src->depth : FIRST_WINDOW;
}

/*
 * As many reads as the sink's pace is worth: more while it has less to do than workers, the least
 * when most pieces wait for it.  Reads that nobody waits for cost the server: its buffers leave the
 * caches, and it jumps between places.
 */
static void follow_sink(struct reader *r)
{
	if (r->lent < r->opt.workers || r->lent == 0)
		r->window += r->window < r->src->depth;
	else if (2 * r->lent > r->opt.pieces)
		r->window = first_window(r);
}

static bool hand_over(struct reader *r)
{
	bool moved = false;

	while (r->ready.first && !r->code) {
		struct piece *p = queue_pop(&r->ready);
		uint64_t bytes = reader_piece_of(p)->bytes;
		struct error err = {0};
		int code;

		follow_sink(r);
		reader_piece_of(p)->ours = false; /* it may be back before put() returns */
		r->lent++;
		code = piece_sink_put(r->sink, p, &err);
		if (code) {
			fail(r, code, &err);
			piece_returned(p);
			break;
		}
		r->counts.done_bytes += bytes;
		moved = true;
	}
	return moved;
}

static void move_on(struct reader *r)
{
	bool moved;

	do {
		mapper_pump(&r->mapper);
		if (r->mapper.code)
			fail(r, r->mapper.code, &r->mapper.err);
		if (r->code)
			return;
		moved = fill_pieces(r);
		moved |= issue_reads(r);
		moved |= hand_over(r);
	} while (moved && !r->code);
	r->counts.dirty_bytes = r->mapper.dirty_bytes;
	r->counts.mapped = mapper_complete(&r->mapper);
}

/* ---- time ---- */

static uint64_t now_ms(void)
{
	return clock_monotonic_ms(&clock_system);
}

static void tick(struct reader *r)
{
	struct error err = {0};
	int code = 0;

	r->now_ms = now_ms();
	rate_refill(&r->rate, r->now_ms);
	if (r->now_ms < r->tick_at_ms)
		return;
	r->tick_at_ms = r->now_ms + TICK_MS;
	code = alive_check(&r->alive, r->answers + r->mapper.answers,
			   r->in_flight || r->mapper.running, r->now_ms, r->opt.stall_ms, &err);
	if (!code && r->opt.tick)
		code = r->opt.tick(r->opt.data, &r->counts, &err);
	if (code)
		fail(r, code, &err);
	rate_set(&r->rate, r->opt.rate ? *r->opt.rate : 0, r->now_ms);
}

/* For the loop. */
static int sleep_ms(const struct reader *r)
{
	uint64_t ms = r->tick_at_ms > r->now_ms ? r->tick_at_ms - r->now_ms : 0;

	if (r->reading.first && !rate_allows(&r->rate))
		ms = min_u64(ms, rate_wait_ms(&r->rate));
	return (int)ms;
}

/* ---- a run ---- */

static bool finished(const struct reader *r)
{
	return r->range_end && !r->filling && !r->reading.first && !r->in_flight &&
	       !r->ready.first && r->nfree == r->opt.pieces;
}

static void run_loop(struct reader *r)
{
	struct error err = {0};

	for (;;) {
		move_on(r);
		if (r->code || finished(r))
			return;
		if (loop_run_once(r->loop, sleep_ms(r), &err)) {
			fail(r, err.code, &err);
			return;
		}
		tick(r);
	}
}

static bool wait_requests(struct reader *r)
{
	uint64_t until = now_ms() + ABORT_END_MS;

	while ((r->in_flight || r->mapper.running) && now_ms() < until) {
		if (loop_run_once(r->loop, TICK_MS, NULL))
			return false;
	}
	return !r->in_flight && !r->mapper.running;
}

static bool wait_pieces(struct reader *r)
{
	uint64_t until = now_ms() + SINK_END_MS;

	while (r->nfree < r->opt.pieces && now_ms() < until) {
		if (loop_run_once(r->loop, TICK_MS, NULL))
			return false;
	}
	return r->nfree == r->opt.pieces;
}

/* After a failure: ends all I/O.  False: somebody still holds our memory. */
static bool drain(struct reader *r)
{
	mapper_stop(&r->mapper);
	r->src->ops->abort(r->src);
	if (!wait_requests(r))
		return false;
	for (unsigned i = 0; i < r->opt.pieces; i++) {
		if (r->pieces[i].ours)
			piece_free(r, &r->pieces[i].p);
	}
	return wait_pieces(r);
}

/* ---- making and ending ---- */

static void reader_free(struct reader *r)
{
	mapper_done(&r->mapper);
	if (r->memory)
		(void)munmap(r->memory, r->memory_bytes);
	free(r->pieces);
	free(r->reads);
	free(r);
}
TM_CLEANUP(struct reader, reader_free)

static int make_pieces(struct reader *r, struct error *err)
{
	size_t each, all;
	void *memory;

	if (!size_mul(r->opt.block_size, PIECE_CLUSTERS, &each) ||
	    !size_mul(each, r->opt.pieces, &all))
		return error_nomem(err);
	r->pieces = calloc(r->opt.pieces, sizeof(r->pieces[0]));
	if (!r->pieces)
		return error_nomem(err);
	/* Pages appear when they are first read into: few, when there is little to read. */
	memory = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return error_nomem(err);
	r->memory = memory;
	r->memory_bytes = all;
	for (unsigned i = r->opt.pieces; i-- > 0;) {
		r->pieces[i].r = r;
		r->pieces[i].p.data = r->memory + i * each;
		r->pieces[i].p.release = piece_returned;
		piece_free(r, &r->pieces[i].p);
	}
	return 0;
}

static int make_reads(struct reader *r, struct error *err)
{
	r->reads = calloc(r->src->depth, sizeof(r->reads[0]));
	if (!r->reads)
		return error_nomem(err);
	for (unsigned i = 0; i < r->src->depth; i++) {
		r->reads[i].req.done = read_done;
		r->reads[i].next = r->idle_reads;
		r->idle_reads = &r->reads[i];
	}
	return 0;
}

static int reader_new(struct loop *loop, struct block_source *src, struct piece_sink *sink,
		      const struct reader_options *opt, struct reader **ret, struct error *err)
{
	auto_clean(reader_free) struct reader *r = NULL;
	int code = reader_check(src, opt, err);

	if (code)
		return code;
	r = calloc(1, sizeof(*r));
	if (!r)
		return error_nomem(err);
	r->loop = loop;
	r->src = src;
	r->sink = sink;
	r->opt = *opt;
	r->now_ms = r->alive.at_ms = now_ms();
	r->tick_at_ms = r->now_ms + TICK_MS;
	r->window = first_window(r);
	rate_set(&r->rate, opt->rate ? *opt->rate : 0, r->now_ms);
	queue_init(&r->reading);
	queue_init(&r->ready);
	mapper_init(&r->mapper, src, opt);
	code = make_pieces(r, err);
	if (!code)
		code = make_reads(r, err);
	if (code)
		return code;
	*ret = tm_steal(r);
	return 0;
}

int reader_run(struct loop *loop, struct block_source *src, struct piece_sink *sink,
	       const struct reader_options *opt, struct reader_counts *ret, struct error *err)
{
	struct reader *r;
	int code;

	*ret = (struct reader_counts){0};
	code = reader_new(loop, src, sink, opt, &r, err);
	if (code)
		return code;
	run_loop(r);
	*ret = r->counts;
	if (r->code) {
		code = error_pass(err, r->code, &r->err);
		if (!drain(r))
			return code; /* r stays: others still point into it */
	}
	reader_free(r);
	return code;
}
