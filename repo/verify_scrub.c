/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scrubbing: all objects there are, whether a point needs them or not, one after the other in the
 * order of their names, beginning behind the one where the last run under a budget ended.
 */
#include "repo_object.h"
#include "scrub.h"
#include "verify.h"

#include <inttypes.h>
#include <string.h>

#define CHUNK (4u << 20)

struct object {
	char key[KEY_MAX];
	uint64_t size;
};

struct objects {
	struct object *v;
	size_t n, cap;
	bool no_records; /* each run adds one: a short budget would never get past them */
};

static int add_object(void *data, const char *key, uint64_t size, struct error *err)
{
	struct objects *l = data;

	if (l->no_records && strncmp(key, "d/", 2) == 0 && strstr(key, "/c/"))
		return 0;
	if (l->n == l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 256;
		struct object *v = reallocarray(l->v, cap, sizeof(*v));

		if (!v)
			return error_nomem(err);
		l->v = v;
		l->cap = cap;
	}
	memcpy(l->v[l->n].key, key, strlen(key) + 1);
	l->v[l->n++].size = size;
	return 0;
}

struct range_wait {
	struct store_req req;
	int code;
	bool done;
};

static void range_there(struct store_req *req, int code)
{
	struct range_wait *w = container_of(req, struct range_wait, req);

	w->code = code;
	w->done = true;
}

/* Exactly len bytes. */
static int read_range(struct verifier *v, const char *key, void *bytes, size_t len, uint64_t offset,
		      struct error *err)
{
	struct range_wait w = {.req.done = range_there};
	struct store *st = v->repo->st;

	st->ops->get(st, key, bytes, len, offset, &w.req);
	while (!w.done)
		verify_wait(v);
	if (w.code < 0)
		return error_pass(err, w.code, &w.req.err);
	v->done += w.req.got;
	if (w.req.got != len)
		return error_set(err, TM_E_CORRUPT, "the object ends at %" PRIu64,
				 offset + w.req.got);
	return 0;
}

/* ---- segments ---- */

struct scrub_segment {
	struct verifier *v;
	const struct object *o;
	struct vseg *s;
	struct seg_tables *t;
	uint8_t *buf; /* CHUNK bytes, or one frame if that is more */
	size_t cap;
};

static int reserve(struct scrub_segment *g, size_t len, struct error *err)
{
	uint8_t *buf;

	if (len <= g->cap)
		return 0;
	buf = realloc(g->buf, len);
	if (!buf)
		return error_nomem(err);
	g->buf = buf;
	g->cap = len;
	return 0;
}

static int scrub_tables(struct scrub_segment *g, const struct seg_address *a, struct error *err)
{
	struct verifier *v = g->v;
	size_t len = 0;
	int r;

	if (g->o->size < sizeof(struct format_segment))
		return error_set(err, TM_E_CORRUPT, "the object is only %" PRIu64 " bytes",
				 g->o->size);
	r = reserve(g, SEG_HEADROOM, err);
	r = r ? r : read_range(v, g->o->key, g->buf, sizeof(struct format_segment), 0, err);
	r = r ? r : seg_tables_len(a, g->buf, sizeof(struct format_segment), &len, err);
	if (r == 0 && len > g->o->size)
		return error_set(err, TM_E_CORRUPT, "segment ends inside its tables");
	r = r ? r : reserve(g, len, err);
	r = r ? r
	      : read_range(v, g->o->key, g->buf + sizeof(struct format_segment),
			   len - sizeof(struct format_segment), sizeof(struct format_segment), err);
	r = r ? r : seg_tables_scan(a, g->buf, len, &g->t, err);
	return r ? r : verify_size(v, g->s, g->t, g->o->size, err);
}

/* Frames from `first` that lie in one chunk, up to `last`; *ret is the first of the next. */
static int scrub_frames(struct scrub_segment *g, uint32_t first, uint32_t last, uint32_t *ret,
			struct error *err)
{
	const struct seg_frame *f = g->t->frames;
	size_t len = 0;
	uint32_t end = first;
	int r;

	while (end < last && (end == first || len + f[end].stored_len <= CHUNK))
		len += f[end++].stored_len;
	*ret = end;
	r = reserve(g, len, err);
	r = r ? r : read_range(g->v, g->o->key, g->buf, len, f[first].offset, err);
	for (uint32_t i = first; r == 0 && i < end; i++) {
		struct error one = {0};

		if (f[i].stored_len == 0 ||
		    frame_check_crc(&f[i], g->buf + (f[i].offset - f[first].offset), &one) == 0)
			continue;
		r = vseg_damaged(g->v, g->s, f[i].first_slot, f[i].nslots, one.text, err);
	}
	return r;
}

