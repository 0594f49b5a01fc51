/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The janitor (docs/format.md, "Janitor protocol"):
 *
 *	J1 bury     sessions that seem dead: fence, look for the manifest, verdict
 *	J3 list     sessions with segments; tombstones, verdicts; markers, pins; manifests
 *	J5 mark     what valid points and pins of open sessions reach
 *	J6 sweep    segments of sessions that are over
 *	J7 close    manifests of dead points; what is left of sessions without segments
 *
 * The order is what keeps points safe beside writers and other janitors; each step may be
 * the last one, the next run finds the same flags.  J2, tombstones, is repo_forget().
 */
#include "prune.h"

#include <string.h>

#define RESTARTS 16

int prune_tick(const struct prune *p, struct error *err)
{
	return p->opt->tick ? p->opt->tick(p->opt->data, err) : 0;
}

int prune_remove(struct prune *p, const char *key, uint64_t size, struct error *err)
{
	int r = p->opt->dry_run ? 0 : p->repo->st->ops->remove(p->repo->st, key, err);

	if (r == 0) {
		p->report.removed_objects++;
		p->report.removed_bytes += size;
	}
	return r;
}

/* ---- markers ---- */

/* A marker, pin or heartbeat. */
struct mark_name {
	struct tm_id sid;
	uint32_t pin;  /* 0: not a pin */
	uint32_t beat; /* Unix time, s; 0: not a heartbeat */
};

struct mark_names {
	struct repo *repo;
	struct mark_name *v; /* by session */
	size_t n, cap;
};

static int add_marker(void *data, const char *key, uint64_t size, struct error *err)
{
	struct mark_names *l = data;
	const char *dot = strrchr(key, '.');
	struct mark_name m = {.pin = 0};

	(void)size;
	if (!name_parse_flag(l->repo, FLAG_MARKER, key, &m.sid))
		return 0;
	if (dot && dot[1] == 'p')
		(void)name_parse_suffix(dot + 2, 4, &m.pin);
	if (dot && dot[1] == 'h')
		(void)name_parse_suffix(dot + 2, 8, &m.beat);
	if (l->n == l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 64;
		struct mark_name *v = reallocarray(l->v, cap, sizeof(*v));

		if (!v)
			return error_nomem(err);
		l->v = v;
		l->cap = cap;
	}
	l->v[l->n++] = m;
	return 0;
}

static int list_markers(struct repo *repo, struct mark_names *ret, struct error *err)
{
	char prefix[KEY_MAX];

	ret->repo = repo;
	name_flag_prefix(repo, FLAG_MARKER, prefix);
	return repo->st->ops->list(repo->st, prefix, add_marker, ret, err);
}

static int list_committed(struct repo *repo, struct name_list *names, struct id_set *ids,
			  struct error *err)
{
	int r = points_manifests(repo, names, err);

	for (size_t i = 0; r == 0 && i < names->n; i++)
		r = id_set_add(ids, &names->v[i].session, err);
	id_set_sort(ids);
	return r;
}

/* ---- J1 ---- */

static bool is_stale(const struct prune *p, uint64_t ms)
{
	uint64_t now = p->opt->now_ms, age = now > ms ? now - ms : ms - now;

	return age >= p->opt->stale_ms; /* a time so far ahead is as odd */
}

/* Sessions without point and verdict whose last sign of life is old. */
static int find_stale(struct prune *p, struct id_set *ret, struct error *err)
{
	struct name_list names = {0};
	struct id_set over = {0};
	struct mark_names l = {0};
	int r = points_dead(p->repo, &over, err);

	r = r ? r : list_markers(p->repo, &l, err);
	r = r ? r : list_committed(p->repo, &names, &over, err);
	for (size_t i = 0, k; r == 0 && i < l.n; i = k) {
		uint64_t seen = id_time_ms(&l.v[i].sid);

		for (k = i; k < l.n && id_equal(&l.v[k].sid, &l.v[i].sid); k++)
			if (l.v[k].beat)
				seen = (uint64_t)l.v[k].beat * 1000;
		if (!id_set_has(&over, &l.v[i].sid) && is_stale(p, seen))
			r = id_set_add(ret, &l.v[i].sid, err);
	}
	name_list_done(&names);
	id_set_done(&over);
	free(l.v);
	return r;
}

/*
 * Fence first, then look: a writer puts its manifest first and looks for fences then, so one of
 * the two sees the other.  In a dry run the verdicts are only taken as given.
 */
