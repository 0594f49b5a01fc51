/* SPDX-License-Identifier: Apache-2.0 */
/* The public header of bitmap/: algebra on byte ranges of a disk. */
#pragma once

#include "common/common.h"

struct extent {
	uint64_t offset; /* bytes */
	uint64_t length; /* bytes, never 0 inside a set */
};

/*
 * A set of bytes as sorted, disjoint, maximal extents.  {0} is the empty set.
 * Memory follows the number of extents; callers that read from elsewhere work in
 * windows, so that a set never describes a whole large disk.
 */
struct extents {
	struct extent *v; /* owned */
	size_t n;
	size_t cap;
};

#define auto_extents __attribute__((cleanup(extents_done)))

void extents_done(struct extents *set);
void extents_clear(struct extents *set); /* keeps the memory */

/*
 * Adds [offset, offset + length): anywhere, overlapping or not; cheapest in ascending order.
 * TM_E_RANGE when offset + length wraps; on any failure the set is as it was.
 */
int extents_add(struct extents *set, uint64_t offset, uint64_t length, struct error *err) TM_WUR;

uint64_t extents_bytes(const struct extents *set);
bool extents_contain(const struct extents *set, uint64_t offset);

/* *ret = a ∩ b, a ∖ b; ret is overwritten and may not be a or b. */
int extents_intersect(const struct extents *a, const struct extents *b, struct extents *ret,
		      struct error *err) TM_WUR;
int extents_subtract(const struct extents *a, const struct extents *b, struct extents *ret,
		     struct error *err) TM_WUR;

/* Grows every extent outward to multiples of unit (a power of two), merges, cuts at size. */
void extents_align(struct extents *set, uint64_t unit, uint64_t size);

/* The allocator, behind a seam so that tests can let it fail. */
extern void *(*extents_realloc)(void *p, size_t bytes);
