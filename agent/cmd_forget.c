/* SPDX-License-Identifier: Apache-2.0 */
/* forget, protect, unprotect and prune: what becomes of old points. */
#include "agent.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

/* ---- prune ---- */

static int prune_tick(void *data, struct error *err)
{
	(void)data;
	return agent_check_interrupt(err);
}

/* dropped: the points that forget has dropped, or says in a dry run that it would. */
static int do_prune(struct agent *a, const struct tm_id *dropped, size_t ndropped,
		    struct repo_prune_report *ret, struct error *err)
{
	const struct repo_prune_options opt = {
		.max_unused = a->opt.max_unused,
		.stale_ms = (uint64_t)a->opt.stale_hours * 3600 * 1000,
		.now_ms = clock_unix_ms(&clock_system),
		.dry_run = a->opt.dry_run,
		.dropped = dropped,
		.ndropped = ndropped,
		.tick = prune_tick,
	};
	int r = repo_prune(a->repo, &opt, ret, err);

	if (r)
		error_prefix(err, "prune");
	if (r == TM_E_CORRUPT)
		error_append(err, "; 'tidemark verify' says what is damaged, 'tidemark repair' "
				  "mends what can be");
	if (r == 0 && ret->no_room)
		say_warning(a,
			    "%llu segments could not be rewritten for want of room; there is some "
			    "now, so run 'tidemark prune' again",
			    (unsigned long long)ret->no_room);
	if (r == 0 && ret->unreadable)
		say_warning(a,
			    "%llu segments cannot be read and were left as they are; "
			    "'tidemark verify --read-data' tells more",
			    (unsigned long long)ret->unreadable);
	return r;
}

/* What rewritten segments took again does not count. */
static uint64_t returned_bytes(const struct repo_prune_report *rep)
{
	return rep->removed_bytes > rep->compacted_bytes ? rep->removed_bytes - rep->compacted_bytes
							 : 0;
}

static json_t *prune_json(const struct repo_prune_report *rep)
{
	return json_pack(
		"{s:I, s:I, s:I, s:I, s:I}", "removed_objects", (json_int_t)rep->removed_objects,
		"removed_bytes", (json_int_t)rep->removed_bytes, "compacted_bytes",
		(json_int_t)rep->compacted_bytes, "returned_bytes", (json_int_t)returned_bytes(rep),
		"kept_bytes", (json_int_t)rep->kept_bytes);
}

static void print_prune(const struct agent *a, const struct repo_prune_report *rep)
{
	char removed[SIZE_TEXT_MAX], moved[SIZE_TEXT_MAX], back[SIZE_TEXT_MAX], kept[SIZE_TEXT_MAX];

	size_format(rep->removed_bytes, removed);
	size_format(rep->compacted_bytes, moved);
	size_format(returned_bytes(rep), back);
	size_format(rep->kept_bytes, kept);
	(void)printf("%s %llu objects (%s), %s rewritten: %s returned, %s left\n",
		     a->opt.dry_run ? "would remove" : "removed",
		     (unsigned long long)rep->removed_objects, removed, moved, back, kept);
}

static int prune_domain(struct agent *a, void *data, size_t left, struct error *err)
{
	struct repo_prune_report rep = {0}, *sum = data;
	int r = do_prune(a, NULL, 0, &rep, err);

	(void)left;
	sum->removed_objects += rep.removed_objects;
	sum->removed_bytes += rep.removed_bytes;
	sum->compacted_bytes += rep.compacted_bytes;
	sum->kept_bytes += rep.kept_bytes;
	return r;
}

int cmd_prune(struct agent *a, enum exit_status *status, struct error *err)
{
	struct repo_prune_report rep = {0};
	int r = agent_open_repo(a, err);

	(void)status;
	r = r ? r : agent_each_domain(a, prune_domain, &rep, err);
	if (r)
		return r;
	if (a->opt.json)
		return print_json_warned(a, prune_json(&rep), err);
	print_prune(a, &rep);
	return 0;
}

/* ---- forget ---- */

/* The points in question, by guest; reason NULL: to be dropped. */
struct choice {
	const struct point *p;
	const char *reason;
	bool exactly; /* to be dropped, and named by id or by its own name */
};

static int compare_choices(const void *a, const void *b)
{
	const struct choice *x = a, *y = b;
	int c = strcmp(x->p->guest, y->p->guest);

	if (c)
		return c;
	if (x->p->seq != y->p->seq)
		return x->p->seq > y->p->seq ? -1 : 1;
	return memcmp(&x->p->id, &y->p->id, sizeof(x->p->id));
}

static struct choice *choice_of(struct choice *v, size_t n, const struct tm_id *id)
{
	for (size_t i = 0; i < n; i++)
		if (id_equal(&v[i].p->id, id))
			return &v[i];
	return NULL;
}

