/* SPDX-License-Identifier: Apache-2.0 */
/* verify and repair: what is damaged, and what can be done about it. */
#include "agent.h"

#include <stdio.h>
#include <string.h>

static int verify_tick(void *data, uint64_t done, uint64_t total, struct error *err)
{
	progress_show(data, "verify", "-", done, total);
	return agent_check_interrupt(err);
}

/* Ranges are sorted by point: a point's first range stands for it. */
static bool new_point(const struct repo_damage *d, size_t i)
{
	return i == 0 || !id_equal(&d->ranges[i].point, &d->ranges[i - 1].point);
}

static int add_json(json_t *array, json_t *value, struct error *err)
{
	return json_array_append_new(array, value) ? error_nomem(err) : 0;
}

/* All that belongs together, which disks and ranges without their points do not say. */
static json_t *hit_json(const struct repo_damage_range *g)
{
	return json_pack("{s:s, s:o, s:I, s:I}", "point", id_text(&g->point).s, "disk",
			 json_text(g->disk), "offset", (json_int_t)g->offset, "length",
			 (json_int_t)g->length);
}

static int damage_json(const struct repo_damage *d, json_t *ret, struct error *err)
{
	json_t *points = json_array(), *disks = json_array(), *ranges = json_array(),
	       *hits = json_array();
	json_t *o = json_pack("{s:s, s:o, s:o, s:o, s:o, s:o}", "object", d->object, "reason",
			      json_text(d->reason), "points", points, "disks", disks, "ranges",
			      ranges, "hits", hits);
	int r = add_json(ret, o, err);

	if (!r && d->remedy &&
	    (json_object_set_new(o, "repaired", json_boolean(d->repaired)) ||
	     json_object_set_new(o, "remedy", json_text(d->remedy))))
		r = error_nomem(err);

	for (size_t i = 0; !r && i < d->nranges; i++) {
		const struct repo_damage_range *g = &d->ranges[i];

		if (new_point(d, i))
			r = add_json(points, json_string(id_text(&g->point).s), err);
		if (!r)
			r = add_json(disks, json_text(g->disk), err);
		if (!r)
			r = add_json(
				ranges,
				json_pack("[I,I]", (json_int_t)g->offset, (json_int_t)g->length),
				err);
		if (!r)
			r = add_json(hits, hit_json(g), err);
	}
	return r;
}

static void print_damage(const struct repo_damage *d)
{
	(void)printf("%s: %s: %s\n", d->repaired ? "repaired" : "damaged", shown(d->object).s,
		     shown(d->reason).s);
	for (size_t i = 0; i < d->nranges; i++) {
		const struct repo_damage_range *g = &d->ranges[i];

		if (new_point(d, i))
			(void)printf("  hits point %s\n", id_text(&g->point).s);
		(void)printf("    disk %s: offset %llu, %llu bytes\n", shown(g->disk).s,
			     (unsigned long long)g->offset, (unsigned long long)g->length);
	}
	if (d->remedy)
		(void)printf("  %s\n", d->remedy);
}

static bool damage_left(const struct repo_verify_report *rep)
{
	for (size_t i = 0; i < rep->ndamaged; i++)
		if (!rep->damaged[i].repaired)
			return true;
	return false;
}

static int print_report_json(struct agent *a, const struct repo_verify_report *rep,
			     struct error *err)
{
	json_t *damaged = json_array();
	int r = 0;

	for (size_t i = 0; !r && i < rep->ndamaged; i++)
		r = damage_json(&rep->damaged[i], damaged, err);
	if (r) {
		json_decref(damaged);
		return r;
	}
	return print_json(json_pack("{s:I, s:I, s:I, s:o, s:o}", "points", (json_int_t)rep->points,
				    "objects", (json_int_t)rep->objects, "bytes",
				    (json_int_t)rep->bytes, "damaged", damaged, "warnings",
				    take_warnings(a)),
			  err);
}

static int print_report(struct agent *a, const struct repo_verify_report *rep, bool failed,
			struct error *err)
{
	char bytes[SIZE_TEXT_MAX];

