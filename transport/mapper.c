/* SPDX-License-Identifier: Apache-2.0 */
#include "mapper.h"

#include <string.h>

#define WINDOW_MIN   ((uint64_t)16 << 20)
#define WINDOW_FIRST ((uint64_t)64 << 20) /* allocation: the first answer should come soon */
#define WINDOW_MAX   ((uint64_t)UINT32_MAX - UINT16_MAX) /* 32 bits on the wire */
#define REFINE_MIN   ((uint64_t)1 << 20) /* below, reading zeroes is cheaper than asking */
#define FEW_EXTENTS  512                 /* an answer of fewer lets the next window grow */
#define MANY_EXTENTS 8192                /* one of more lets it shrink */
#define KEPT_EXTENTS 65536               /* nothing new is asked while more are kept */
#define KEPT_CAP     4096                /* an ask that is done keeps memory for no more */

static void ring_init(struct mapper *m, struct ask_ring *ring, enum source_map map, struct ask *v,
		      unsigned n, uint64_t window)
{
	*ring = (struct ask_ring){.map = map, .v = v, .n = n, .window = window};
	for (unsigned i = 0; i < n; i++) {
		v[i].m = m;
		v[i].ring = ring;
	}
}

/* From m->next on to what is sampled; to the end of the disk when nothing is any more. */
static void skip_to_sample(struct mapper *m)
{
	const struct extents *e = m->sample;

	while (m->sample_at < e->n &&
	       m->next >= e->v[m->sample_at].offset + e->v[m->sample_at].length)
		m->sample_at++;
	m->next = m->sample_at == e->n ? m->src->size : max_u64(m->next, e->v[m->sample_at].offset);
}

void mapper_init(struct mapper *m, struct block_source *src, const struct reader_options *opt)
{
	*m = (struct mapper){
		.src = src,
		.block_size = opt->block_size,
		.sample = opt->sample,
	};
	ring_init(m, &m->windows, SOURCE_MAP_DIRTY, m->windows_v, MAPPER_WINDOWS, WINDOW_MAX);
	ring_init(m, &m->refined, SOURCE_MAP_DATA, m->refined_v, MAPPER_REFINED, WINDOW_FIRST);
	m->refined.adapts = true;
	m->refine = src->has_data;
	if (m->sample)
		skip_to_sample(m);
	if (opt->map == SOURCE_MAP_DATA) {
		m->refining = m->refine;
		m->dirty = (struct map_range){.length = src->size};
		m->next = src->size;
		m->dirty_bytes = src->size;
	}
}

void mapper_done(struct mapper *m)
{
	for (unsigned i = 0; i < MAPPER_WINDOWS; i++) {
		extents_done(&m->windows_v[i].reply);
		extents_done(&m->windows_v[i].set);
	}
	for (unsigned i = 0; i < MAPPER_REFINED; i++) {
		extents_done(&m->refined_v[i].reply);
		extents_done(&m->refined_v[i].set);
	}
}

void mapper_stop(struct mapper *m)
{
	m->stopped = true;
}

/* ---- one ask ---- */

static bool ask_complete(const struct ask *a)
{
	return a->whole || (!a->running && a->cursor == a->end);
}

static void ask_reset(struct ask *a)
{
	extents_clear(&a->set);
	extents_clear(&a->reply);
	if (a->set.cap > KEPT_CAP)
		extents_done(&a->set);
	if (a->reply.cap > KEPT_CAP)
		extents_done(&a->reply);
}

/*
 * Follows the density of the map: sparse parts in large steps, dense ones in small.
 * Not for dirty maps: which dirty extents are small must not depend on timing.
 */
static void adapt_window(struct ask_ring *ring, size_t n)
{
	if (!ring->adapts)
		return;
	if (n < FEW_EXTENTS)
		ring->window = min_u64(ring->window * 2, WINDOW_MAX);
	else if (n > MANY_EXTENTS)
		ring->window = max_u64(ring->window / 2, WINDOW_MIN);
}

