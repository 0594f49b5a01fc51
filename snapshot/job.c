/* SPDX-License-Identifier: Apache-2.0 */
#include "job.h"

#include <stdio.h>
#include <string.h>

#define KILL_TIMEOUT_MS 60000

static enum job_status parse_status(const char *text)
{
	static const char *const names[] = {"",         "created",   "running", "paused",
					    "ready",    "standby",   "waiting", "pending",
					    "aborting", "concluded", "null"};

	for (size_t i = 1; text && i < ARRAY_SIZE(names); i++) {
		if (strcmp(text, names[i]) == 0)
			return (enum job_status)i;
	}
	return JOB_RUNNING; /* "undefined" and what newer ones call it: wait */
}

static const json_t *find_job(const json_t *list, const char *key, const char *id)
{
	const json_t *v;
	size_t i;

	json_array_foreach((json_t *)(uintptr_t)list, i, v)
	{
		const char *text = jsonx_text(v, key);

		if (text && strcmp(text, id) == 0)
			return v;
	}
	return NULL;
}

/* io-status is only in the older listing. */
static int look_at_io(struct guest *g, const char *id, struct job_view *v, struct error *err)
{
	auto_json json_t *list = NULL;
	const char *io;
	int r = qmp_call(g->qmp, "query-block-jobs", NULL, QMP_TIMEOUT_MS, &list, err);

	if (r)
		return r;
	io = jsonx_text(find_job(list, "device", id), "io-status");
	v->nospace = io && strcmp(io, "nospace") == 0;
	v->failed = io && strcmp(io, "failed") == 0;
	return 0;
}

int job_look(struct guest *g, const char *id, struct job_view *ret, struct error *err)
{
	auto_json json_t *list = NULL;
	const char *text;
	const json_t *job;
	int r = qmp_call(g->qmp, "query-jobs", NULL, QMP_TIMEOUT_MS, &list, err);

	if (r)
		return r;
	*ret = (struct job_view){0};
	job = find_job(list, "id", id);
	if (!job)
		return 0;
	ret->status = parse_status(jsonx_text(job, "status"));
	(void)jsonx_u64(job, "current-progress", &ret->done);
	(void)jsonx_u64(job, "total-progress", &ret->total);
	text = jsonx_text(job, "error");
	if (text && ret->status == JOB_CONCLUDED) {
		ret->failed = true;
		if (snprintf(ret->error, sizeof(ret->error), "%s", text) < 0)
			ret->error[0] = '\0';
	}
	if (ret->status == JOB_PAUSED || ret->status == JOB_STANDBY)
		return look_at_io(g, id, ret, err);
	return 0;
}

int job_do(struct guest *g, const char *command, const char *id, struct error *err)
{
	json_t *args;
	int r = jsonx_make(&args, err, "{s:s}", "id", id);

	return r ? r : guest_do(g, command, args, err);
}

int job_kill(struct guest *g, const char *id, struct error *err)
{
	uint64_t deadline = clock_monotonic_ms(&clock_system) + KILL_TIMEOUT_MS;

	for (;;) {
		struct error e = {0};
		struct job_view v;
		json_t *args;
		int r = job_look(g, id, &v, err);

		if (r || v.status == JOB_NONE)
			return r;
		if (clock_monotonic_ms(&clock_system) >= deadline)
			return error_set(err, TM_E_TIMEOUT,
					 "QEMU has not ended its job %s within %d s", id,
					 KILL_TIMEOUT_MS / 1000);
		if (v.status == JOB_CONCLUDED)
			return job_do(g, "job-dismiss", id, err);
		if (v.status != JOB_ABORTING && v.status != JOB_NULL) {
			r = jsonx_make(&args, &e, "{s:s, s:b}", "device", id, "force", 1);
			if (!r)
				r = guest_do(g, "block-job-cancel", args, &e);
			if (r == TM_E_PEER) {
				error_clear(&e);
				r = job_do(g, "job-cancel", id, &e);
			}
			if (r && r != TM_E_PEER)
				return error_set(err, r, "job %s cannot be cancelled: %s", id,
						 e.text);
		}
		qmp_pause(g->qmp, 50);
	}
}
