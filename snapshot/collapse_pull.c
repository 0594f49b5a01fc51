/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Collapse by pull: block-stream copies the base into the overlay, which then stands on what was
 * below the base and is the guest's disk for good.  The base is never written: until the disk is
 * marked done, the overlay over its base is what the guest sees, whatever dies, and a commit can
 * take the place of the pull at any time.
 */
#include "base_lock.h"
#include "collapse_disk.h"
#include "identity.h"
#include "names.h"
#include "room.h"

#include <stdio.h>
#include <string.h>

/* Back to the way that needs nothing.  `why` is for the person. */
static int commit_instead(struct collapse *c, const char *why, struct error *err)
{
	auto_free char *text = NULL;
	int r = job_kill(c->g, c->job, err);

	if (!r)
		r = text_format(&text, err, "its overlay is merged by commit, not by pull: %s",
				why);
	if (r)
		return r;
	guest_remark(c->g, c->phase, c->d->name, text);
	c->d->how = COLLAPSE_COMMIT;
	c->d->pivot = PIVOT_NONE;
	return collapse_name_job(c, "commit", err);
}

/* ---- the job ---- */

/* What the header of the overlay shall say, as that of the base does; NULL: as QEMU names it. */
static const char *backing_text(const struct journal_disk *d, const struct block_node *base)
{
	const json_t *image = json_object_get(base->info, "image");
	const char *text = jsonx_text(image, "backing-filename");
	const char *a = strrchr(d->base, '/'), *b = strrchr(d->overlay, '/');
	bool beside = a && b && a - d->base == b - d->overlay &&
		      strncmp(d->base, d->overlay, (size_t)(a - d->base)) == 0;

	/* A relative name is relative to the image that says it. */
	return beside ? text : jsonx_text(image, "full-backing-filename");
}

static int start_pull(struct collapse *c, const struct collapse_view *v, struct error *err)
{
	const char *text = backing_text(c->d, v->base);
	uint64_t sum = 0;
	struct error e = {0};
	json_t *args;
	int r;

	if (v->ours != v->active)
		return commit_instead(c, "another QEMU has its overlay open", err);
	if (c->jobs++ >= COLLAPSE_JOBS_MAX)
		return commit_instead(c, "the pull failed again and again", err);
	if (room_check_disk(c->d, &sum, &e))
		return commit_instead(c, e.text, err);
	c->d->pivot = PIVOT_NONE;
	r = journal_write(c->j, JOURNAL_PULLING, err);
	if (!r)
		r = jsonx_make(&args, err, "{s:s, s:s, s:s, s:b, s:b, s:I}", "job-id", c->job,
			       "device", v->active->name, "on-error", "stop", "auto-finalize", 0,
			       "auto-dismiss", 0, "speed", (json_int_t)c->opt->rate);
	if (!r && v->base->backing_child)
		r = jsonx_set(args, "base-node", json_string(v->base->backing_child->name), err);
	if (!r && v->base->backing_child && text)
		r = jsonx_set(args, "backing-file", json_string(text), err);
	if (r)
		return r;
	r = guest_do(c->g, "block-stream", args, &e);
	if (r == TM_E_PEER)
		return commit_instead(c, e.text, err);
	return r ? error_pass(err, r, &e) : 0;
}

/*
 * QEMU may write the new header while tables of the image are still in its memory only: a death
 * right then would leave an image with holes.  No such image has been seen; this is a precaution.
 * To be opened again as it is makes QEMU write the tables, and says if that failed; no other
 * command does both.
 */
