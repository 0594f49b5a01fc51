/* SPDX-License-Identifier: Apache-2.0 */
#include "guest_repo.h"

#include "apart.h"

#include <stdio.h>
#include <string.h>

void known_points_done(struct known_points *k)
{
	point_free(k->last);
	k->last = NULL;
}

/* A damaged point is no base for anything; that is told once. */
static void tell_damaged(struct known_points *k, const struct tm_id *point, const struct error *e)
{
	if (id_equal(&k->damaged, point))
		return;
	k->damaged = *point;
	say_warning(k->agent, "a bitmap's point cannot be read: %s", e->text);
}

int known_points_ask(void *data, const struct tm_id *point, unsigned disk, bool *ret,
		     uint64_t *ret_size, struct error *err)
{
	struct known_points *k = data;
	struct error e = {0};
	int r = 0;

	*ret = false;
	if (!k->last || !id_equal(&k->last->id, point)) {
		known_points_done(k);
		r = repo_point_get(k->agent->repo, k->guest, point, &k->last, &e);
	}
	if (r == TM_E_NOTFOUND)
		return 0;
	if (r == TM_E_CORRUPT) {
		tell_damaged(k, point, &e);
		return 0;
	}
	if (r)
		return error_set(err, r, "the point of a bitmap cannot be looked up: %s", e.text);
	*ret = disk < k->last->ndisks;
	if (*ret)
		*ret_size = k->last->disks[disk].size;
	return 0;
}

static const struct point_disk *disk_of(const struct point *p, const char *name)
{
	for (size_t i = 0; i < p->ndisks; i++) {
		if (strcmp(p->disks[i].name, name) == 0)
			return &p->disks[i];
	}
	return NULL;
}

static bool has_disk(void *data, const struct point *p)
{
	return disk_of(p, data) != NULL;
}

void earlier_points_done(struct earlier_points *e)
{
	for (size_t i = 0; i < e->n; i++)
		point_free(e->v[i]);
	free(e->v);
	*e = (struct earlier_points){0};
}

int earlier_next(struct agent *a, const char *guest, const char *disk, struct earlier_points *e,
		 const struct point **point, const struct point_disk **ret_disk, struct error *err)
{
	struct point **v = reallocarray(e->v, e->n + 1, sizeof(struct point *));
	auto_free char *name = strdup(disk);
	int r;

	if (v)
		e->v = v;
	if (!v || !name)
		return error_nomem(err);
	r = repo_point_newest(a->repo, guest, *point ? &(*point)->id : NULL, has_disk, name,
			      &v[e->n], err);
	if (r)
		return r;
	*point = v[e->n++];
	*ret_disk = disk_of(*point, disk);
	return 0;
}

/* ---- what a backup would do ---- */

static int outlook_epoch(struct agent *a, const struct guest_disk *d, const struct point *p,
			 struct outlook *ret, struct error *err)
{
	uint64_t lost = 0;
	int r = repo_disk_lost(a->repo, &p->disks[d->epoch.disk], &lost, err);

	if (r)
		return r;
	if (lost) {
		ret->rung = RUNG_HASH_DIFF;
		ret->reason = "the bitmap's point is damaged";
		return 0;
	}
	ret->rung = RUNG_BITMAP;
	ret->reason = "";
	ret->dirty_bytes = d->epoch.dirty_bytes;
	ret->point = p->id;
	ret->since_ms = p->created_ms;
	ret->audit = p->disks[d->epoch.disk].audit;
	(void)snprintf(ret->name, sizeof(ret->name), "%s", p->name);
	return 0;
}

static int outlook_whole(struct agent *a, const char *guest, const struct guest_disk *d,
			 struct outlook *ret, struct error *err)
{
	struct earlier_points earlier = {0};
	const struct point *point = NULL;
	const struct point_disk *disk;
	struct error e = {0};
	int r = earlier_next(a, guest, d->name, &earlier, &point, &disk, &e);

	earlier_points_done(&earlier);
	ret->rung = r == 0 ? RUNG_HASH_DIFF : RUNG_FULL;
	return r == 0 || r == TM_E_NOTFOUND ? 0 : error_pass(err, r, &e);
}

