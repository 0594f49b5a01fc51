/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of a segment are bound to: additional data of the AEAD. */
#pragma once

#include "segment.h"

struct seg_aad {
	struct tm_id repo, domain, session;
	uint8_t type;
	struct le32 index;
	struct le32 first_slot; /* SEG_AAD_DESCS: the descriptor table */
	struct le32 nslots;
};
static_assert(sizeof(struct seg_aad) == 61, "docs/format.md");

#define SEG_AAD_DESCS UINT32_MAX

static inline struct seg_aad seg_aad(const struct seg_address *a, uint32_t first_slot,
				     uint32_t nslots)
{
	return (struct seg_aad){
		.repo = a->repo,
		.domain = a->domain,
		.session = a->session,
		.type = a->type,
		.index = le32_of(a->index),
		.first_slot = le32_of(first_slot),
		.nslots = le32_of(nslots),
	};
}
