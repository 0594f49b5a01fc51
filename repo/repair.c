/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Repair: what verify finds is built again where that can be proved, in rounds, since what lies
 * below a map that was lost shows only when it is there again.  Everything is put before anything
 * is removed, so an interrupted repair is run again.
 */
#include "repair.h"
#include "repo_object.h"

#include <stdio.h>
#include <string.h>

#define MAX_ROUNDS 8

/* ---- words for the report ---- */

static int set_remedy(struct repo_verify_report *report, const char *object, bool done,
		      const char *text, struct error *err)
{
	for (size_t i = 0; i < report->ndamaged; i++) {
		struct repo_damage *d = &report->damaged[i];

		if (strcmp(d->object, object) != 0)
			continue;
		free(d->remedy);
		d->repaired = done;
		return text_copy(text, &d->remedy, err);
	}
	return 0;
}

/* ---- segments ---- */

static int compare_segments(const void *a, const void *b)
{
	const struct vseg *x = *(struct vseg *const *)a, *y = *(struct vseg *const *)b;

	if (x->type != y->type)
		return x->type == SEGMENT_MAP ? -1 : 1;
	return strcmp(x->key, y->key); /* ids begin with the time: parents come first */
}

/* Segments with slots that are lost, maps of one session side by side, data behind them. */
static int damaged_segments(const struct verifier *v, struct vseg ***ret, size_t *ret_n,
			    struct error *err)
{
	struct vseg **all = calloc(v->nseg ? v->nseg : 1, sizeof(struct vseg *));
	size_t n = 0;

	if (!all)
		return error_nomem(err);
	for (size_t i = 0; i < v->cap; i++)
		if (v->seg[i] && v->seg[i]->needed && (v->seg[i]->all_bad || v->seg[i]->bad))
			all[n++] = v->seg[i];
	qsort(all, n, sizeof(struct vseg *), compare_segments);
	*ret = all;
	*ret_n = n;
	return 0;
}

/* Segments whose last generation is whole: done.  The others stay, *n of them. */
static int take_later(struct repair *p, struct vseg **v, size_t *n, unsigned *done,
		      struct error *err)
{
	size_t left = 0;
	int r = 0;

	for (size_t i = 0; r == 0 && i < *n; i++) {
		bool whole = false;

		r = repair_from_later(p, v[i], &whole, err);
		if (r == 0 && !whole) {
			v[left++] = v[i];
			continue;
		}
		*done += whole;
		r = r ? r
		      : set_remedy(p->v->report, v[i]->key, true,
				   "a later copy is whole and takes its place", err);
	}
	*n = left;
	return r;
}

static size_t group(struct vseg *const *v, size_t n)
{
	size_t k = 1;

	while (k < n && v[k]->type == v[0]->type &&
	       (v[0]->type == SEGMENT_DATA || id_equal(&v[k]->sid, &v[0]->sid)))
		k++;
	return k;
}

static int repair_segments(struct repair *p, unsigned *done, struct error *err)
{
	auto_free struct vseg **v = NULL;
	auto_free struct remedy *remedy = NULL;
	size_t n = 0;
	int r = damaged_segments(p->v, &v, &n, err);

	r = r ? r : take_later(p, v, &n, done, err);
	remedy = calloc(n ? n : 1, sizeof(*remedy));
	if (r == 0 && !remedy)
		return error_nomem(err);
	for (size_t i = 0, k; r == 0 && i < n; i += k) {
		k = group(v + i, n - i);
		r = v[i]->type == SEGMENT_MAP ? repair_maps(p, v + i, k, remedy + i, err)
					      : repair_data(p, v + i, k, remedy + i, err);
	}
	for (size_t i = 0; r == 0 && i < n; i++) {
		*done += remedy[i].done;
		r = set_remedy(p->v->report, v[i]->key, remedy[i].done, remedy[i].text, err);
	}
	return r;
}

/* Records of slots that have turned out to be there: a store that failed for a while, or a repair
 * that was interrupted. */
static int drop_untrue(struct repair *p, struct error *err)
{
	struct lost lost = {0};
	int r = lost_load(p->v->repo, &lost, err);

	for (size_t i = 0; r == 0 && i < lost.n; i++) {
		const struct lost_segment *l = &lost.v[i];
		struct vseg *s;

		r = vseg_get(p->v, &l->sid, l->type, l->index, &s, err);
		if (r < 0 || !s->needed || s->reason)
			continue;
		/* Checksums alone do not prove data. */
		if (!p->dry_run && (l->type == SEGMENT_MAP || p->v->opt->read_data))
			r = lost_remove(p->v->repo, &l->sid, l->type, l->index, err);
	}
	lost_done(&lost);
	return r;
}

/* ---- other objects ---- */

