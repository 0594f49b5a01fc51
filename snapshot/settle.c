/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A bitmap of point P records what changed since P.  The name of its child Q says that P's bitmap
 * was disabled in the very transaction that started Q's.  So P's bitmap, together with all its
 * descendants down to one that records now, names everything that changed since P:
 *
 *   provable(P)  =  consistent, no child inconsistent, and it records or one child is provable
 *
 * Of the provable bitmaps whose points are committed the newest is kept, its descendants (of runs
 * that failed or were killed) are merged back into it.  Merging more than needed is harmless: it
 * makes the next run read more, never less.
 */
#include "settle.h"

#include <string.h>

static bool is_child(const struct settle_bitmap *child, const struct settle_bitmap *parent)
{
	return !id_is_zero(&child->id.parent) && id_equal(&child->id.parent, &parent->id.point) &&
	       child != parent;
}

/* depth: names could be made up so that they form a ring */
static bool provable(const struct settle_bitmap *v, size_t n, size_t i, size_t depth)
{
	bool proof = v[i].recording;

	if (v[i].inconsistent || depth > n)
		return false;
	for (size_t c = 0; c < n; c++) {
		if (!is_child(&v[c], &v[i]))
			continue;
		if (v[c].inconsistent)
			return false;
		if (provable(v, n, c, depth + 1))
			proof = true;
	}
	return proof;
}

static bool descends(const struct settle_bitmap *v, size_t n, size_t i, size_t from, size_t depth)
{
	if (depth > n)
		return false;
	for (size_t p = 0; p < n; p++) {
		if (is_child(&v[i], &v[p]) && (p == from || descends(v, n, p, from, depth + 1)))
			return true;
	}
	return false;
}

static bool newer(const struct settle_bitmap *v, size_t n, size_t a, size_t b)
{
	if (descends(v, n, a, b, 0))
		return true;
	if (descends(v, n, b, a, 0))
		return false;
	return memcmp(v[a].id.point.b, v[b].id.point.b, TM_ID_BYTES) > 0;
}

static const char *no_epoch_reason(const struct settle_bitmap *v, size_t n)
{
	bool inconsistent = false, shrunk = false, moved = false, unproven = false;

	for (size_t i = 0; i < n; i++) {
		inconsistent |= v[i].inconsistent;
		shrunk |= v[i].committed && !v[i].fits;
		moved |= v[i].committed && !v[i].same_chain;
		unproven |= v[i].committed && v[i].fits && v[i].same_chain;
	}
	if (!n)
		return "no bitmap of this repository";
	if (inconsistent)
		return "its bitmap was inconsistent after an unclean stop of QEMU";
	if (shrunk)
		return "the disk was resized: it is smaller than in the point its bitmap belongs "
		       "to, or larger by what need not be zeroes";
	if (moved)
		return "the images below it are not those of the time of its bitmap";
	if (unproven)
		return "its bitmap did not record all the time since its point";
	return "its bitmap belongs to a point that this repository does not hold for this guest";
}

struct settle_plan settle_decide(struct settle_bitmap *v, size_t n)
{
	struct settle_plan plan = {SIZE_MAX, false, NULL};

	for (size_t i = 0; i < n; i++) {
		v[i].action = SETTLE_LEAVE;
		if (v[i].busy)
			plan.reason = "its bitmap is in use by another operation of QEMU";
	}
	if (plan.reason)
		return plan;
	for (size_t i = 0; i < n; i++) {
		if (!v[i].committed || !v[i].fits || !v[i].same_chain || !provable(v, n, i, 0))
			continue;
		if (plan.keep == SIZE_MAX || newer(v, n, i, plan.keep))
			plan.keep = i;
	}
	for (size_t i = 0; i < n; i++) {
		if (i == plan.keep)
			v[i].action = SETTLE_KEEP;
		else if (plan.keep != SIZE_MAX && descends(v, n, i, plan.keep, 0) &&
			 !v[i].inconsistent)
			v[i].action = SETTLE_MERGE;
		else
			v[i].action = SETTLE_REMOVE;
	}
	if (plan.keep == SIZE_MAX)
		plan.reason = no_epoch_reason(v, n);
	else
		plan.enable = !v[plan.keep].recording;
	return plan;
}

bool settle_is_dead(const struct disk_bitmap *v, size_t n, size_t i)
{
	if (!v[i].ours || !v[i].inconsistent)
		return false;
	if (id_is_zero(&v[i].id.parent))
		return true;
	for (size_t p = 0; p < n; p++) {
		if (v[p].ours && !v[p].inconsistent && id_equal(&v[p].id.repo, &v[i].id.repo) &&
		    id_equal(&v[p].id.point, &v[i].id.parent))
			return false;
	}
	return true;
}
