/* SPDX-License-Identifier: Apache-2.0 */
/* What each worker thread keeps for itself: contexts that are made once and reused. */
#pragma once

#include "lanes.h"

#include <zstd.h>

struct worker {
	struct aead *aead;
	struct mac *mac;     /* of content ids */
	struct lanes *lanes; /* of many */
	/* What lanes are made with when the first many come: NULL behind that.  Not owned. */
	const struct secret *lanes_key;
	ZSTD_CCtx *cctx;
	ZSTD_DCtx *dctx;
	uint8_t *frame; /* room for a frame's plaintext */
	uint8_t *data;  /* room for its data */
};

struct workers {
	struct worker *v;
	unsigned n;
};

/* id_key has to outlive w.  level 0: no compression contexts; frame_bytes 0: no room. */
int workers_init(struct workers *w, unsigned n, const struct secret *id_key, int level,
		 size_t frame_bytes, struct error *err) TM_WUR;
void workers_done(struct workers *w);

/* All zeroes?  len > 0. */
bool cluster_is_zero(const uint8_t *p, size_t len);

/* The content id of a cluster. */
int content_id(struct worker *w, const void *cluster, size_t len, uint8_t ret[CONTENT_BYTES],
	       struct error *err) TM_WUR;
/* Those of n clusters of len bytes, at most PIECE_CLUSTERS; ret[i] has CONTENT_BYTES. */
int content_ids(struct worker *w, unsigned n, const uint8_t *const cluster[], size_t len,
		uint8_t *const ret[], struct error *err) TM_WUR;
