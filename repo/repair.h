/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Repair, as its own files see it (docs/format.md, "Repair").
 *
 *	repair.c       verify, repair, verify again
 *	repair_map.c   map segments, from the parent's map and the session's descriptor tables
 *	repair_data.c  data segments, with clusters of the same content from elsewhere
 *	repair_put.c   a segment's next generation takes the place of those before
 */
#pragma once

#include "lost.h"
#include "verify.h"

struct repair {
	struct verifier *v;
	bool dry_run;
	struct name_list names; /* of valid points */
};

/* What became of a damaged segment. */
struct remedy {
	bool done;
	char text[240]; /* what was done, or why nothing could be */
};

static inline struct seg_address repair_address(const struct repo *repo, const struct vseg *s)
{
	return (struct seg_address){.repo = repo->id,
				    .domain = repo->domain,
				    .session = s->sid,
				    .type = s->type,
				    .block_bits = (uint8_t)repo->block_bits,
				    .index = s->index};
}

/* Segments of the same session that are damaged; each gets its remedy. */
int repair_maps(struct repair *p, struct vseg *const *v, size_t n, struct remedy *ret,
		struct error *err) TM_WUR;
/* Damaged data segments of all sessions. */
int repair_data(struct repair *p, struct vseg *const *v, size_t n, struct remedy *ret,
		struct error *err) TM_WUR;

/* ---- repair_put.c ---- */

/* Under what the next generation of the segment is to be sealed. */
int repair_sealing(struct repair *p, const struct vseg *s, struct seg_sealing *ret,
		   struct error *err) TM_WUR;
/*
 * Puts the sealed segment and removes what it replaces.  lost: slots that it has not either, NULL:
 * none.
 */
int repair_put(struct repair *p, const struct vseg *s, const struct seg_writer *w,
	       const uint64_t *lost, struct error *err) TM_WUR;
/* When the last generation is whole, removes the damaged ones before it. */
int repair_from_later(struct repair *p, const struct vseg *s, bool *ret, struct error *err) TM_WUR;