static int check_reply(struct ask *a, struct error *err)
{
	const struct extents *e = &a->reply;

	if (a->next_cursor <= a->cursor || a->next_cursor > a->end)
		return error_set(err, TM_E_PEER,
				 "the map of %llu bytes at offset %llu ends at offset %llu",
				 (unsigned long long)(a->end - a->cursor),
				 (unsigned long long)a->cursor, (unsigned long long)a->next_cursor);
	if (e->n && (e->v[0].offset < a->cursor ||
		     e->v[e->n - 1].offset + e->v[e->n - 1].length > a->next_cursor))
		return error_set(
			err, TM_E_PEER, "the map of %llu bytes at offset %llu names others",
			(unsigned long long)(a->end - a->cursor), (unsigned long long)a->cursor);
	return 0;
}

static int take_reply(struct ask *a, struct error *err)
{
	int r = check_reply(a, err);

	adapt_window(a->ring, a->reply.n);
	extents_align(&a->reply, a->m->block_size, a->end);
	for (size_t i = 0; !r && i < a->reply.n; i++)
		r = extents_add(&a->set, a->reply.v[i].offset, a->reply.v[i].length, err);
	if (!r)
		a->cursor = a->next_cursor;
	return r;
}

/* The window is complete: what of it is not dirty. */
static int invert(struct ask *a, struct error *err)
{
	struct extent whole = {.offset = a->offset, .length = a->end - a->offset};
	const struct extents window = {.v = &whole, .n = 1};
	struct extents dirty = a->set;

	a->set = a->reply;
	a->reply = dirty;
	return extents_subtract(&window, &a->reply, &a->set, err);
}

static void fail(struct mapper *m, int code, const struct error *err)
{
	if (m->code)
		return;
	m->code = code;
	m->err = *err;
}

static void ask_done(struct source_req *req, int code)
{
	struct ask *a = container_of(req, struct ask, req);
	struct mapper *m = a->m;
	struct error err = {0};

	a->running = false;
	m->running--;
	m->answers++;
	if (code) {
		fail(m, code, &req->err);
		return;
	}
	code = take_reply(a, &err);
	if (!code && a->cursor == a->end && a->ring == &m->windows && m->sample)
		code = invert(a, &err);
	if (code) {
		fail(m, code, &err);
		return;
	}
	if (a->cursor == a->end && a->ring == &m->windows)
		m->dirty_bytes += extents_bytes(&a->set);
}

static void ask_start(struct ask *a)
{
	extents_clear(&a->reply);
	a->next_cursor = a->cursor;
	a->running = true;
	a->req.done = ask_done;
	a->m->running++;
	a->m->src->ops->map(a->m->src, a->ring->map, a->cursor, a->end - a->cursor, &a->reply,
			    &a->next_cursor, &a->req);
}

/* ---- rings ---- */

static struct ask *ring_at(const struct ask_ring *ring, unsigned i)
{
	return &ring->v[(ring->head + i) % ring->n];
}

static struct ask *ring_push(struct ask_ring *ring, uint64_t offset, uint64_t length)
{
	struct ask *a = ring_at(ring, ring->count++);

	ask_reset(a);
	a->offset = offset;
	a->end = offset + length;
	a->cursor = offset;
	a->taken = offset;
	a->i = 0;
	a->whole = false;
	return a;
}

static void ring_pop(struct ask_ring *ring)
{
	ask_reset(ring_at(ring, 0));
	ring->head = (ring->head + 1) % ring->n;
	ring->count--;
}

static uint64_t ring_extents(const struct ask_ring *ring)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < ring->count; i++)
		n += ring_at(ring, i)->set.n;
	return n;
}

/* An answer may have been short: the rest is asked for. */
static void ring_continue(struct ask_ring *ring)
{
	for (unsigned i = 0; i < ring->count; i++) {
		struct ask *a = ring_at(ring, i);

		if (!a->running && !ask_complete(a))
			ask_start(a);
	}
}

static bool ring_may_ask(const struct mapper *m, const struct ask_ring *ring)
{
	if (ring->count == ring->n || m->code || m->stopped)
		return false;
	return !ring->count || ring_extents(&m->windows) + ring_extents(&m->refined) < KEPT_EXTENTS;
}

