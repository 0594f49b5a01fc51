/* SPDX-License-Identifier: Apache-2.0 */
#include "decode.h"

#include <string.h>

/* The frame's bytes, right at out when they are not compressed, or in w->frame. */
static int open_bytes(struct worker *w, const struct seg_tables *t, const struct seg_frame *f,
		      const uint8_t *stored, void *out, uint8_t *ret_method, struct error *err)
{
	size_t want = (size_t)f->nslots << t->addr.block_bits;
	size_t len = f->stored_len - TAG_BYTES - 1;
	int r = frame_open_method(t, f, w->aead, stored, ret_method, err);

	if (r < 0)
		return r;
	if (*ret_method != FRAME_RAW || len != want)
		out = w->frame;
	return aead_open_rest(w->aead, stored + 1, f->stored_len - 1, out, err);
}

int frame_decode(struct worker *w, const struct seg_tables *t, const struct seg_frame *f,
		 const void *stored, void *out, struct error *err)
{
	size_t want = (size_t)f->nslots << t->addr.block_bits;
	size_t len = f->stored_len - TAG_BYTES - 1, n;
	uint8_t method;
	int r = open_bytes(w, t, f, stored, out, &method, err);

	if (r < 0) {
		/* A wrong checksum says more: the bytes have changed since they were written. */
		struct error damage = {0};

		return frame_check_crc(f, stored, &damage) < 0
			       ? error_pass(err, damage.code, &damage)
			       : r;
	}
	switch (method) {
	case FRAME_RAW:
		if (len != want)
			return error_set(err, TM_E_CORRUPT,
					 "frame at slot %u has %zu bytes, expected %zu",
					 f->first_slot, len, want);
		return 0;
	case FRAME_ZSTD:
		n = ZSTD_decompressDCtx(w->dctx, out, want, w->frame, len);
		if (ZSTD_isError(n) || n != want)
			return error_set(err, TM_E_CORRUPT,
					 "frame at slot %u cannot be decompressed", f->first_slot);
		return 0;
	default:
		return error_set(err, TM_E_UNSUPPORTED, "frame at slot %u has unknown encoding %u",
				 f->first_slot, method);
	}
}

int clusters_prove(struct worker *w, unsigned n, const struct stored_cluster v[],
		   uint32_t *ret_wrong, struct error *err)
{
	uint8_t id[PIECE_CLUSTERS][CONTENT_BYTES];
	const uint8_t *data[PIECE_CLUSTERS];
	uint8_t *ret[PIECE_CLUSTERS];
	int r;

	*ret_wrong = 0;
	if (n == 0)
		return 0;
	for (unsigned i = 0; i < n; i++) {
		data[i] = v[i].data;
		ret[i] = id[i];
	}
	r = content_ids(w, n, data, (size_t)1 << v->t->addr.block_bits, ret, err);
	for (unsigned i = 0; r == 0 && i < n; i++)
		if (memcmp(id[i], v[i].t->descs[v[i].slot].b, CONTENT_BYTES) != 0)
			*ret_wrong |= UINT32_C(1) << i;
	if (*ret_wrong)
		return error_set(err, TM_E_CORRUPT,
				 "the cluster in slot %u is not the one that was stored",
				 v[__builtin_ctz(*ret_wrong)].slot);
	return r;
}
