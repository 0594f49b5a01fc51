/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest does not wait for a repository that hangs (a dead NFS server, a frozen file
 * system).  Requests to such a store cannot be taken back, so no function of ours could
 * return; instead, when nothing at all has moved for too long, the guest is put in order
 * from where we stand, and the process ends.
 */
#pragma once

#include "agent.h"
#include "snapshot/snapshot.h"

struct stall_guard {
	struct loop_watch watch;
	struct agent *agent;
	struct snapshot **snapshot; /* of the running backup, or of nothing yet */
	uint64_t limit_ms;
};

/* From now on until stall_disarm(); g and *snapshot must stay where they are. */
void stall_arm(struct stall_guard *g, struct agent *a, struct snapshot **snapshot);
void stall_disarm(struct stall_guard *g);

/* A warning of what keeps the guest from being in order, and who puts it right. */
void say_unfinished(struct agent *a, const struct error *why);
