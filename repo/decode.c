/* SPDX-License-Identifier: Apache-2.0 */
#include "decode.h"

#include <string.h>

int frame_decode(struct worker *w, const struct seg_tables *t, const struct seg_frame *f,
		 const void *stored, void *out, struct error *err)
{
	size_t want = (size_t)f->nslots << t->addr.block_bits;
	size_t len = f->stored_len - TAG_BYTES - 1, n;
	int r;

	r = frame_check_crc(f, stored, err);
	r = r ? r : frame_open(t, f, w->aead, stored, w->frame, err);
	if (r < 0)
		return r;
	switch (w->frame[0]) {
	case FRAME_RAW:
		if (len != want)
			return error_set(err, TM_E_CORRUPT,
					 "frame at slot %u has %zu bytes, expected %zu",
					 f->first_slot, len, want);
		memcpy(out, w->frame + 1, len);
		return 0;
	case FRAME_ZSTD:
		n = ZSTD_decompressDCtx(w->dctx, out, want, w->frame + 1, len);
		if (ZSTD_isError(n) || n != want)
			return error_set(err, TM_E_CORRUPT,
					 "frame at slot %u cannot be decompressed", f->first_slot);
		return 0;
	default:
		return error_set(err, TM_E_UNSUPPORTED, "frame at slot %u has unknown encoding %u",
				 f->first_slot, w->frame[0]);
	}
}

int cluster_prove(struct worker *w, const struct seg_tables *t, uint32_t slot, const void *cluster,
		  struct error *err)
{
	uint8_t id[CONTENT_BYTES];
	int r = content_id(w, cluster, (size_t)1 << t->addr.block_bits, id, err);

	if (r < 0)
		return r;
	if (memcmp(id, t->descs[slot].b, sizeof(id)) != 0)
		return error_set(err, TM_E_CORRUPT,
				 "the cluster in slot %u is not the one that was stored", slot);
	return 0;
}
