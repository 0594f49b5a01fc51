/* SPDX-License-Identifier: Apache-2.0 */
/* The fields of a manifest, sealed as a writer does.  What decodes encodes and decodes again. */
#include "fuzz.h"

#include "repo/manifest.h"

#include <zstd.h>

static struct repo repo = {.block_bits = 12, .keys = {.has = KEY_HAS_META}};
static const struct point_name name = {.seq = 1};

static size_t build(const uint8_t *fields, size_t len, uint8_t *out, size_t cap)
{
	static const char label[] = "tidemark manifest";
	auto_secret struct secret session = {{0}}, key = {{0}};
	auto_clean(aead_free) struct aead *a = NULL;
	struct format_point h = {.seq = le32_of(1)};
	uint8_t *body = out + sizeof(h);
	size_t n = ZSTD_compress(body, cap - sizeof(h) - TAG_BYTES, fields, len, 1);

	FUZZ_MUST(!ZSTD_isError(n));
	FUZZ_MUST(derive_id(&repo.keys.meta, "tidemark session", &name.session, &session, NULL) ==
		  0);
	FUZZ_MUST(derive(&session, label, sizeof(label) - 1, &key, NULL) == 0);
	FUZZ_MUST(aead_new(&a, NULL) == 0 && aead_set_key(a, &key, NULL) == 0);
	format_head_init(&h.head, MAGIC_POINT, sizeof(h), &repo.id);
	h.body_len = le32_of((uint32_t)(n + TAG_BYTES));
	h.plain_len = le32_of((uint32_t)len);
	FUZZ_MUST(aead_seal(a, 0, &h, offsetof(struct format_point, body_crc), body, n, body,
			    NULL) == 0);
	h.body_crc = le32_of(crc32c(0, body, n + TAG_BYTES));
	format_head_seal(&h, sizeof(h));
	memcpy(out, &h, sizeof(h));
	return sizeof(h) + n + TAG_BYTES;
}

static void again(const struct point *p, const struct manifest_own *own)
{
	auto_clean(point_free) struct point *q = NULL;
	auto_buf struct buf b = {0};
	struct error err = {0};

	FUZZ_MUST(manifest_encode(&repo, &name.source, p, own, &b, &err) == 0);
	FUZZ_MUST(manifest_decode(&repo, &name, "key", b.data, b.len, &q, NULL, &err) == 0);
	FUZZ_MUST(q->ndisks == p->ndisks && q->ntags == p->ntags && id_equal(&q->id, &p->id));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t cap = sizeof(struct format_point) + ZSTD_compressBound(size) + TAG_BYTES;
	auto_clean(point_free) struct point *p = NULL;
	auto_free uint8_t *object = malloc(cap);
	struct manifest_own own = {0};
	struct error err = {0};
	int r;

	if (!object || size > (1u << 20))
		return 0;
	if (!repo.aead)
		FUZZ_MUST(aead_new(&repo.aead, NULL) == 0 && (repo.dctx = ZSTD_createDCtx()));
	r = manifest_decode(&repo, &name, "key", object, build(data, size, object, cap), &p, &own,
			    &err);
	fuzz_result(r, &err);
	if (r == 0)
		again(p, &own);
	own_segments_done(&own.data);
	own_segments_done(&own.map);
	return 0;
}
