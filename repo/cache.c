/* SPDX-License-Identifier: Apache-2.0 */
#include "cache_page.h"

#include <inttypes.h>
#include <string.h>

/* More than the pieces on their way can need: 22 of 16 clusters, each in another segment. */
#define MAX_TABLES_BYTES (22u << 20)
/* What is asked for first: holds the tables of most segments. */
#define FIRST_GET (64u << 10)

/* Loading the tables of a segment. */
struct tables_load {
	struct store_req req;
	struct cache *c;
	struct seg_address addr;
	struct cache_wait *waiting;
	struct tables_load *next;
	uint8_t *buf;
	size_t len, got;
	unsigned relists; /* looks for a later generation */
	char key[KEY_MAX];
};

int cache_new(struct repo *repo, struct cache **ret, struct error *err)
{
	struct cache *c = calloc(1, sizeof(*c));

	if (!c)
		return error_nomem(err);
	c->repo = repo;
	*ret = c;
	return 0;
}

/* ---- entries ---- */

static size_t tables_bytes(const struct tables *t)
{
	size_t descs = t->t->descs ? (size_t)t->t->nslots + t->t->nextras : 0;

	return sizeof(*t) + sizeof(*t->t) + t->t->nframes * sizeof(struct seg_frame) +
	       descs * sizeof(struct format_desc);
}

void tables_ref(struct tables *t)
{
	t->refs++;
}

static void tables_release(struct tables *t)
{
	if (t->refs > 0 || t->cached)
		return;
	seg_tables_free(t->t);
	free(t);
}

void tables_unref(struct tables *t)
{
	if (!t)
		return;
	assert(t->refs > 0);
	t->refs--;
	tables_release(t);
}

/* Drops entries from the list's end beyond `max` bytes. */
static void trim_tables(struct cache *c, size_t max)
{
	size_t sum = 0;
	struct tables **p = &c->tables;

	while (*p) {
		struct tables *t = *p;

		sum += tables_bytes(t);
		if (sum <= max) {
			p = &t->next;
			continue;
		}
		*p = t->next;
		t->cached = false;
		tables_release(t);
	}
}

void cache_drop(struct cache *c)
{
	trim_tables(c, 0);
	cache_trim_pages(c, 0);
}

void cache_free(struct cache *c)
{
	if (!c)
		return;
	assert(!c->tables_loads && !c->page_loads);
	cache_drop(c);
	free(c->pages);
	free(c);
}

struct tables *cache_tables(struct cache *c, const struct tm_id *sid, uint8_t type, uint32_t index)
{
	for (struct tables **p = &c->tables; *p; p = &(*p)->next) {
		struct tables *t = *p;
		const struct seg_address *a = &t->t->addr;

		if (a->index != index || a->type != type || !id_equal(&a->session, sid))
			continue;
		*p = t->next;
		t->next = c->tables;
		c->tables = t;
		t->refs++;
		return t;
	}
	return NULL;
}

void cache_forget_tables(struct cache *c, struct tables *t)
{
	for (struct tables **p = &c->tables; *p; p = &(*p)->next) {
		if (*p != t)
			continue;
		*p = t->next;
		t->cached = false;
		tables_release(t);
		return;
	}
}

void cache_wake(struct cache_wait *list, int code, const struct error *err)
{
	while (list) {
		struct cache_wait *w = list;

		list = w->next;
		if (code < 0)
			w->err = *err;
		w->done(w, code);
	}
}

void cache_name_object(struct error *err, const char *key)
{
	if (!strstr(err->text, key))
		error_prefix(err, "object %s", key);
}

/* ---- loading tables ---- */

static void tables_loaded(struct tables_load *l, int code)
{
	struct cache_wait *waiting = l->waiting;
	struct error err = l->req.err;

	for (struct tables_load **p = &l->c->tables_loads; *p; p = &(*p)->next) {
		if (*p == l) {
			*p = l->next;
			break;
		}
	}
	if (code == TM_E_NOTFOUND) { /* something refers to it */
		error_clear(&err);
		code = error_set(&err, TM_E_CORRUPT, "object %s is missing", l->key);
	} else if (code < 0) {
		cache_name_object(&err, l->key);
	}
	free(l->buf);
	free(l);
	cache_wake(waiting, code, &err);
}

static void tables_get(struct tables_load *l)
{
	struct store *st = l->c->repo->st;

	st->ops->get(st, l->key, l->buf + l->got, l->len - l->got, l->got, &l->req);
}

