/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cluster that proves a bitmap's end.  A disk that was made smaller and larger again reads as
 * zeroes from there on, and its bitmap has lost the bits.  Whatever of it is not dirty since has
 * changed, if it held data, and so has the highest such cluster (docs/epochs.md, "Audit").
 */
#include "audit.h"

#include <inttypes.h>

#define RUNS_MAX 1024 /* of the point's map in one part */

/*
 * The highest clusters with data below block *end, in so many runs of the map, which is moved down
 * to them.  Holes cost no more than the nodes that lead to data.
 */
static int data_below(struct repo_audit *a, unsigned runs, uint64_t *end, struct extents *ret,
		      struct error *err)
{
	const struct map_run *run = &a->look.run;
	unsigned bits = a->repo->block_bits;

	extents_clear(ret);
	while (*end > 0 && runs > 0) {
		uint64_t until = min_u64(*end << bits, a->opt.size);
		int r = audit_look(a, look_run_until, *end - 1, err);

		if (r < 0)
			return r;
		*end = run->block;
		if (run->ref == REF_HOLE)
			continue;
		r = extents_add(ret, run->block << bits, until - (run->block << bits), err);
		if (r < 0)
			return r;
		runs--;
	}
	return 0;
}

static int choose_at(struct repo_audit *a, uint64_t block, struct extents *ret, struct error *err)
{
	uint64_t at = block << a->repo->block_bits;
	int r = audit_look(a, look_run, block, err);

	if (r == 0)
		r = audit_pick(a, block, err);
	if (r == 0 && !a->npicks)
		return error_set(err, TM_E_NOTFOUND,
				 "what the point's cluster at offset %" PRIu64 " held is not known",
				 at);
	return r ? r
		 : extents_add(ret, at,
			       min_u64(UINT64_C(1) << a->repo->block_bits, a->opt.size - at), err);
}

int repo_audit_highest(struct repo_audit *a, repo_audit_reach_fn *reach, void *data,
		       struct extents *ret, struct error *err)
{
	auto_extents struct extents part = {0};
	uint64_t below = min_u64(a->blocks, a->look.cursor.root.blocks), end = 0;

	extents_clear(ret);
	a->npicks = 0;
	for (unsigned runs = 1; !end; runs = runs < RUNS_MAX ? 4 * runs : RUNS_MAX) {
		int r = data_below(a, runs, &below, &part, err);

		if (r || !part.n)
			return r;
		r = reach(data, &part, &end, err);
		if (r)
			return r;
	}
	return choose_at(a, (end - 1) >> a->repo->block_bits, ret, err);
}
