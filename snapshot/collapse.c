/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Overlay → base, for a guest that runs.
 *
 *   on overlay, no job      journal "committing", block-commit
 *   job running             wait, bounded by progress
 *   job paused, no room     wait a little, then give up: the guest runs on in the overlay
 *   job ready               block-job-complete
 *   job pending             guest I/O stands: journal "pivoting", job-finalize, nothing else
 *   job concluded           on base: journal "pivoted".  On overlay: "committing" again, retry
 *   on base                 blockdev-del, unlink
 *
 * The pivot mark is written while base and overlay are equal, and before any later write can go
 * to the base alone.  From then on the overlay is never committed again by anybody who cannot
 * see that this QEMU still uses it.
 */
#include "collapse.h"

#include "base_lock.h"
#include "job.h"
#include "overlay.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define COMMITS_MAX   4      /* attempts at one disk */
#define STALL_MS      600000 /* a commit without any progress is given up after this */
#define NOSPACE_TRIES 3
#define RECONNECT_MS  30000

struct collapse {
	struct guest *g;
	struct journal *j;
	struct journal_disk *d;
	struct text_list *lines;
	char job[32];
	unsigned commits;  /* started */
	unsigned nospaces; /* pauses for lack of room */
	uint64_t progress; /* last seen */
	uint64_t moved_ms; /* when it last changed */
};

static uint64_t now_ms(void)
{
	return clock_monotonic_ms(&clock_system);
}

static void say(struct collapse *c, const char *what)
{
	log_debug("disk %s: %s", c->d->name, what);
	if (c->lines && text_list_add(c->lines, NULL, "disk %s: %s", c->d->name, what))
		log_debug("no memory for a line of the report");
}

static bool is_file(const struct block_node *format, const char *file)
{
	return format && same_file(block_node_storage(format)->file, file);
}

struct collapse_view collapse_look(const struct block_graph *graph, const struct journal_disk *d)
{
	const struct block_device *dev = graph_find_device(graph, d->qdev, d->drive);
	struct collapse_view v = {.state = COLLAPSE_GONE};

	v.ours = d->overlay_node ? block_graph_node(graph, d->overlay_node) : NULL;
	v.top = dev ? dev->top : NULL;
	v.active = block_node_format(v.top);
	if (!v.active)
		return v;
	if (is_file(v.active, d->overlay)) {
		v.state = COLLAPSE_ON_OVERLAY;
		v.base = block_node_format(v.active->backing_child);
		if (!is_file(v.base, d->base))
			v.base = NULL;
	} else if (is_file(v.active, d->base)) {
		v.state = COLLAPSE_ON_BASE;
		v.base = v.active;
	}
	return v;
}

int collapse_drop_overlay(struct guest *g, const struct journal_disk *d, struct error *err)
{
	int r = d->overlay_node ? guest_delete_node(g, d->overlay_node, err) : 0;

	return r ? r : io_remove(d->overlay, err);
}

static int start_commit(struct collapse *c, const struct collapse_view *v, struct error *err)
{
	json_t *args;
	int r;

	if (!v->base || !v->top || !v->active)
		return error_set(err, TM_E_STALE, "below its overlay %s is not its base %s",
				 c->d->overlay, c->d->base);
	if (c->commits++ >= COMMITS_MAX)
		return error_set(err, TM_E_PEER, "the commit of its overlay failed %d times",
				 COMMITS_MAX);
	c->d->pivot = PIVOT_NONE;
	base_unlock(c->d);
	r = journal_write(c->j, JOURNAL_COMMITTING, err);
	if (!r)
		r = jsonx_make(&args, err, "{s:s, s:s, s:s, s:s, s:s, s:b, s:b}", "job-id", c->job,
			       "device", v->top->name, "top-node", v->active->name, "base-node",
			       v->base->name, "on-error", "stop", "auto-finalize", 0,
			       "auto-dismiss", 0);
	if (!r)
		r = guest_do(c->g, "block-commit", args, err);
	c->moved_ms = now_ms();
	return r;
}

/* The guest's I/O stands from READY's completion until the finalize: nothing slow in here. */
static int pivot(struct collapse *c, struct error *err)
{
	int r;

	c->d->pivot = PIVOT_BEGUN;
	r = journal_write(c->j, JOURNAL_PIVOTING, err);
	if (r) {
		/* Without the mark no pivot: the guest goes on in the overlay. */
		c->d->pivot = PIVOT_NONE;
		if (job_kill(c->g, c->job, NULL) || journal_write(c->j, JOURNAL_COMMITTING, NULL))
			log_debug("disk %s: the commit could not be taken back", c->d->name);
		return r;
	}
	return job_do(c->g, "job-finalize", c->job, err);
}

