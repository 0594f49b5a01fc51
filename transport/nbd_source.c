/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A disk behind an NBD server as a block_source.  Two roles of connections:
 *
 *	map       has the dirty bitmap's context alone, so that asking for the dirty
 *	          map of a whole disk never makes the server walk allocation metadata
 *	readers   have base:allocation alone, asked only where something is read
 *
 * A server that does not allow several connections gets one, in the role of map if a
 * bitmap was named, and everything on it is read without asking for allocation.
 */
#include "nbd_conn.h"

#include <assert.h>
#include <string.h>

#define CONNECTIONS_MAX  16
#define READ_BYTES       (512 << 10) /* measured; QEMU allocates larger buffers anew each time */
#define READ_DEPTH       8           /* per connection; QEMU serves 16 at once */
#define EXTRA_CONNECT_MS 2000        /* for the second and further ones, which we can do without */

struct nbd_source {
	struct block_source src;
	struct loop *loop;
	char *bitmap_context; /* or NULL */
	struct nbd_conn *map; /* answers SOURCE_MAP_DIRTY; or NULL */
	struct nbd_conn *readers[CONNECTIONS_MAX];
	unsigned nreaders; /* 0: map reads, too */
	unsigned running;
	struct nbd_request *idle;
	struct source_req *refused, **refused_end; /* out of memory, to be told later */
	struct loop_op tell_refused;
};

struct nbd_request {
	struct nbd_call call;
	struct nbd_source *ns;
	struct source_req *req;
	uint64_t *ret_end; /* maps */
	/* Reads that had to be widened to the server's minimum block size. */
	uint8_t *wide;
	void *buf;
	uint64_t skip; /* bytes before what was asked for */
	uint32_t len;
	struct nbd_request *next;
};

static struct nbd_source *nbd_source_of(struct block_source *src)
{
	return container_of(src, struct nbd_source, src);
}

/* ---- requests ---- */

static void tell_refused(struct loop_op *op, int res)
{
	struct nbd_source *ns = container_of(op, struct nbd_source, tell_refused);
	struct source_req *req;

	(void)res;
	while ((req = ns->refused)) {
		ns->refused = req->next;
		if (!ns->refused)
			ns->refused_end = &ns->refused;
		ns->running--;
		req->done(req, req->err.code);
	}
}

static void refuse(struct nbd_source *ns, struct source_req *req)
{
	ns->running++;
	error_clear(&req->err);
	(void)error_nomem(&req->err);
	req->next = NULL;
	*ns->refused_end = req;
	ns->refused_end = &req->next;
	if (!ns->tell_refused.armed)
		loop_defer(ns->loop, &ns->tell_refused);
}

/* From the list of idle ones, which grows to the largest number ever in flight. */
static struct nbd_request *request_new(struct nbd_source *ns, struct source_req *req)
{
	struct nbd_request *nr = ns->idle;

	if (nr) {
		ns->idle = nr->next;
	} else {
		nr = calloc(1, sizeof(*nr));
		if (!nr) {
			refuse(ns, req);
			return NULL;
		}
		nr->ns = ns;
	}
	nr->req = req;
	ns->running++;
	return nr;
}

static void request_end(struct nbd_request *nr, int code)
{
	struct nbd_source *ns = nr->ns;
	struct source_req *req = nr->req;

	error_clear(&req->err);
	if (code)
		req->err = nr->call.err;
	nr->next = ns->idle;
	ns->idle = nr;
	ns->running--;
	req->done(req, code);
}

/*
 * The first connection that has room, so that few reads stay in order, or the one with the least to
 * do.
 */
static struct nbd_conn *pick_reader(struct nbd_source *ns)
{
	struct nbd_conn *best = ns->nreaders ? ns->readers[0] : ns->map;

	for (unsigned i = 0; i < ns->nreaders; i++) {
		if (ns->readers[i]->in_flight < READ_DEPTH)
			return ns->readers[i];
		if (ns->readers[i]->in_flight < best->in_flight)
			best = ns->readers[i];
	}
	return best;
}