static int bury(struct prune *p, struct id_set *stale, struct error *err)
{
	struct name_list names = {0};
	struct id_set committed = {0};
	int r = find_stale(p, stale, err);

	if (r < 0 || stale->n == 0 || p->opt->dry_run)
		return r;
	for (size_t i = 0; r == 0 && i < stale->n; i++)
		r = flag_put(p->repo, FLAG_FENCE, &stale->v[i], p->run, err);
	r = r ? r : list_committed(p->repo, &names, &committed, err);
	for (size_t i = 0; r == 0 && i < stale->n; i++)
		if (!id_set_has(&committed, &stale->v[i]))
			r = flag_put(p->repo, FLAG_VERDICT, &stale->v[i], 0, err);
	name_list_done(&names);
	id_set_done(&committed);
	return r;
}

/* ---- J3 ---- */

static int add_stored(void *data, const char *key, uint64_t size, struct error *err)
{
	struct prune *p = data;
	struct segment_name name;

	if (!name_parse_segment(p->repo, key, &name))
		return 0;
	p->stored_bytes += size;
	if (p->stored.n > 0 && id_equal(&p->stored.v[p->stored.n - 1], &name.session))
		return 0;
	return id_set_add(&p->stored, &name.session, err);
}

static int list_stored(struct prune *p, struct error *err)
{
	char prefix[KEY_MAX];
	int r;

	name_session_prefix(p->repo, NULL, prefix);
	p->stored_bytes = 0;
	r = p->repo->st->ops->list(p->repo->st, prefix, add_stored, p, err);
	id_set_sort(&p->stored);
	return r;
}

static bool is_open(const struct prune *p, const struct tm_id *sid)
{
	return !id_set_has(&p->committed, sid) && !prune_is_dead(p, sid);
}

/* J4: what open sessions build on. */
static int read_pins(struct prune *p, const struct mark_names *l, struct error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < l->n; i++) {
		struct tm_id point;

		r = id_set_add(&p->markers, &l->v[i].sid, err);
		if (r < 0 || !l->v[i].pin || !is_open(p, &l->v[i].sid))
			continue;
		r = marker_read_pin(p->repo, &l->v[i].sid, l->v[i].pin, &point, err);
		r = r ? r : id_set_add(&p->pinned, &point, err);
	}
	id_set_sort(&p->markers);
	id_set_sort(&p->pinned);
	return r;
}

static void forget_lists(struct prune *p)
{
	id_set_done(&p->stored);
	id_set_done(&p->tombs);
	id_set_done(&p->verdicts);
	id_set_done(&p->markers);
	id_set_done(&p->committed);
	id_set_done(&p->pinned);
	name_list_done(&p->points);
	marks_free(p);
}

/* What is removed from now on was decided by these. */
static int sync_lists(struct prune *p, struct error *err)
{
	static const enum session_flag flags[] = {FLAG_TOMBSTONE, FLAG_VERDICT, FLAG_FENCE};
	int r = p->opt->dry_run ? 0 : points_sync(p->repo, NULL, err);

	for (size_t i = 0; r == 0 && !p->opt->dry_run && i < ARRAY_SIZE(flags); i++)
		r = points_sync_flags(p->repo, flags[i], err);
	return r;
}

/* Deleted points, and in a dry run those that are to be. */
static int list_tombs(const struct prune *p, struct id_set *ret, struct error *err)
{
	int r = points_flagged(p->repo, FLAG_TOMBSTONE, ret, err);

	for (size_t i = 0; r == 0 && p->opt->dry_run && i < p->opt->ndropped; i++)
		r = id_set_add(ret, &p->opt->dropped[i], err);
	id_set_sort(ret);
	return r;
}

static int list_all(struct prune *p, const struct id_set *stale, struct error *err)
{
	struct mark_names markers = {0};
	int r = list_stored(p, err);

	r = r ? r : list_tombs(p, &p->tombs, err);
	r = r ? r : points_flagged(p->repo, FLAG_VERDICT, &p->verdicts, err);
	for (size_t i = 0; r == 0 && p->opt->dry_run && i < stale->n; i++)
		r = id_set_add(&p->verdicts, &stale->v[i], err);
	id_set_sort(&p->verdicts);
	r = r ? r : list_markers(p->repo, &markers, err);
	r = r ? r : list_committed(p->repo, &p->points, &p->committed, err);
	r = r ? r : read_pins(p, &markers, err);
	r = r ? r : sync_lists(p, err);
	free(markers.v);
	return r;
}

