/* SPDX-License-Identifier: Apache-2.0 */
/* A job of the collapse that runs, is slow, or has no room. */
#include "collapse_disk.h"
#include "room.h"

#include <stdio.h>
#include <sys/statvfs.h>

#define STALL_MS     600000 /* without any progress it is given up after this */
#define RETRY_MS     200    /* a job that was paused tries again */
#define RETRIES_MS   1000   /* at the least; an input/output error is not waited for any longer */
#define CHASE_MARGIN ((uint64_t)16 << 20)

static uint64_t now_ms(void)
{
	return clock_monotonic_ms(&clock_system);
}

/*
 * A guest that writes faster than the rate would keep its commit from ever ending: twice what
 * there was at first is enough of a chase.  Nor is it kept up where the overlay runs out of room
 * or the person wants to go.
 */
static bool has_time(struct collapse *c, const struct job_view *job, bool wanted)
{
	uint64_t sum = 0;

	if (!c->first)
		c->first = job->total;
	return wanted && job->done / 2 < c->first + CHASE_MARGIN &&
	       now_ms() - c->moved_ms < STALL_MS / 2 && room_check_disk(c->d, &sum, NULL) == 0;
}

static int lift_rate(struct collapse *c, struct error *err)
{
	json_t *args;
	int r;

	c->unlimited = true;
	log_debug("disk %s: the job goes on without a limit", c->d->name);
	r = jsonx_make(&args, err, "{s:s, s:i}", "device", c->job, "speed", 0);
	if (!r)
		r = guest_do(c->g, "block-job-set-speed", args, err);
	if (r == TM_E_PEER) { /* it may just have ended */
		error_clear(err);
		r = 0;
	}
	return r;
}

int collapse_wait(struct collapse *c, const struct job_view *job, struct error *err)
{
	uint64_t sum = job->done + job->total;
	bool wanted = guest_tick(c->g, c->phase, c->d->name, job->done, job->total, NULL) == 0;

	if (sum != c->progress || !c->moved_ms) {
		c->progress = sum;
		c->moved_ms = now_ms();
	}
	if (c->opt->rate && !c->unlimited && !has_time(c, job, wanted)) {
		int r = lift_rate(c, err);

		if (r)
			return r;
	}
	if (now_ms() - c->moved_ms > STALL_MS)
		return error_set(err, TM_E_TIMEOUT, "the job %s does not move", c->job);
	qmp_pause(c->g->qmp, job->status == JOB_WAITING ? 5 : 100);
	return 0;
}

static unsigned long long mib_up(uint64_t bytes)
{
	return (bytes + (1 << 20) - 1) >> 20;
}

/* What is missing, for the person. */
static int no_room(const struct collapse *c, const struct job_view *job, const char *file,
		   struct error *err)
{
	uint64_t need = job->total > job->done ? job->total - job->done : 0;
	struct statvfs fs;

	if (statvfs(file, &fs) < 0)
		return error_set(err, TM_E_NOSPACE, "there is no room to write to %s", file);
	return error_set(err, TM_E_NOSPACE,
			 "the file system of %s is full: %llu MiB are left there, and up to %llu "
			 "MiB are needed for what is in the overlay %s",
			 file, (unsigned long long)fs.f_bavail * fs.f_frsize >> 20, mib_up(need),
			 c->d->overlay);
}

/* True while it is worth waiting: it has only begun, or it could write something meanwhile. */
static bool has_patience(struct collapse *c, const struct job_view *job)
{
	unsigned limit =
		job->nospace && c->opt->room_ms > RETRIES_MS ? c->opt->room_ms : RETRIES_MS;
	uint64_t now = now_ms();

	if (!c->starved_ms || job->done > c->starved_at) {
		c->starved_ms = now;
		c->starved_at = job->done;
	}
	return now - c->starved_ms < limit;
}

int collapse_paused(struct collapse *c, const struct job_view *job, const char *file,
		    struct error *err)
{
	bool first = !c->starved_ms;
	json_t *args;
	int r;

	if (!job->nospace && !job->failed)
		return collapse_wait(c, job, err);
	if (!has_patience(c, job))
		return job->nospace ? no_room(c, job, file, err)
				    : error_set(err, TM_E_IO, "input/output error at %s", file);
	if (first && job->nospace) {
		struct error e = {0};

		(void)no_room(c, job, file, &e);
		guest_remark(c->g, c->phase, c->d->name, e.text);
	}
	/* Somebody who wants to go does not want to wait for room. */
	r = guest_tick(c->g, c->phase, c->d->name, job->done, job->total, NULL);
	if (r)
		return no_room(c, job, file, err);
	clock_sleep_ms(&clock_system, RETRY_MS);
	r = jsonx_make(&args, err, "{s:s}", "device", c->job);
	return r ? r : guest_do(c->g, "block-job-resume", args, err);
}
