/* SPDX-License-Identifier: Apache-2.0 */
/* Map pages of the cache, and loading them. */
#include "cache_page.h"

#include "node.h"

#include <inttypes.h>
#include <string.h>

#define MAX_PAGES_BYTES (20u << 20)
/* Pages that are read together at most, where a segment's pages are wanted one after the other. */
#define MAX_AHEAD 4

struct page {
	struct tm_id sid;
	uint32_t index;
	unsigned first_slot, nslots;
	size_t len;
	uint8_t *bytes; /* owned */
};

/* Loading a page, and some that follow it: its segment's tables first. */
struct page_load {
	struct store_req req;
	struct cache_wait tables_wait;
	struct cache *c;
	struct tm_id sid;
	uint32_t index, slot;
	struct cache_wait *waiting;
	struct page_load *next;
	struct tables *tables;
	const struct seg_frame *frame; /* the first of nframes, back to back in the object */
	unsigned nframes;
	size_t len;
	uint8_t *buf;
	unsigned retries;
	int code[MAX_AHEAD]; /* of each frame */
	struct error err;    /* of the first frame that failed */
};

void cache_trim_pages(struct cache *c, size_t max)
{
	size_t sum = 0, keep = 0;

	while (keep < c->npages) {
		const struct page *g = &c->pages[c->npages - keep - 1];

		sum += sizeof(*g) + g->len;
		if (sum > max)
			break;
		keep++;
	}
	for (size_t i = 0; i < c->npages - keep; i++)
		free(c->pages[i].bytes);
	if (keep > 0 && keep < c->npages)
		memmove(c->pages, c->pages + (c->npages - keep), keep * sizeof(*c->pages));
	c->npages = keep;
}

static struct page *find_page(struct cache *c, const struct tm_id *sid, uint32_t index,
			      uint32_t slot)
{
	for (size_t i = c->npages; i-- > 0;) {
		struct page *last = &c->pages[c->npages - 1], *g = &c->pages[i];

		if (g->index != index || slot < g->first_slot ||
		    slot - g->first_slot >= g->nslots || !id_equal(&g->sid, sid))
			continue;
		if (g != last) {
			struct page hit = *g;

			memmove(g, g + 1, (size_t)(last - g) * sizeof(*g));
			*last = hit;
		}
		return last;
	}
	return NULL;
}

/* Takes g->bytes. */
static int add_page(struct cache *c, const struct page *g, struct error *err)
{
	if (c->npages == c->pages_cap) {
		size_t cap = c->pages_cap ? 2 * c->pages_cap : 64;
		struct page *v = reallocarray(c->pages, cap, sizeof(*v));

		if (!v) {
			free(g->bytes);
			return error_nomem(err);
		}
		c->pages = v;
		c->pages_cap = cap;
	}
	c->pages[c->npages++] = *g;
	return 0;
}

const uint8_t *cache_node(struct cache *c, const struct tm_id *sid, uint64_t ordinal,
			  size_t *ret_len)
{
	uint32_t slot = (uint32_t)(ordinal & (MAP_SLOTS - 1));
	struct page *g = find_page(c, sid, (uint32_t)(ordinal >> MAP_SLOTS_LOG2), slot);

	return g ? page_node(g->bytes, slot - g->first_slot, ret_len) : NULL;
}

bool cache_node_behind(struct cache *c, const struct tm_id *sid, uint64_t ordinal, uint64_t *ret)
{
	uint32_t slot = (uint32_t)(ordinal & (MAP_SLOTS - 1));
	uint32_t index = (uint32_t)(ordinal >> MAP_SLOTS_LOG2);
	struct tables *t = cache_tables(c, sid, SEGMENT_MAP, index);
	const struct seg_frame *f = t ? seg_find(t->t, slot) : NULL;
	uint32_t at = f ? (uint32_t)(f - t->t->frames) : 0;
	bool last = false;

	if (f && t->ahead > 1 && t->ahead_next < t->t->nframes && at < t->ahead_next &&
	    t->ahead_next - at <= t->ahead) {
		slot = t->t->frames[t->ahead_next].first_slot;
		*ret = ((uint64_t)index << MAP_SLOTS_LOG2) + slot;
		last = !find_page(c, sid, index, slot) && !cache_loads_node(c, sid, *ret);
	}
	tables_unref(t);
	return last;
}

/* ---- loading ---- */

static void page_load_remove(struct page_load *l)
{
	for (struct page_load **p = &l->c->page_loads; *p; p = &(*p)->next) {
		if (*p == l) {
			*p = l->next;
			break;
		}
	}
}

static void page_load_free(struct page_load *l)
{
	tables_unref(l->tables);
	free(l->buf);
	free(l);
}