/* ---- J5 ---- */

static int mark_all(struct prune *p, struct error *err)
{
	int r = prune_tick(p, err);

	for (size_t i = 0; r == 0 && i < p->points.n; i++) {
		const struct point_name *name = &p->points.v[i];

		if (!prune_is_dead(p, &name->session) || id_set_has(&p->pinned, &name->session))
			r = mark_point(p, name, err);
	}
	return r;
}

static bool id_sets_equal(const struct id_set *a, const struct id_set *b)
{
	return a->n == b->n && (a->n == 0 || memcmp(a->v, b->v, a->n * sizeof(*a->v)) == 0);
}

/* Whether points were made or deleted since this run listed them. */
static int lists_changed(struct prune *p, bool *ret, struct error *err)
{
	struct name_list names = {0};
	struct id_set tombs = {0}, verdicts = {0}, committed = {0};
	int r = list_tombs(p, &tombs, err);

	r = r ? r : points_flagged(p->repo, FLAG_VERDICT, &verdicts, err);
	r = r ? r : list_committed(p->repo, &names, &committed, err);
	*ret = !id_sets_equal(&tombs, &p->tombs) || !id_sets_equal(&verdicts, &p->verdicts) ||
	       !id_sets_equal(&committed, &p->committed);
	name_list_done(&names);
	id_set_done(&tombs);
	id_set_done(&verdicts);
	id_set_done(&committed);
	return r;
}

/*
 * Lists and marks.  Between the two, another janitor may remove what is a root here: a point that
 * was deleted since, or one that is pinned by a session which it saw commit.  Then everything is
 * looked at anew; to go on without that root would lose what the session's own point needs.  What
 * cannot be read otherwise is damage, and the end.
 */
static int look(struct prune *p, const struct id_set *stale, struct error *err)
{
	int r;

	for (unsigned i = 0;; i++) {
		struct error own = {0};
		bool changed = false;

		forget_lists(p);
		r = list_all(p, stale, &own);
		r = r ? r : mark_all(p, &own);
		if (r == 0)
			return 0;
		if (r == TM_E_CORRUPT || r == TM_E_NOTFOUND) {
			int again = lists_changed(p, &changed, err);

			if (again < 0)
				return again;
			/* a pin that was listed and is gone */
			changed = changed || r == TM_E_NOTFOUND;
		}
		if (!changed || i == RESTARTS) {
			(void)error_pass(err, r, &own);
			if (r == TM_E_CORRUPT)
				error_append(err, "; nothing was removed");
			return r;
		}
	}
}

/* ---- J6 ---- */

/*
 * Dead sessions.  A valid point uses all that its session wrote.  A session without any flag left
 * is what a janitor that had slept wrote into one that others had closed; it was listed before the
 * markers, and markers come first.
 */
static bool may_sweep(const struct prune *p, const struct tm_id *sid)
{
	if (prune_is_dead(p, sid))
		return true;
	return !id_set_has(&p->committed, sid) && !id_set_has(&p->markers, sid) &&
	       is_stale(p, id_time_ms(sid));
}

static int sweep(struct prune *p, struct error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < p->stored.n; i++)
		if (may_sweep(p, &p->stored.v[i]))
			r = sweep_session(p, &p->stored.v[i], err);
	p->report.kept_bytes =
		p->stored_bytes + p->report.compacted_bytes > p->removed_stored
			? p->stored_bytes + p->report.compacted_bytes - p->removed_stored
			: 0;
	return r;
}

/* ---- J7 ---- */

struct removal {
	struct prune *p;
	char (*key)[KEY_MAX];
	size_t n, cap;
	uint64_t size;
};

static int add_key(void *data, const char *key, uint64_t size, struct error *err)
{
	struct removal *l = data;

	if (l->n == l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 8;
		void *v = reallocarray(l->key, cap, sizeof(l->key[0]));

		if (!v)
			return error_nomem(err);
		l->key = v;
		l->cap = cap;
	}
	memcpy(l->key[l->n++], key, strlen(key) + 1);
	l->size += size;
	return 0;
}

/* Removes all of a session's flags of a kind. */
static int remove_flags(struct prune *p, enum session_flag flag, const struct tm_id *sid,
			struct error *err)
{
	struct removal l = {.p = p};
	char prefix[KEY_MAX];
	int r;

