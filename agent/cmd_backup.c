/* SPDX-License-Identifier: Apache-2.0 */
/*
 * backup: the one place where guest, reader and repository meet.
 *
 *	recover → settle bitmaps → session marker → freeze → read each disk →
 *	collapse → commit the point → settle bitmaps by whether that worked
 *
 * docs/epochs.md says why the order is what it is.  The guest comes first: once
 * disks are frozen, every way out of here goes through snapshot_finish().
 */
#include "backup.h"
#include "dry_run.h"
#include "stall.h"
#include "target.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#define GIB        ((double)(1 << 30))
#define MUCH_BYTES ((uint64_t)256 << 20) /* beside which what every run costs is little */

/* ---- which disks ---- */

static int find_all(struct backup *b, const struct string_list *names, bool *flags,
		    struct error *err)
{
	for (size_t i = 0; i < names->n; i++) {
		size_t index = 0;
		struct error e = {0};
		int r = guest_find_disk(b->guest, names->v[i], &index, &e);

		if (r)
			return error_set(err, r == TM_E_NOTFOUND ? TM_E_USAGE : r, "%s", e.text);
		flags[index] = true;
	}
	return 0;
}

/* Drives that nobody expects in a backup are mentioned; anything else left out is a warning. */
static void tell_left_out(struct agent *a, const struct guest_disk *d)
{
	if (d->read_only || d->removable || d->empty)
		say(a, "disk %s left out: %s", d->name, d->left_out);
	else
		say_warning(a, "disk %s left out: %s", d->name, d->left_out);
}

static int choose_disks(struct backup *b, struct error *err)
{
	struct agent *a = b->agent;
	size_t n = guest_ndisks(b->guest);
	auto_free bool *wanted = calloc(n + 1, sizeof(bool)),
		       *unwanted = calloc(n + 1, sizeof(bool));
	int r;

	b->disks = calloc(n + 1, sizeof(*b->disks));
	if (!wanted || !unwanted || !b->disks)
		return error_nomem(err);
	r = find_all(b, &a->opt.disks, wanted, err);
	if (!r)
		r = find_all(b, &a->opt.exclude_disks, unwanted, err);
	for (size_t i = 0; !r && i < n; i++) {
		const struct guest_disk *d = guest_disk(b->guest, i);

		if (unwanted[i] || (a->opt.disks.n && !wanted[i]))
			continue;
		if (!d->left_out)
			b->disks[b->ndisks++] = i;
		else if (wanted[i])
			return error_set(err, TM_E_USAGE, "disk %s cannot be backed up: %s",
					 d->name, d->left_out);
		else
			tell_left_out(a, d);
	}
	if (!r && !b->ndisks)
		return error_set(err, a->opt.exclude_disks.n ? TM_E_USAGE : TM_E_NOTFOUND,
				 "guest %s has no disk to back up", guest_name(b->guest));
	return r;
}

/* ---- the point to be ---- */

static int copy_tags(const struct string_list *tags, struct point *p, struct error *err)
{
	p->tags = calloc(tags->n + 1, sizeof(char *));
	if (!p->tags)
		return error_nomem(err);
	for (; p->ntags < tags->n; p->ntags++) {
		int r = text_copy(tags->v[p->ntags], &p->tags[p->ntags], err);

		if (r)
			return r;
	}
	return 0;
}

/* GUEST@NAME must go on naming one point. */
static int check_name(struct backup *b, struct error *err)
{
	auto_clean(point_free) struct point *p = NULL;
	auto_free char *spec = NULL;
	struct error found = {0};
	const char *name = b->agent->opt.name;
	int r;

	if (!name)
		return 0;
	r = text_format(&spec, err, "%s@%s", guest_name(b->guest), name);
	if (r)
		return r;
	r = repo_point_find(b->agent->repo, spec, &p, &found);
	if (r == TM_E_NOTFOUND)
		return 0;
	if (r == 0 && strcmp(p->name, name) != 0)
		return 0; /* it was understood as a time or an id */
	if (r == TM_E_CORRUPT) {
		say_warning(b->agent, "whether the name '%s' is free cannot be told: %s", name,
			    found.text);
		return 0;
	}
	if (r && r != TM_E_USAGE) /* that is: several have it */
		return error_pass(err, r, &found);
	return error_set(err, TM_E_EXISTS, "guest %s has a point called '%s' already",
			 guest_name(b->guest), name);
}