/* One answer for all who wait. */
static void page_load_over(struct page_load *l, int code, const struct error *err)
{
	struct error copy = *err;

	page_load_remove(l);
	if (code < 0 && l->tables)
		cache_name_object(&copy, l->tables->key);
	cache_wake(l->waiting, code, &copy);
	page_load_free(l);
}

static bool frame_has(const struct seg_frame *f, uint32_t slot)
{
	return slot >= f->first_slot && slot - f->first_slot < f->nslots;
}

/* Of the frame that holds slot, among those that were read. */
static int code_of(const struct page_load *l, uint32_t slot)
{
	for (unsigned i = 0; i < l->nframes; i++)
		if (frame_has(&l->frame[i], slot))
			return l->code[i];
	assert(false); /* waits that are added to a load are covered by it */
	return TM_E_CORRUPT;
}

static void page_load_end(struct page_load *l)
{
	struct cache_wait *list = l->waiting;

	page_load_remove(l);
	while (list) {
		struct cache_wait *w = list;
		int code = code_of(l, w->slot);

		list = w->next;
		if (code < 0) {
			w->err = l->err;
			cache_name_object(&w->err, l->tables->key);
		}
		w->done(w, code);
	}
	page_load_free(l);
}

/* From a stored frame to a checked page. */
static int page_decode(const struct page_load *l, const struct seg_frame *f, uint8_t *stored,
		       struct page *ret, struct error *err)
{
	const struct seg_tables *t = l->tables->t;
	struct repo *repo = l->c->repo;
	uint8_t *bytes = l->c->scratch;
	size_t len = f->stored_len - TAG_BYTES - 1, n;
	int r;

	r = frame_check_crc(f, stored, err);
	if (r == 0)
		r = aead_set_key(repo->aead, &t->key, err);
	if (r == 0)
		r = frame_open(t, f, repo->aead, stored, stored, err);
	if (r < 0)
		return r;
	if (stored[0] == FRAME_RAW && len <= PAGE_MAX_BYTES) {
		memcpy(bytes, stored + 1, len);
		n = len;
	} else if (stored[0] == FRAME_ZSTD) {
		n = ZSTD_decompressDCtx(repo->dctx, bytes, PAGE_MAX_BYTES, stored + 1, len);
		if (ZSTD_isError(n))
			return error_set(err, TM_E_CORRUPT, "map page: %s", ZSTD_getErrorName(n));
	} else {
		return error_set(err, TM_E_UNSUPPORTED, "map page of unknown encoding %u",
				 stored[0]);
	}
	r = page_check(bytes, n, f->nslots, err);
	if (r < 0)
		return r;
	*ret = (struct page){.sid = l->sid,
			     .index = l->index,
			     .first_slot = f->first_slot,
			     .nslots = f->nslots,
			     .len = n,
			     .bytes = malloc(n)};
	if (!ret->bytes)
		return error_nomem(err);
	memcpy(ret->bytes, bytes, n);
	return 0;
}

static int page_take(struct page_load *l, const struct seg_frame *f, struct error *err)
{
	uint64_t at = f->offset - l->frame->offset;
	struct page g;
	int r;

	if (find_page(l->c, &l->sid, l->index, f->first_slot))
		return 0;
	if (l->req.got < at + f->stored_len)
		return error_set(err, TM_E_CORRUPT, "the object ends inside a map page");
	r = page_decode(l, f, l->buf + at, &g, err);
	return r ? r : add_page(l->c, &g, err);
}

/* The object is gone: compacted meanwhile. */
static void page_load_again(struct page_load *l)
{
	struct cache_wait *list = l->waiting;

	cache_forget_tables(l->c, l->tables);
	tables_unref(tm_steal(l->tables));
	l->frame = NULL;
	free(tm_steal(l->buf));
	l->waiting = NULL;
	while (list) {
		struct cache_wait *w = list;

		list = w->next;
		/* Pages may be other ones now. */
		if (w->slot == l->slot)
			cache_wait_add(&l->waiting, w);
		else
			cache_load_node(l->c, &l->sid,
					((uint64_t)l->index << MAP_SLOTS_LOG2) + w->slot, w);
	}
	cache_load_tables(l->c, &l->sid, SEGMENT_MAP, l->index, &l->tables_wait);
}

static void page_got(struct store_req *req, int code)
{
	struct page_load *l = container_of(req, struct page_load, req);

	if (code == TM_E_NOTFOUND && l->retries++ < MAX_RELISTS) {
		page_load_again(l);
		return;
	}
	if (code < 0) {
		page_load_over(l, code, &req->err);
		return;
	}
	for (unsigned i = 0; i < l->nframes; i++) {
		struct error err = {0};

		l->code[i] = page_take(l, &l->frame[i], &err);
		if (l->code[i] < 0 && !l->err.code)
			l->err = err;
	}
	cache_trim_pages(l->c, MAX_PAGES_BYTES);
	page_load_end(l);
}

