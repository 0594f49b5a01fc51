/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which points there are.  A point is valid when its manifest exists and neither a
 * tombstone nor a verdict does.  Names alone say guest (hashed), order and id.
 */
#include "points.h"

#include "manifest.h"

#include <inttypes.h>
#include <string.h>

struct name_list_fill {
	struct repo *repo;
	struct name_list *l;
	struct id_set *dead;
	enum session_flag flag;
};

void name_list_done(struct name_list *l)
{
	free(l->v);
	*l = (struct name_list){0};
}

void id_set_done(struct id_set *s)
{
	free(s->v);
	*s = (struct id_set){0};
}

int id_set_add(struct id_set *s, const struct tm_id *id, struct error *err)
{
	if (s->n == s->cap) {
		size_t cap = s->cap ? 2 * s->cap : 16;
		struct tm_id *v = reallocarray(s->v, cap, sizeof(*v));

		if (!v)
			return error_nomem(err);
		s->v = v;
		s->cap = cap;
	}
	s->v[s->n++] = *id;
	return 0;
}

static int compare_ids(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct tm_id));
}

void id_set_sort(struct id_set *s)
{
	if (s->n > 1)
		qsort(s->v, s->n, sizeof(*s->v), compare_ids);
}

bool id_set_has(const struct id_set *s, const struct tm_id *id)
{
	return s->n > 0 && bsearch(id, s->v, s->n, sizeof(*s->v), compare_ids);
}

static int add_dead(void *data, const char *key, uint64_t size, struct error *err)
{
	struct name_list_fill *f = data;
	struct tm_id sid;

	(void)size;
	return name_parse_flag(f->repo, f->flag, key, &sid) ? id_set_add(f->dead, &sid, err) : 0;
}

int points_flagged(struct repo *repo, enum session_flag flag, struct id_set *ret, struct error *err)
{
	struct name_list_fill f = {.repo = repo, .dead = ret, .flag = flag};
	char prefix[KEY_MAX];
	int r;

	name_flag_prefix(repo, flag, prefix);
	r = repo->st->ops->list(repo->st, prefix, add_dead, &f, err);
	id_set_sort(ret);
	return r;
}

int points_sync_flags(struct repo *repo, enum session_flag flag, struct error *err)
{
	char prefix[KEY_MAX];

	name_flag_prefix(repo, flag, prefix);
	return repo->st->ops->sync(repo->st, prefix, err);
}

int points_sync(struct repo *repo, const struct tm_id *source, struct error *err)
{
	char prefix[KEY_MAX];

	name_source_prefix(repo, source, prefix);
	return repo->st->ops->sync(repo->st, prefix, err);
}

/* What is shown is made to last where that is possible; where not, it is readable all the same. */
static void sync_shown(struct repo *repo, const struct tm_id *source)
{
	struct error err = {0};
	int r = points_sync(repo, source, &err);

	r = r ? r : points_sync_flags(repo, FLAG_HOLD, &err);
	r = r ? r : points_sync_flags(repo, FLAG_TOMBSTONE, &err);
	if (r < 0)
		log_debug("%s", err.text);
}

int points_dead(struct repo *repo, struct id_set *ret, struct error *err)
{
	static const enum session_flag flags[] = {FLAG_TOMBSTONE, FLAG_VERDICT};

	for (size_t i = 0; i < ARRAY_SIZE(flags); i++) {
		int r = points_flagged(repo, flags[i], ret, err);

		if (r < 0)
			return r;
	}
	return 0;
}

/* Names come in order: the last hold of a point decides, an odd one protects. */
static int add_held(void *data, const char *key, uint64_t size, struct error *err)
{
	struct name_list_fill *f = data;
	struct id_set *s = f->dead;
	struct tm_id sid;
	uint32_t n;

	(void)size;
	if (!name_parse_flag(f->repo, FLAG_HOLD, key, &sid) || !name_parse_number(key, 4, &n))
		return 0;
	if (s->n > 0 && id_equal(&s->v[s->n - 1], &sid))
		s->n--;
	return n % 2 ? id_set_add(s, &sid, err) : 0;
}