/* The length of the next ask: at most `left`, in whole blocks. */
static uint64_t window_of(const struct mapper *m, const struct ask_ring *ring, uint64_t left)
{
	uint64_t window = align_down(ring->window, m->block_size);

	return min_u64(window ? window : m->block_size, left);
}

/* ---- the stages ---- */

/* How far the disk may be asked for in one go. */
static uint64_t windows_end(const struct mapper *m)
{
	const struct extent *e;

	if (!m->sample)
		return m->src->size;
	e = &m->sample->v[m->sample_at];
	return e->offset + e->length;
}

static void pump_windows(struct mapper *m)
{
	ring_continue(&m->windows);
	while (m->next < m->src->size && ring_may_ask(m, &m->windows)) {
		uint64_t len = window_of(m, &m->windows, windows_end(m) - m->next);

		ask_start(ring_push(&m->windows, m->next, len));
		m->next += len;
		if (m->sample)
			skip_to_sample(m);
	}
}

static enum mapper_state next_dirty(struct mapper *m, struct map_range *ret)
{
	while (m->windows.count) {
		struct ask *a = ring_at(&m->windows, 0);

		if (!ask_complete(a))
			return MAPPER_WAIT;
		if (a->i < a->set.n) {
			const struct extent *e = &a->set.v[a->i++];

			*ret = (struct map_range){.offset = e->offset, .length = e->length};
			return MAPPER_RANGE;
		}
		ring_pop(&m->windows);
	}
	return m->next < m->src->size ? MAPPER_WAIT : MAPPER_END;
}

/* Moves dirty extents to the second stage, in parts of at most a window. */
static void pump_refined(struct mapper *m)
{
	ring_continue(&m->refined);
	while (ring_may_ask(m, &m->refined)) {
		uint64_t len;

		if (!m->dirty.length) {
			if (next_dirty(m, &m->dirty) != MAPPER_RANGE)
				return;
			m->refining = m->refine && m->dirty.length >= REFINE_MIN;
		}
		if (!m->refining) {
			ring_push(&m->refined, m->dirty.offset, m->dirty.length)->whole = true;
			m->dirty.length = 0;
			continue;
		}
		len = window_of(m, &m->refined, m->dirty.length);
		ask_start(ring_push(&m->refined, m->dirty.offset, len));
		m->dirty.offset += len;
		m->dirty.length -= len;
	}
}

/* Windows in which nothing is set are done at once: the next ones take their places, or nobody
 * would answer and wake us. */
void mapper_pump(struct mapper *m)
{
	unsigned windows;

	if (m->code || m->stopped)
		return;
	do {
		pump_windows(m);
		windows = m->windows.count;
		pump_refined(m);
	} while (m->windows.count < windows);
}

/* The next part of a complete ask: an extent of its set, or the gap before it. */
static bool ask_take(struct ask *a, struct map_range *ret)
{
	uint64_t to = a->end;
	bool zero = !a->whole;

	if (a->taken == a->end)
		return false;
	if (!a->whole && a->i < a->set.n) {
		const struct extent *e = &a->set.v[a->i];

		zero = e->offset > a->taken;
		to = zero ? e->offset : e->offset + e->length;
		if (!zero)
			a->i++;
	}
	*ret = (struct map_range){.offset = a->taken, .length = to - a->taken, .zero = zero};
	a->taken = to;
	return true;
}

enum mapper_state mapper_next(struct mapper *m, struct map_range *ret)
{
	while (m->refined.count) {
		struct ask *a = ring_at(&m->refined, 0);

		if (!ask_complete(a))
			return MAPPER_WAIT;
		if (ask_take(a, ret))
			return MAPPER_RANGE;
		ring_pop(&m->refined);
	}
	if (m->dirty.length || m->windows.count || m->next < m->src->size)
		return MAPPER_WAIT;
	return MAPPER_END;
}

bool mapper_complete(const struct mapper *m)
{
	if (m->next < m->src->size)
		return false;
	for (unsigned i = 0; i < m->windows.count; i++) {
		if (!ask_complete(ring_at(&m->windows, i)))
			return false;
	}
	return true;
}