static int scrub_payload(struct scrub_segment *g, struct error *err)
{
	uint32_t last = g->t->nframes; /* of those that are there */
	int r = 0;

	while (last > 0 &&
	       g->t->frames[last - 1].offset + g->t->frames[last - 1].stored_len > g->o->size)
		last--;
	for (uint32_t i = 0; r == 0 && i < last;)
		r = scrub_frames(g, i, last, &i, err);
	return r;
}

static void count(struct verifier *v, const struct object *o)
{
	v->report->objects++;
	v->report->bytes += o->size;
}

static int scrub_segment(struct verifier *v, const struct object *o, const struct seg_address *a,
			 struct error *err)
{
	struct scrub_segment g = {.v = v, .o = o};
	struct error one = {0};
	char *key;
	int r = vseg_get(v, &a->session, a->type, a->index, &g.s, err);

	if (r < 0)
		return r;
	key = strdup(o->key);
	if (!key)
		return error_nomem(err);
	free(g.s->key);
	g.s->key = key;
	r = scrub_tables(&g, a, &one);
	r = r ? r : scrub_payload(&g, &one);
	seg_tables_free(g.t);
	free(g.buf);
	if (r == TM_E_NOTFOUND)
		return 0; /* removed since it was listed; what points need is looked for elsewhere
			   */
	if (g.s->needed && !g.s->scrubbed)
		g.s->checked = o->size; /* one object of it is counted with what points need */
	else
		count(v, o);
	g.s->scrubbed = true;
	if (verify_is_damage(r))
		return vseg_damaged(v, g.s, UINT32_MAX, 0, one.text, err);
	return r < 0 ? error_pass(err, r, &one) : r;
}

/* ---- all objects ---- */

/* What this run, or repo_verify_domains(), has counted before. */
static bool is_counted(const struct verifier *v, const char *key)
{
	struct point_name point;
	uint32_t generation;
	struct tm_id id;
	unsigned copy;

	return is_repo_object(key) || name_parse_domain(key, &id, &generation, &copy) ||
	       (name_parse_point(v->repo, key, &point) && id_set_has(&v->counted, &point.session));
}

static int scrub_other(struct verifier *v, const struct object *o, struct error *err)
{
	auto_buf struct buf b = {0};
	struct error one = {0};
	int r;

	if (!scrub_knows(v->repo, o->key))
		return 0;
	r = store_read(v->repo->st, o->key, MAX_MANIFEST + sizeof(struct format_point), &b, &one);
	v->done += b.len;
	r = r ? r : scrub_small(v->repo, o->key, b.data, b.len, &one);
	if (r == TM_E_NOTFOUND)
		return 0;
	if (!is_counted(v, o->key))
		count(v, o);
	if (verify_is_damage(r))
		return damage_has(v->report, o->key) ? 0
						     : damage_add(v->report, o->key, one.text, err);
	return r < 0 ? error_pass(err, r, &one) : r;
}

static int scrub_object(struct verifier *v, const struct object *o, struct error *err)
{
	struct seg_address a;

	return scrub_parse_segment(v->repo, o->key, &a) ? scrub_segment(v, o, &a, err)
							: scrub_other(v, o, err);
}

/* What belongs to the domain, and to all, in the order of names. */
static int list_objects(const struct repo *repo, struct objects *l, struct error *err)
{
	char folder[KEY_MAX];
	const char *const prefixes[] = {folder, "domains/", "keys/", "repo"};
	int r = 0;

	name_domain_folder(repo, folder);
	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(prefixes); i++)
		r = repo->st->ops->list(repo->st, prefixes[i], add_object, l, err);
	return r;
}

int verify_scrub(struct verifier *v, struct error *err)
{
	struct objects l = {.no_records = v->opt->budget_ms != 0};
	struct ring ring;
	size_t start = 0;
	int r = ring_open(&ring, v, 's', err);

	r = r ? r : list_objects(v->repo, &l, err);
	while (r == 0 && start < l.n && strcmp(l.v[start].key, ring.last) <= 0)
		start++;
	v->total = 0;
	for (size_t i = 0; i < l.n; i++)
		v->total += l.v[i].size;
	for (size_t i = 0; r == 0 && i < l.n && ring_goes_on(&ring); i++) {
		const struct object *o = &l.v[(start + i) % l.n];

		r = scrub_object(v, o, err);
		r = r ? r : v->code;
		ring_did(&ring, o->key);
	}
	r = r ? r : ring_close(&ring, err);
	free(l.v);
	return r;
}