int points_held(struct repo *repo, struct id_set *ret, struct error *err)
{
	struct name_list_fill f = {.repo = repo, .dead = ret};
	char prefix[KEY_MAX];

	name_flag_prefix(repo, FLAG_HOLD, prefix);
	return repo->st->ops->list(repo->st, prefix, add_held, &f, err);
}

static int add_name(void *data, const char *key, uint64_t size, struct error *err)
{
	struct name_list_fill *f = data;
	struct point_name name;

	if (!name_parse_point(f->repo, key, &name))
		return 0;
	name.size = size;
	if (f->l->n == f->l->cap) {
		size_t cap = f->l->cap ? 2 * f->l->cap : 64;
		struct point_name *v = reallocarray(f->l->v, cap, sizeof(*v));

		if (!v)
			return error_nomem(err);
		f->l->v = v;
		f->l->cap = cap;
	}
	f->l->v[f->l->n++] = name;
	return 0;
}

int points_manifests(struct repo *repo, struct name_list *ret, struct error *err)
{
	struct name_list_fill f = {.repo = repo, .l = ret};
	char prefix[KEY_MAX];

	name_source_prefix(repo, NULL, prefix);
	return repo->st->ops->list(repo->st, prefix, add_name, &f, err);
}

int points_names(struct repo *repo, const struct tm_id *source, struct name_list *ret,
		 struct error *err)
{
	struct id_set dead = {0};
	struct name_list_fill f = {.repo = repo, .l = ret};
	char prefix[KEY_MAX];
	size_t n = 0;
	int r;

	/* The dead first: a tombstone outlasts its manifest. */
	name_source_prefix(repo, source, prefix);
	r = points_dead(repo, &dead, err);
	r = r ? r : repo->st->ops->list(repo->st, prefix, add_name, &f, err);
	for (size_t i = 0; r == 0 && i < ret->n; i++)
		if (!id_set_has(&dead, &ret->v[i].session))
			ret->v[n++] = ret->v[i];
	if (r == 0)
		ret->n = n;
	id_set_done(&dead);
	return r;
}

int points_load(struct repo *repo, const struct point_name *name, struct point **ret,
		struct error *err)
{
	auto_buf struct buf b = {0};
	char key[KEY_MAX];
	int r;

	name_point(repo, &name->source, name->seq, &name->session, key);
	r = store_read(repo->st, key, MAX_MANIFEST, &b, err);
	return r ? r : manifest_decode(repo, name, key, b.data, b.len, ret, NULL, err);
}

int point_list_add(struct point_list *l, struct point *p, struct error *err)
{
	struct point **v = reallocarray(l->v, l->n + 1, sizeof(struct point *));

	if (!v) {
		point_free(p);
		return error_nomem(err);
	}
	l->v = v;
	v[l->n++] = p;
	return 0;
}

static int compare_points(const void *a, const void *b)
{
	const struct point *x = *(struct point *const *)a, *y = *(struct point *const *)b;

	if (strcmp(x->guest, y->guest) == 0 && x->seq != y->seq)
		return x->seq < y->seq ? -1 : 1;
	if (x->created_ms != y->created_ms)
		return x->created_ms < y->created_ms ? -1 : 1;
	return memcmp(&x->id, &y->id, sizeof(x->id));
}

bool points_is_damage(int code)
{
	return code == TM_E_CORRUPT || code == TM_E_UNSUPPORTED;
}

struct list_all {
	struct points_reader reader;
	struct point_list *l;
	const struct id_set *held;
	bool brief;
	size_t damaged;
};

static int list_one(struct points_reader *reader, const struct point_name *name, struct point *p,
		    const struct error *why, struct error *err)
{
	struct list_all *a = container_of(reader, struct list_all, reader);

	(void)name;
	if (!p) {
		log_debug("%s", why->text);
		a->damaged++;
		return 0;
	}
	p->is_protected = id_set_has(a->held, &p->id);
	for (size_t i = 0; a->brief && i < p->ndisks; i++) {
		disk_map_free(p->disks[i].map);
		p->disks[i].map = NULL;
	}
	return point_list_add(a->l, p, err);
}

