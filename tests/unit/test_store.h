/* SPDX-License-Identifier: Apache-2.0 */
/* A store that does something wrong at the n-th request, above any other. */
#pragma once

#include "test.h"

#include "repo/repo.h"
#include "repo/store.h"

enum fault {
	FAULT_FAIL,  /* nothing is done, and an error is the answer */
	FAULT_LOST,  /* it is done, and an error is the answer */
	FAULT_CUT,   /* a get brings half of it; a list fails half-way */
	FAULT_DELAY, /* a put or get is done some turns of the loop later; others overtake it */
	FAULT_STALE, /* a list shows what another store has: an older state */
};

enum request {
	REQUEST_PUT = 1,
	REQUEST_GET = 2,
	REQUEST_LIST = 4,
	REQUEST_HEAD = 8,
	REQUEST_REMOVE = 16,
	REQUEST_SYNC = 32,
	REQUEST_TIDY = 64,
};

struct failing {
	struct store st;
	struct store *below;
	bool keep; /* this and below outlive it */
	enum fault fault;
	unsigned of;                       /* requests that count, REQUEST_*; 0: all */
	unsigned calls;                    /* that counted */
	unsigned fail_at;                  /* the first that is hit; 0: never; counts from 1 */
	bool for_good;                     /* all later ones are hit, too */
	unsigned hits;                     /* so far */
	struct store *stale;               /* borrowed */
	unsigned delay_ms;                 /* of every get: time passes */
	void (*before)(struct failing *f); /* each request, or NULL */
};

static inline struct failing *failing_of(struct store *st)
{
	return container_of(st, struct failing, st);
}

/* Whether this request is hit. */
static inline bool failing_now(struct failing *f, enum request kind)
{
	bool hit;

	if (f->before)
		f->before(f);
	if (f->of && !(f->of & kind))
		return false;
	f->calls++;
	hit = f->fail_at && (f->for_good ? f->calls >= f->fail_at : f->calls == f->fail_at);
	f->hits += hit;
	return hit;
}

static inline int failing_error(struct error *err, const char *what)
{
	return error_set(err, TM_E_IO, "%s fails for the test", what);
}

/* ---- a request that waits ---- */

struct late {
	struct loop_op op;
	unsigned turns;
	struct failing *f;
	const char *key;
	const void *from; /* of a put, or NULL */
	void *to;         /* of a get */
	size_t len;
	uint64_t offset;
	struct store_req *req;
};

static inline void late_turn(struct loop_op *op, int res)
{
	struct late *l = container_of(op, struct late, op);
	struct store *below = l->f->below;

	(void)res; /* of a deferred call, always 0 */
	if (l->turns-- > 0) {
		loop_defer(l->f->st.loop, op);
		return;
	}
	if (l->from)
		below->ops->put_new(below, l->key, l->from, l->len, l->req);
	else
		below->ops->get(below, l->key, l->to, l->len, l->offset, l->req);
	free(l);
}

static inline void late_begin(const struct late *how)
{
	struct late *l = malloc(sizeof(*l));

	assert_non_null(l);
	*l = *how;
	l->turns = 1 + l->f->hits * 7 % 16;
	l->op.done = late_turn;
	loop_defer(l->f->st.loop, &l->op);
}

/* ---- requests ---- */

struct unheard {
	struct store_req put;
	struct store *st;
	struct store_req *req;
};

/* Whatever became of the put, an error is the answer. */
static inline void unheard_done(struct store_req *put, int code)
{
	struct unheard *l = container_of(put, struct unheard, put);

	(void)code;
	store_answer(l->st, l->req, failing_error(&l->req->err, "put"));
	free(l);
}

static inline void unheard_begin(struct failing *f, const char *key, const void *bytes, size_t len,
				 struct store_req *req)
{
	struct unheard *l = calloc(1, sizeof(*l));

	assert_non_null(l);
	*l = (struct unheard){.put.done = unheard_done, .st = &f->st, .req = req};
	f->below->ops->put_new(f->below, key, bytes, len, &l->put);
}

static inline void failing_put(struct store *st, const char *key, const void *bytes, size_t len,
			       struct store_req *req)
{
	struct failing *f = failing_of(st);
	bool hit = failing_now(f, REQUEST_PUT);

