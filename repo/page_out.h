/* SPDX-License-Identifier: Apache-2.0 */
/* Map nodes on their way into segments: pages, compressed, and the digest of a segment's nodes. */
#pragma once

#include "node.h"
#include "segment.h"

#include <zstd.h>

struct page_out {
	struct page_writer page;
	ZSTD_CCtx *cctx;
	uint8_t *plain, *packed;
	struct hash *hash; /* of the nodes of the segment so far */
};

int page_out_init(struct page_out *o, struct error *err) TM_WUR;
void page_out_done(struct page_out *o);

/* What has been added becomes a frame of w, which must have room for it. */
int page_out_flush(struct page_out *o, struct seg_writer *w, struct error *err) TM_WUR;
/* The digest of all nodes since the last call; nothing may be waiting for a flush. */
int page_out_digest(struct page_out *o, uint8_t ret[DIGEST_BYTES], struct error *err) TM_WUR;