/*
 * How many frames are read from l->frame on.  Four times as many as the last time, where this
 * begins not far behind what was read then.
 */
static void choose_frames(struct page_load *l)
{
	struct tables *t = l->tables;
	const struct seg_frame *f = l->frame;
	uint32_t first = (uint32_t)(f - t->t->frames);
	bool goes_on = first >= t->ahead_next && first - t->ahead_next < t->ahead;

	t->ahead = goes_on ? (uint32_t)min_u64(UINT64_C(4) * t->ahead, MAX_AHEAD) : 1;
	l->len = f->stored_len;
	l->nframes = 1;
	while (l->nframes < t->ahead && first + l->nframes < t->t->nframes &&
	       f[l->nframes].stored_len > 0 && f[l->nframes].offset == f->offset + l->len)
		l->len += f[l->nframes++].stored_len;
	t->ahead_next = first + l->nframes;
}

static bool page_covers(const struct page_load *l, uint32_t slot)
{
	if (!l->frame)
		return l->slot == slot;
	for (unsigned i = 0; i < l->nframes; i++)
		if (frame_has(&l->frame[i], slot))
			return true;
	return false;
}

/* The load under way that brings the node, or NULL. */
static struct page_load *find_load(const struct cache *c, const struct tm_id *sid, uint32_t index,
				   uint32_t slot)
{
	for (struct page_load *l = c->page_loads; l; l = l->next)
		if (l->index == index && id_equal(&l->sid, sid) && page_covers(l, slot))
			return l;
	return NULL;
}

/* Now that the tables tell which page it is: another load may bring it, or has. */
static bool brought_by_another(struct page_load *l)
{
	struct error none = {0};
	struct page_load *other;

	if (find_page(l->c, &l->sid, l->index, l->slot)) {
		page_load_over(l, 0, &none);
		return true;
	}
	page_load_remove(l);
	other = find_load(l->c, &l->sid, l->index, l->slot);
	if (!other) {
		l->next = l->c->page_loads;
		l->c->page_loads = l;
		return false;
	}
	other->retries = other->retries > l->retries ? other->retries : l->retries;
	while (l->waiting) {
		struct cache_wait *w = l->waiting;

		l->waiting = w->next;
		cache_wait_add(&other->waiting, w);
	}
	page_load_free(l);
	return true;
}

static void page_tables_there(struct cache_wait *w, int code)
{
	struct page_load *l = container_of(w, struct page_load, tables_wait);
	struct store *st = l->c->repo->st;
	struct error err = {0};

	if (code < 0) {
		page_load_over(l, code, &w->err);
		return;
	}
	if (brought_by_another(l))
		return;
	l->tables = cache_tables(l->c, &l->sid, SEGMENT_MAP, l->index);
	assert(l->tables);
	l->frame = seg_find(l->tables->t, l->slot);
	if (!l->frame) {
		page_load_over(
			l, error_set(&err, TM_E_CORRUPT, "there is no map node %" PRIu32, l->slot),
			&err);
		return;
	}
	choose_frames(l);
	l->buf = malloc(l->len);
	if (!l->buf) {
		page_load_over(l, error_nomem(&err), &err);
		return;
	}
	l->req.done = page_got;
	st->ops->get(st, l->tables->key, l->buf, l->len, l->frame->offset, &l->req);
}

bool cache_loads_node(const struct cache *c, const struct tm_id *sid, uint64_t ordinal)
{
	return find_load(c, sid, (uint32_t)(ordinal >> MAP_SLOTS_LOG2),
			 (uint32_t)(ordinal & (MAP_SLOTS - 1))) != NULL;
}

void cache_load_node(struct cache *c, const struct tm_id *sid, uint64_t ordinal,
		     struct cache_wait *w)
{
	uint32_t slot = (uint32_t)(ordinal & (MAP_SLOTS - 1));
	uint32_t index = (uint32_t)(ordinal >> MAP_SLOTS_LOG2);
	struct page_load *l = find_load(c, sid, index, slot);
	struct tables *t;

	error_clear(&w->err);
	w->slot = slot;
	if (l) {
		cache_wait_add(&l->waiting, w);
		return;
	}
	l = calloc(1, sizeof(*l));
	if (!l) {
		w->done(w, error_nomem(&w->err));
		return;
	}
	*l = (struct page_load){
		.c = c, .sid = *sid, .index = index, .slot = slot, .next = c->page_loads};
	c->page_loads = l;
	l->tables_wait.done = page_tables_there;
	cache_wait_add(&l->waiting, w);
	t = cache_tables(c, sid, SEGMENT_MAP, index);
	if (t) {
		page_tables_there(&l->tables_wait, 0);
		tables_unref(t);
	} else {
		cache_load_tables(c, sid, SEGMENT_MAP, index, &l->tables_wait);
	}
}