static void map_done(struct nbd_call *call, int code)
{
	struct nbd_request *nr = container_of(call, struct nbd_request, call);

	if (!code)
		*nr->ret_end = call->reach;
	request_end(nr, code);
}

static void nbd_source_map(struct block_source *src, enum source_map map, uint64_t offset,
			   uint64_t length, struct extents *ret, uint64_t *ret_end,
			   struct source_req *req)
{
	struct nbd_source *ns = nbd_source_of(src);
	struct nbd_conn *conn = map == SOURCE_MAP_DIRTY ? ns->map : pick_reader(ns);
	struct nbd_request *nr = request_new(ns, req);

	assert(map == SOURCE_MAP_DIRTY ? src->has_dirty : src->has_data);
	if (!nr)
		return;
	nr->ret_end = ret_end;
	nr->call.done = map_done;
	nr->call.offset = offset;
	nr->call.length = min_u64(length, NBD_MAP_MAX);
	if (map == SOURCE_MAP_DIRTY)
		nbd_conn_map(conn, &nr->call, 1, true, ret); /* bit 0: dirty */
	else
		nbd_conn_map(conn, &nr->call, 2, false, ret); /* bit 1: reads as zeroes */
}

static void read_done(struct nbd_call *call, int code)
{
	struct nbd_request *nr = container_of(call, struct nbd_request, call);

	if (!code && nr->wide)
		(void)memcpy(nr->buf, nr->wide + nr->skip, nr->len);
	free(nr->wide);
	nr->wide = NULL;
	request_end(nr, code);
}

/* A read that the server would refuse is widened to whole blocks of its own. */
static void *widen(struct nbd_request *nr, const struct nbd_conn *conn)
{
	uint64_t from = align_down(nr->call.offset, conn->min_block), to;

	if (!align_up(nr->call.offset + nr->call.length, conn->min_block, &to) || to > conn->size)
		to = conn->size;
	if (from == nr->call.offset && to == nr->call.offset + nr->call.length)
		return nr->buf;
	nr->wide = malloc(to - from);
	nr->skip = nr->call.offset - from;
	nr->call.offset = from;
	nr->call.length = to - from;
	return nr->wide;
}

static void nbd_source_read(struct block_source *src, void *buf, uint32_t len, uint64_t offset,
			    struct source_req *req)
{
	struct nbd_source *ns = nbd_source_of(src);
	struct nbd_conn *conn = pick_reader(ns);
	struct nbd_request *nr = request_new(ns, req);
	void *to;

	if (!nr)
		return;
	nr->call.done = read_done;
	nr->call.offset = offset;
	nr->call.length = len;
	nr->buf = buf;
	nr->len = len;
	to = widen(nr, conn);
	if (!to) {
		nr->next = ns->idle;
		ns->idle = nr;
		ns->running--;
		refuse(ns, req);
		return;
	}
	nbd_conn_read(conn, &nr->call, to);
}

static void nbd_source_abort(struct block_source *src)
{
	struct nbd_source *ns = nbd_source_of(src);

	if (ns->map)
		nbd_conn_abort(ns->map);
	for (unsigned i = 0; i < ns->nreaders; i++)
		nbd_conn_abort(ns->readers[i]);
}

static void nbd_source_free(struct block_source *src)
{
	struct nbd_source *ns = nbd_source_of(src);

	assert(!ns->running);
	nbd_conn_free(ns->map);
	for (unsigned i = 0; i < ns->nreaders; i++)
		nbd_conn_free(ns->readers[i]);
	while (ns->idle) {
		struct nbd_request *nr = ns->idle;

		ns->idle = nr->next;
		free(nr);
	}
	free(ns->bitmap_context);
	free(ns);
}

static const struct block_source_ops nbd_source_ops = {
	.map = nbd_source_map,
	.read = nbd_source_read,
	.abort = nbd_source_abort,
	.free = nbd_source_free,
};