int outlook(struct agent *a, const char *guest, const struct guest_disk *d, struct outlook *ret,
	    struct error *err)
{
	struct known_points known = {.agent = a, .guest = guest};
	uint64_t size;
	bool there = false;
	int r = 0;

	*ret = (struct outlook){.rung = RUNG_FULL, .dirty_bytes = d->size};
	if (a->opt.full) {
		ret->reason = "asked for with --full";
		return 0;
	}
	ret->reason = d->epoch.usable ? "the bitmap's point is gone" : d->epoch.reason;
	if (d->epoch.usable)
		r = known_points_ask(&known, &d->epoch.point, d->epoch.disk, &there, &size, err);
	if (!r && there)
		r = outlook_epoch(a, d, known.last, ret, err);
	else if (!r)
		r = outlook_whole(a, guest, d, ret, err);
	known_points_done(&known);
	return r;
}

/* ---- what interrupted runs left ---- */

int snapshot_tick(void *data, const struct snapshot_progress *p, struct error *err)
{
	struct agent *a = data;

	if (p->remark && p->disk)
		say_warning(a, "disk %s: %s", p->disk, p->remark);
	else if (p->remark)
		say_warning(a, "%s", p->remark);
	else if (p->total)
		progress_show(a, p->phase, p->disk ? p->disk : "-", p->done, p->total);
	return agent_check_interrupt(err);
}

static int use_domain(struct repo *r, const char *repo_url, const struct tm_id *domain,
		      struct error *err)
{
	struct error one = {0};
	int code = repo_domain_use_id(r, domain, &one);

	if (code == TM_E_NOTFOUND)
		return error_set(err, TM_E_STALE, "%s holds another repository now", repo_url);
	return error_pass(err, code, &one);
}

static int has_point(struct repo *r, const struct tm_id *point, bool *ret, struct error *err)
{
	struct error e = {0};
	struct point *p = NULL;
	int code = repo_point_get(r, NULL, point, &p, &e);

	point_free(p);
	*ret = code == 0;
	return code == TM_E_NOTFOUND ? 0 : error_pass(err, code, &e);
}

struct question {
	struct tm_id domain;
	struct tm_id point;
	bool committed;
};

static int answer(struct agent *apart, void *data, struct error *err)
{
	struct question *q = data;
	int r = use_domain(apart->repo, apart->opt.repo, &q->domain, err);

	return r ? r : has_point(apart->repo, &q->point, &q->committed, err);
}

/* Is the point in the domain that the journal names?  It may be another one than that in use, of
 * another repository. */
static int ask_committed(void *data, const char *repo_url, const struct tm_id *domain,
			 const struct tm_id *point, bool *ret, struct error *err)
{
	struct agent *a = data, *apart = NULL;
	struct question *q;
	int r;

	if (a->repo && id_equal(repo_domain(a->repo), domain))
		return has_point(a->repo, point, ret, err);
	if (!repo_url)
		return error_set(err, TM_E_NOTFOUND, "the journal names no repository");
	q = calloc(1, sizeof(*q));
	if (!q)
		return error_nomem(err);
	q->domain = *domain;
	q->point = *point;
	r = apart_open(a, repo_url, answer, q, &apart, err);
	if (!r)
		*ret = q->committed;
	apart_free(a, apart);
	return r;
}

struct recover_options recover_options_of(struct agent *a, bool check_only)
{
	return (struct recover_options){
		.state_dir = a->state_dir,
		.hooks = {snapshot_tick, a},
		.check_only = check_only,
		.committed = ask_committed,
		.data = a,
	};
}

int recover_before(struct agent *a, const struct guest_target *target, struct error *err)
{
	struct recover_options opt = recover_options_of(a, false);
	auto_recover_report struct recover_report report = {0};
	int r = recover_guest(target, &opt, &report, err);

	for (size_t i = 0; i < report.lines.n; i++)
		say_done(a, "recover: %s", report.lines.v[i]);
	if (r && report.found)
		error_prefix(err, "an interrupted run could not be put right");
	return r;
}