static int tables_insert(struct tables_load *l)
{
	struct cache *c = l->c;
	struct tables *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return error_nomem(&l->req.err);
	r = seg_tables_parse(&l->addr, &c->repo->keys, l->buf, l->got, c->repo->aead, &t->t,
			     &l->req.err);
	if (r < 0) {
		free(t);
		return r;
	}
	memcpy(t->key, l->key, sizeof(t->key));
	t->cached = true;
	t->next = c->tables;
	c->tables = t;
	t->refs = 1; /* survives its own trim */
	trim_tables(c, MAX_TABLES_BYTES);
	t->refs--;
	return 0;
}

struct newest {
	char key[KEY_MAX];
};

static int take_last(void *data, const char *key, uint64_t size, struct error *err)
{
	struct newest *n = data;

	(void)size;
	(void)err;
	memcpy(n->key, key, strlen(key) + 1);
	return 0;
}

/* Compaction writes a later generation before it removes the earlier one.  TM_E_NOTFOUND: there is
 * none; a listing that fails says nothing about that. */
static int tables_relist(struct tables_load *l)
{
	struct store *st = l->c->repo->st;
	struct newest n = {{0}};
	char prefix[KEY_MAX];
	int r;

	memcpy(prefix, l->key, sizeof(prefix));
	*strrchr(prefix, '.') = 0;
	l->relists++;
	error_clear(&l->req.err);
	r = st->ops->list(st, prefix, take_last, &n, &l->req.err);
	if (r < 0)
		return r;
	if (!n.key[0])
		return TM_E_NOTFOUND;
	memcpy(l->key, n.key, sizeof(l->key));
	l->got = 0; /* of another object */
	l->len = FIRST_GET;
	return 0;
}

static void tables_got(struct store_req *req, int code)
{
	struct tables_load *l = container_of(req, struct tables_load, req);
	size_t need;
	int r;

	if (code == TM_E_NOTFOUND && l->relists < MAX_RELISTS) {
		code = tables_relist(l);
		if (code == 0) {
			tables_get(l);
			return;
		}
	}
	if (code < 0) {
		tables_loaded(l, code);
		return;
	}
	l->got += req->got;
	r = seg_tables_len(&l->addr, l->buf, l->got, &need, &req->err);
	if (r == 0 && need > l->got && l->len == FIRST_GET && l->got == FIRST_GET) {
		uint8_t *buf = realloc(l->buf, need);

		if (buf) {
			l->buf = buf;
			l->len = need;
			tables_get(l);
			return;
		}
		r = error_nomem(&req->err);
	}
	if (r == 0)
		r = tables_insert(l);
	tables_loaded(l, r);
}

static struct seg_address segment_address(const struct repo *repo, const struct tm_id *sid,
					  uint8_t type, uint32_t index)
{
	return (struct seg_address){
		.repo = repo->id,
		.domain = repo->domain,
		.session = *sid,
		.type = type,
		.block_bits = (uint8_t)repo->block_bits,
		.index = index,
	};
}

void cache_wait_add(struct cache_wait **list, struct cache_wait *w)
{
	w->next = *list;
	*list = w;
}

/* The load under way, or NULL. */
static struct tables_load *find_load(const struct cache *c, const struct tm_id *sid, uint8_t type,
				     uint32_t index)
{
	for (struct tables_load *l = c->tables_loads; l; l = l->next)
		if (l->addr.index == index && l->addr.type == type &&
		    id_equal(&l->addr.session, sid))
			return l;
	return NULL;
}

bool cache_loads_tables(const struct cache *c, const struct tm_id *sid, uint8_t type,
			uint32_t index)
{
	return find_load(c, sid, type, index) != NULL;
}

void cache_load_tables(struct cache *c, const struct tm_id *sid, uint8_t type, uint32_t index,
		       struct cache_wait *w)
{
	struct tables_load *l = find_load(c, sid, type, index);

	error_clear(&w->err);
	if (l) {
		cache_wait_add(&l->waiting, w);
		return;
	}
	l = calloc(1, sizeof(*l));
	if (l)
		l->buf = malloc(FIRST_GET);
	if (!l || !l->buf) {
		free(l);
		w->done(w, error_nomem(&w->err));
		return;
	}
	l->c = c;
	l->addr = segment_address(c->repo, sid, type, index);
	l->len = FIRST_GET;
	l->req.done = tables_got;
	l->next = c->tables_loads;
	c->tables_loads = l;
	cache_wait_add(&l->waiting, w);
	name_segment(c->repo, sid, type, index, 0, 0, l->key);
	tables_get(l);
}