/* ---- opening ---- */

static int open_map(struct nbd_source *ns, const struct nbd_address *addr, uint64_t deadline_ms,
		    struct error *err)
{
	int r = text_format(&ns->bitmap_context, err, "qemu:dirty-bitmap:%s", addr->bitmap);

	if (r)
		return r;
	r = nbd_conn_open(ns->loop, addr, ns->bitmap_context, deadline_ms, &ns->map, err);
	if (r)
		return r;
	if (!ns->map->has_context)
		return error_set(err, TM_E_NOTFOUND, "the NBD server has no bitmap '%s'",
				 addr->bitmap);
	return 0;
}

/* The first connection that is opened at all has to succeed, the others are a bonus. */
static int open_readers(struct nbd_source *ns, const struct nbd_address *addr, unsigned connections,
			uint64_t deadline_ms, struct error *err)
{
	const struct nbd_conn *first = ns->map;

	while (ns->nreaders < connections && (!first || first->multi_conn)) {
		uint64_t until = deadline_ms;
		struct error e = {0};
		int r;

		if (first)
			until = min_u64(until,
					clock_monotonic_ms(&clock_system) + EXTRA_CONNECT_MS);
		r = nbd_conn_open(ns->loop, addr, "base:allocation", until,
				  &ns->readers[ns->nreaders], &e);
		if (r && !first) {
			return error_pass(err, r, &e);
		}
		if (r) {
			log_debug("stays with %u NBD connections: %s", ns->nreaders, e.text);
			return 0;
		}
		if (!first)
			first = ns->readers[0];
		ns->nreaders++;
	}
	return 0;
}

/* All connections have to agree on what they see. */
static int compare_readers(const struct nbd_source *ns, const struct nbd_conn *first,
			   struct error *err)
{
	for (unsigned i = 0; i < ns->nreaders; i++) {
		const struct nbd_conn *conn = ns->readers[i];

		if (conn->size != first->size)
			return error_set(
				err, TM_E_STALE, "the NBD export is %llu bytes large and then %llu",
				(unsigned long long)first->size, (unsigned long long)conn->size);
		if (conn->min_block != first->min_block ||
		    conn->has_context != ns->readers[0]->has_context)
			return error_set(err, TM_E_PEER,
					 "the NBD server offers different things to its clients");
	}
	return 0;
}

int nbd_source_open(struct loop *loop, const struct nbd_address *addr, unsigned connections,
		    unsigned timeout_ms, struct block_source **ret, struct error *err)
{
	uint64_t deadline_ms = clock_monotonic_ms(&clock_system) + timeout_ms;
	struct nbd_source *ns = calloc(1, sizeof(*ns));
	const struct nbd_conn *first;
	unsigned wanted = connections ? connections : 1;
	int r = 0;

	if (!ns)
		return error_nomem(err);
	ns->loop = loop;
	ns->src.ops = &nbd_source_ops;
	ns->refused_end = &ns->refused;
	ns->tell_refused.done = tell_refused;
	if (addr->bitmap)
		r = open_map(ns, addr, deadline_ms, err);
	if (!r)
		r = open_readers(ns, addr, wanted < CONNECTIONS_MAX ? wanted : CONNECTIONS_MAX,
				 deadline_ms, err);
	first = ns->map ? ns->map : ns->readers[0];
	if (!r)
		r = compare_readers(ns, first, err);
	if (r) {
		nbd_source_free(&ns->src);
		return r;
	}
	ns->src.size = first->size;
	ns->src.max_read = (uint32_t)min_u64(first->max_payload, READ_BYTES);
	ns->src.depth = READ_DEPTH * (ns->nreaders ? ns->nreaders : 1);
	ns->src.has_dirty = ns->map != NULL;
	ns->src.has_data = ns->nreaders && ns->readers[0]->has_context;
	*ret = &ns->src;
	return 0;
}
