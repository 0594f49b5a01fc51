/* SPDX-License-Identifier: Apache-2.0 */
/* status and recover. */
#include "audit.h"
#include "guest_repo.h"
#include "target.h"

#include <stdio.h>
#include <string.h>

#define BEFORE_START_WAIT_MS 90000 /* for another run of this program */

static json_t *lines_json(const struct text_list *lines)
{
	json_t *a = json_array();

	for (size_t i = 0; a && i < lines->n; i++)
		(void)json_array_append_new(a, json_string(lines->v[i]));
	return a;
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
		report->found |= one.found;
		report->left |= one.left;
		for (size_t i = 0; i < one.lines.n; i++) {
			if (text_list_add(&report->lines, NULL, "%s", one.lines.v[i]))
				log_debug("no memory for a line of the report");
		}
		recover_report_done(&one);
		return r ? error_set(err, r, "%s", e.text) : 0;
	}
}

static int recover_targets(struct agent *a, const struct recover_options *opt,
			   struct recover_report *report, struct error *err)
{
	int first = 0;

	if (!a->opt.args.n)
		return recover_all(opt, report, err);
	for (size_t i = 0; i < a->opt.args.n; i++) {
		auto_target struct target t = {0};
		int r = target_parse(a->opt.args.v[i], &t, err);

		if (!r)
			r = recover_one(a, &t.guest, opt, report, err);
		if (r && !first)
			first = r;
	}
	return first;
}

