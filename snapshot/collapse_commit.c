/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Collapse by commit: block-commit copies the overlay into the base, and the device moves onto the
 * base at an instant at which both are equal.
 */
#include "base_lock.h"
#include "collapse_disk.h"
#include "epochs.h"
#include "identity.h"
#include "overlay.h"

#include <string.h>

/*
 * What the guest had below its overlay is open in QEMU, under whatever name.  A commit would open
 * the base by its name for writing, and write into what has it now.
 */
static int check_base(struct collapse *c, struct error *err)
{
	const struct journal_disk *d = c->d;
	enum identity now = identity_look(d->base, &d->base_id);

	if (now != IDENTITY_OTHER && now != IDENTITY_GONE &&
	    !identity_open_elsewhere(c->g, d->base))
		return 0;
	return error_set(err, TM_E_STALE,
			 "its base %s %s: nothing is merged.  The guest runs on in its overlay %s, "
			 "over the file that it had.  Put that file (inode %llu) back under its "
			 "name, then run recovery; if it was deleted, only the running guest still "
			 "has it: copy its disk before it ends",
			 d->base, now == IDENTITY_GONE ? "is gone" : "was replaced by another file",
			 d->overlay, (unsigned long long)d->base_id.inode);
}

/*
 * Of a disk that has grown meanwhile QEMU fails the commit when the base has an inconsistent
 * bitmap.  It leaves the base writable then, so that the bitmap can be removed for the next
 * attempt; newer ones make it read-only again.
 */
static int clear_way(struct collapse *c, const struct collapse_view *v, struct error *err)
{
	struct guest_disk *base;
	int r;

	if (c->jobs == 1 || v->base->size >= v->active->size)
		return 0;
	r = disks_from_node(v->base, &base, err);
	if (r)
		return r;
	r = epochs_clear_way(c->g, base, err);
	guest_disks_free(base, 1);
	return r;
}

static int start_commit(struct collapse *c, const struct collapse_view *v, struct error *err)
{
	json_t *args;
	int r;

	if (!v->base || !v->top || !v->active)
		return error_set(err, TM_E_STALE, "below its overlay %s is not its base %s",
				 c->d->overlay, c->d->base);
	r = check_base(c, err);
	if (r)
		return r;
	if (c->jobs++ >= COLLAPSE_JOBS_MAX)
		return error_set(err, TM_E_PEER, "the commit of its overlay failed %d times",
				 COLLAPSE_JOBS_MAX);
	c->d->pivot = PIVOT_NONE;
	c->d->frozen_mtime = 0; /* from here on the base does change */
	base_unlock(c->d);
	r = journal_write(c->j, JOURNAL_COMMITTING, err);
	if (!r)
		r = clear_way(c, v, err);
	if (!r)
		r = jsonx_make(&args, err, "{s:s, s:s, s:s, s:s, s:s, s:b, s:b, s:I}", "job-id",
			       c->job, "device", v->top->name, "top-node", v->active->name,
			       "base-node", v->base->name, "on-error", "stop", "auto-finalize", 0,
			       "auto-dismiss", 0, "speed", (json_int_t)c->opt->rate);
	return r ? r : guest_do(c->g, "block-commit", args, err);
}

