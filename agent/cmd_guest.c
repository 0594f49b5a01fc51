/* SPDX-License-Identifier: Apache-2.0 */
/* status and recover. */
#include "apart.h"
#include "audit.h"
#include "deadline.h"
#include "guest_repo.h"
#include "target.h"

#include <stdio.h>
#include <string.h>

#define BEFORE_START_WAIT_MS 90000 /* for another run of this program */

static json_t *lines_json(const struct text_list *lines)
{
	json_t *a = json_array();

	for (size_t i = 0; a && i < lines->n; i++)
		(void)json_array_append_new(a, json_text(lines->v[i]));
	return a;
}

/* Whole, for it may be a command that helps. */
static void print_line(const char *label, const char *line)
{
	(void)fputs(label, stdout);
	show_text(stdout, line);
	(void)putchar('\n');
}

/* ---- recover ---- */

/* A backup whose guest has just died is putting things in order itself: worth waiting for. */
static int recover_one(struct agent *a, const struct guest_target *target,
		       const struct recover_options *opt, struct recover_report *report,
		       struct error *err)
{
	uint64_t deadline = clock_monotonic_ms(&clock_system) +
			    (a->opt.before_start ? BEFORE_START_WAIT_MS : 0);

	for (;;) {
		struct recover_report one = {0};
		struct error e = {0};
		int r = recover_guest(target, opt, &one, &e);

		if (r == TM_E_BUSY && clock_monotonic_ms(&clock_system) < deadline) {
			recover_report_done(&one);
			clock_sleep_ms(&clock_system, 200);
			r = agent_check_interrupt(err);
			if (r)
				return r;
			continue;
		}
		if (!r && one.unknown && !a->opt.before_start)
			r = text_list_add(&report->lines, &e,
					  "no QEMU listens at %s, and no journal knows it",
					  target->qmp_socket);
		report->found |= one.found;
		report->left |= one.left;
		for (size_t i = 0; i < one.lines.n; i++) {
			if (text_list_add(&report->lines, NULL, "%s", one.lines.v[i]))
				log_debug("no memory for a line of the report");
		}
		/* A backup that runs is not to be recovered from; only its guest must not start. */
		if (r == TM_E_BUSY && one.running.pid && !a->opt.before_start)
			r = 0;
		recover_report_done(&one);
		return r ? error_pass(err, r, &e) : 0;
	}
}

/* One guest's failure does not cost the others their recovery. */
static int recover_targets(struct agent *a, const struct recover_options *opt,
			   struct recover_report *report, struct error *err)
{
	const struct string_list *words = &a->opt.args;
	struct target *targets = NULL;
	int r, result = 0;

	if (!words->n)
		return recover_all(opt, report, err);
	r = targets_parse(words, &targets, err);
	if (r)
		return r;
	for (size_t i = 0; i < words->n && r != TM_E_CANCELED; i++) {
		struct error one = {0};

		r = recover_one(a, &targets[i].guest, opt, report, &one);
		error_prefix(&one, "%s", words->v[i]);
		result = agent_result(a, result, r, &one, err);
	}
	targets_done(targets, words->n);
	return result;
}

int cmd_recover(struct agent *a, enum exit_status *status, struct error *err)
{
	auto_recover_report struct recover_report report = {0};
	struct recover_options opt;
	int r = agent_state_dir(a, err), rj = 0;

	if (r)
		return r;
	opt = recover_options_of(a, a->opt.check);
	if (a->opt.before_start) /* a guest's start does not wait for a repository */
		opt.committed = NULL;
	r = recover_targets(a, &opt, &report, err);
	if (a->opt.json) {
		rj = print_json_warned(a,
				       json_pack("{s:b, s:b, s:o}", "found", report.found, "left",
						 report.left, "actions", lines_json(&report.lines)),
				       r ? NULL : err);
	} else {
		for (size_t i = 0; i < report.lines.n; i++)
			print_line("", report.lines.v[i]);
		if (!report.lines.n && !r && !a->opt.before_start)
			(void)printf("nothing is left of interrupted runs\n");
	}
	if (report.left)
		*status = EXIT_RECOVERY;
	return r ? r : rj;
}

/* ---- status ---- */

static json_t *bitmaps_json(const struct guest_disk *d)
{
	json_t *list = json_array();

	for (size_t i = 0; list && i < d->nbitmaps; i++) {
		const struct disk_bitmap *b = &d->bitmaps[i];
		json_t *o = json_pack("{s:s, s:b, s:b, s:b, s:b, s:b, s:I, s:o}", "name", b->name,
				      "ours", b->ours, "recording", b->recording, "inconsistent",
				      b->inconsistent, "busy", b->busy, "persistent", b->persistent,
				      "granularity", (json_int_t)b->granularity, "dirty_bytes",
				      b->dirty_bytes == UINT64_MAX
					      ? json_null()
					      : json_integer((json_int_t)b->dirty_bytes));
		(void)json_array_append_new(list, o);
	}
	return list;
}

