/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The audit of a disk's bitmap: some of the clusters that it calls clean are compared with the
 * point that it is relative to, and one that proves that the disk was not made smaller meanwhile.
 * docs/epochs.md, "Audit".
 */
#pragma once

#include "backup.h"

/*
 * Fills pd->audit and adds to pd->read_bytes.  parent: the disk in the point that sd's bitmap is
 * relative to.  A repository in which the sample cannot be looked up is a warning.  *ret_proved is
 * false when it does not know any more what the cluster held that proves: the bitmap may not be
 * used then.
 */
int audit_disk(struct backup *b, const struct snapshot_disk *sd, const struct point_disk *parent,
	       struct point_disk *pd, bool *ret_proved, struct error *err) TM_WUR;

/*
 * With 95 % confidence at most so many percent differ where n were compared and none did.
 * Negative: nothing is known.
 */
double audit_bound(uint64_t n);

/* "at most 0.2 % of …" of all that was compared; of a disk in a point. */
void audit_print(const struct disk_audit *a);
/* An object, or null when nothing is known (new reference). */
json_t *audit_json(const struct disk_audit *a);