int cmd_recover(struct agent *a, enum exit_status *status, struct error *err)
{
	auto_recover_report struct recover_report report = {0};
	struct recover_options opt;
	int r = agent_state_dir(a, err), rj = 0;

	/* A guest must be able to start when the repository cannot be reached. */
	if (!r && a->opt.repo && !a->opt.before_start)
		r = agent_open_repo(a, err);
	if (r)
		return r;
	opt = recover_options_of(a, a->opt.check);
	if (a->opt.before_start)
		opt.committed = NULL;
	r = recover_targets(a, &opt, &report, err);
	if (a->opt.json) {
		rj = print_json(json_pack("{s:b, s:b, s:o}", "found", report.found, "left",
					  report.left, "actions", lines_json(&report.lines)),
				r ? NULL : err);
	} else {
		for (size_t i = 0; i < report.lines.n; i++)
			(void)printf("%s\n", report.lines.v[i]);
		if (!report.found && !r && !a->opt.before_start)
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
static json_t *epoch_json(struct agent *a, const char *guest, const struct guest_disk *d)
{
	auto_clean(point_free) struct point *p = NULL;
	char since[TIME_TEXT_MAX];

	if (!a->repo)
		return json_null();
	if (!d->epoch.usable)
		return json_pack("{s:b, s:s}", "usable", 0, "reason", d->epoch.reason);
	if (repo_point_get(a->repo, guest, &d->epoch.point, &p, NULL))
		return json_pack("{s:b, s:s}", "usable", 0, "reason", "its point is gone");
	time_format_utc(p->created_ms, since);
	return json_pack(
		"{s:b, s:s, s:s, s:s, s:s, s:o, s:o}", "usable", 1, "point", id_text(&p->id).s,
		"name", p->name, "since", since, "bitmap", d->epoch.bitmap, "dirty_bytes",
		d->epoch.dirty_bytes == UINT64_MAX ? json_null()
						   : json_integer((json_int_t)d->epoch.dirty_bytes),
		"audit", audit_json(&p->disks[d->epoch.disk].audit));
}

static json_t *disk_json(struct agent *a, const struct guest *g, const struct guest_disk *d)
{
	const char *rung = d->left_out ? NULL : d->epoch.usable ? "bitmap" : "full";
	uint64_t would_read = d->left_out ? 0 : d->epoch.usable ? d->epoch.dirty_bytes : d->size;

	return json_pack(
		"{s:s, s:o, s:o, s:I, s:b, s:o, s:b, s:o, s:o, s:o, s:o, s:o}", "disk", d->name,
		"file", json_text(d->file), "format", json_text(d->format), "size",
		(json_int_t)d->size, "chosen", d->left_out == NULL, "left_out",
		json_text(d->left_out), "can_persist", d->can_persist, "chain", chain_json(d),
		"bitmaps", bitmaps_json(d), "epoch", epoch_json(a, guest_name(g), d), "source",
		a->repo ? json_text(rung) : json_null(), "would_read_bytes",
		!a->repo || would_read == UINT64_MAX ? json_null()
						     : json_integer((json_int_t)would_read));
}

static int status_json(struct agent *a, const struct guest *g, const struct recover_report *left,
		       struct error *err)
{
	json_t *disks = json_array();

	for (size_t i = 0; disks && i < guest_ndisks(g); i++)
		(void)json_array_append_new(disks, disk_json(a, g, guest_disk(g, i)));
	return print_json(json_pack("{s:s, s:o, s:s, s:b, s:o, s:b, s:o}", "guest", guest_name(g),
				    "uuid", json_text(guest_uuid(g)), "state", guest_state(g),
				    "agent", guest_has_agent(g), "disks", disks, "recovery_needed",
				    left->left, "leftovers", lines_json(&left->lines)),
			  err);
}

static void print_epoch(struct agent *a, const char *guest, const struct guest_disk *d)
{
	auto_clean(point_free) struct point *p = NULL;
	char since[TIME_TEXT_MAX], dirty[SIZE_TEXT_MAX] = "what";

	if (!a->repo || d->left_out)
		return;
	if (!d->epoch.usable || repo_point_get(a->repo, guest, &d->epoch.point, &p, NULL)) {
		(void)printf("  next backup   reads the whole disk: %s\n",
			     d->epoch.usable ? "the bitmap's point is gone" : d->epoch.reason);
		return;
	}
	time_format_local(p->created_ms, since);
	if (d->epoch.dirty_bytes != UINT64_MAX)
		size_format(d->epoch.dirty_bytes, dirty);
	(void)printf("  next backup   reads %s, changed since point %.12s (%s, %s)\n", dirty,
		     id_text(&p->id).s, p->name, since);
	audit_print(&p->disks[d->epoch.disk].audit);
}

static void print_disk(struct agent *a, const struct guest *g, const struct guest_disk *d)
{
	char size[SIZE_TEXT_MAX];

	size_format(d->size, size);
	(void)printf("disk %s\n", d->name);
	if (!d->empty)
		(void)printf("  file          %s (%s, %s)\n", d->file ? d->file : "-",
			     d->format ? d->format : "-", size);
	for (size_t i = 0; i < d->nchain; i++)
		(void)printf("  backed by     %s (%s)\n", d->chain[i].file, d->chain[i].format);
	(void)printf("  backed up     %s%s\n", d->left_out ? "no: " : "yes",
		     d->left_out ? d->left_out : "");
	if (!d->left_out && !d->can_persist)
		(void)printf("  bitmaps       do not survive a stop of QEMU on this disk\n");
	for (size_t i = 0; i < d->nbitmaps; i++) {
		const struct disk_bitmap *b = &d->bitmaps[i];

		(void)printf("  bitmap        %s%s%s%s%s\n", b->name,
			     b->recording ? "" : ", not recording",
			     b->inconsistent ? ", inconsistent" : "", b->busy ? ", in use" : "",
			     b->persistent ? "" : ", transient");
	}
	print_epoch(a, guest_name(g), d);
}

static void print_status(struct agent *a, const struct guest *g, const struct recover_report *left)
{
	(void)printf("guest %s: %s%s\n", guest_name(g), guest_state(g),
		     guest_has_agent(g) ? ", guest agent given" : "");
	for (size_t i = 0; i < guest_ndisks(g); i++)
		print_disk(a, g, guest_disk(g, i));
	for (size_t i = 0; i < left->lines.n; i++)
		(void)printf("left over: %s\n", left->lines.v[i]);
	if (left->left)
		(void)printf("An interrupted run left something; 'tidemark recover' or the next "
			     "backup puts it right.\n");
}

int cmd_status(struct agent *a, enum exit_status *status, struct error *err)
{
	auto_recover_report struct recover_report left = {0};
	auto_clean(guest_free) struct guest *g = NULL;
	auto_target struct target t = {0};
	struct known_points known = {.agent = a};
	struct recover_options recover;
	struct guest_options opt;
	int r = target_parse(a->opt.args.v[0], &t, err);

	if (!r)
		r = agent_state_dir(a, err);
	if (!r && a->opt.repo)
		r = agent_open_repo(a, err);
	if (r)
		return r;
	recover = recover_options_of(a, true);
	r = recover_guest(&t.guest, &recover, &left, err);
	if (r)
		return r;
	opt = (struct guest_options){.state_dir = a->state_dir, .hooks = {snapshot_tick, a}};
	r = guest_open(&t.guest, &opt, &g, err);
	if (!r && a->repo) {
		known.guest = guest_name(g);
		r = guest_epochs(g, repo_domain(a->repo), known_points_ask, &known, err);
		known_points_done(&known);
	}
	if (r)
		return r;
	if (a->opt.json)
		r = status_json(a, g, &left, err);
	else
		print_status(a, g, &left);
	if (left.left)
		*status = EXIT_RECOVERY;
	return r;
}
