/* SPDX-License-Identifier: Apache-2.0 */
/* Names and manifests of points. */
#pragma once

#include "internal.h"

struct name_list {
	struct point_name *v; /* by source, seq, id */
	size_t n, cap;
};
void name_list_done(struct name_list *l);

struct id_set {
	struct tm_id *v; /* sorted */
	size_t n, cap;
};
void id_set_done(struct id_set *s);
bool id_set_has(const struct id_set *s, const struct tm_id *id);

/* Sessions with a tombstone or a verdict. */
int points_dead(struct repo *repo, struct id_set *ret, struct error *err) TM_WUR;
/* Sessions with one kind of flag. */
int points_flagged(struct repo *repo, enum session_flag flag, struct id_set *ret,
		   struct error *err) TM_WUR;
/*
 * Makes durable what is seen of the flags of a kind, or of the points of a source (NULL: all):
 * their writers may have been killed before they did.  For whoever decides, deletes or builds on
 * it.
 */
int points_sync_flags(struct repo *repo, enum session_flag flag, struct error *err) TM_WUR;
int points_sync(struct repo *repo, const struct tm_id *source, struct error *err) TM_WUR;
/* Points that are protected. */
int points_held(struct repo *repo, struct id_set *ret, struct error *err) TM_WUR;
int id_set_add(struct id_set *s, const struct tm_id *id, struct error *err) TM_WUR;
void id_set_sort(struct id_set *s);
/* Valid points, of one source when that is not NULL. */
int points_names(struct repo *repo, const struct tm_id *source, struct name_list *ret,
		 struct error *err) TM_WUR;
/* All manifests, those of dead points, too. */
int points_manifests(struct repo *repo, struct name_list *ret, struct error *err) TM_WUR;
int points_load(struct repo *repo, const struct point_name *name, struct point **ret,
		struct error *err) TM_WUR;
/* Damage of one manifest must not hide the others. */
bool points_is_damage(int code);

/* ---- points_read.c ---- */

struct points_reader {
	struct repo *repo;
	/*
	 * Called for each manifest that is there, in the order asked for.  It takes p over; p NULL:
	 * damaged, `why` says how.  1: enough; or an error.
	 */
	int (*each)(struct points_reader *r, const struct point_name *name, struct point *p,
		    const struct error *why, struct error *err);
};
/* Reads manifests that were listed; newest_first: from the end of v, so few when few are enough.
 * Memory: 16 MiB, or one manifest.  Runs the loop. */
int points_read(struct points_reader *r, const struct point_name *v, size_t n, bool newest_first,
		struct error *err) TM_WUR;

/* Takes p over, also on failure. */
int point_list_add(struct point_list *l, struct point *p, struct error *err) TM_WUR;
