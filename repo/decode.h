/* SPDX-License-Identifier: Apache-2.0 */
/* From stored frames to proven clusters; on worker threads. */
#pragma once

#include "segment.h"
#include "worker.h"

/*
 * Opens and decompresses a data frame: f->nslots clusters at out, undefined on failure.  The key
 * of the segment must be set in w->aead.  The seal proves that these bytes were stored as this
 * frame; their checksum, which proves less, is looked at when it is broken.
 */
int frame_decode(struct worker *w, const struct seg_tables *t, const struct seg_frame *f,
		 const void *stored, void *out, struct error *err) TM_WUR;

/* A cluster, and where it was stored. */
struct stored_cluster {
	const uint8_t *data;
	const struct seg_tables *t;
	uint32_t slot;
};

/*
 * Compares n clusters of one size, at most PIECE_CLUSTERS, with the content ids of their slots.
 * TM_E_CORRUPT: bit i of *ret_wrong is set for each that is another; the text names the first.
 * *ret_wrong is 0 otherwise.
 */
int clusters_prove(struct worker *w, unsigned n, const struct stored_cluster v[],
		   uint32_t *ret_wrong, struct error *err) TM_WUR;
