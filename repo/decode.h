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

/* Compares a cluster with the content id of its slot. */
int cluster_prove(struct worker *w, const struct seg_tables *t, uint32_t slot, const void *cluster,
		  struct error *err) TM_WUR;