static int new_point(struct backup *b, struct error *err)
{
	const struct options *opt = &b->agent->opt;
	struct point *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return error_nomem(err);
	b->point = p;
	p->disks = calloc(b->ndisks, sizeof(*p->disks));
	if (!p->disks)
		return error_nomem(err);
	p->ndisks = b->ndisks;
	p->kind = guest_kind(b->guest) == GUEST_IMAGE ? POINT_OFFLINE : POINT_REDIRECT_ON_WRITE;
	r = id_new_timed(clock_unix_ms(&clock_system), &p->id, err);
	if (!r)
		r = text_copy(guest_name(b->guest), &p->guest, err);
	if (!r && guest_uuid(b->guest))
		r = text_copy(guest_uuid(b->guest), &p->guest_uuid, err);
	if (!r && opt->description)
		r = text_copy(opt->description, &p->description, err);
	if (!r)
		r = copy_tags(&opt->tags, p, err);
	return r;
}

static void tell_warnings(struct backup *b)
{
	const struct text_list *list = &snapshot_info(b->snapshot)->warnings;

	for (; b->ntold < list->n; b->ntold++)
		say_warning(b->agent, "%s", list->v[b->ntold]);
}

/* What is known from the freeze on. */
static int describe_freeze(struct backup *b, struct error *err)
{
	const struct snapshot_info *info = snapshot_info(b->snapshot);
	struct point *p = b->point;
	char utc[TIME_TEXT_MAX];
	int r;

	p->created_ms = info->created_ms;
	p->quiesced = info->quiesced;
	p->freeze_ms = info->freeze_ms;
	tell_warnings(b);
	r = text_copy(info->state, &p->state, err);
	if (r)
		return r;
	if (b->agent->opt.name)
		return text_copy(b->agent->opt.name, &p->name, err);
	/* The time to the second, and enough of the id to tell two points of one second apart. */
	time_format_utc(p->created_ms, utc);
	return text_format(&p->name, err, "%s-%.4s", utc, id_text(&p->id).s + TM_ID_HEX - 4);
}

/* ---- the run ---- */

/* The newest parent of the disks: ids begin with the time. */
static void set_parent(struct point *p)
{
	for (size_t i = 0; i < p->ndisks; i++) {
		if (memcmp(p->disks[i].parent.b, p->parent.b, sizeof(p->parent.b)) > 0)
			p->parent = p->disks[i].parent;
	}
}

static void watch_writes(struct backup *b)
{
	const struct options *opt = &b->agent->opt;
	struct error err = {0};

	governor_init(&b->governor, opt->latency_limit, opt->limit_rate);
	if (opt->latency_limit && snapshot_watch_writes(b->snapshot, b->governor.slow_ns, &err))
		say_warning(b->agent,
			    "the guest's writes cannot be watched, nothing slows for them: %s",
			    err.text);
}

static int freeze(struct backup *b, struct error *err)
{
	struct agent *a = b->agent;
	const struct snapshot_options opt = {
		.repo = *repo_domain(a->repo),
		.point = b->point->id,
		.repo_url = a->repo_url,
		.disks = b->disks,
		.ndisks = b->ndisks,
		.quiesce = a->opt.quiesce,
		.overlay_dir = a->opt.overlay_dir,
		.overlay_limit = a->opt.overlay_limit,
		.collapse = a->opt.collapse,
		.keep_name = a->opt.keep_name,
		.rate = a->opt.limit_rate,
		.granularity = repo_block_size(a->repo),
	};
	int r = snapshot_begin(b->guest, &opt, &b->snapshot, err);

	if (!r)
		watch_writes(b);
	return r ? r : describe_freeze(b, err);
}

/*
 * From the freeze to the commit.  A collapse that found no room is told and left to recovery: what
 * was read is a good point all the same.
 */
static int make_point(struct backup *b, enum exit_status *status, struct error *err)
{
	const struct repo_session_options opt = {
		.guest = guest_name(b->guest),
		.compression = (int)b->agent->opt.compression,
		.id = b->point->id,
		.pool = b->agent->pool,
	};
	struct error collapse_err = {0};
	int r = repo_session_begin(b->agent->repo, &opt, &b->session, err);

	if (!r)
		r = freeze(b, err);
	for (size_t i = 0; !r && i < b->ndisks; i++)
		r = backup_disk(b, i, err);
	if (r)
		return r;
	if (b->governor.slowed_ms)
		say(b->agent, "read slowly for %.1f s, for the guest's writes",
		    (double)b->governor.slowed_ms / 1000);
	set_parent(b->point);
	if (snapshot_collapse(b->snapshot, &collapse_err)) {
		say_warning(b->agent, "the overlays are not merged back yet: %s",
			    collapse_err.text);
		*status = EXIT_RECOVERY;
	}
	tell_warnings(b);
	progress_end(b->agent);
	b->point->seconds_ms = clock_monotonic_ms(&clock_system) - b->started_ms;
	r = repo_session_commit(b->session, b->point, err);
	b->committed = r == 0;
	return r;
}

