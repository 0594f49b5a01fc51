/* SPDX-License-Identifier: Apache-2.0 */
#include "store.h"

#include <inttypes.h>
#include <string.h>

/* Most objects are smaller: one request brings them. */
#define FIRST_READ (8u << 10)

struct waiting {
	struct store_req req;
	int code;
	bool done;
};

static void wait_done(struct store_req *req, int code)
{
	struct waiting *w = (struct waiting *)req; /* first member */

	w->code = code;
	w->done = true;
}

/*
 * Runs the loop until the request has come back.  A request cannot be taken back, so an error
 * of the loop itself is remembered while waiting goes on.
 */
static int wait_for(struct store *st, struct waiting *w, struct error *err)
{
	while (!w->done) {
		struct error loop_err = {0};

		if (loop_run_once(st->loop, -1, &loop_err) < 0)
			log_debug("loop: %s", loop_err.text);
	}
	if (w->code < 0 && err && !err->code)
		*err = w->req.err;
	return w->code;
}

int store_put_wait(struct store *st, const char *key, const void *bytes, size_t len,
		   struct error *err)
{
	struct waiting w = {.req.done = wait_done};

	st->ops->put_new(st, key, bytes, len, &w.req);
	return wait_for(st, &w, err);
}

int store_get_wait(struct store *st, const char *key, void *bytes, size_t len, uint64_t offset,
		   size_t *ret_got, struct error *err)
{
	struct waiting w = {.req.done = wait_done};
	int r;

	st->ops->get(st, key, bytes, len, offset, &w.req);
	r = wait_for(st, &w, err);
	if (r == 0)
		*ret_got = w.req.got;
	return r;
}

/* Bytes [b->len, len) of the object; fewer where it ends. */
static int read_on(struct store *st, const char *key, size_t len, struct buf *b, struct error *err)
{
	size_t got = 0;
	int r = buf_reserve(b, len - b->len, err);

	r = r ? r : store_get_wait(st, key, b->data + b->len, len - b->len, b->len, &got, err);
	b->len += got;
	return r;
}

int store_read(struct store *st, const char *key, size_t max, struct buf *ret, struct error *err)
{
	auto_buf struct buf b = {0};
	uint64_t size;
	int r = read_on(st, key, FIRST_READ, &b, err);

	if (r < 0)
		return r;
	size = b.len;
	if (b.len == FIRST_READ)
		r = st->ops->head(st, key, &size, err);
	if (r == 0 && size > max)
		return error_set(err, TM_E_CORRUPT,
				 "%s is %" PRIu64 " bytes, more than the %zu allowed", key, size,
				 max);
	if (r == 0 && size > b.len)
		r = read_on(st, key, (size_t)size, &b, err);
	if (r < 0)
		return r;
	if (b.len != size)
		return error_set(err, TM_E_CORRUPT, "%s ends at %zu of %" PRIu64 " bytes", key,
				 b.len, size);
	buf_done(ret);
	*ret = b;
	b = (struct buf){0};
	return 0;
}

void store_reserve(struct store *st, bool use)
{
	if (st->ops->reserve)
		st->ops->reserve(st, use);
}

static void answer_now(struct loop_op *op, int res)
{
	struct store_req *req = container_of(op, struct store_req, op);

	(void)res; /* of a deferred call, always 0 */
	req->done(req, req->code);
}

void store_answer(struct store *st, struct store_req *req, int code)
{
	req->code = code;
	req->op.done = answer_now;
	loop_defer(st->loop, &req->op);
}

bool store_key_ok(const char *key)
{
	size_t len = strlen(key);

	if (len == 0 || len >= KEY_MAX || key[0] == '/' || key[0] == '.' || key[len - 1] == '/')
		return false;
	for (const char *p = key; *p; p++) {
		if (!((*p >= 'a' && *p <= 'z') || (*p >= '0' && *p <= '9') || *p == '/' ||
		      *p == '.' || *p == '-'))
			return false;
		if (*p == '/' && (p[1] == '/' || p[1] == '.'))
			return false;
	}
	return true;
}

void store_free(struct store *st)
{
	if (st)
		st->ops->free(st);
}