static int list_points(struct repo *repo, const char *guest, bool brief, struct point_list *ret,
		       size_t *ret_damaged, struct error *err)
{
	auto_point_list struct point_list l = {0};
	struct name_list names = {0};
	struct id_set held = {0};
	struct list_all all = {
		.reader = {.repo = repo, .each = list_one}, .l = &l, .held = &held, .brief = brief};
	struct tm_id source;
	int r = guest ? source_id(&repo->keys, guest, &source, err) : 0;

	r = r ? r : points_names(repo, guest ? &source : NULL, &names, err);
	r = r ? r : points_held(repo, &held, err);
	if (r == 0)
		sync_shown(repo, guest ? &source : NULL);
	r = r ? r : points_read(&all.reader, names.v, names.n, false, err);
	name_list_done(&names);
	id_set_done(&held);
	if (r < 0)
		return r;
	if (l.n > 1)
		qsort(l.v, l.n, sizeof(struct point *), compare_points);
	point_list_done(ret);
	*ret = l;
	l = (struct point_list){0};
	if (ret_damaged)
		*ret_damaged = all.damaged;
	return 0;
}

int repo_points(struct repo *repo, const char *guest, struct point_list *ret, size_t *ret_damaged,
		struct error *err)
{
	return list_points(repo, guest, false, ret, ret_damaged, err);
}

int repo_points_brief(struct repo *repo, const char *guest, struct point_list *ret,
		      size_t *ret_damaged, struct error *err)
{
	return list_points(repo, guest, true, ret, ret_damaged, err);
}

struct find_newest {
	struct points_reader reader;
	repo_point_test *wanted;
	void *data;
	struct point *hit;
};

static int test_one(struct points_reader *reader, const struct point_name *name, struct point *p,
		    const struct error *why, struct error *err)
{
	struct find_newest *f = container_of(reader, struct find_newest, reader);

	(void)name;
	(void)err;
	if (!p)
		log_debug("%s", why->text);
	else if (!f->wanted || f->wanted(f->data, p))
		f->hit = p;
	else
		point_free(p);
	return f->hit != NULL;
}

int repo_point_newest(struct repo *repo, const char *guest, const struct tm_id *before,
		      repo_point_test *wanted, void *data, struct point **ret, struct error *err)
{
	struct find_newest f = {
		.reader = {.repo = repo, .each = test_one}, .wanted = wanted, .data = data};
	struct name_list names = {0};
	struct tm_id source;
	size_t n;
	int r = source_id(&repo->keys, guest, &source, err);

	r = r ? r : points_names(repo, &source, &names, err);
	n = names.n;
	for (size_t i = 0; before && i < names.n; i++)
		if (id_equal(&names.v[i].session, before))
			n = i;
	r = r ? r : points_read(&f.reader, names.v, n, true, err);
	name_list_done(&names);
	if (r == 0 && !f.hit)
		r = error_set(err, TM_E_NOTFOUND, "guest %s has no such point", guest);
	if (r == 0)
		*ret = f.hit;
	return r;
}

int repo_point_get(struct repo *repo, const char *guest, const struct tm_id *id, struct point **ret,
		   struct error *err)
{
	struct name_list names = {0};
	struct tm_id source;
	int r = guest ? source_id(&repo->keys, guest, &source, err) : 0;
	size_t i;

	r = r ? r : points_names(repo, guest ? &source : NULL, &names, err);
	for (i = 0; r == 0 && i < names.n; i++)
		if (id_equal(&names.v[i].session, id))
			break;
	if (r == 0 && i == names.n)
		r = error_set(err, TM_E_NOTFOUND, "%s%s has no point %s", guest ? "guest " : "",
			      guest ? guest : "the repository", id_text(id).s);
	r = r ? r : points_sync(repo, &names.v[i].source, err);
	r = r ? r : points_load(repo, &names.v[i], ret, err);
	name_list_done(&names);
	return r;
}
