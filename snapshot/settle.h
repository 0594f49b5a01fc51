/* SPDX-License-Identifier: Apache-2.0 */
/* Which bitmaps on one disk to keep, merge and remove: pure decisions. */
#pragma once

#include "snapshot.h"

enum settle_action {
	SETTLE_LEAVE, /* not ours to touch, or not now */
	SETTLE_KEEP,  /* the epoch */
	SETTLE_MERGE, /* merged into the epoch's bitmap, then removed */
	SETTLE_REMOVE,
};

struct settle_bitmap {
	struct bitmap_id id;
	bool recording;
	bool inconsistent;
	bool busy;
	bool committed; /* its point is in the repository, with this disk */
	bool fits; /* what the disk has now that it had not in that point is known to be zeroes */
	bool same_chain;           /* the images below are those of that time */
	enum settle_action action; /* the answer */
};

struct settle_plan {
	size_t keep;        /* index, or SIZE_MAX: no usable epoch */
	bool enable;        /* the kept bitmap has to be enabled again */
	const char *reason; /* why there is no epoch; NULL when there is one */
};

/* All n bitmaps are of one repository and one disk.  Fills action of each. */
struct settle_plan settle_decide(struct settle_bitmap *v, size_t n);

/*
 * Bitmap i of the n on a disk, of whatever repository, is of no use to anybody any more: it is
 * inconsistent, and will never be anything else.  Not one whose parent is there and sound, for that
 * one's own repository has to see that it is not to be trusted.
 */
bool settle_is_dead(const struct disk_bitmap *v, size_t n, size_t i);
