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

/* Runs the loop until *done.  A request cannot be taken back, so an error of the loop itself is
 * logged only. */
static void run_until(struct store *st, const bool *done)
{
	while (!*done) {
		struct error loop_err = {0};

		if (loop_run_once(st->loop, -1, &loop_err) < 0)
			log_debug("loop: %s", loop_err.text);
	}
}

static int wait_for(struct store *st, struct waiting *w, struct error *err)
{
	run_until(st, &w->done);
	return error_pass(err, w->code, &w->req.err);
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

static void reading_done(struct store_req *req, int code)
{
	struct store_reading *rd = container_of(req, struct store_reading, req);

	rd->code = code;
	rd->b.len = code < 0 ? 0 : req->got;
	rd->done = true;
}

void store_read_begin(struct store *st, const char *key, struct store_reading *rd)
{
	*rd = (struct store_reading){.req.done = reading_done};
	memcpy(rd->key, key, strlen(key) + 1);
	rd->code = buf_reserve(&rd->b, FIRST_READ, &rd->req.err);
	if (rd->code < 0)
		rd->done = true;
	else
		st->ops->get(st, rd->key, rd->b.data, FIRST_READ, 0, &rd->req);
}

/* What the first request has not brought. */
static int read_rest(struct store *st, struct store_reading *rd, size_t max, struct error *err)
{
	uint64_t size = rd->b.len;
	int r = 0;

	if (rd->b.len == FIRST_READ)
		r = st->ops->head(st, rd->key, &size, err);
	if (r == 0 && size > max)
		return error_set(err, TM_E_CORRUPT,
				 "%s is %" PRIu64 " bytes, more than the %zu allowed", rd->key,
				 size, max);
	if (r == 0 && size > rd->b.len)
		r = read_on(st, rd->key, (size_t)size, &rd->b, err);
	if (r == 0 && rd->b.len != size)
		return error_set(err, TM_E_CORRUPT, "%s ends at %zu of %" PRIu64 " bytes", rd->key,
				 rd->b.len, size);
	return r;
}

int store_read_end(struct store *st, struct store_reading *rd, size_t max, struct buf *ret,
		   struct error *err)
{
	int r;

	run_until(st, &rd->done);
	r = rd->code;
	(void)error_pass(err, r, &rd->req.err);
	r = r ? r : read_rest(st, rd, max, err);
	if (r == 0) {
		buf_done(ret);
		*ret = rd->b;
		rd->b = (struct buf){0};
	}
	buf_done(&rd->b);
	return r;
}

int store_read(struct store *st, const char *key, size_t max, struct buf *ret, struct error *err)
{
	struct store_reading rd;

	store_read_begin(st, key, &rd);
	return store_read_end(st, &rd, max, ret, err);
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