static const char *what_to_say(const struct repo_damage *d)
{
	const char *key = d->object;

	if (is_repo_object(key))
		return "a copy of the repository's object: 'tidemark key repair' writes it again";
	if (strncmp(key, "keys/", 5) == 0)
		return "a copy of a key: 'tidemark key repair' writes it again";
	if (strncmp(key, "domains/", 8) == 0)
		return "a copy of a domain: 'tidemark key repair' writes it again";
	if (strstr(key, "/p/"))
		return "the description of a point: the point is lost, others are not touched";
	if (strstr(key, "/k/") || strstr(key, "/t/") || strstr(key, "/f/") || strstr(key, "/v/") ||
	    strstr(key, "/h/"))
		return "its name says all that is needed: harmless";
	if (strstr(key, "/s/") && d->nranges == 0)
		return "no point needs it";
	return "it cannot be built again";
}

/* Records are nobody's data: a damaged one goes. */
static bool is_record(const char *key)
{
	return strncmp(key, "d/", 2) == 0 && (strstr(key, "/c/") || strstr(key, "/x/"));
}

/* As if it had been forgotten: what others use of it stays, and nobody looks for the rest. */
static int give_up_point(struct repair *p, struct repo_damage *d, const struct tm_id *sid,
			 struct error *err)
{
	int r = p->dry_run ? 0 : flag_put(p->v->repo, FLAG_TOMBSTONE, sid, 0, err);

	d->repaired = r == 0;
	return r ? r
		 : text_copy("nothing brings the point back: written down as deleted", &d->remedy,
			     err);
}

static int repair_others(struct repair *p, unsigned *done, struct error *err)
{
	struct repo_verify_report *report = p->v->report;
	struct store *st = p->v->repo->st;
	struct tm_id sid;
	int r = 0;

	for (size_t i = 0; r == 0 && i < report->ndamaged; i++) {
		struct repo_damage *d = &report->damaged[i];

		if (d->remedy)
			continue;
		if (verify_is_lost_point(p->v->repo, d->object, &sid)) {
			r = give_up_point(p, d, &sid, err);
			*done += r == 0;
			continue;
		}
		if (!is_record(d->object)) {
			r = text_copy(what_to_say(d), &d->remedy, err);
			continue;
		}
		if (!p->dry_run)
			r = st->ops->remove(st, d->object, err);
		d->repaired = r == 0;
		*done += r == 0;
		r = r ? r : text_copy("a record nobody can read: removed", &d->remedy, err);
	}
	return r;
}

/* ---- rounds ---- */

static int round_of(struct repo *repo, const struct repo_repair_options *opt,
		    struct repo_verify_report *ret, unsigned *ret_done, struct error *err)
{
	const struct repo_verify_options verify = {.points = opt->points,
						   .scrub = true,
						   .read_data = opt->read_data,
						   .record = !opt->dry_run,
						   .pool = opt->pool,
						   .tick = opt->tick,
						   .data = opt->data};
	struct verifier v = {.repo = repo, .opt = &verify, .report = ret};
	struct repair p = {.v = &v, .dry_run = opt->dry_run};
	int r;

	*ret_done = 0;
	cache_drop(repo->cache);
	r = verifier_run(&v, err);
	r = r ? r : points_names(repo, NULL, &p.names, err);
	r = r ? r : repair_segments(&p, ret_done, err);
	r = r ? r : repair_others(&p, ret_done, err);
	r = r ? r : drop_untrue(&p, err);
	name_list_done(&p.names);
	verifier_done(&v);
	return r;
}

/* What a round found goes behind what those before did. */
static int gather(struct repo_verify_report *all, struct repo_verify_report *round,
		  struct error *err)
{
	struct repo_damage *v =
		reallocarray(all->damaged, all->ndamaged + round->ndamaged + 1, sizeof(*v));
	size_t n = 0;

	if (!v)
		return error_nomem(err);
	all->damaged = v;
	all->points = round->points;
	all->objects = round->objects;
	all->bytes += round->bytes;
	for (size_t i = 0; i < all->ndamaged; i++) /* what was not repaired is found again */
		if (v[i].repaired)
			v[n++] = v[i];
		else
			damage_done(&v[i]);
	if (round->ndamaged)
		memcpy(v + n, round->damaged, round->ndamaged * sizeof(*v));
	all->ndamaged = n + round->ndamaged;
	round->ndamaged = 0;
	return 0;
}

int repo_repair(struct repo *repo, const struct repo_repair_options *opt,
		struct repo_verify_report *ret, struct error *err)
{
	struct repo_verify_report all = {0};
	unsigned done = 1;
	int r = repo_check_right(repo, REPO_MAY_PRUNE, err);

	r = r || !opt->read_data ? r : repo_check_right(repo, REPO_MAY_READ, err);
	for (unsigned i = 0; r == 0 && done > 0 && i < MAX_ROUNDS; i++) {
		struct repo_verify_report round = {0};

		r = round_of(repo, opt, &round, &done, err);
		r = r ? r : gather(&all, &round, err);
		repo_verify_report_done(&round);
		if (opt->dry_run)
			break;
	}
	if (r < 0)
		repo_verify_report_done(&all);
	else
		*ret = all;
	return r;
}
