/* SPDX-License-Identifier: Apache-2.0 */
/* One disk on its way back: what the ways to collapse it share. */
#pragma once

#include "collapse.h"
#include "job.h"

#define COLLAPSE_JOBS_MAX 4 /* attempts at one disk */

struct collapse {
	struct guest *g;
	struct journal *j;
	struct journal_disk *d;
	const struct collapse_options *opt;
	const char *phase;   /* of its progress: "commit", "pull" */
	char job[32];        /* the id of the job, the same for whoever goes on with it */
	unsigned jobs;       /* started */
	uint64_t progress;   /* last seen */
	uint64_t moved_ms;   /* when it last changed */
	uint64_t first;      /* bytes that the job began with; 0: not seen yet */
	bool unlimited;      /* the rate was lifted */
	uint64_t starved_ms; /* since when there is no room; 0: there is */
	uint64_t starved_at; /* bytes that were done then */
};

/* A line of the report. */
void collapse_say(struct collapse *c, const char *what);

/*
 * The guest's I/O may stand from here on: hooks are not called, and the guard ends us if we say
 * nothing for long.
 */
void collapse_hold(struct collapse *c, bool held);

/* Sets c->job to this run's name for a job on the disk, and starts counting anew. */
int collapse_name_job(struct collapse *c, const char *kind, struct error *err) TM_WUR;

/* ---- collapse_wait.c: a job that runs ---- */

/* Tells how far it is, and waits a little.  TM_E_TIMEOUT: it has not moved for long. */
int collapse_wait(struct collapse *c, const struct job_view *job, struct error *err) TM_WUR;

/*
 * A job that `on-error: stop` paused while it wrote to `file`: says what is missing, and tries
 * again while there is time.  TM_E_NOSPACE, TM_E_IO: there is none left; the job is paused still.
 */
int collapse_paused(struct collapse *c, const struct job_view *job, const char *file,
		    struct error *err) TM_WUR;

/* ---- collapse_commit.c ---- */

/* One look and one step towards the base.  *done: the disk is on it, nothing is left. */
int collapse_commit_step(struct collapse *c, bool *done, struct error *err) TM_WUR;

/* ---- collapse_pull.c ---- */

/* The same towards an overlay without its base; it may turn to the commit instead. */
int collapse_pull_step(struct collapse *c, bool *done, struct error *err) TM_WUR;