static json_t *chain_json(const struct guest_disk *d)
{
	json_t *list = json_array();

	for (size_t i = 0; list && i < d->nchain; i++)
		(void)json_array_append_new(
			list, json_pack("{s:s, s:s, s:I}", "file", d->chain[i].file, "format",
					d->chain[i].format, "size", (json_int_t)d->chain[i].size));
	return list;
}

/* What the newest epoch of this repository says: since when, based on what, how much. */
static json_t *epoch_json(const struct guest_disk *d, const struct outlook *o)
{
	char since[TIME_TEXT_MAX];

	if (o->rung != RUNG_BITMAP)
		return json_pack("{s:b, s:s}", "usable", 0, "reason", o->reason);
	time_format_utc(o->since_ms, since);
	return json_pack("{s:b, s:s, s:s, s:s, s:s, s:o, s:o}", "usable", 1, "point",
			 id_text(&o->point).s, "name", o->name, "since", since, "bitmap",
			 d->epoch.bitmap, "dirty_bytes", json_bytes(o->dirty_bytes), "audit",
			 audit_json(&o->audit));
}

/* o NULL: nothing is known of the next backup. */
static json_t *disk_json(const struct guest_disk *d, const struct outlook *o)
{
	return json_pack("{s:s, s:o, s:o, s:o, s:I, s:b, s:o, s:b, s:o, s:o, s:o, s:o, s:o}",
			 "disk", d->name, "file", json_text(d->file), "overlay_of",
			 json_text(d->overlay_of), "format", json_text(d->format), "size",
			 (json_int_t)d->size, "chosen", d->left_out == NULL, "left_out",
			 json_text(d->left_out), "can_persist", d->can_persist, "chain",
			 chain_json(d), "bitmaps", bitmaps_json(d), "epoch",
			 o ? epoch_json(d, o) : json_null(), "source",
			 json_text(o ? disk_rung_name(o->rung) : NULL), "would_read_bytes",
			 json_bytes(o ? o->dirty_bytes : UINT64_MAX));
}

static int status_json(struct agent *a, const struct guest *g, const struct outlook *o,
		       const struct recover_report *left, struct error *err)
{
	json_t *disks = json_array();

	for (size_t i = 0; disks && i < guest_ndisks(g); i++) {
		const struct guest_disk *d = guest_disk(g, i);

		/* What is known of an overlay is not what is known of the disk. */
		(void)json_array_append_new(
			disks, disk_json(d, o && !d->left_out && !d->overlay_of ? &o[i] : NULL));
	}
	return print_json_warned(a,
				 json_pack("{s:s, s:o, s:s, s:b, s:o, s:b, s:o, s:n}", "guest",
					   guest_name(g), "uuid", json_text(guest_uuid(g)), "state",
					   guest_state(g), "agent", guest_has_agent(g), "disks",
					   disks, "recovery_needed", left->left, "leftovers",
					   lines_json(&left->lines), "running"),
				 err);
}

static void print_outlook(const struct outlook *o)
{
	bool counted = o->dirty_bytes != UINT64_MAX;
	char since[TIME_TEXT_MAX], dirty[SIZE_TEXT_MAX] = "what";

	if (o->rung != RUNG_BITMAP) {
		(void)printf("  next backup   reads the whole disk%s: %s\n",
			     o->rung == RUNG_HASH_DIFF ? " and stores what differs" : "",
			     shown(o->reason).s);
		return;
	}
	time_format_local(o->since_ms, since);
	if (counted)
		size_format(o->dirty_bytes, dirty);
	(void)printf("  next backup   reads %s%s changed since point %.12s (%s, %s)%s\n", dirty,
		     counted ? "," : "", id_text(&o->point).s, shown(o->name).s, since,
		     counted ? "" : "; how much that is cannot be told now");
	audit_print(&o->audit);
}

static void print_bitmap(const struct disk_bitmap *b)
{
	char dirty[SIZE_TEXT_MAX] = "";

	if (b->dirty_bytes != UINT64_MAX)
		size_format(b->dirty_bytes, dirty);
	(void)printf("  bitmap        %s%s%s%s%s%s%s%s\n", shown(b->name).s, *dirty ? ", " : "",
		     dirty, *dirty ? " dirty" : "", b->recording ? "" : ", not recording",
		     b->inconsistent ? ", inconsistent" : "", b->busy ? ", in use" : "",
		     b->persistent ? "" : ", transient");
}

