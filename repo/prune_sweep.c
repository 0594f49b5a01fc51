/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sweeping one session.  Generations of a segment are totally ordered by (generation,
 * run).  One is removed only when a later one that is listed holds every slot in use, so
 * the last one always holds what any janitor still wants.
 */
#include "prune.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define TABLES_BYTES   (64u << 10) /* header and tables of any segment of this version */
#define MAX_GENERATION 0xffff

/* A stored segment. */
struct gen {
	struct segment_name name;
	uint64_t size;
};

struct gen_list {
	struct repo *repo;
	struct tm_id sid;
	struct gen *v; /* in order of names: by index and type, then generation and run */
	size_t n, cap;
};

static int add_gen(void *data, const char *key, uint64_t size, struct error *err)
{
	struct gen_list *l = data;
	struct segment_name name;

	if (!name_parse_segment(l->repo, key, &name) || !id_equal(&name.session, &l->sid))
		return 0;
	if (l->n == l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 16;
		struct gen *v = reallocarray(l->v, cap, sizeof(*v));

		if (!v)
			return error_nomem(err);
		l->v = v;
		l->cap = cap;
	}
	l->v[l->n++] = (struct gen){.name = name, .size = size};
	return 0;
}

static void gen_key(const struct prune *p, const struct gen *g, char key[KEY_MAX])
{
	name_segment(p->repo, &g->name.session, g->name.type, g->name.index, g->name.generation,
		     g->name.run, key);
}

static int remove_gen(struct prune *p, const struct gen *g, struct error *err)
{
	char key[KEY_MAX];

	gen_key(p, g, key);
	p->removed_stored += g->size;
	return prune_remove(p, key, g->size, err);
}

static struct seg_address gen_address(const struct prune *p, const struct gen *g)
{
	return (struct seg_address){
		.repo = p->repo->id,
		.domain = p->repo->domain,
		.session = g->name.session,
		.type = g->name.type,
		.block_bits = (uint8_t)p->repo->block_bits,
		.index = g->name.index,
	};
}

static int read_tables(struct prune *p, const struct gen *g, struct seg_tables **ret,
		       struct error *err)
{
	auto_free uint8_t *bytes = malloc(TABLES_BYTES);
	struct seg_address addr = gen_address(p, g);
	char key[KEY_MAX];
	size_t got;
	int r;

	if (!bytes)
		return error_nomem(err);
	gen_key(p, g, key);
	r = store_get_wait(p->repo->st, key, bytes, TABLES_BYTES, 0, &got, err);
	r = r ? r : seg_tables_scan(&addr, bytes, got, ret, err);
	if (r < 0)
		error_prefix(err, "object %s", key);
	return r;
}

/* Another janitor may remove what was listed, and damage stays for verify to find. */
static bool may_pass(int code)
{
	return code == TM_E_NOTFOUND || code == TM_E_CORRUPT || code == TM_E_UNSUPPORTED;
}

/* A generation that another janitor put may not be durable. */
static int sync_session(const struct prune *p, const struct tm_id *sid, struct error *err)
{
	char prefix[KEY_MAX];

	name_session_prefix(p->repo, sid, prefix);
	return p->opt->dry_run ? 0 : p->repo->st->ops->sync(p->repo->st, prefix, err);
}

/*
 * Removes the generations before the last one that holds all that is in use.  `own` is the one
 * that this run wrote, which does.
 */
static int drop_superseded(struct prune *p, const struct gen *v, size_t n, const uint64_t *bits,
			   bool wrote, struct error *err)
{
	size_t last = n;
	int r = 0;

	while (last-- > 1) {
		auto_clean(seg_tables_free) struct seg_tables *t = NULL;
		struct error one = {0};

		if (wrote && v[last].name.run == p->run)
			break;
		r = read_tables(p, &v[last], &t, &one);
		if (r == 0 && tables_hold(t, bits))
			break;
		if (r < 0 && !may_pass(r))
			return error_pass(err, r, &one);
	}
	if (last > 0 && last < n && v[last].name.run != p->run)
		r = sync_session(p, &v->name.session, err);
	if (r < 0)
		return r;
	for (size_t i = 0; i < last && i < n; i++) {
		r = remove_gen(p, &v[i], err);
		if (r < 0)
			return r;
	}
	return 0;
}

static void gen_list_done(struct gen_list *l)
{
	free(l->v);
	l->v = NULL;
	l->n = l->cap = 0;
}

/* Lists the generations of a segment again, after this run's was put. */
static int drop_old(struct prune *p, const struct gen *g, const uint64_t *bits, struct error *err)
{
	struct gen_list l = {.repo = p->repo, .sid = g->name.session};
	char prefix[KEY_MAX];
	int r;

	gen_key(p, g, prefix);
	strrchr(prefix, '.')[1] = 0;
	r = p->repo->st->ops->list(p->repo->st, prefix, add_gen, &l, err);
	r = r ? r : drop_superseded(p, l.v, l.n, bits, true, err);
	gen_list_done(&l);
	return r;
}