/* Applies the rules to the points of one guest. */
static int choose_guest(const struct agent *a, struct choice *v, size_t n, struct error *err)
{
	auto_free struct retain_point *points = calloc(n, sizeof(*points));
	struct retention rule = a->opt.retention;

	if (!points)
		return error_nomem(err);
	rule.tags = a->opt.keep_tags.v;
	rule.ntags = a->opt.keep_tags.n;
	for (size_t i = 0; i < n; i++)
		points[i] = (struct retain_point){
			.seq = v[i].p->seq,
			.id = v[i].p->id,
			.created_ms = v[i].p->created_ms,
			.tags = (const char *const *)v[i].p->tags,
			.ntags = v[i].p->ntags,
			.is_protected = v[i].p->is_protected,
		};
	retain(&rule, clock_unix_ms(&clock_system), points, n);
	for (size_t i = 0; i < n; i++) {
		struct choice *c = choice_of(v, n, &points[i].id);

		if (c)
			c->reason = points[i].reason;
	}
	return 0;
}

static int choose_by_rules(const struct agent *a, struct choice *v, size_t n, struct error *err)
{
	int r = 0;

	for (size_t i = 0, k; r == 0 && i < n; i = k) {
		for (k = i + 1; k < n && strcmp(v[k].p->guest, v[i].p->guest) == 0; k++)
			continue;
		r = choose_guest(a, v + i, k - i, err);
	}
	return r;
}

/* By its id or its own name, not as a guest's newest or that of a time. */
static bool names_exactly(const char *spec, const struct point *p)
{
	const char *part = strrchr(spec, '@');

	return (strlen(spec) >= 4 && strncasecmp(id_text(&p->id).s, spec, strlen(spec)) == 0) ||
	       strcmp(part ? part + 1 : spec, p->name) == 0;
}

/* Whoever means a guest's newest point seldom means its last one.  The points are by guest. */
static int check_last(const struct choice *v, size_t n, struct error *err)
{
	for (size_t i = 0, k; i < n; i = k) {
		const struct choice *meant = NULL;
		bool left = false;

		for (k = i; k < n && strcmp(v[k].p->guest, v[i].p->guest) == 0; k++) {
			left = left || v[k].reason;
			if (!v[k].reason && !v[k].exactly)
				meant = &v[k];
		}
		if (meant && !left)
			return error_set(err, TM_E_DENIED,
					 "point %.12s is the last one of guest %s; nothing was "
					 "dropped, 'tidemark forget %.12s' drops it all the same",
					 id_text(&meant->p->id).s, meant->p->guest,
					 id_text(&meant->p->id).s);
	}
	return 0;
}

static int choose_by_name(struct agent *a, struct choice *v, size_t n, struct error *err)
{
	for (size_t i = 0; i < n; i++)
		v[i].reason = "not named";
	for (size_t i = 0; i < a->opt.args.n; i++) {
		auto_clean(point_free) struct point *p = NULL;
		struct choice *c;
		int r = repo_point_find(a->repo, a->opt.args.v[i], &p, err);

		if (r)
			return r;
		c = choice_of(v, n, &p->id);
		if (c) {
			c->reason = NULL;
			c->exactly = c->exactly || names_exactly(a->opt.args.v[i], c->p);
		}
	}
	return check_last(v, n, err);
}

/* *ret_ids: of the points, to be freed. */
static int drop(struct agent *a, const struct choice *v, size_t n, struct tm_id **ret_ids,
		size_t *ret_n, struct error *err)
{
	struct tm_id *ids = *ret_ids = calloc(n ? n : 1, sizeof(*ids));

	if (!ids)
		return error_nomem(err);
	for (size_t i = 0; i < n; i++)
		if (!v[i].reason)
			ids[(*ret_n)++] = v[i].p->id;
	return a->opt.dry_run ? 0 : repo_forget(a->repo, ids, *ret_n, err);
}

static int print_forget_json(struct agent *a, const struct choice *v, size_t n,
			     const struct repo_prune_report *pruned, struct error *err)
{
	json_t *removed = json_array(), *kept = json_array();
	json_t *o = json_pack("{s:o, s:o}", "removed", removed, "kept", kept);
	bool failed = !o;

	for (size_t i = 0; !failed && i < n; i++)
		failed = json_array_append_new(v[i].reason ? kept : removed,
					       json_string(id_text(&v[i].p->id).s));
	if (!failed && pruned)
		failed = json_object_set_new(o, "prune", prune_json(pruned));
	if (failed) {
		json_decref(o);
		return error_nomem(err);
	}
	return print_json_warned(a, o, err);
}

