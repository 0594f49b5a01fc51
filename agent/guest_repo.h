/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where guest and repository meet: which points a bitmap may be based on, and
 * what interrupted runs left.
 */
#pragma once

#include "agent.h"

/* Answers guest_settle(); data is a struct known_points. */
struct known_points {
	struct agent *agent;
	const char *guest;
	struct point *last;   /* the point looked up last; owned */
	struct tm_id damaged; /* the one that a warning was about */
};

point_known_fn known_points_ask;
void known_points_done(struct known_points *k);

/* Points of the guest that were read so far. */
struct earlier_points {
	struct point **v; /* owned */
	size_t n;
};
void earlier_points_done(struct earlier_points *e);

/*
 * Goes from the newest to the oldest point that has the disk: *point is NULL at first, then what
 * the last call gave; it is borrowed from e.  TM_E_NOTFOUND when there is none (any more).  What is
 * damaged is left out.
 */
int earlier_next(struct agent *a, const char *guest, const char *disk, struct earlier_points *e,
		 const struct point **point, const struct point_disk **ret_disk,
		 struct error *err) TM_WUR;

/* What a backup of one disk would do now. */
struct outlook {
	enum disk_rung rung;
	uint64_t dirty_bytes;    /* to be read, at most; UINT64_MAX: not known */
	const char *reason;      /* why not by the bitmap; "" when it is; borrowed from the disk */
	struct tm_id point;      /* that the bitmap is relative to, valid with RUNG_BITMAP … */
	char name[256];          /* … its name … */
	uint64_t since_ms;       /* … the time of its freeze … */
	struct disk_audit audit; /* … and how far its bitmaps have been audited */
};

/* After guest_epochs(). */
int outlook(struct agent *a, const char *guest, const struct guest_disk *d, struct outlook *ret,
	    struct error *err) TM_WUR;

/* Finishes what interrupted runs of this guest left, and says what was done. */
int recover_before(struct agent *a, const struct guest_target *target, struct error *err) TM_WUR;

/* Options for recover_guest() and recover_all(). */
struct recover_options recover_options_of(struct agent *a, bool check_only);

/* Progress and interruption for everything in snapshot/; data is the agent. */
int snapshot_tick(void *data, const struct snapshot_progress *p, struct error *err);
