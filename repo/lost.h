/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Slots that are known to be lost (docs/format.md, "Lost slots"): records in the repository, and
 * the set that a session takes with it.  Nothing new refers to them.
 */
#pragma once

#include "internal.h"

/* Of one segment. */
struct lost_segment {
	struct tm_id sid;
	uint8_t type;
	uint32_t index;
	uint64_t *bits; /* a bit for each slot there can be */
};

struct lost {
	struct lost_segment *v; /* sorted */
	size_t n, cap;
};

void lost_done(struct lost *l);

/* Adds what the records say; one that cannot be read says nothing. */
int lost_load(struct repo *repo, struct lost *ret, struct error *err) TM_WUR;
int lost_add(struct lost *l, const struct tm_id *sid, uint8_t type, uint64_t ordinal,
	     struct error *err) TM_WUR;

/* The bits of a segment, or NULL. */
const uint64_t *lost_bits(const struct lost *l, const struct tm_id *sid, uint8_t type,
			  uint32_t index);
bool lost_has(const struct lost *l, const struct tm_id *sid, uint8_t type, uint64_t ordinal);
/* Whether the session has lost anything. */
bool lost_touches(const struct lost *l, const struct tm_id *sid);

/* Puts a record: the slots of bits are lost. */
int lost_put(struct repo *repo, const struct tm_id *sid, uint8_t type, uint32_t index,
	     const uint64_t *bits, struct error *err) TM_WUR;
/* Removes the records of a segment, which is whole again. */
int lost_remove(struct repo *repo, const struct tm_id *sid, uint8_t type, uint32_t index,
		struct error *err) TM_WUR;