	name_flag(p->repo, flag, sid, prefix);
	r = p->repo->st->ops->list(p->repo->st, prefix, add_key, &l, err);
	for (size_t i = 0; r == 0 && i < l.n; i++)
		r = prune_remove(p, l.key[i], i == 0 ? l.size : 0, err);
	free(l.key);
	return r;
}

static int count_one(void *data, const char *key, uint64_t size, struct error *err)
{
	(void)key;
	(void)size;
	(void)err;
	*(bool *)data = true;
	return 0;
}

static int has_segments(struct prune *p, const struct tm_id *sid, bool *ret, struct error *err)
{
	char prefix[KEY_MAX];

	*ret = false;
	name_session_prefix(p->repo, sid, prefix);
	return p->repo->st->ops->list(p->repo->st, prefix, count_one, ret, err);
}

/*
 * The marker goes before the fence, everything before the tombstone.  A verdict stays: the writer
 * may wake up at any time and must learn from it that it is dead.
 */
static int close_session(struct prune *p, const struct tm_id *sid, struct error *err)
{
	bool left;
	int r = has_segments(p, sid, &left, err);

	if (p->opt->dry_run)
		left = mark_any(mark_find(p, sid));
	if (r < 0 || left)
		return r;
	r = remove_flags(p, FLAG_MARKER, sid, err);
	r = r ? r : remove_flags(p, FLAG_FENCE, sid, err);
	r = r ? r : remove_flags(p, FLAG_HOLD, sid, err);
	r = r ? r : remove_flags(p, FLAG_LOST, sid, err);
	return r ? r : remove_flags(p, FLAG_TOMBSTONE, sid, err);
}

static int remove_manifests(struct prune *p, struct error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < p->points.n; i++) {
		const struct point_name *name = &p->points.v[i];
		uint64_t size = 0;
		char key[KEY_MAX];

		if (!prune_is_dead(p, &name->session) || id_set_has(&p->pinned, &name->session))
			continue;
		name_point(p->repo, &name->source, name->seq, &name->session, key);
		r = p->repo->st->ops->head(p->repo->st, key, &size, NULL);
		if (r == 0)
			r = prune_remove(p, key, size, err);
		else if (r == TM_E_NOTFOUND) /* so that it is gone before the tombstone is */
			r = p->opt->dry_run ? 0 : p->repo->st->ops->remove(p->repo->st, key, err);
		else
			r = error_set(err, (enum tm_code)r, "cannot look at %s", key);
	}
	return r;
}

/* Verdicts stay for ever, so most of their sessions were closed long ago. */
static bool needs_closing(const struct prune *p, const struct tm_id *sid)
{
	if (id_set_has(&p->pinned, sid))
		return false;
	return id_set_has(&p->tombs, sid) || id_set_has(&p->markers, sid) ||
	       id_set_has(&p->stored, sid);
}

static int close_all(struct prune *p, struct error *err)
{
	int r = remove_manifests(p, err);

	for (size_t i = 0; r == 0 && i < p->tombs.n; i++)
		if (needs_closing(p, &p->tombs.v[i]))
			r = close_session(p, &p->tombs.v[i], err);
	for (size_t i = 0; r == 0 && i < p->verdicts.n; i++)
		if (needs_closing(p, &p->verdicts.v[i]) &&
		    !id_set_has(&p->tombs, &p->verdicts.v[i]))
			r = close_session(p, &p->verdicts.v[i], err);
	return r;
}

int repo_prune(struct repo *repo, const struct repo_prune_options *opt,
	       struct repo_prune_report *ret, struct error *err)
{
	struct prune p = {.repo = repo, .opt = opt};
	struct id_set stale = {0};
	int r = repo_check_right(repo, REPO_MAY_PRUNE, err);

	r = r ? r : random_bytes(&p.run, sizeof(p.run), err);
	if (r < 0)
		return r;
	store_reserve(repo->st, !opt->dry_run);
	r = bury(&p, &stale, err);
	r = r ? r : look(&p, &stale, err);
	r = r ? r : sweep(&p, err);
	r = r ? r : close_all(&p, err);
	r = r ? r : tidy(&p, err);
	if (!opt->dry_run)
		store_reserve(repo->st, false);
	if (r == 0)
		*ret = p.report;
	forget_lists(&p);
	id_set_done(&stale);
	return r;
}
