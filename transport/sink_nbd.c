/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An NBD server as the target of a restore.  Several connections where the server
 * allows them; each is flushed at the end, if the server offers that.
 */
#include "nbd_conn.h"
#include "sink.h"

#include <string.h>

#define NBD_SINK_CONNECTIONS 4
#define NBD_SINK_DEPTH       32                    /* over all connections */
#define NBD_ZERO_MAX         ((uint64_t)256 << 20) /* servers without a fast way write them out */
#define NBD_ZERO_BYTES       (1 << 18) /* written zeroes, where the server cannot zero */
#define EXTRA_CONNECT_MS     2000

struct nbd_op {
	struct sink_op op; /* first */
	struct nbd_call call;
	uint64_t done;    /* bytes of the op */
	unsigned flushed; /* connections */
};

struct nbd_sink {
	struct disk_sink sink;
	struct nbd_conn *conn[NBD_SINK_CONNECTIONS];
	unsigned nconns;
	struct nbd_op ops[NBD_SINK_DEPTH];
	uint8_t *zeroes; /* NBD_ZERO_BYTES, when the server cannot zero */
};

static struct nbd_sink *nbd_sink_of(struct disk_sink *sink)
{
	return container_of(sink, struct nbd_sink, sink);
}

static struct nbd_conn *pick_conn(struct nbd_sink *ns)
{
	struct nbd_conn *best = ns->conn[0];

	for (unsigned i = 1; i < ns->nconns; i++) {
		if (ns->conn[i]->in_flight < best->in_flight)
			best = ns->conn[i];
	}
	return best;
}

static void op_more(struct nbd_op *no);

static void op_done(struct nbd_call *call, int code)
{
	struct nbd_op *no = container_of(call, struct nbd_op, call);
	const struct disk_sink *sink = no->op.sink;

	if (code) {
		sink_op_end(&no->op, code, &call->err);
		return;
	}
	no->done += call->length;
	if (no->done < no->op.length && !sink->code)
		op_more(no);
	else
		sink_op_end(&no->op, sink->code, &sink->err);
}

/* The whole op, or as much of it as there are zeroes to write. */
static void op_more(struct nbd_op *no)
{
	struct nbd_sink *ns = nbd_sink_of(no->op.sink);
	struct nbd_conn *conn = pick_conn(ns);

	no->call.done = op_done;
	no->call.offset = no->op.offset + no->done;
	no->call.length = no->op.length - no->done;
	if (no->op.data) {
		nbd_conn_write(conn, &no->call, no->op.data);
	} else if (conn->can_zero) {
		nbd_conn_zero(conn, &no->call);
	} else {
		no->call.length = min_u64(no->call.length, ns->sink.write_max);
		no->call.length = min_u64(no->call.length, NBD_ZERO_BYTES);
		nbd_conn_write(conn, &no->call, ns->zeroes);
	}
}

static void nbd_sink_start(struct disk_sink *sink, struct sink_op *op)
{
	struct nbd_op *no = container_of(op, struct nbd_op, op);

	(void)sink;
	no->done = 0;
	op_more(no);
}

/* ---- flush: one connection after the other ---- */

static void flush_next(struct nbd_op *no);

static void flush_done(struct nbd_call *call, int code)
{
	struct nbd_op *no = container_of(call, struct nbd_op, call);

	if (code) {
		sink_op_end(&no->op, code, &call->err);
		return;
	}
	no->flushed++;
	if (no->flushed < nbd_sink_of(no->op.sink)->nconns)
		flush_next(no);
	else
		sink_op_end(&no->op, 0, NULL);
}

static void flush_next(struct nbd_op *no)
{
	no->call.done = flush_done;
	nbd_conn_flush(nbd_sink_of(no->op.sink)->conn[no->flushed], &no->call);
}

static void nbd_sink_flush(struct disk_sink *sink, struct sink_op *op)
{
	struct nbd_op *no = container_of(op, struct nbd_op, op);

	(void)sink;
	no->flushed = 0;
	flush_next(no);
}

/* ---- life ---- */

static void nbd_sink_abort(struct disk_sink *sink)
{
	struct nbd_sink *ns = nbd_sink_of(sink);

	for (unsigned i = 0; i < ns->nconns; i++)
		nbd_conn_abort(ns->conn[i]);
}