/* The guest's I/O stands from READY's completion until the finalize: nothing slow in here. */
static int pivot(struct collapse *c, struct error *err)
{
	int r;

	collapse_hold(c, true);
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

/* The end of a job: what it did is seen in the graph, not in its result. */
static int concluded(struct collapse *c, const struct collapse_view *v, const struct job_view *job,
		     struct error *err)
{
	int r;

	if (job->failed)
		log_debug("disk %s: job ended with: %s", c->d->name, job->error);
	if (v->state == COLLAPSE_ON_BASE ||
	    (v->no_device && c->d->pivot == PIVOT_BEGUN && !job->failed)) {
		c->d->pivot = PIVOT_DONE;
		r = journal_write(c->j, JOURNAL_PIVOTED, err);
		if (!r)
			collapse_say(c, "merged its overlay into its base");
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
	if (!r && job->failed && c->jobs >= COLLAPSE_JOBS_MAX)
		r = error_set(err, TM_E_PEER, "the commit of its overlay failed: %s", job->error);
	return r;
}

/* The guest runs on in the overlay. */
static int starved(struct collapse *c, const struct job_view *job, struct error *err)
{
	struct error e = {0};
	int r = collapse_paused(c, job, c->d->base, &e);

	if (r != TM_E_NOSPACE && r != TM_E_IO)
		return r ? error_pass(err, r, &e) : 0;
	if (job_kill(c->g, c->job, err))
		return err ? (int)err->code : TM_E_IO;
	return error_set(err, r,
			 "its overlay cannot be merged into its base: %s; the guest runs on in "
			 "the overlay%s",
			 e.text, r == TM_E_NOSPACE ? ": make room, then run recovery" : "");
}

/* A job that has not concluded. */
static int drive_job(struct collapse *c, const struct job_view *job, struct error *err)
{
	json_t *args;
	int r;

	switch (job->status) {
	case JOB_READY:
		r = jsonx_make(&args, err, "{s:s}", "device", c->job);
		collapse_hold(c, true);
		r = r ? r : guest_do(c->g, "block-job-complete", args, err);
		if (r == TM_E_PEER && !qmp_lost(c->g->qmp)) { /* it may just have moved on */
			error_clear(err);
			r = collapse_wait(c, job, err);
		}
		return r;
	case JOB_PENDING:
		return pivot(c, err);
	case JOB_PAUSED:
	case JOB_STANDBY:
		return starved(c, job, err);
	case JOB_NONE:
	case JOB_CREATED:
	case JOB_RUNNING:
	case JOB_WAITING:
	case JOB_ABORTING:
	case JOB_CONCLUDED:
	case JOB_NULL:
	default:
		return collapse_wait(c, job, err);
	}
}

/* On its base without a pivot of ours: fine as long as the overlay holds nothing. */
static int check_untouched(struct collapse *c, struct error *err)
{
	bool empty = c->j->phase == JOURNAL_PREPARING; /* perhaps not even an image yet */
	int r = empty ? 0 : overlay_empty(c->d->overlay, &empty, err);

	if (r || empty)
		return r;
	return error_set(
		err, TM_E_STALE,
		"the guest runs on %s, but the overlay %s holds writes that were not merged by us: "
		"the guest was started without it, or somebody else merged it.  Both files are "
		"kept; if the guest's data is right as it is, remove the overlay, with what is "
		"called so and '" OVERLAY_DATA_SUFFIX "', and run recovery again",
		c->d->base, c->d->overlay);
}

/* The guest is where it was, but its file has lost its name: the next start would open the other.
 */
static int check_name(struct collapse *c, struct error *err)
{
	const struct journal_disk *d = c->d;
	enum identity now = identity_look(d->base, &d->base_id);

	if (now != IDENTITY_OTHER && now != IDENTITY_GONE)
		return 0;
	return error_set(err, TM_E_STALE,
			 "the guest runs on its own file, inode %llu, but %s %s.  Put the guest's "
			 "file back under its name before the guest ends, then run recovery; if it "
			 "was deleted, only the running guest still has it: copy its disk.  The "
			 "overlay %s is kept, it holds what was written during the backup",
			 (unsigned long long)d->base_id.inode, d->base,
			 now == IDENTITY_GONE ? "is gone" : "was replaced by another file",
			 d->overlay);
}

/* QEMU still has it open, but it is not where it was: nobody removes it then. */
static int tell_moved(struct collapse *c, struct error *err)
{
	auto_free char *text = NULL;
	int r;

	if (identity_look(c->d->overlay, &c->d->overlay_id) != IDENTITY_GONE)
		return 0;
	r = text_format(&text, err,
			"its overlay %s (inode %llu) was moved to another place: it is merged and "
			"can be removed there",
			c->d->overlay, (unsigned long long)c->d->overlay_id.inode);
	if (!r)
		guest_remark(c->g, c->phase, c->d->name, text);
	if (!r)
		collapse_say(c, text);
	return r;
}

static int on_base(struct collapse *c, const struct collapse_view *v, bool *done, struct error *err)
{
	int r = c->d->pivot == PIVOT_NONE ? check_untouched(c, err) : check_name(c, err);

	base_unlock(c->d);
	if (!r && v->ours)
		r = tell_moved(c, err);
	if (!r)
		r = collapse_drop_overlay(c->g, c->d, err);
	*done = !r;
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

/* Its device has neither file, and the overlay holds data. */
static int refuse_gone(struct collapse *c, const struct block_graph *graph,
		       const struct collapse_view *v, struct error *err)
{
	for (size_t i = 0; v->ours && i < graph->nnodes; i++) {
		const struct block_node *n = &graph->nodes[i];

		if (n->backing_child == v->ours)
			return error_set(
				err, TM_E_STALE,
				"another program took a snapshot, %s (node %s), and it stands on "
				"the overlay %s: nothing is touched.  Have it merged into that "
				"overlay (block-commit with \"base-node\": \"%s\"), then run "
				"recovery",
				block_node_storage(n)->file, n->name, c->d->overlay, v->ours->name);
	}
	if (v->ours)
		return error_set(err, TM_E_STALE,
				 "something else than the guest stands on its overlay %s: nothing "
				 "is touched.  Remove that, then run recovery",
				 c->d->overlay);
	return error_set(err, TM_E_STALE,
			 "the guest uses neither its base %s nor its overlay %s; nothing is "
			 "touched",
			 c->d->base, c->d->overlay);
}

/* One look and one step.  *done: the disk is on its base, nothing is left. */
int collapse_commit_step(struct collapse *c, bool *done, struct error *err)
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
	if (r)
		return r;
	collapse_hold(c, false);
	r = block_graph_load(c->g->qmp, &graph, err);
	if (r)
		return r;
	v = collapse_look(&graph, c->d);
	if (job.status == JOB_CONCLUDED)
		return concluded(c, &v, &job, err);
	switch (v.state) {
	case COLLAPSE_ON_BASE:
		return on_base(c, &v, done, err);
	case COLLAPSE_ON_OVERLAY:
		if (v.no_device && c->d->pivot == PIVOT_DONE)
			return on_base(c, &v, done, err);
		return on_overlay(c, &v, err);
	case COLLAPSE_GONE:
	default:
		if (c->d->pivot != PIVOT_NONE || check_untouched(c, NULL) == 0) {
			r = collapse_drop_overlay(c->g, c->d, err);
			*done = !r;
			return r;
		}
		return refuse_gone(c, &graph, &v, err);
	}
}