	error_clear(&req->err);
	if (hit && f->fault == FAULT_FAIL)
		store_answer(st, req, failing_error(&req->err, "put"));
	else if (hit && f->fault == FAULT_LOST)
		unheard_begin(f, key, bytes, len, req);
	else if (hit && f->fault == FAULT_DELAY)
		late_begin(
			&(struct late){.f = f, .key = key, .from = bytes, .len = len, .req = req});
	else
		f->below->ops->put_new(f->below, key, bytes, len, req);
}

static inline void failing_get(struct store *st, const char *key, void *bytes, size_t len,
			       uint64_t offset, struct store_req *req)
{
	struct failing *f = failing_of(st);
	bool hit = failing_now(f, REQUEST_GET);

	error_clear(&req->err);
	if (f->delay_ms)
		(void)usleep(f->delay_ms * 1000);
	if (hit && (f->fault == FAULT_FAIL || f->fault == FAULT_LOST))
		store_answer(st, req, failing_error(&req->err, "get"));
	else if (hit && f->fault == FAULT_DELAY)
		late_begin(&(struct late){
			.f = f, .key = key, .to = bytes, .len = len, .offset = offset, .req = req});
	else
		f->below->ops->get(f->below, key, bytes,
				   hit && f->fault == FAULT_CUT ? len / 2 : len, offset, req);
}

struct half {
	store_list_fn *fn;
	void *data;
	unsigned left;
};

static inline int half_count(void *data, const char *key, uint64_t size, struct error *err)
{
	(void)key;
	(void)size;
	(void)err;
	++*(unsigned *)data;
	return 0;
}

static inline int half_pass(void *data, const char *key, uint64_t size, struct error *err)
{
	struct half *h = data;

	if (h->left == 0)
		return failing_error(err, "list");
	h->left--;
	return h->fn(h->data, key, size, err);
}

static inline int failing_cut_list(struct store *below, const char *prefix, store_list_fn *fn,
				   void *data, struct error *err)
{
	struct half h = {.fn = fn, .data = data};
	int r = below->ops->list(below, prefix, half_count, &h.left, err);

	h.left /= 2;
	r = r ? r : below->ops->list(below, prefix, half_pass, &h, err);
	return r ? r : failing_error(err, "list");
}

static inline int failing_list(struct store *st, const char *prefix, store_list_fn *fn, void *data,
			       struct error *err)
{
	struct failing *f = failing_of(st);
	bool hit = failing_now(f, REQUEST_LIST);

	if (hit && f->fault == FAULT_CUT)
		return failing_cut_list(f->below, prefix, fn, data, err);
	if (hit && f->fault == FAULT_STALE)
		return f->stale->ops->list(f->stale, prefix, fn, data, err);
	if (hit && f->fault != FAULT_DELAY)
		return failing_error(err, "list");
	return f->below->ops->list(f->below, prefix, fn, data, err);
}

static inline int failing_head(struct store *st, const char *key, uint64_t *ret, struct error *err)
{
	struct failing *f = failing_of(st);

	if (failing_now(f, REQUEST_HEAD) && f->fault <= FAULT_LOST)
		return failing_error(err, "head");
	return f->below->ops->head(f->below, key, ret, err);
}

static inline int failing_remove(struct store *st, const char *key, struct error *err)
{
	struct failing *f = failing_of(st);
	bool hit = failing_now(f, REQUEST_REMOVE);
	int r = 0;

	if (!hit || f->fault != FAULT_FAIL)
		r = f->below->ops->remove(f->below, key, err);
	return hit && f->fault <= FAULT_LOST ? failing_error(err, "remove") : r;
}

static inline int failing_sync(struct store *st, const char *prefix, struct error *err)
{
	struct failing *f = failing_of(st);

	if (failing_now(f, REQUEST_SYNC) && f->fault <= FAULT_LOST)
		return failing_error(err, "sync");
	return f->below->ops->sync(f->below, prefix, err);
}

static inline int failing_tidy(struct store *st, struct store_leftovers *left, struct error *err)
{
	struct failing *f = failing_of(st);

	if (failing_now(f, REQUEST_TIDY) && f->fault <= FAULT_LOST)
		return failing_error(err, "tidy");
	return f->below->ops->tidy(f->below, left, err);
}

static inline void failing_free(struct store *st)
{
	struct failing *f = failing_of(st);

	if (f->keep)
		return;
	store_free(f->below); /* NULL when a test took it away */
	free(f);
}

static const struct store_ops failing_ops = {
	.put_new = failing_put,
	.get = failing_get,
	.list = failing_list,
	.head = failing_head,
	.remove = failing_remove,
	.sync = failing_sync,
	.tidy = failing_tidy,
	.free = failing_free,
};