static int wait_running(struct collapse *c, const struct job_view *job, struct error *err)
{
	uint64_t sum = job->done + job->total;

	(void)guest_tick(c->g, "collapse", c->d->name, job->done, job->total, NULL);
	if (sum != c->progress) {
		c->progress = sum;
		c->moved_ms = now_ms();
	}
	if (now_ms() - c->moved_ms > STALL_MS)
		return error_set(err, TM_E_TIMEOUT, "the commit of its overlay does not move");
	qmp_pause(c->g->qmp, job->status == JOB_WAITING ? 5 : 100);
	return 0;
}

static int paused(struct collapse *c, const struct job_view *job, struct error *err)
{
	json_t *args;
	int r;

	if (!job->nospace && !job->failed)
		return wait_running(c, job, err);
	if (c->nospaces++ < NOSPACE_TRIES) {
		(void)guest_tick(c->g, "collapse", c->d->name, job->done, job->total, NULL);
		clock_sleep_ms(&clock_system, 200);
		r = jsonx_make(&args, err, "{s:s}", "device", c->job);
		return r ? r : guest_do(c->g, "block-job-resume", args, err);
	}
	r = job_kill(c->g, c->job, err);
	if (r)
		return r;
	if (job->nospace)
		return error_set(err, TM_E_NOSPACE,
				 "no room to merge its overlay into %s; the guest runs on in %s: "
				 "make room, then "
				 "run recovery",
				 c->d->base, c->d->overlay);
	return error_set(
		err, TM_E_IO,
		"its overlay cannot be merged into %s: input/output error; the guest runs on in %s",
		c->d->base, c->d->overlay);
}

/* The end of a job: what it did is seen in the graph, not in its result. */
static int concluded(struct collapse *c, const struct collapse_view *v, const struct job_view *job,
		     struct error *err)
{
	int r;

	if (job->failed)
		log_debug("disk %s: job ended with: %s", c->d->name, job->error);
	if (v->state == COLLAPSE_ON_BASE) {
		c->d->pivot = PIVOT_DONE;
		r = journal_write(c->j, JOURNAL_PIVOTED, err);
		if (!r)
			say(c, "merged its overlay into its base");
		return r ? r : job_do(c->g, "job-dismiss", c->job, err);
	}
	if (v->state == COLLAPSE_ON_OVERLAY && c->d->pivot == PIVOT_BEGUN) {
		/* Finalizing failed: from here on the overlay is newer again. */
		c->d->pivot = PIVOT_NONE;
		r = journal_write(c->j, JOURNAL_COMMITTING, err);
		if (r)
			return r;
	}
	r = job_do(c->g, "job-dismiss", c->job, err);
	if (!r && job->failed && c->commits >= COMMITS_MAX)
		r = error_set(err, TM_E_PEER, "the commit of its overlay failed: %s", job->error);
	return r;
}

/* A job that has not concluded. */
static int drive_job(struct collapse *c, const struct job_view *job, struct error *err)
{
	json_t *args;
	int r;

	switch (job->status) {
	case JOB_READY:
		r = jsonx_make(&args, err, "{s:s}", "device", c->job);
		qmp_set_quiet(c->g->qmp, true);
		r = r ? r : guest_do(c->g, "block-job-complete", args, err);
		if (r == TM_E_PEER && !qmp_lost(c->g->qmp)) { /* it may just have moved on */
			error_clear(err);
			r = wait_running(c, job, err);
		}
		return r;
	case JOB_PENDING:
		return pivot(c, err);
	case JOB_PAUSED:
	case JOB_STANDBY:
		return paused(c, job, err);
	case JOB_NONE:
	case JOB_CREATED:
	case JOB_RUNNING:
	case JOB_WAITING:
	case JOB_ABORTING:
	case JOB_CONCLUDED:
	case JOB_NULL:
	default:
		return wait_running(c, job, err);
	}
}

/* On its base without a pivot of ours: fine as long as the overlay holds nothing. */
static int check_untouched(struct collapse *c, struct error *err)
{
	bool empty;
	int r = overlay_empty(c->d->overlay, &empty, err);

	if (r || empty)
		return r;
	return error_set(
		err, TM_E_STALE,
		"the guest runs on %s, but the overlay %s holds writes that were not merged by us: "
		"the guest was started without it, or somebody else merged it.  Both files are "
		"kept; "
		"if the guest's data is right as it is, remove the overlay and run recovery again",
		c->d->base, c->d->overlay);
}

static int on_base(struct collapse *c, struct error *err)
{
	int r = c->d->pivot == PIVOT_NONE ? check_untouched(c, err) : 0;

	base_unlock(c->d);
	if (!r)
		r = collapse_drop_overlay(c->g, c->d, err);
	return r;
}

