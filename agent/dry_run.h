/* SPDX-License-Identifier: Apache-2.0 */
/* backup --dry-run: what would be read. */
#pragma once

#include "agent.h"

/* disks: indices of guest_disk(). */
int dry_run(struct agent *a, const struct guest *guest, const size_t *disks, size_t ndisks,
	    struct error *err) TM_WUR;