static void print_disk(const struct guest_disk *d, const struct outlook *o)
{
	char size[SIZE_TEXT_MAX];

	size_format(d->size, size);
	(void)printf("disk %s\n", shown(d->name).s);
	if (!d->empty)
		(void)printf("  file          %s (%s, %s)\n", shown(d->file ? d->file : "-").s,
			     d->format ? d->format : "-", size);
	for (size_t i = 0; i < d->nchain; i++)
		(void)printf("  backed by     %s (%s)\n", shown(d->chain[i].file).s,
			     shown(d->chain[i].format).s);
	(void)printf("  backed up     %s%s\n", d->left_out ? "no: " : "yes",
		     shown(d->left_out ? d->left_out : "").s);
	if (d->overlay_of) { /* what is known of it is not what is known of the disk */
		(void)printf(
			"  next backup   first merges this file, which an interrupted run left, "
			"into %s\n",
			shown(d->overlay_of).s);
		return;
	}
	if (!d->left_out && !d->can_persist)
		(void)printf("  bitmaps       do not survive a stop of QEMU on this disk\n");
	for (size_t i = 0; i < d->nbitmaps; i++)
		print_bitmap(&d->bitmaps[i]);
	if (o && !d->left_out)
		print_outlook(o);
}

static void print_status(const struct guest *g, const struct outlook *o,
			 const struct recover_report *left)
{
	(void)printf("guest %s: %s%s\n", shown(guest_name(g)).s, guest_state(g),
		     guest_has_agent(g) ? ", guest agent given" : "");
	for (size_t i = 0; i < guest_ndisks(g); i++)
		print_disk(guest_disk(g, i), o ? &o[i] : NULL);
	for (size_t i = 0; i < left->lines.n; i++)
		print_line("left over: ", left->lines.v[i]);
	if (left->left)
		(void)printf("An interrupted run left something; 'tidemark recover' or the next "
			     "backup puts it right.\n");
}

/* Of all disks that are backed up; *ret is an array of guest_ndisks(). */
static int look_ahead(struct agent *a, struct guest *g, struct outlook **ret, struct error *err)
{
	struct known_points known = {.agent = a, .guest = guest_name(g)};
	auto_free struct outlook *o = calloc(guest_ndisks(g) + 1, sizeof(*o));
	int r = o ? guest_epochs(g, repo_domain(a->repo), known_points_ask, &known, a->loop, err)
		  : error_nomem(err);

	known_points_done(&known);
	for (size_t i = 0; !r && i < guest_ndisks(g); i++)
		if (!guest_disk(g, i)->left_out)
			r = outlook(a, guest_name(g), guest_disk(g, i), &o[i], err);
	if (!r)
		*ret = tm_steal(o);
	return r;
}

/* A repository that cannot be read is a warning: what the guest itself says is shown all the same.
 */
static struct outlook *ask_repository(struct agent *a, struct guest *g)
{
	struct agent *apart = NULL;
	struct outlook *o = NULL;
	struct deadline deadline;
	struct error e = {0};
	int r = apart_open(a, NULL, NULL, NULL, &apart, &e);

	if (!r)
		r = deadline_begin(&deadline, a->opt.repo, &e);
	if (!r) {
		r = look_ahead(apart, g, &o, &e);
		deadline_end(&deadline);
	}
	apart_free(a, apart);
	if (r)
		say_warning(a, "what a backup would read is not known: %s", e.text);
	return o;
}

/* QEMU speaks with the backup that runs, and its images change: its journal has to do. */
static int tell_running(struct agent *a, const struct guest_target *target,
			const struct recover_report *left, struct error *err)
{
	const struct recover_running *v = &left->running;
	char since[TIME_TEXT_MAX];

	if (!a->opt.json) {
		for (size_t i = 0; i < left->lines.n; i++)
			print_line("", left->lines.v[i]);
		return 0;
	}
	time_format_utc(id_time_ms(&v->point), since);
	return print_json_warned(
		a,
		json_pack("{s:s, s:n, s:n, s:b, s:[], s:b, s:[], s:{s:I, s:s, s:s, s:s, s:o}}",
			  "guest", v->guest, "uuid", "state", "agent", target->agent_socket != NULL,
			  "disks", "recovery_needed", 0, "leftovers", "running", "process",
			  (json_int_t)v->pid, "phase", v->phase, "since", since, "point",
			  id_text(&v->point).s, "repository", json_text(v->repo_url)),
		err);
}

int cmd_status(struct agent *a, enum exit_status *status, struct error *err)
{
	auto_recover_report struct recover_report left = {0};
	auto_clean(guest_free) struct guest *g = NULL;
	auto_free struct outlook *o = NULL;
	auto_target struct target t = {0};
	struct recover_options recover;
	struct guest_options opt;
	int r = target_parse(a->opt.args.v[0], &t, err);

	if (!r)
		r = agent_state_dir(a, err);
	if (r)
		return r;
	recover = recover_options_of(a, true);
	r = recover_guest(&t.guest, &recover, &left, err);
	if (left.left)
		*status = EXIT_RECOVERY;
	if (!r && left.running.pid)
		return tell_running(a, &t.guest, &left, err);
	if (r)
		return r;
	opt = (struct guest_options){.state_dir = a->state_dir, .hooks = {snapshot_tick, a}};
	r = guest_open(&t.guest, &opt, &g, err);
	if (r)
		return r;
	if (a->opt.repo)
		o = ask_repository(a, g);
	if (a->opt.json)
		r = status_json(a, g, o, &left, err);
	else
		print_status(g, o, &left);
	return r;
}