static int on_overlay(struct collapse *c, const struct collapse_view *v, struct error *err)
{
	/* With our own node active it is the QEMU of the run, and the pivot did not happen. */
	if (c->d->pivot == PIVOT_NONE || (c->d->pivot == PIVOT_BEGUN && v->ours == v->active))
		return start_commit(c, v, err);
	return error_set(err, TM_E_STALE,
			 "the guest was started on %s, which had been merged into %s already and "
			 "may be older "
			 "than it: nothing is touched.  Stop the guest and start it from %s",
			 c->d->overlay, c->d->base, c->d->base);
}

/* One look and one step.  *done: the disk is on its base, nothing is left. */
static int step(struct collapse *c, bool *done, struct error *err)
{
	auto_graph struct block_graph graph = {0};
	struct job_view job;
	struct collapse_view v;
	int r = job_look(c->g, c->job, &job, err);

	/* Pending: act before anything else is looked at. */
	if (!r && job.status == JOB_PENDING)
		return pivot(c, err);
	if (!r && job.status != JOB_NONE && job.status != JOB_CONCLUDED)
		return drive_job(c, &job, err);
	qmp_set_quiet(c->g->qmp, false);
	if (!r)
		r = block_graph_load(c->g->qmp, &graph, err);
	if (r)
		return r;
	v = collapse_look(&graph, c->d);
	if (job.status == JOB_CONCLUDED)
		return concluded(c, &v, &job, err);
	switch (v.state) {
	case COLLAPSE_ON_BASE:
		r = on_base(c, err);
		*done = !r;
		return r;
	case COLLAPSE_ON_OVERLAY:
		return on_overlay(c, &v, err);
	case COLLAPSE_GONE:
	default:
		if (c->d->pivot != PIVOT_NONE || check_untouched(c, NULL) == 0) {
			r = collapse_drop_overlay(c->g, c->d, err);
			*done = !r;
			return r;
		}
		return error_set(
			err, TM_E_STALE,
			"the guest uses neither its base %s nor its overlay %s; nothing is touched",
			c->d->base, c->d->overlay);
	}
}

/* The connection was lost: in PENDING the guest's I/O stands until we are back. */
int collapse_reconnect(struct guest *g, struct error *err)
{
	uint64_t deadline = now_ms() + RECONNECT_MS;

	for (;;) {
		struct error e = {0};
		int r = guest_connect(g, &e);

		if (!r)
			return 0;
		if (r == TM_E_NOTFOUND || now_ms() >= deadline)
			return error_set(err, r, "QEMU cannot be reached again: %s", e.text);
		clock_sleep_ms(&clock_system, 100);
	}
}

static int collapse_disk(struct collapse *c, struct error *err)
{
	bool done = false;
	int r = 0;

	if (snprintf(c->job, sizeof(c->job), "tm-%.12s-%zu-commit",
		     id_text(&c->j->point).s + TM_ID_HEX - 12, (size_t)(c->d - c->j->disks)) < 0)
		return error_set(err, TM_E_RANGE, "job name");
	c->moved_ms = now_ms();
	while (!r && !done) {
		struct error e = {0};

		r = step(c, &done, &e);
		if (r && c->g->qmp && qmp_lost(c->g->qmp)) {
			log_debug("%s", e.text);
			e = (struct error){0};
			r = collapse_reconnect(c->g, &e);
		}
		if (r && err && !err->code)
			*err = e;
	}
	if (c->g->qmp)
		qmp_set_quiet(c->g->qmp, false);
	if (r)
		error_prefix(err, "disk %s", c->d->name);
	return r;
}

int collapse_resume(struct guest *g, const struct journal *j, struct error *err)
{
	char *state;
	int r;

	if (!j->state || strcmp(j->state, "running") != 0)
		return 0;
	r = guest_query_state(g, &state, err);
	if (r)
		return r;
	if (strcmp(state, "io-error") == 0)
		r = guest_do(g, "cont", NULL, err);
	free(state);
	return r;
}

int collapse_disks(struct guest *g, struct journal *j, struct text_list *lines, struct error *err)
{
	struct error first = {0};
	int r = 0;

	for (size_t i = 0; i < j->ndisks; i++) {
		struct collapse c = {.g = g, .j = j, .d = &j->disks[i], .lines = lines};
		struct error e = {0};
		int rd;

		if (!c.d->overlay)
			continue;
		rd = collapse_disk(&c, &e);
		if (rd && !r) { /* the other disks are still worth it */
			r = rd;
			first = e;
		}
		if (rd && (!g->qmp || qmp_lost(g->qmp)))
			break;
	}
	if (r && err && !err->code)
		*err = first;
	return r;
}
