/* SPDX-License-Identifier: Apache-2.0 */
#include "counting.h"

#include "repo/segment.h"

#include "bench.h"

#include <inttypes.h>
#include <time.h>

struct counted_req {
	struct store_req req;
	struct loop_op late;
	int code;
	uint64_t due_ms; /* on the monotonic clock */
	struct counting *c;
	struct store_req *above;
	struct counted_req *next;
};

static struct counting *counting_of(struct store *st)
{
	return container_of(st, struct counting, st);
}

/* Header and tables are all that lies before the first frame. */
static uint64_t tables_len(const struct counting *c, const struct segment_name *name,
			   const void *bytes, size_t len)
{
	const struct seg_address a = {
		.repo = c->repo->id,
		.domain = c->repo->domain,
		.session = name->session,
		.type = name->type,
		.block_bits = (uint8_t)c->repo->block_bits,
		.index = name->index,
	};
	struct error err = {0};
	size_t ret = 0;

	must_do(seg_tables_len(&a, bytes, len, &ret, &err), &err);
	return ret;
}

static void count_put(struct counting *c, const char *key, const void *bytes, size_t len)
{
	struct segment_name segment;
	struct point_name point;

	c->puts++;
	c->put_bytes += len;
	if (!c->repo)
		return;
	if (name_parse_segment(c->repo, key, &segment) && segment.type == SEGMENT_DATA) {
		uint64_t tables = tables_len(c, &segment, bytes, len);

		c->tables += tables;
		c->payload += len - tables;
	} else if (name_parse_segment(c->repo, key, &segment)) {
		c->map += len;
	} else if (name_parse_point(c->repo, key, &point)) {
		c->points += len;
	}
}

static void counted_answer(struct loop_op *op, int res)
{
	struct counted_req *g = container_of(op, struct counted_req, late);
	struct store_req *above = g->above;

	(void)res;
	above->got = g->req.got;
	above->err = g->req.err;
	g->c->got_bytes += g->req.got;
	g->next = g->c->idle;
	g->c->idle = g;
	above->done(above, g->code);
}

static void counted(struct store_req *req, int code)
{
	struct counted_req *g = container_of(req, struct counted_req, req);

	uint64_t at_ms = clock_monotonic_ms(&clock_system);

	g->code = code;
	g->late.done = counted_answer;
	if (g->due_ms > at_ms)
		loop_timer(g->c->st.loop, &g->late, (unsigned)(g->due_ms - at_ms));
	else
		counted_answer(&g->late, 0);
}

static struct store_req *counted_begin(struct counting *c, struct store_req *above)
{
	struct counted_req *g = c->idle;

	if (g)
		c->idle = g->next;
	else
		g = calloc(1, sizeof(*g));
	must(g, "memory");
	*g = (struct counted_req){.req.done = counted, .c = c, .above = above};
	if (c->rtt_ms)
		g->due_ms = clock_monotonic_ms(&clock_system) + c->rtt_ms;
	return &g->req;
}

static void counting_get(struct store *st, const char *key, void *bytes, size_t len,
			 uint64_t offset, struct store_req *req)
{
	struct counting *c = counting_of(st);

	c->gets++;
	c->below->ops->get(c->below, key, bytes, len, offset, counted_begin(c, req));
}

static void counting_put(struct store *st, const char *key, const void *bytes, size_t len,
			 struct store_req *req)
{
	struct counting *c = counting_of(st);

	count_put(c, key, bytes, len);
	c->below->ops->put_new(c->below, key, bytes, len, counted_begin(c, req));
}

/* Of requests that block. */
static void far_away(const struct counting *c)
{
	struct timespec t = {.tv_sec = c->rtt_ms / 1000, .tv_nsec = c->rtt_ms % 1000 * 1000000};

	while (nanosleep(&t, &t) < 0)
		;
}

static int counting_list(struct store *st, const char *prefix, store_list_fn *fn, void *data,
			 struct error *err)
{
	struct counting *c = counting_of(st);

	c->lists++;
	far_away(c);
	return c->below->ops->list(c->below, prefix, fn, data, err);
}

static int counting_head(struct store *st, const char *key, uint64_t *ret, struct error *err)
{
	struct counting *c = counting_of(st);

	c->heads++;
	far_away(c);
	return c->below->ops->head(c->below, key, ret, err);
}

static int counting_sync(struct store *st, const char *prefix, struct error *err)
{
	return counting_of(st)->below->ops->sync(counting_of(st)->below, prefix, err);
}

static int counting_tidy(struct store *st, struct store_leftovers *left, struct error *err)
{
	return counting_of(st)->below->ops->tidy(counting_of(st)->below, left, err);
}

static int counting_remove(struct store *st, const char *key, struct error *err)
{
	struct counting *c = counting_of(st);

	return c->below->ops->remove(c->below, key, err);
}

static void counting_free(struct store *st)
{
	struct counting *c = counting_of(st);

	while (c->idle) {
		struct counted_req *g = c->idle;

		c->idle = g->next;
		free(g);
	}
	store_free(c->below);
	free(c);
}

static const struct store_ops counting_ops = {
	.put_new = counting_put,
	.get = counting_get,
	.list = counting_list,
	.head = counting_head,
	.remove = counting_remove,
	.sync = counting_sync,
	.tidy = counting_tidy,
	.free = counting_free,
};

struct counting *counting_open(struct loop *loop, const char *dir, bool create)
{
	struct counting *c = calloc(1, sizeof(*c));
	struct error err = {0};

	must(c, "memory");
	c->st = (struct store){.ops = &counting_ops, .loop = loop};
	must_do(store_dir_open(loop, dir, create, &c->below, &err), &err);
	return c;
}

void counting_reset(struct counting *c)
{
	c->puts = c->gets = c->lists = c->heads = 0;
	c->put_bytes = c->got_bytes = 0;
	c->payload = c->tables = c->map = c->points = 0;
}

void counting_print(const struct counting *c)
{
	(void)printf("\"puts\": %" PRIu64 ", \"gets\": %" PRIu64 ", \"lists\": %" PRIu64
		     ", \"heads\": %" PRIu64 ", \"put_bytes\": %" PRIu64 ", \"got_bytes\": %" PRIu64
		     ", \"payload_bytes\": %" PRIu64 ", \"table_bytes\": %" PRIu64
		     ", \"map_bytes\": %" PRIu64 ", \"point_bytes\": %" PRIu64,
		     c->puts, c->gets, c->lists, c->heads, c->put_bytes, c->got_bytes, c->payload,
		     c->tables, c->map, c->points);
}