static int flush(struct collapse *c, const struct collapse_view *v, struct error *err)
{
	const json_t *cache = json_object_get(v->active->info, "cache");
	const char *zeroes = jsonx_text(v->active->info, "detect_zeroes");
	json_t *args;
	int r;

	if (!v->active->file_child || !v->base)
		return error_set(err, TM_E_STALE, "its nodes are not as they were");
	r = jsonx_make(&args, err, "{s:[{s:s, s:s, s:s, s:s, s:s, s:s, s:{s:b, s:b}}]}", "options",
		       "driver", "qcow2", "node-name", v->active->name, "discard", "unmap",
		       "detect-zeroes", zeroes ? zeroes : "off", "backing", v->base->name, "file",
		       v->active->file_child->name, "cache", "direct",
		       (int)jsonx_flag(cache, "direct"), "no-flush",
		       (int)jsonx_flag(cache, "no-flush"));
	if (!r)
		r = guest_do(c->g, "blockdev-reopen", args, err);
	return r ? r : io_sync_file(c->d->overlay, err);
}

/* All of the base is in the overlay; the guest goes on meanwhile. */
static int complete(struct collapse *c, struct error *err)
{
	auto_graph struct block_graph graph = {0};
	struct collapse_view v;
	struct error e = {0};
	int r = block_graph_load(c->g->qmp, &graph, err);

	if (r)
		return r;
	v = collapse_look(&graph, c->d);
	r = flush(c, &v, &e);
	if (r == TM_E_PEER || r == TM_E_IO || r == TM_E_NOSPACE)
		return commit_instead(c, e.text, err);
	if (r)
		return error_pass(err, r, &e);
	c->d->pivot = PIVOT_BEGUN;
	r = journal_write(c->j, JOURNAL_PULLING, err);
	journal_debug_point("completed");
	return r ? r : job_do(c->g, "job-finalize", c->job, err);
}

/* A pull that takes the room which the guest needs is given up for a commit, which needs less. */
static int paused(struct collapse *c, const struct job_view *job, struct error *err)
{
	if (job->nospace)
		return commit_instead(c, "there is no room for it beside what the guest writes",
				      err);
	if (job->failed)
		return commit_instead(c, "input/output error", err);
	return collapse_wait(c, job, err);
}

static int drive_job(struct collapse *c, const struct job_view *job, struct error *err)
{
	uint64_t sum = 0;
	struct error e = {0};

	switch (job->status) {
	case JOB_PENDING:
		return complete(c, err);
	case JOB_PAUSED:
	case JOB_STANDBY:
		return paused(c, job, err);
	case JOB_RUNNING:
		if (room_check_disk(c->d, &sum, &e))
			return commit_instead(c, e.text, err);
		return collapse_wait(c, job, err);
	case JOB_NONE:
	case JOB_CREATED:
	case JOB_READY:
	case JOB_WAITING:
	case JOB_ABORTING:
	case JOB_CONCLUDED:
	case JOB_NULL:
	default:
		return collapse_wait(c, job, err);
	}
}

/* ---- its end ---- */

/*
 * Is `file` of a base that has lost its name?  QEMU may know the base by the second name that a
 * pull before gave it; the nodes are ours then, whatever becomes of the base.
 */
static bool is_done_with(const struct collapse *c, const char *file)
{
	if (names_is_second(file, c->d->base))
		return strcmp(file, c->d->overlay) != 0;
	return c->d->how == COLLAPSE_PULL_KEEP && strcmp(file, c->d->base) == 0;
}

/* The nodes of the base: its space is free when QEMU closes it. */
static void drop_base(struct collapse *c, const struct block_graph *graph)
{
	for (size_t i = 0; i < graph->nnodes; i++) {
		const struct block_node *n = &graph->nodes[i], *file = n->file_child;
		struct error e = {0};

		if (!file || n->name[0] == '#' || !is_done_with(c, block_node_storage(n)->file))
			continue;
		/* A node that somebody uses stays; so does the space, until QEMU ends. */
		if (guest_delete_node(c->g, n->name, &e) ||
		    (file->name[0] != '#' && guest_delete_node(c->g, file->name, &e)))
			log_debug("disk %s: %s", c->d->name, e.text);
	}
}

