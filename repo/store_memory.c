/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Objects in memory, sorted by key; answers come from the loop, never from inside
 * the call, as with a real store.
 */
#include "store.h"

#include <stdlib.h>
#include <string.h>

struct object {
	char *key;
	uint8_t *bytes;
	size_t len;
};

struct memory {
	struct store st;
	struct object *v; /* sorted by key */
	size_t n, cap;
};

static struct memory *memory_of(struct store *st)
{
	return (struct memory *)st; /* first member */
}

/* Index of key, or of where it belongs. */
static size_t memory_find(const struct memory *m, const char *key, bool *ret_found)
{
	size_t lo = 0, hi = m->n;

	*ret_found = false;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		int c = strcmp(m->v[mid].key, key);

		if (c == 0) {
			*ret_found = true;
			return mid;
		}
		if (c < 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static int memory_insert(struct memory *m, size_t at, const char *key, const void *bytes,
			 size_t len, struct error *err)
{
	auto_free char *k = strdup(key);
	auto_free uint8_t *b = malloc(len ? len : 1);

	if (!k || !b)
		return error_nomem(err);
	if (m->n == m->cap) {
		size_t cap = m->cap ? 2 * m->cap : 16;
		struct object *v = reallocarray(m->v, cap, sizeof(*v));

		if (!v)
			return error_nomem(err);
		m->v = v;
		m->cap = cap;
	}
	if (len > 0)
		memcpy(b, bytes, len);
	memmove(&m->v[at + 1], &m->v[at], (m->n - at) * sizeof(*m->v));
	m->v[at] = (struct object){.key = tm_steal(k), .bytes = tm_steal(b), .len = len};
	m->n++;
	return 0;
}

static int memory_do_put(struct memory *m, const char *key, const void *bytes, size_t len,
			 struct error *err)
{
	bool found;
	size_t at = memory_find(m, key, &found);

	if (!store_key_ok(key))
		return error_set(err, TM_E_RANGE, "bad object key '%s'", key);
	if (found)
		return error_set(err, TM_E_EXISTS, "object %s exists already", key);
	return memory_insert(m, at, key, bytes, len, err);
}

static int memory_do_get(const struct memory *m, const char *key, void *bytes, size_t len,
			 uint64_t offset, struct store_req *req)
{
	bool found;
	size_t at = memory_find(m, key, &found);

	if (!found)
		return error_set(&req->err, TM_E_NOTFOUND, "no object %s", key);
	if (offset < m->v[at].len) {
		req->got = min_size(len, m->v[at].len - (size_t)offset);
		memcpy(bytes, m->v[at].bytes + offset, req->got);
	}
	return 0;
}

static void memory_put_new(struct store *st, const char *key, const void *bytes, size_t len,
			   struct store_req *req)
{
	error_clear(&req->err);
	store_answer(st, req, memory_do_put(memory_of(st), key, bytes, len, &req->err));
}

static void memory_get(struct store *st, const char *key, void *bytes, size_t len, uint64_t offset,
		       struct store_req *req)
{
	error_clear(&req->err);
	req->got = 0;
	store_answer(st, req, memory_do_get(memory_of(st), key, bytes, len, offset, req));
}

static int memory_list(struct store *st, const char *prefix, store_list_fn *fn, void *data,
		       struct error *err)
{
	struct memory *m = memory_of(st);
	bool found;

	for (size_t i = memory_find(m, prefix, &found);
	     i < m->n && strncmp(m->v[i].key, prefix, strlen(prefix)) == 0; i++) {
		int r = fn(data, m->v[i].key, m->v[i].len, err);

		if (r < 0)
			return r;
	}
	return 0;
}

static int memory_head(struct store *st, const char *key, uint64_t *ret_size, struct error *err)
{
	struct memory *m = memory_of(st);
	bool found;
	size_t at = memory_find(m, key, &found);

	if (!found)
		return error_set(err, TM_E_NOTFOUND, "no object %s", key);
	*ret_size = m->v[at].len;
	return 0;
}

static int memory_remove(struct store *st, const char *key, struct error *err)
{
	struct memory *m = memory_of(st);
	bool found;
	size_t at = memory_find(m, key, &found);

	(void)err;
	if (!found)
		return 0;
	free(m->v[at].key);
	free(m->v[at].bytes);
	m->n--;
	memmove(&m->v[at], &m->v[at + 1], (m->n - at) * sizeof(*m->v));
	return 0;
}

/* What is seen in memory stays. */
static int memory_sync(struct store *st, const char *prefix, struct error *err)
{
	(void)st;
	(void)prefix;
	(void)err;
	return 0;
}

static int memory_tidy(struct store *st, struct store_leftovers *left, struct error *err)
{
	(void)st;
	(void)left;
	(void)err;
	return 0;
}

static void memory_free(struct store *st)
{
	struct memory *m = memory_of(st);

	for (size_t i = 0; i < m->n; i++) {
		free(m->v[i].key);
		free(m->v[i].bytes);
	}
	free(m->v);
	free(m);
}

static const struct store_ops memory_ops = {
	.put_new = memory_put_new,
	.get = memory_get,
	.list = memory_list,
	.head = memory_head,
	.remove = memory_remove,
	.sync = memory_sync,
	.tidy = memory_tidy,
	.free = memory_free,
};

int store_memory_new(struct loop *loop, struct store **ret, struct error *err)
{
	struct memory *m = calloc(1, sizeof(*m));

	if (!m)
		return error_nomem(err);
	m->st.ops = &memory_ops;
	m->st.loop = loop;
	*ret = &m->st;
	return 0;
}
