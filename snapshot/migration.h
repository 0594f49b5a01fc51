/* SPDX-License-Identifier: Apache-2.0 */
/* A guest that is about to leave. */
#pragma once

#include "guest.h"

/*
 * Is the guest being migrated or saved, or has it been?  Then its nodes become inactive, and who
 * runs it next opens the disks' own files: it has to be back on them before.  TM_E_BUSY says so.
 * `state` is that of query-status.  QEMU that does not answer within timeout_ms is no error here.
 */
int migration_check(struct guest *g, const char *state, unsigned timeout_ms,
		    struct error *err) TM_WUR;

/* An error of a guest that has left is appended what it comes from. */
void migration_explain(struct guest *g, struct error *err);