/* Writes the next generation of g, whose tables are t, and removes what it replaces. */
static int rewrite(struct prune *p, const struct gen *g, const struct seg_tables *t,
		   const uint64_t *bits, struct error *err)
{
	auto_buf struct buf old = {0}, new = {0};
	uint32_t generation = g->name.generation + 1;
	char key[KEY_MAX];
	int r;

	gen_key(p, g, key);
	r = store_read(p->repo->st, key, (size_t)t->object_len, &old, err);
	if (r == 0 && old.len != t->object_len)
		r = error_set(err, TM_E_CORRUPT, "object %s is %zu bytes, its tables say %" PRIu64,
			      key, old.len, t->object_len);
	r = r ? r : seg_compact(t, old.data, bits, generation, p->run, &new, err);
	if (r < 0)
		return r;
	if (p->opt->dry_run) {
		p->report.compacted_bytes += new.len;
		return remove_gen(p, g, err);
	}
	name_segment(p->repo, &g->name.session, g->name.type, g->name.index, generation, p->run,
		     key);
	r = store_put_wait(p->repo->st, key, new.data, new.len, err);
	if (r < 0)
		return r;
	p->report.compacted_bytes += new.len;
	return drop_old(p, g, bits, err);
}

static bool mostly_unused(const struct prune *p, const struct seg_tables *t, const uint64_t *bits)
{
	uint64_t all = 0, unused = 0;

	for (uint32_t i = 0; i < t->nframes; i++) {
		all += t->frames[i].stored_len;
		if (!frame_live(&t->frames[i], bits))
			unused += t->frames[i].stored_len;
	}
	return unused > 0 && unused * 100 > all * p->opt->max_unused;
}

static bool all_used(const struct mark_segments *s, uint32_t index, uint8_t type)
{
	uint32_t count = 0;

	for (unsigned i = 0; i < mark_words(type); i++)
		count += (uint32_t)__builtin_popcountll(s->bits[index][i]);
	return count == s->nslots[index];
}

/* The last generation, when there is something to gain. */
static int compact(struct prune *p, const struct gen *g, const struct mark_segments *s,
		   struct error *err)
{
	auto_clean(seg_tables_free) struct seg_tables *t = NULL;
	const uint64_t *bits = s->bits[g->name.index];
	struct error one = {0};
	int r;

	if (all_used(s, g->name.index, g->name.type) || g->name.generation >= MAX_GENERATION)
		return 0;
	r = read_tables(p, g, &t, &one);
	/* An older mark may want slots that a later one has let go: nothing to gain then. */
	if (r == 0 && tables_hold(t, bits) && mostly_unused(p, t, bits))
		r = rewrite(p, g, t, bits, &one);
	if (r == 0 || r == TM_E_NOTFOUND || r == TM_E_EXISTS)
		return 0;
	if (r == TM_E_NOSPACE || may_pass(r)) {
		log_debug("%s", one.text);
		p->report.no_room += r == TM_E_NOSPACE;
		p->report.unreadable += r != TM_E_NOSPACE;
		return 0;
	}
	return error_pass(err, r, &one);
}

/* All generations of one segment. */
static int sweep_segment(struct prune *p, const struct mark *m, const struct gen *v, size_t n,
			 struct error *err)
{
	const struct mark_segments *s = m ? &m->seg[v->name.type == SEGMENT_MAP] : NULL;
	const uint64_t *bits = s && v->name.index < s->n ? s->bits[v->name.index] : NULL;
	int r = prune_tick(p, err);

	if (!bits) {
		for (size_t i = 0; r == 0 && i < n; i++)
			r = remove_gen(p, &v[i], err);
		return r;
	}
	if (n > 1)
		r = r ? r : drop_superseded(p, v, n, bits, false, err);
	return r ? r : compact(p, &v[n - 1], s, err);
}

static bool same_segment(const struct gen *a, const struct gen *b)
{
	return a->name.index == b->name.index && a->name.type == b->name.type;
}

int sweep_session(struct prune *p, const struct tm_id *sid, struct error *err)
{
	struct gen_list l = {.repo = p->repo, .sid = *sid};
	const struct mark *m = mark_find(p, sid);
	char prefix[KEY_MAX];
	int r;

	name_session_prefix(p->repo, sid, prefix);
	r = p->repo->st->ops->list(p->repo->st, prefix, add_gen, &l, err);
	for (size_t i = 0, k; r == 0 && i < l.n; i = k) {
		for (k = i + 1; k < l.n && same_segment(&l.v[i], &l.v[k]); k++)
			continue;
		r = sweep_segment(p, m, &l.v[i], k - i, err);
	}
	gen_list_done(&l);
	return r;
}
