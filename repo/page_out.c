/* SPDX-License-Identifier: Apache-2.0 */
#include "page_out.h"

#define PAGE_LEVEL 3

int page_out_init(struct page_out *o, struct error *err)
{
	o->cctx = ZSTD_createCCtx();
	o->plain = malloc(PAGE_MAX_BYTES);
	o->packed = malloc(PAGE_MAX_BYTES);
	if (!o->cctx || !o->plain || !o->packed)
		return error_nomem(err);
	return hash_new(&o->hash, err);
}

void page_out_done(struct page_out *o)
{
	ZSTD_freeCCtx(o->cctx);
	free(o->plain);
	free(o->packed);
	hash_free(o->hash);
}

int page_out_flush(struct page_out *o, struct seg_writer *w, struct error *err)
{
	unsigned n = o->page.n;
	size_t len, packed;
	int r;

	if (n == 0)
		return 0;
	r = hash_add(o->hash, o->page.nodes, o->page.len, err);
	if (r < 0)
		return r;
	len = page_finish(&o->page, o->plain);
	packed = ZSTD_compressCCtx(o->cctx, o->packed, PAGE_MAX_BYTES, o->plain, len, PAGE_LEVEL);
	if (!ZSTD_isError(packed) && packed < len)
		seg_add_frame(w, n, FRAME_ZSTD, o->packed, packed);
	else
		seg_add_frame(w, n, FRAME_RAW, o->plain, len);
	return 0;
}

int page_out_digest(struct page_out *o, uint8_t ret[DIGEST_BYTES], struct error *err)
{
	assert(o->page.n == 0);
	return hash_end(o->hash, ret, err);
}