/* What was named as a guest's newest is told by its own name. */
static void print_choice(const struct agent *a, const struct choice *v, size_t n)
{
	int width = 0;

	for (size_t i = 0; i < n; i++)
		width = column_with(width, v[i].p->guest);
	for (size_t i = 0; i < n; i++) {
		char when[TIME_TEXT_MAX];

		if (v[i].reason && a->opt.args.n)
			continue;
		time_format_local(v[i].p->created_ms, when);
		(void)printf("%-6s %.12s  %s  %s  %s%s%s%s\n", v[i].reason ? "keep" : "remove",
			     id_text(&v[i].p->id).s, when, shown_column(v[i].p->guest, width).s,
			     shown(v[i].p->name).s, v[i].reason ? "  (" : "",
			     v[i].reason ? v[i].reason : "", v[i].reason ? ")" : "");
	}
	(void)fflush(stdout);
}

/* Rules that by a slip of the pen keep nothing but what they always keep. */
static int check_rules(const struct agent *a, const struct point_list *list, struct error *err)
{
	struct retention rule = a->opt.retention;

	if (list->n == 0 && a->opt.guest)
		return error_set(err, TM_E_NOTFOUND, "there is no point of a guest '%s'",
				 a->opt.guest);
	if (list->n == 0 || options_keep_by_time(&a->opt))
		return 0;
	rule.tags = a->opt.keep_tags.v;
	rule.ntags = a->opt.keep_tags.n;
	for (size_t i = 0; i < list->n; i++)
		if (retain_has_tag(&rule, (const char *const *)list->v[i]->tags, list->v[i]->ntags))
			return 0;
	return error_set(
		err, TM_E_NOTFOUND,
		"no point has the tag '%s', and there is no other rule; nothing was dropped",
		a->opt.keep_tags.v[0]);
}

static void tell_damaged(struct agent *a, size_t damaged)
{
	if (damaged && !a->opt.args.n)
		say_warning(a,
			    "%zu point%s cannot be read, which no rule counts or drops; 'tidemark "
			    "verify' tells more",
			    damaged, damaged == 1 ? "" : "s");
}

int cmd_forget(struct agent *a, enum exit_status *status, struct error *err)
{
	auto_point_list struct point_list list = {0};
	auto_free struct choice *v = NULL;
	auto_free struct tm_id *dropped = NULL;
	struct repo_prune_report pruned = {0};
	size_t damaged = 0, ndropped = 0;
	int r = agent_open_repo(a, err), rp;

	(void)status;
	r = r ? r : repo_points_brief(a->repo, a->opt.guest, &list, &damaged, err);
	if (r)
		return r;
	v = calloc(list.n ? list.n : 1, sizeof(*v));
	if (!v)
		return error_nomem(err);
	for (size_t i = 0; i < list.n; i++)
		v[i].p = list.v[i];
	qsort(v, list.n, sizeof(*v), compare_choices);
	if (a->opt.args.n)
		r = choose_by_name(a, v, list.n, err);
	else
		r = check_rules(a, &list, err);
	if (!r && !a->opt.args.n)
		r = choose_by_rules(a, v, list.n, err);
	r = r ? r : drop(a, v, list.n, &dropped, &ndropped, err);
	if (r)
		return r;
	tell_damaged(a, damaged);
	if (!a->opt.json)
		print_choice(a, v, list.n);
	if (a->opt.prune)
		r = do_prune(a, dropped, ndropped, &pruned, err);
	if (a->opt.json) { /* the points are gone, whatever became of the prune */
		rp = print_forget_json(a, v, list.n, a->opt.prune && !r ? &pruned : NULL,
				       r ? NULL : err);
		return r ? r : rp;
	}
	if (a->opt.prune && !r)
		print_prune(a, &pruned);
	return r;
}

/* ---- protect ---- */

static int set_protected(struct agent *a, bool on, struct error *err)
{
	json_t *out = a->opt.json ? json_array() : NULL;
	int r = agent_open_repo(a, err);

	for (size_t i = 0; r == 0 && i < a->opt.args.n; i++) {
		auto_clean(point_free) struct point *p = NULL;

		r = repo_point_find(a->repo, a->opt.args.v[i], &p, err);
		r = r ? r : repo_protect(a->repo, &p->id, on, err);
		if (r)
			break;
		p->is_protected = on;
		if (!out)
			(void)printf("%.12s of %s is %s\n", id_text(&p->id).s, shown(p->guest).s,
				     on ? "protected" : "not protected any more");
		else if (json_array_append_new(out, point_json(p, false)))
			r = error_nomem(err);
	}
	if (out && !r)
		return print_json(out, err);
	json_decref(out);
	return r;
}

int cmd_protect(struct agent *a, enum exit_status *status, struct error *err)
{
	(void)status;
	return set_protected(a, true, err);
}

int cmd_unprotect(struct agent *a, enum exit_status *status, struct error *err)
{
	(void)status;
	return set_protected(a, false, err);
}
