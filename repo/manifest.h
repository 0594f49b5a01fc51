/* SPDX-License-Identifier: Apache-2.0 */
/* The manifest: a point as one sealed object (docs/format.md, "Manifest"). */
#pragma once

#include "internal.h"

struct own_segment {
	uint32_t nslots;
	uint32_t head_crc;
	uint64_t size;
	uint8_t digest[DIGEST_BYTES]; /* of a map's nodes; else zero */
};

struct own_segments {
	struct own_segment *v;
	uint32_t n, cap;
};

int own_segments_set(struct own_segments *l, uint32_t index, const struct own_segment *s,
		     struct error *err) TM_WUR;
void own_segments_done(struct own_segments *l);

/* What the session that made the point wrote. */
struct manifest_own {
	struct own_segments data, map;
};

int manifest_encode(const struct repo *repo, const struct tm_id *source, const struct point *p,
		    const struct manifest_own *own, struct buf *ret, struct error *err) TM_WUR;

/* own may be NULL. */
int manifest_decode(const struct repo *repo, const struct point_name *name, const char *key,
		    const void *bytes, size_t len, struct point **ret, struct manifest_own *own,
		    struct error *err) TM_WUR;
