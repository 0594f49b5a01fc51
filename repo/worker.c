/* SPDX-License-Identifier: Apache-2.0 */
#include "worker.h"

#include <string.h>

/*
 * zstd's own choice at level 1 is a table of 64 KiB for frames like ours, which together with the
 * data is more than a core's first cache holds: half of it is 11 % quicker and 1 % larger.
 */
#define LEVEL_1_HASH_LOG 13

static int compressor_new(int level, ZSTD_CCtx **ret, struct error *err)
{
	ZSTD_CCtx *c = ZSTD_createCCtx();

	*ret = c;
	if (!c || ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_compressionLevel, level)))
		return error_nomem(err);
	if (level == 1 && ZSTD_isError(ZSTD_CCtx_setParameter(c, ZSTD_c_hashLog, LEVEL_1_HASH_LOG)))
		return error_nomem(err);
	return 0;
}

static int worker_init(struct worker *w, const struct secret *id_key, int level, size_t frame_bytes,
		       struct error *err)
{
	int r = aead_new(&w->aead, err);

	r = r ? r : mac_new(id_key, &w->mac, err);
	if (r < 0)
		return r;
	w->lanes_key = id_key;
	if (level != 0)
		r = compressor_new(level, &w->cctx, err);
	if (r < 0)
		return r;
	if (frame_bytes > 0) {
		w->dctx = ZSTD_createDCtx();
		w->frame = malloc(frame_bytes + 1 + TAG_BYTES);
		w->data = malloc(frame_bytes);
		if (!w->dctx || !w->frame || !w->data)
			return error_nomem(err);
	}
	return 0;
}

int workers_init(struct workers *w, unsigned n, const struct secret *id_key, int level,
		 size_t frame_bytes, struct error *err)
{
	int r = 0;

	w->n = n;
	w->v = calloc(n, sizeof(*w->v));
	if (!w->v)
		return error_nomem(err);
	for (unsigned i = 0; r == 0 && i < n; i++)
		r = worker_init(&w->v[i], id_key, level, frame_bytes, err);
	if (r < 0)
		workers_done(w);
	return r;
}

void workers_done(struct workers *w)
{
	for (unsigned i = 0; w->v && i < w->n; i++) {
		aead_free(w->v[i].aead);
		mac_free(w->v[i].mac);
		lanes_free(w->v[i].lanes);
		ZSTD_freeCCtx(w->v[i].cctx);
		ZSTD_freeDCtx(w->v[i].dctx);
		free(w->v[i].frame);
		free(w->v[i].data);
	}
	free(w->v);
	w->v = NULL;
}

bool cluster_is_zero(const uint8_t *p, size_t len)
{
	return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

int content_id(struct worker *w, const void *cluster, size_t len, uint8_t ret[CONTENT_BYTES],
	       struct error *err)
{
	uint8_t mac[KEY_BYTES];
	int r = mac_do(w->mac, cluster, len, mac, err);

	if (r == 0)
		memcpy(ret, mac, CONTENT_BYTES);
	return r;
}

/* False: hash one after the other. */
static bool lanes_ids(struct worker *w, unsigned n, const uint8_t *const cluster[], size_t len,
		      uint8_t *const ret[])
{
	uint8_t mac[PIECE_CLUSTERS][KEY_BYTES];

	static_assert(PIECE_CLUSTERS <= LANES_MAX, "a piece is hashed at once");
	if (n < LANES_MIN || len > LANES_MESSAGE_BYTES)
		return false;
	if (w->lanes_key)
		w->lanes = lanes_new(w->lanes_key);
	w->lanes_key = NULL;
	if (!w->lanes)
		return false;
	if (!lanes_do(w->lanes, n, cluster, len, mac)) {
		lanes_free(w->lanes);
		w->lanes = NULL;
		return false;
	}
	for (unsigned i = 0; i < n; i++)
		memcpy(ret[i], mac[i], CONTENT_BYTES);
	return true;
}

int content_ids(struct worker *w, unsigned n, const uint8_t *const cluster[], size_t len,
		uint8_t *const ret[], struct error *err)
{
	int r = 0;

	if (lanes_ids(w, n, cluster, len, ret))
		return 0;
	for (unsigned i = 0; r == 0 && i < n; i++)
		r = content_id(w, cluster[i], len, ret[i], err);
	return r;
}