/* Nothing relies on the overlay alone before it is safe and the journal says so. */
static int mark_done(struct collapse *c, struct error *err)
{
	enum journal_pivot before = c->d->pivot;
	int r = io_sync_file(c->d->overlay, err);

	if (r)
		return r;
	c->d->pivot = PIVOT_DONE;
	r = journal_write(c->j, JOURNAL_PULLED, err);
	if (r)
		c->d->pivot = before;
	return r;
}

/* The overlay stands without its base. */
static int pulled(struct collapse *c, const struct block_graph *graph, struct error *err)
{
	auto_free char *text = NULL;
	bool keep = c->d->how == COLLAPSE_PULL_KEEP;
	int r = 0;

	if (c->d->pivot != PIVOT_DONE)
		r = mark_done(c, err);
	if (!r && keep && identity_look(c->d->base, &c->d->base_id) == IDENTITY_OTHER &&
	    !same_file(c->d->base, c->d->overlay))
		r = error_set(err, TM_E_STALE,
			      "all of the disk is in %s, on which the guest runs, but it cannot "
			      "have the name %s: another file has taken that.  Move it away, then "
			      "run recovery",
			      c->d->overlay, c->d->base);
	if (!r && keep)
		r = names_take_over(c->d->overlay, c->d->base, err);
	if (r)
		return r;
	base_unlock(c->d);
	if (keep)
		journal_debug_point("renamed");
	drop_base(c, graph);
	if (keep) {
		collapse_say(c, "pulled its base into its overlay, which has the base's name now");
		return 0;
	}
	names_tidy(c->d->base, NULL); /* who removes it wants the space */
	r = text_format(&text, err,
			"its file is %s now, for good; %s is as it was at the freeze and not used "
			"any more.  Change the guest's definition before it starts again",
			c->d->overlay, c->d->base);
	if (!r)
		guest_remark(c->g, c->phase, c->d->name, text);
	if (!r)
		collapse_say(c, text);
	return r;
}

static int concluded(struct collapse *c, const struct job_view *job, struct error *err)
{
	if (job->failed)
		log_debug("disk %s: job ended with: %s", c->d->name, job->error);
	return job_do(c->g, "job-dismiss", c->job, err);
}

/* The device is on neither, or on the base alone. */
static int elsewhere(struct collapse *c, const struct collapse_view *v, bool *done,
		     struct error *err)
{
	if (c->d->pivot == PIVOT_NONE) { /* for a commit it is the same */
		c->d->how = COLLAPSE_COMMIT;
		return collapse_name_job(c, "commit", err);
	}
	if (v->state == COLLAPSE_GONE && c->d->pivot == PIVOT_DONE) {
		*done = true; /* the device was taken away; its files are in order */
		return 0;
	}
	return error_set(err, TM_E_STALE,
			 "the newest data of the disk are in %s, but the guest %s: nothing is "
			 "touched.  Stop the guest and run recovery again",
			 c->d->overlay,
			 v->state == COLLAPSE_GONE ? "uses neither this nor its base"
						   : "was started from the base");
}

int collapse_pull_step(struct collapse *c, bool *done, struct error *err)
{
	auto_graph struct block_graph graph = {0};
	struct job_view job;
	struct collapse_view v;
	int r = job_look(c->g, c->job, &job, err);

	if (!r && job.status == JOB_CONCLUDED)
		return concluded(c, &job, err);
	if (!r && job.status != JOB_NONE)
		return drive_job(c, &job, err);
	if (!r)
		r = block_graph_load(c->g->qmp, &graph, err);
	if (r)
		return r;
	v = collapse_look(&graph, c->d);
	if (v.state != COLLAPSE_ON_OVERLAY)
		return elsewhere(c, &v, done, err);
	if (v.base && c->d->pivot != PIVOT_DONE)
		return start_pull(c, &v, err);
	if (v.base || c->d->pivot == PIVOT_NONE)
		return error_set(err, TM_E_STALE, "below its overlay %s is not what the pull left",
				 c->d->overlay);
	r = pulled(c, &graph, err);
	*done = !r;
	return r;
}
