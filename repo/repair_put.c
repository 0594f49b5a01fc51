/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Generations of a damaged segment.  What is built again gets the next one, under keys of its own;
 * those before go once it is durable, since readers take the first one that they find.
 */
#include "repair.h"

#include <inttypes.h>
#include <string.h>

#define MAX_GENERATION 0xffff

struct generations {
	struct repo *repo;
	struct segment_name *v; /* in order */
	size_t n, cap;
};

static int add_generation(void *data, const char *key, uint64_t size, struct error *err)
{
	struct generations *l = data;
	struct segment_name name;

	(void)size;
	if (!name_parse_segment(l->repo, key, &name))
		return 0;
	if (l->n == l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 4;
		struct segment_name *v = reallocarray(l->v, cap, sizeof(*v));

		if (!v)
			return error_nomem(err);
		l->v = v;
		l->cap = cap;
	}
	l->v[l->n++] = name;
	return 0;
}

static int list(struct repo *repo, const struct vseg *s, struct generations *ret, struct error *err)
{
	char prefix[KEY_MAX];

	*ret = (struct generations){.repo = repo};
	name_segment(repo, &s->sid, s->type, s->index, 0, 0, prefix);
	strrchr(prefix, '.')[1] = 0;
	return repo->st->ops->list(repo->st, prefix, add_generation, ret, err);
}

static void key_of(const struct repo *repo, const struct segment_name *n, char key[KEY_MAX])
{
	name_segment(repo, &n->session, n->type, n->index, n->generation, n->run, key);
}

/* All generations before `last`. */
static int remove_before(struct repair *p, const struct generations *l,
			 const struct segment_name *last, struct error *err)
{
	struct store *st = p->v->repo->st;
	int r = 0;

	for (size_t i = 0; r == 0 && i < l->n; i++) {
		const struct segment_name *n = &l->v[i];
		char key[KEY_MAX];

		if (n->generation > last->generation ||
		    (n->generation == last->generation && n->run >= last->run))
			continue;
		key_of(p->v->repo, n, key);
		r = st->ops->remove(st, key, err);
	}
	return r;
}

int repair_sealing(struct repair *p, const struct vseg *s, struct seg_sealing *ret,
		   struct error *err)
{
	struct generations l;
	int r = list(p->v->repo, s, &l, err);

	/* The first one's name is taken even when it is gone. */
	ret->generation = 1;
	for (size_t i = 0; i < l.n; i++)
		if (l.v[i].generation >= ret->generation)
			ret->generation = l.v[i].generation + 1;
	free(l.v);
	if (r == 0 && ret->generation > MAX_GENERATION)
		return error_set(err, TM_E_RANGE, "the segment was written too often");
	return r ? r : random_bytes(&ret->run, sizeof(ret->run), err);
}

static int replace(struct repair *p, const struct vseg *s, const struct segment_name *last,
		   const uint64_t *lost, struct error *err)
{
	struct repo *repo = p->v->repo;
	struct generations l;
	int r = list(repo, s, &l, err);

	r = r ? r : remove_before(p, &l, last, err);
	free(l.v);
	cache_drop(repo->cache);
	r = r ? r : lost_remove(repo, &s->sid, s->type, s->index, err);
	return r || !lost ? r : lost_put(repo, &s->sid, s->type, s->index, lost, err);
}

int repair_put(struct repair *p, const struct vseg *s, const struct seg_writer *w,
	       const uint64_t *lost, struct error *err)
{
	const struct segment_name name = {.session = s->sid,
					  .type = s->type,
					  .index = s->index,
					  .generation = w->sealing.generation,
					  .run = w->sealing.run};
	char key[KEY_MAX];
	int r;

	if (p->dry_run)
		return 0;
	key_of(p->v->repo, &name, key);
	r = store_put_wait(p->v->repo->st, key, w->object, w->object_len, err);
	return r ? r : replace(p, s, &name, lost, err);
}

/* Every frame that is there has its checksum, and every slot in use is there. */
static bool is_whole(const struct repair *p, const struct vseg *s, const struct buf *b)
{
	const struct seg_address addr = repair_address(p->v->repo, s);
	auto_clean(seg_tables_free) struct seg_tables *t = NULL;
	struct error err = {0};
	bool whole =
		seg_tables_scan(&addr, b->data, b->len, &t, &err) == 0 && t->object_len == b->len;

	for (uint32_t i = 0; whole && i < t->nframes; i++)
		whole = t->frames[i].stored_len == 0 ||
			frame_check_crc(&t->frames[i], b->data + t->frames[i].offset, &err) == 0;
	for (uint32_t i = 0; whole && i < s->nwords * 64; i++)
		whole = !bit_get(s->used, i) || seg_find(t, i);
	return whole;
}

int repair_from_later(struct repair *p, const struct vseg *s, bool *ret, struct error *err)
{
	struct repo *repo = p->v->repo;
	auto_buf struct buf b = {0};
	const struct segment_name *last;
	struct generations l;
	char key[KEY_MAX];
	int r = list(repo, s, &l, err);

	*ret = false;
	last = l.n > 0 ? &l.v[l.n - 1] : NULL;
	if (r == 0 && l.n > 1) {
		key_of(repo, last, key);
		*ret = store_read(repo->st, key, SEGMENT_MAX_PAYLOAD + SEG_HEADROOM, &b, NULL) ==
			       0 &&
		       is_whole(p, s, &b);
	}
	if (*ret && !p->dry_run)
		r = replace(p, s, last, NULL, err);
	free(l.v);
	return r;
}
