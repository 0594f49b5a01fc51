/* SPDX-License-Identifier: Apache-2.0 */
#include "ration.h"

/*
 * Loads that are free, and clusters asked for per load beyond.  These are given out several at a
 * time, so that they are near each other on the disk and can be asked for together.
 */
#define FREE_LOADS      64
#define CLUSTERS_A_LOAD 16
#define LOADS_AT_ONCE   16
/* After so many loads tables may have to be loaded again: fewer than the cache holds. */
#define LOADS_KEPT 256

void ration_init(struct ration *r, uint32_t nsessions)
{
	*r = (struct ration){.n = nsessions};
}

void ration_done(struct ration *r)
{
	free(r->v);
	r->v = NULL;
}

static bool has_one_left(const struct ration *r)
{
	uint64_t batches = r->asked / ((uint64_t)CLUSTERS_A_LOAD * LOADS_AT_ONCE);

	return r->loads < FREE_LOADS + batches * LOADS_AT_ONCE;
}

int ration_ask(struct ration *r, uint64_t ref, bool *ret, struct error *err)
{
	uint32_t index = (uint32_t)(ref_ordinal(ref) >> DATA_SLOTS_LOG2);
	struct ration_session *s;

	*ret = r->off;
	if (r->off)
		return 0;
	if (!r->v)
		r->v = calloc(r->n, sizeof(*r->v));
	if (!r->v)
		return error_nomem(err);
	assert(ref_session(ref) < r->n);
	s = &r->v[ref_session(ref)];
	/* Clusters of a session ascend with their place: it is done with the segments before. */
	*ret = s->used > 0 && s->index == index && r->loads - (s->used - 1) < LOADS_KEPT;
	if (!*ret && has_one_left(r)) {
		*ret = true;
		r->loads++;
	}
	if (*ret)
		*s = (struct ration_session){.index = index, .used = r->loads + 1};
	r->asked++;
	return 0;
}