	if (a->opt.json)
		return print_report_json(a, rep, err);
	for (size_t i = 0; i < rep->ndamaged; i++)
		print_damage(&rep->damaged[i]);
	size_format(rep->bytes, bytes);
	(void)printf("%llu points, %llu objects, %s checked: %s\n", (unsigned long long)rep->points,
		     (unsigned long long)rep->objects, bytes,
		     damage_left(rep) ? "DAMAGED"
		     : failed         ? "not all could be checked"
		     : !rep->ndamaged ? "no damage"
		     : a->opt.dry_run ? "all can be repaired"
				      : "all repaired");
	return 0;
}

/* The points named on the command line. */
static int find_points(struct agent *a, struct point_list *ret, struct error *err)
{
	int r;

	ret->v = calloc(a->opt.args.n, sizeof(struct point *));
	if (!ret->v)
		return error_nomem(err);
	for (; ret->n < a->opt.args.n; ret->n++) {
		r = repo_point_find(a->repo, a->opt.args.v[ret->n], &ret->v[ret->n], err);
		if (r)
			return r;
	}
	return 0;
}

struct verify_run {
	struct repo_verify_options opt;
	struct repo_verify_report rep;
	uint64_t until; /* monotonic; 0: no budget */
};

/* Each domain gets its part of the time that is left. */
static int verify_domain(struct agent *a, void *data, size_t left, struct error *err)
{
	struct verify_run *v = data;
	struct repo_verify_report rep = {0};
	uint64_t now = clock_monotonic_ms(&clock_system);
	int r;

	if (v->until)
		v->opt.budget_ms = v->until > now + left ? (v->until - now) / left : 1;
	r = repo_verify(a->repo, &v->opt, &rep, err);
	return r ? r : repo_verify_report_add(&v->rep, &rep, err);
}

int cmd_verify(struct agent *a, enum exit_status *status, struct error *err)
{
	struct verify_run v = {
		.opt = {.read_data = a->opt.read_data,
			.scrub = a->opt.scrub || (a->opt.budget_ms && !a->opt.read_data),
			.record = true,
			.pool = a->pool,
			.tick = verify_tick,
			.data = a},
	};
	auto_point_list struct point_list chosen = {0};
	int r = agent_open_repo(a, err), rp;

	r = r ? r : repo_verify_domains(a->repo, &v.rep, err);
	if (a->opt.budget_ms)
		v.until = clock_monotonic_ms(&clock_system) + a->opt.budget_ms;
	if (!r && a->opt.args.n) {
		r = find_points(a, &chosen, err);
		v.opt.points = &chosen;
		r = r ? r : verify_domain(a, &v, 1, err);
	} else if (!r) {
		r = agent_each_domain(a, verify_domain, &v, err);
	}
	progress_end(a);
	if (v.rep.unrecorded)
		say_warning(a, "%s", v.rep.unrecorded);
	if (!r || v.rep.points || v.rep.ndamaged) {
		rp = print_report(a, &v.rep, r, r ? NULL : err);
		r = r ? r : rp;
	}
	if (v.rep.ndamaged)
		*status = EXIT_DAMAGE;
	repo_verify_report_done(&v.rep);
	return r;
}

struct repair_run {
	struct repo_repair_options opt;
	struct repo_verify_report rep;
};

static int repair_domain(struct agent *a, void *data, size_t left, struct error *err)
{
	struct repair_run *v = data;
	struct repo_verify_report rep = {0};
	int r = repo_repair(a->repo, &v->opt, &rep, err);

	(void)left;
	return r ? r : repo_verify_report_add(&v->rep, &rep, err);
}

int cmd_repair(struct agent *a, enum exit_status *status, struct error *err)
{
	struct repair_run v = {
		.opt = {.read_data = a->opt.read_data,
			.dry_run = a->opt.dry_run,
			.pool = a->pool,
			.tick = verify_tick,
			.data = a},
	};
	auto_point_list struct point_list chosen = {0};
	int r = agent_open_repo(a, err), rp;

	if (!r && a->opt.args.n) {
		r = find_points(a, &chosen, err);
		v.opt.points = &chosen;
		r = r ? r : repair_domain(a, &v, 1, err);
	} else if (!r) {
		r = agent_each_domain(a, repair_domain, &v, err);
	}
	progress_end(a);
	if (!r || v.rep.points || v.rep.ndamaged) {
		rp = print_report(a, &v.rep, r, r ? NULL : err);
		r = r ? r : rp;
	}
	if (damage_left(&v.rep) || (a->opt.dry_run && v.rep.ndamaged))
		*status = EXIT_DAMAGE;
	repo_verify_report_done(&v.rep);
	return r;
}
