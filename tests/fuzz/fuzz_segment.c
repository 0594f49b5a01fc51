/* SPDX-License-Identifier: Apache-2.0 */
/* A segment's header and tables, with and without keys. */
#include "fuzz.h"

#include "repo/seg_aad.h"
#include "repo/segment.h"

static const struct domain_keys domain = {.has = KEY_HAS_META};

/* Seals the descriptor table where there is one, under the key that a reader will derive. */
static void seal_descs(const struct seg_address *a, const struct format_segment *h, uint8_t *descs,
		       size_t len, struct aead *aead)
{
	struct seg_aad aad = seg_aad(a, SEG_AAD_DESCS, le32_get(h->nslots));
	__attribute__((cleanup(session_keys_wipe))) struct session_keys keys = {.has_data = false};
	const struct seg_sealing sealing = {.generation = le32_get(h->sealed_generation),
					    .run = le32_get(h->sealed_run)};
	auto_secret struct secret key = {{0}};

	FUZZ_MUST(session_keys_open(&domain, &a->repo, &a->session, h->wrap, &keys, NULL) == 0);
	FUZZ_MUST(segment_key(&keys.meta, a->type, a->index, &sealing, &key, NULL) == 0);
	FUZZ_MUST(aead_set_key(aead, &key, NULL) == 0);
	FUZZ_MUST(aead_seal(aead, SEG_AAD_DESCS, &aad, sizeof(aad), descs, len - TAG_BYTES, descs,
			    NULL) == 0);
}

static struct seg_address put_right(uint8_t *seg, size_t size, struct aead *aead)
{
	struct format_segment h;
	struct seg_address a;
	size_t frames, descs;

	memcpy(&h, seg, sizeof(h));
	memcpy(h.head.magic, MAGIC_SEGMENT, sizeof(h.head.magic));
	a = (struct seg_address){.repo = h.head.repo,
				 .domain = h.domain,
				 .session = h.session,
				 .type = h.type & 1 ? SEGMENT_DATA : SEGMENT_MAP,
				 .block_bits = MIN_BLOCK_BITS,
				 .index = le32_get(h.index)};
	h.type = a.type;
	h.block_bits = a.block_bits;
	frames = (size_t)le32_get(h.nframes) * sizeof(struct format_frame);
	descs = le32_get(h.desc_len);
	if (frames <= size - sizeof(h)) {
		h.frames_crc = le32_of(crc32c(0, seg + sizeof(h), frames));
		if (descs <= size - sizeof(h) - frames) {
			uint8_t *at = seg + sizeof(h) + frames;

			if (descs >= TAG_BYTES && a.type == SEGMENT_DATA)
				seal_descs(&a, &h, at, descs, aead);
			h.desc_crc = le32_of(crc32c(0, at, descs));
		}
	}
	format_head_seal(&h, sizeof(h));
	memcpy(seg, &h, sizeof(h));
	return a;
}

static void check(const struct seg_tables *t)
{
	for (uint32_t slot = 0; slot < t->nslots + 2; slot++) {
		const struct seg_frame *f = seg_find(t, slot);

		FUZZ_MUST(!f || slot < t->nslots);
		FUZZ_MUST(!f || (f->first_slot <= slot && slot < f->first_slot + f->nslots));
		FUZZ_MUST(!f || f->offset + f->stored_len <= t->object_len);
		FUZZ_MUST(!f || !t->descs || desc_kind(&t->descs[slot]) == DESC_SLOT);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	auto_clean(seg_tables_free) struct seg_tables *scanned = NULL, *parsed = NULL;
	auto_clean(aead_free) struct aead *aead = NULL;
	auto_free uint8_t *seg = malloc(size + 1);
	struct error err[3] = {{0}};
	struct seg_address a;
	size_t len;
	int r;

	if (!seg || size < sizeof(struct format_segment) || size > (1u << 20))
		return 0;
	memcpy(seg, data, size);
	FUZZ_MUST(aead_new(&aead, NULL) == 0);
	a = put_right(seg, size, aead);
	fuzz_result(seg_tables_len(&a, seg, sizeof(struct format_segment), &len, &err[0]), &err[0]);
	r = seg_tables_scan(&a, seg, size, &scanned, &err[1]);
	fuzz_result(r, &err[1]);
	if (r == 0)
		check(scanned);
	r = seg_tables_parse(&a, &domain, seg, size, aead, &parsed, &err[2]);
	fuzz_result(r, &err[2]);
	if (r == 0)
		check(parsed);
	return 0;
}
