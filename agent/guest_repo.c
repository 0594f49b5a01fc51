/* SPDX-License-Identifier: Apache-2.0 */
#include "guest_repo.h"

#include <string.h>

void known_points_done(struct known_points *k)
{
	point_free(k->last);
	k->last = NULL;
}

bool known_points_ask(void *data, const struct tm_id *point, unsigned disk, uint64_t *ret_size)
{
	struct known_points *k = data;
	struct error err = {0};

	if (!k->last || !id_equal(&k->last->id, point)) {
		known_points_done(k);
		if (repo_point_get(k->agent->repo, k->guest, point, &k->last, &err)) {
			log_debug("point %s of a bitmap: %s", id_text(point).s, err.text);
			return false;
		}
	}
	if (disk >= k->last->ndisks)
		return false;
	*ret_size = k->last->disks[disk].size;
	return true;
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

bool earlier_next(struct agent *a, const char *guest, const char *disk, struct earlier_points *e,
		  const struct point **point, const struct point_disk **ret_disk)
{
	struct point **v = reallocarray(e->v, e->n + 1, sizeof(*v));
	auto_free char *name = strdup(disk);
	struct error err = {0};

	if (v)
		e->v = v;
	if (!v || !name ||
	    repo_point_newest(a->repo, guest, *point ? &(*point)->id : NULL, has_disk, name,
			      &v[e->n], &err)) {
		log_debug("points of guest %s: %s", guest, err.text);
		return false;
	}
	*point = v[e->n++];
	*ret_disk = disk_of(*point, disk);
	return true;
}

int snapshot_tick(void *data, const struct snapshot_progress *p, struct error *err)
{
	struct agent *a = data;

	if (p->remark)
		say_warning(a, "disk %s: %s", p->disk, p->remark);
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
	if (code && err && !err->code)
		*err = one;
	return code;
}

/* Is the point in the domain that the journal names?  It may be another one than that in use, of
 * another repository. */
static int ask_committed(void *data, const char *repo_url, const struct tm_id *domain,
			 const struct tm_id *point, bool *ret, struct error *err)
{
	struct agent *a = data;
	struct agent other = {.opt = a->opt, .loop = a->loop, .secrets = a->secrets};
	struct repo *r = a->repo;
	struct point *p = NULL;
	int code = 0;

	other.opt.repo = repo_url;
	other.opt.domain = NULL;
	if (!r || !id_equal(repo_domain(r), domain)) {
		code = agent_open_repo(&other, err);
		r = other.repo;
		if (!code)
			code = use_domain(r, repo_url, domain, err);
	}
	if (!code) {
		code = repo_point_get(r, NULL, point, &p, err);
		*ret = code == 0;
		if (code == TM_E_NOTFOUND) {
			error_clear(err);
			code = 0;
		}
	}
	point_free(p);
	repo_free(other.repo);
	free(other.repo_url);
	return code;
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
		say(a, "recover: %s", report.lines.v[i]);
	if (r)
		error_prefix(err, "an interrupted run could not be put right");
	return r;
}
