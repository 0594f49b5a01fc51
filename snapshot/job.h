/* SPDX-License-Identifier: Apache-2.0 */
/* Block jobs as query-jobs and query-block-jobs show them. */
#pragma once

#include "guest.h"

enum job_status {
	JOB_NONE, /* there is no such job */
	JOB_CREATED,
	JOB_RUNNING,
	JOB_PAUSED,
	JOB_READY,
	JOB_STANDBY, /* paused while ready */
	JOB_WAITING,
	JOB_PENDING,
	JOB_ABORTING,
	JOB_CONCLUDED,
	JOB_NULL,
};

struct job_view {
	enum job_status status;
	uint64_t done, total; /* bytes */
	bool nospace;         /* paused, for the target has no room */
	bool failed;          /* paused by another error, or concluded with one */
	char error[512];
};

int job_look(struct guest *g, const char *id, struct job_view *ret, struct error *err) TM_WUR;
/* "job-dismiss", "job-finalize", "job-cancel", "job-resume", …: commands that take just an id. */
int job_do(struct guest *g, const char *command, const char *id, struct error *err) TM_WUR;
/* Cancels by force, waits for the end (bounded) and dismisses; no such job is success. */
int job_kill(struct guest *g, const char *id, struct error *err) TM_WUR;