static void nbd_sink_free(struct disk_sink *sink)
{
	struct nbd_sink *ns = nbd_sink_of(sink);

	sink_done(sink);
	for (unsigned i = 0; i < ns->nconns; i++)
		nbd_conn_free(ns->conn[i]);
	free(ns->zeroes);
	free(ns);
}

static const struct disk_sink_ops nbd_sink_ops = {
	.write = nbd_sink_start,
	.zero = nbd_sink_start,
	.flush = nbd_sink_flush,
	.abort = nbd_sink_abort,
	.free = nbd_sink_free,
};

static int check_server(struct nbd_sink *ns, struct error *err)
{
	const struct nbd_conn *conn = ns->conn[0];

	if (conn->read_only)
		return error_set(err, TM_E_DENIED, "the NBD server does not allow writing");
	if (conn->size < ns->sink.size)
		return error_set(err, TM_E_RANGE,
				 "the NBD export has %llu bytes, the disk has %llu",
				 (unsigned long long)conn->size, (unsigned long long)ns->sink.size);
	if (ns->sink.block_size % conn->min_block)
		return error_set(
			err, TM_E_UNSUPPORTED,
			"the NBD server writes blocks of %u bytes, the disk has blocks of %u",
			conn->min_block, ns->sink.block_size);
	ns->sink.write_unit = conn->min_block;
	ns->sink.write_limit = conn->size;
	ns->sink.write_max = conn->max_payload;
	ns->sink.zero_max = NBD_ZERO_MAX;
	ns->sink.no_flush = !conn->can_flush;
	if (conn->can_zero)
		return 0;
	ns->zeroes = calloc(1, NBD_ZERO_BYTES);
	return ns->zeroes ? 0 : error_nomem(err);
}

static bool offers_the_same(const struct nbd_conn *a, const struct nbd_conn *b)
{
	return a->size == b->size && a->min_block == b->min_block &&
	       a->max_payload == b->max_payload && a->can_zero == b->can_zero &&
	       a->can_flush == b->can_flush && a->read_only == b->read_only;
}

/* One more connection, of which everything holds that the first one was told. */
static int open_another(struct nbd_sink *ns, const struct nbd_address *addr, uint64_t deadline_ms,
			struct error *err)
{
	auto_clean(nbd_conn_free) struct nbd_conn *conn = NULL;
	int r = nbd_conn_open(ns->sink.loop, addr, NULL, deadline_ms, &conn, err);

	if (r)
		return r;
	if (!offers_the_same(ns->conn[0], conn))
		return error_set(err, TM_E_PEER,
				 "the NBD server offers different things to its clients");
	ns->conn[ns->nconns++] = tm_steal(conn);
	return 0;
}

/* The first connection has to succeed, the others are a bonus. */
static int open_connections(struct nbd_sink *ns, const struct nbd_address *addr,
			    uint64_t deadline_ms, struct error *err)
{
	int r = nbd_conn_open(ns->sink.loop, addr, NULL, deadline_ms, &ns->conn[0], err);

	if (r)
		return r;
	ns->nconns = 1;
	while (ns->conn[0]->multi_conn && ns->nconns < NBD_SINK_CONNECTIONS) {
		uint64_t now = clock_monotonic_ms(&clock_system);
		struct error e = {0};

		if (open_another(ns, addr, min_u64(deadline_ms, now + EXTRA_CONNECT_MS), &e)) {
			log_debug("stays with %u NBD connections: %s", ns->nconns, e.text);
			break;
		}
	}
	return 0;
}

int nbd_sink_open(struct loop *loop, const struct nbd_address *addr, uint64_t size,
		  uint32_t block_size, unsigned timeout_ms, struct disk_sink **ret,
		  struct error *err)
{
	struct nbd_sink *ns = calloc(1, sizeof(*ns));
	int r;

	if (!ns)
		return error_nomem(err);
	ns->sink.ops = &nbd_sink_ops;
	ns->sink.loop = loop;
	ns->sink.size = size;
	ns->sink.block_size = block_size;
	r = sink_init(&ns->sink, err);
	for (unsigned i = 0; i < NBD_SINK_DEPTH; i++)
		sink_add_op(&ns->sink, &ns->ops[i].op);
	if (!r)
		r = open_connections(ns, addr, clock_monotonic_ms(&clock_system) + timeout_ms, err);
	if (!r)
		r = check_server(ns, err);
	if (r) {
		nbd_sink_free(&ns->sink);
		return r;
	}
	*ret = &ns->sink;
	return 0;
}