/* ---- what it took ---- */

static uint64_t cpu_ms_of(int who)
{
	struct rusage u = {0};

	(void)getrusage(who, &u); /* cannot fail for us and our children */
	return (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000 +
	       (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1000;
}

/* Used until now, with the programs that were started and have ended. */
static uint64_t cpu_ms(void)
{
	return cpu_ms_of(RUSAGE_SELF) + cpu_ms_of(RUSAGE_CHILDREN);
}

/* What a busy host pays, beside the time it takes. */
static void print_cost(const struct backup *b)
{
	double seconds = (double)(cpu_ms() - b->started_cpu_ms) / 1000;
	const struct point *p = b->point;
	uint64_t bytes = 0;

	for (size_t i = 0; i < p->ndisks; i++)
		bytes += p->disks[i].read_bytes;
	(void)printf("%.1f s, %.1f CPU s", (double)p->seconds_ms / 1000, seconds);
	if (bytes >= MUCH_BYTES)
		(void)printf(" (%.1f per GiB read)", seconds / ((double)bytes / GIB));
	(void)printf("\n");
}

static void print_table(const struct backup *b)
{
	const struct point *p = b->point;
	int width = 0;

	(void)printf("point %s of %s: ", id_text(&p->id).s, shown(p->guest).s);
	if (p->kind != POINT_OFFLINE)
		(void)printf("%s%llu ms frozen, ", p->quiesced ? "quiesced, " : "",
			     (unsigned long long)p->freeze_ms);
	print_cost(b);
	for (size_t i = 0; i < p->ndisks; i++)
		width = column_with(width, p->disks[i].name);
	for (size_t i = 0; i < p->ndisks; i++) {
		const struct point_disk *d = &p->disks[i];
		char changed[SIZE_TEXT_MAX], readb[SIZE_TEXT_MAX], stored[SIZE_TEXT_MAX];
		bool audited = d->rung == RUNG_BITMAP || d->audit.data + d->audit.empty;

		size_format(d->dirty_bytes, changed);
		size_format(d->read_bytes, readb);
		size_format(d->stored_bytes, stored);
		(void)printf("  %s  %-9s  %s%s, read %s%s, stored %s (%s)\n",
			     shown_column(d->name, width).s, disk_rung_name(d->rung), changed,
			     d->rung == RUNG_BITMAP ? " changed" : "", readb,
			     audited ? " with the audit" : "", stored, shown(d->reason).s);
	}
}

static int print_point(struct backup *b, struct error *err)
{
	const struct point *p = b->point;
	json_t *o;

	if (b->agent->opt.json) {
		o = point_json(p, true);
		if (!o || json_object_set_new(o, "warnings", take_warnings(b->agent)) ||
		    json_object_set_new(o, "slowed_ms",
					json_integer((json_int_t)b->governor.slowed_ms)) ||
		    json_object_set_new(o, "cpu_seconds",
					json_real((double)(cpu_ms() - b->started_cpu_ms) / 1000)))
			return error_nomem(err);
		return print_json(o, err);
	}
	print_table(b);
	return 0;
}

/* The way out, whatever happened: sessions, overlays and bitmaps in order. */
static int wind_up(struct backup *b, int r, enum exit_status *status, struct error *err)
{
	struct error finish_err = {0};
	int rf;

	rf = snapshot_finish(tm_steal(b->snapshot), b->committed, &finish_err);
	repo_session_free(b->session);
	progress_end(b->agent);
	if (rf && b->committed) {
		say_warning(b->agent,
			    "the point is stored, but the guest could not be put in order: %s",
			    finish_err.text);
		*status = EXIT_RECOVERY;
	} else if (rf) {
		*status = EXIT_RECOVERY;
		say_unfinished(b->agent, &finish_err);
	}
	if (!r && b->committed)
		r = print_point(b, err);
	return r;
}

/*
 * The points that were built on are looked through, so that their damage is known to the next
 * backup, which reads the disks whole then.
 */
static void record_damage(struct backup *b)
{
	struct repo_verify_options opt = {.record = true, .pool = b->agent->pool};
	struct repo_verify_report rep = {0};
	struct error err = {0};

	for (size_t i = 0; i < b->ndisks; i++) {
		auto_point_list struct point_list list = {0};
		const struct tm_id *id = &b->point->disks[i].parent;

		if (id_is_zero(id))
			continue;
		list.v = calloc(1, sizeof(struct point *));
		if (!list.v || repo_point_get(b->agent->repo, NULL, id, &list.v[0], &err))
			break;
		list.n = 1;
		opt.points = &list;
		if (repo_verify(b->agent->repo, &opt, &rep, &err) || rep.unrecorded)
			break;
		if (rep.ndamaged)
			say_warning(b->agent,
				    "the damage is recorded: the next backup reads disk %s whole",
				    b->point->disks[i].name);
		repo_verify_report_done(&rep);
	}
	if (err.code || rep.unrecorded)
		log_debug("the damage is not recorded: %s",
			  rep.unrecorded ? rep.unrecorded : err.text);
	repo_verify_report_done(&rep);
}

static int backup_opened(struct backup *b, enum exit_status *status, struct error *err)
{
	struct agent *a = b->agent;
	struct stall_guard stall;
	int r;

	/* settling removes bitmaps: what is wrong with the command is found before */
	b->known = (struct known_points){.agent = a, .guest = guest_name(b->guest)};
	r = check_name(b, err);
	if (!r)
		r = choose_disks(b, err);
	if (!r && a->opt.like)
		r = repo_point_find(a->repo, a->opt.like, &b->like, err);
	if (!r && a->opt.dry_run)
		r = guest_epochs(b->guest, repo_domain(a->repo), known_points_ask, &b->known,
				 a->loop, err);
	else if (!r)
		r = guest_settle(b->guest, repo_domain(a->repo), known_points_ask, &b->known, err);
	if (!r && a->opt.dry_run)
		return dry_run(a, b->guest, b->disks, b->ndisks, err);
	if (!r)
		r = new_point(b, err);
	if (!r) {
		stall_arm(&stall, a, &b->snapshot);
		r = make_point(b, status, err);
		r = wind_up(b, r, status, err);
		if (r == TM_E_CORRUPT)
			record_damage(b);
		stall_disarm(&stall);
	}
	return r;
}

static int backup_target(struct agent *a, const struct guest_target *target,
			 enum exit_status *status, struct error *err)
{
	struct backup b = {.agent = a,
			   .started_ms = clock_monotonic_ms(&clock_system),
			   .started_cpu_ms = cpu_ms()};
	struct guest_options opt;
	int r = a->opt.dry_run ? 0 : recover_before(a, target, err);

	if (r == TM_E_STALE)
		*status = EXIT_RECOVERY;
	opt = (struct guest_options){.state_dir = a->state_dir,
				     .exclusive = !a->opt.dry_run,
				     .hooks = {snapshot_tick, a}};
	if (!r)
		r = guest_open(target, &opt, &b.guest, err);
	if (!r)
		r = backup_opened(&b, status, err);
	known_points_done(&b.known);
	earlier_points_done(&b.earlier);
	point_free(b.like);
	point_free(b.point);
	free(b.disks);
	guest_free(b.guest);
	return r;
}

/* ---- all of them ---- */

/* One guest's failure does not cost the others their backup. */
static int backup_all(struct agent *a, const struct target *v, enum exit_status *status,
		      struct error *err)
{
	int result = 0, r = 0;

	for (size_t i = 0; r != TM_E_CANCELED && i < a->opt.args.n; i++) {
		size_t told = json_array_size(a->warnings);
		struct error one = {0};

		r = backup_target(a, &v[i].guest, status, &one);
		if (r) /* the next point's would be wrong with them */
			drop_warnings(a, told);
		result = agent_result(a, result, r, &one, err);
	}
	return result;
}

/* What is asked of a guest that is off, and would be passed over in silence. */
static int check_target(const struct options *o, const struct target *t, struct error *err)
{
	const char *option = o->quiesce == QUIESCE_REQUIRE ? "quiesce require"
			     : o->overlay_dir              ? "overlay-dir"
			     : o->keep_name                ? "keep-name"
							   : NULL;

	if (t->guest.kind != GUEST_IMAGE || !option)
		return 0;
	return error_set(err, TM_E_USAGE,
			 "--%s and image:%s exclude each other: it is for guests that run", option,
			 t->guest.images[0]);
}

int cmd_backup(struct agent *a, enum exit_status *status, struct error *err)
{
	struct target *v = NULL;
	int r = targets_parse(&a->opt.args, &v, err);

	if (r)
		return r;
	for (size_t i = 0; !r && i < a->opt.args.n; i++)
		r = check_target(&a->opt, &v[i], err);
	if (!r)
		r = agent_state_dir(a, err);
	if (!r)
		r = agent_open_repo(a, err);
	if (!r)
		r = repo_check_right(a->repo, REPO_MAY_BACK_UP, err);
	if (!r)
		r = backup_all(a, v, status, err);
	targets_done(v, a->opt.args.n);
	return r;
}
