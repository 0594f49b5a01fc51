/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sets of byte ranges.  Invariant of every set, before and after each call: the
 * extents ascend, none is empty or wraps, and between two neighbours lies at
 * least one byte that is not in the set.
 */
#include "bitmap.h"

#include <assert.h>
#include <string.h>

void *(*extents_realloc)(void *p, size_t bytes) = realloc;

static uint64_t end_of(const struct extent *e)
{
	return e->offset + e->length;
}

void extents_done(struct extents *set)
{
	free(set->v);
	*set = (struct extents){0};
}

void extents_clear(struct extents *set)
{
	set->n = 0;
}

static int reserve_one(struct extents *set, struct error *err)
{
	size_t cap = set->cap ? set->cap : 8, bytes;
	struct extent *v;

	if (set->n < set->cap)
		return 0;
	if (set->cap && !size_mul(cap, 2, &cap))
		return error_nomem(err);
	if (!size_mul(cap, sizeof(*v), &bytes))
		return error_nomem(err);
	v = extents_realloc(set->v, bytes);
	if (!v)
		return error_nomem(err);
	set->v = v;
	set->cap = cap;
	return 0;
}

/* Index of the first extent that ends at or behind offset: the first that can touch it. */
static size_t first_touching(const struct extents *set, uint64_t offset)
{
	size_t low = 0, high = set->n;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (end_of(&set->v[mid]) < offset)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

/* [offset, end) touches the extents from `at` on: they become one. */
static void join(struct extents *set, size_t at, uint64_t offset, uint64_t end)
{
	struct extent *e = &set->v[at];
	size_t last = at;

	while (last + 1 < set->n && set->v[last + 1].offset <= end)
		last++;
	end = max_u64(end, end_of(&set->v[last]));
	e->offset = min_u64(e->offset, offset);
	e->length = end - e->offset;
	(void)memmove(e + 1, &set->v[last + 1], (set->n - last - 1) * sizeof(*e));
	set->n -= last - at;
}

int extents_add(struct extents *set, uint64_t offset, uint64_t length, struct error *err)
{
	uint64_t end;
	size_t at;
	int r;

	if (!range_end(offset, length, &end))
		return error_set(err, TM_E_RANGE, "%llu bytes at offset %llu end beyond 2^64",
				 (unsigned long long)length, (unsigned long long)offset);
	if (!length)
		return 0;
	if (set->n && end_of(&set->v[set->n - 1]) < offset)
		at = set->n;
	else
		at = first_touching(set, offset);
	if (at < set->n && set->v[at].offset <= end) {
		join(set, at, offset, end);
		return 0;
	}
	r = reserve_one(set, err);
	if (r)
		return r;
	(void)memmove(&set->v[at + 1], &set->v[at], (set->n - at) * sizeof(set->v[0]));
	set->v[at] = (struct extent){.offset = offset, .length = length};
	set->n++;
	return 0;
}

uint64_t extents_bytes(const struct extents *set)
{
	uint64_t bytes = 0;

	for (size_t i = 0; i < set->n; i++)
		bytes += set->v[i].length;
	return bytes;
}

bool extents_contain(const struct extents *set, uint64_t offset)
{
	size_t at = first_touching(set, offset);

	/* The one found may end just at the offset. */
	if (at < set->n && end_of(&set->v[at]) == offset)
		at++;
	return at < set->n && set->v[at].offset <= offset;
}

int extents_intersect(const struct extents *a, const struct extents *b, struct extents *ret,
		      struct error *err)
{
	size_t i = 0, j = 0;

	assert(ret != a && ret != b);
	extents_clear(ret);
	while (i < a->n && j < b->n) {
		uint64_t a_end = end_of(&a->v[i]), b_end = end_of(&b->v[j]);
		uint64_t from = max_u64(a->v[i].offset, b->v[j].offset);
		uint64_t to = min_u64(a_end, b_end);

		if (from < to) {
			int r = extents_add(ret, from, to - from, err);

			if (r)
				return r;
		}
		if (a_end < b_end)
			i++;
		else
			j++;
	}
	return 0;
}

/* Adds what is left of e without b to *ret.  *j is the first extent of b that may matter. */
static int subtract_from(const struct extent *e, const struct extents *b, size_t *j,
			 struct extents *ret, struct error *err)
{
	uint64_t from = e->offset, end = end_of(e);

	while (*j < b->n && end_of(&b->v[*j]) <= from)
		(*j)++;
	for (size_t k = *j; k < b->n && b->v[k].offset < end; k++) {
		if (b->v[k].offset > from) {
			int r = extents_add(ret, from, b->v[k].offset - from, err);

			if (r)
				return r;
		}
		from = end_of(&b->v[k]);
	}
	return from < end ? extents_add(ret, from, end - from, err) : 0;
}

int extents_subtract(const struct extents *a, const struct extents *b, struct extents *ret,
		     struct error *err)
{
	size_t j = 0;

	assert(ret != a && ret != b);
	extents_clear(ret);
	for (size_t i = 0; i < a->n; i++) {
		int r = subtract_from(&a->v[i], b, &j, ret, err);

		if (r)
			return r;
	}
	return 0;
}

void extents_align(struct extents *set, uint64_t unit, uint64_t size)
{
	size_t n = 0;

	assert(unit && (unit & (unit - 1)) == 0);
	for (size_t i = 0; i < set->n; i++) {
		uint64_t from = align_down(set->v[i].offset, unit), to;

		if (set->v[i].offset >= size)
			break;
		if (!align_up(end_of(&set->v[i]), unit, &to) || to > size)
			to = size;
		if (n && from <= end_of(&set->v[n - 1]))
			set->v[n - 1].length = to - set->v[n - 1].offset;
		else
			set->v[n++] = (struct extent){.offset = from, .length = to - from};
	}
	set->n = n;
}
