/* SPDX-License-Identifier: Apache-2.0 */
/* Tables of a segment: every number is checked against the bytes present before it is used. */
#include "segment.h"

#include "seg_aad.h"

#include <inttypes.h>
#include <openssl/crypto.h>
#include <string.h>

void seg_tables_free(struct seg_tables *t)
{
	if (!t)
		return;
	free(t->frames);
	free(t->descs);
	OPENSSL_cleanse(t, sizeof(*t));
	free(t);
}

static int check_address(const struct format_segment *h, const struct seg_address *want,
			 struct error *err)
{
	if (!id_equal(&h->domain, &want->domain) || !id_equal(&h->session, &want->session) ||
	    h->type != want->type || le32_get(h->index) != want->index)
		return error_set(err, TM_E_CORRUPT, "this is another segment than its name says");
	if (h->block_bits != want->block_bits)
		return error_set(err, TM_E_CORRUPT, "segment of 2^%u byte blocks, expected 2^%u",
				 (unsigned)h->block_bits, (unsigned)want->block_bits);
	if (h->cipher != CIPHER_AES256_GCM)
		return error_set(err, TM_E_UNSUPPORTED, "unknown cipher %u", (unsigned)h->cipher);
	return 0;
}

static int check_counts(const struct format_segment *h, struct error *err)
{
	uint32_t nslots = le32_get(h->nslots), nframes = le32_get(h->nframes);
	uint32_t nextras = le32_get(h->nextras);
	size_t descs = ((size_t)nslots + nextras) * sizeof(struct format_desc) + TAG_BYTES;

	if (nslots > 1U << seg_slots_log2(h->type) || nframes > SEG_MAX_FRAMES ||
	    nframes > nslots || (nslots > 0 && nframes == 0) || nextras > SEGMENT_MAX_EXTRAS)
		return error_set(err, TM_E_CORRUPT,
				 "impossible counts: %u slots, %u frames, %u extras", nslots,
				 nframes, nextras);
	if (le32_get(h->desc_len) != (h->type == SEGMENT_MAP ? 0 : descs) ||
	    (h->type == SEGMENT_MAP && nextras != 0))
		return error_set(err, TM_E_CORRUPT, "descriptor table of %u bytes for %u slots",
				 le32_get(h->desc_len), nslots);
	if (le64_get(h->payload_len) > SEGMENT_MAX_PAYLOAD)
		return error_set(err, TM_E_CORRUPT, "payload of %" PRIu64 " bytes",
				 le64_get(h->payload_len));
	return 0;
}

static int parse_head(const struct seg_address *want, const void *bytes, size_t len,
		      struct format_segment *ret, struct error *err)
{
	struct format_segment h;
	int r;

	r = format_head_check(bytes, len, MAGIC_SEGMENT, sizeof(h), &want->repo, "segment", err);
	if (r < 0)
		return r;
	memcpy(&h, bytes, sizeof(h));
	r = check_address(&h, want, err);
	if (r == 0)
		r = check_counts(&h, err);
	if (r == 0)
		*ret = h;
	return r;
}

static size_t frames_bytes(const struct format_segment *h)
{
	return le32_get(h->nframes) * sizeof(struct format_frame);
}

int seg_tables_len(const struct seg_address *want, const void *head, size_t len, size_t *ret,
		   struct error *err)
{
	struct format_segment h;
	int r = parse_head(want, head, len, &h, err);

	if (r < 0)
		return r;
	*ret = sizeof(h) + frames_bytes(&h) + le32_get(h.desc_len);
	return 0;
}

static int check_frame(const struct seg_address *a, const struct seg_frame *f, uint32_t next_slot,
		       struct error *err)
{
	unsigned max = a->type == SEGMENT_MAP ? PAGE_MAX_NODES : FRAME_MAX_SLOTS;

	if (f->first_slot != next_slot || f->nslots == 0 || f->nslots > max)
		return error_set(err, TM_E_CORRUPT, "frame of slots %u + %u, expected at slot %u",
				 f->first_slot, f->nslots, next_slot);
	if (f->stored_len != 0 && (f->stored_len <= 1 + TAG_BYTES ||
				   f->stored_len - 1 - TAG_BYTES > frame_max_data(a, f->nslots)))
		return error_set(err, TM_E_CORRUPT, "frame at slot %u is %u bytes", f->first_slot,
				 f->stored_len);
	return 0;
}

static int parse_frames(const struct format_segment *h, const uint8_t *table, struct seg_tables *t,
			struct error *err)
{
	uint64_t offset = sizeof(*h) + frames_bytes(h) + le32_get(h->desc_len), start = offset;
	uint32_t slot = 0;

	if (le32_get(h->frames_crc) != crc32c(0, table, frames_bytes(h)))
		return error_set(err, TM_E_CORRUPT, "the frame table's checksum is wrong");
	t->frames = calloc(t->nframes ? t->nframes : 1, sizeof(*t->frames));
	if (!t->frames)
		return error_nomem(err);
	for (uint32_t i = 0; i < t->nframes; i++) {
		struct seg_frame *f = &t->frames[i];
		struct format_frame raw;
		int r;

		memcpy(&raw, table + i * sizeof(raw), sizeof(raw));
		f->offset = offset;
		f->stored_len = le32_get(raw.stored_len);
		f->crc = le32_get(raw.crc);
		f->first_slot = le16_get(raw.first_slot);
		f->nslots = le16_get(raw.nslots);
		r = check_frame(&t->addr, f, slot, err);
		if (r < 0)
			return r;
		slot += f->nslots;
		offset += f->stored_len;
	}
	if (slot != t->nslots || offset - start != le64_get(h->payload_len))
		return error_set(err, TM_E_CORRUPT, "the frame table does not fit the header");
	t->object_len = offset;
	return 0;
}

static int check_desc(const struct format_desc *d, bool slot, struct error *err)
{
	unsigned kind = desc_kind(d);

	if (slot ? kind != DESC_SLOT : kind != DESC_HOLE && kind != DESC_ALIAS)
		return error_set(err, TM_E_CORRUPT, "descriptor of kind %u", kind);
	if (desc_block(d) >= MAX_BLOCKS)
		return error_set(err, TM_E_CORRUPT, "descriptor of block %" PRIu64, desc_block(d));
	return 0;
}

static int parse_descs(const struct format_segment *h, const uint8_t *table, struct aead *aead,
		       struct seg_tables *t, struct error *err)
{
	auto_secret struct secret key = {{0}};
	struct seg_aad aad = seg_aad(&t->addr, SEG_AAD_DESCS, t->nslots);
	size_t len = le32_get(h->desc_len);
	int r;

	t->descs = malloc(len);
	if (!t->descs)
		return error_nomem(err);
	r = segment_key(&t->keys.meta, t->addr.type, t->addr.index, &t->sealing, &key, err);
	if (r == 0)
		r = aead_set_key(aead, &key, err);
	if (r == 0)
		r = aead_open(aead, SEG_AAD_DESCS, &aad, sizeof(aad), table, len, t->descs, err);
	for (uint32_t i = 0; r == 0 && i < t->nslots + t->nextras; i++)
		r = check_desc(&t->descs[i], i < t->nslots, err);
	if (r < 0)
		error_prefix(err, "descriptor table");
	return r;
}

static int open_keys(const struct format_segment *h, const struct domain_keys *keys,
		     struct seg_tables *t, struct error *err)
{
	const struct seg_address *a = &t->addr;
	int r = session_keys_open(keys, &a->repo, &a->session, h->wrap, &t->keys, err);

	if (r < 0)
		return r;
	if (a->type == SEGMENT_DATA && !t->keys.has_data)
		return 0;
	r = segment_key(a->type == SEGMENT_DATA ? &t->keys.data : &t->keys.meta, a->type, a->index,
			&t->sealing, &t->key, err);
	t->has_key = r == 0;
	return r;
}

static int parse(const struct seg_address *want, const struct domain_keys *keys,
		 const uint8_t *bytes, size_t len, struct aead *aead, struct seg_tables **ret,
		 struct error *err)
{
	auto_clean(seg_tables_free) struct seg_tables *t = NULL;
	struct format_segment h;
	const uint8_t *descs;
	int r;

	r = parse_head(want, bytes, len, &h, err);
	if (r < 0)
		return r;
	if (len < sizeof(h) + frames_bytes(&h) + le32_get(h.desc_len))
		return error_set(err, TM_E_CORRUPT, "segment ends inside its tables");
	descs = bytes + sizeof(h) + frames_bytes(&h);
	if (le32_get(h.desc_crc) != crc32c(0, descs, le32_get(h.desc_len)))
		return error_set(err, TM_E_CORRUPT, "the descriptor table's checksum is wrong");
	t = calloc(1, sizeof(*t));
	if (!t)
		return error_nomem(err);
	t->addr = *want;
	t->generation = le32_get(h.generation);
	t->run = le32_get(h.run);
	t->sealing = (struct seg_sealing){.generation = le32_get(h.sealed_generation),
					  .run = le32_get(h.sealed_run)};
	t->nslots = le32_get(h.nslots);
	t->nframes = le32_get(h.nframes);
	t->nextras = le32_get(h.nextras);
	t->head_crc = le32_get(h.crc);
	r = parse_frames(&h, bytes + sizeof(h), t, err);
	if (r == 0 && keys)
		r = open_keys(&h, keys, t, err);
	if (r == 0 && keys && t->addr.type == SEGMENT_DATA)
		r = parse_descs(&h, descs, aead, t, err);
	if (r == 0)
		*ret = tm_steal(t);
	return r;
}

int seg_tables_parse(const struct seg_address *want, const struct domain_keys *keys,
		     const void *bytes, size_t len, struct aead *aead, struct seg_tables **ret,
		     struct error *err)
{
	return parse(want, keys, bytes, len, aead, ret, err);
}

int seg_tables_scan(const struct seg_address *want, const void *bytes, size_t len,
		    struct seg_tables **ret, struct error *err)
{
	return parse(want, NULL, bytes, len, NULL, ret, err);
}

const struct seg_frame *seg_find(const struct seg_tables *t, uint32_t slot)
{
	uint32_t lo = 0, hi = t->nframes;

	if (slot >= t->nslots)
		return NULL;
	while (hi - lo > 1) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (t->frames[mid].first_slot <= slot)
			lo = mid;
		else
			hi = mid;
	}
	return t->frames[lo].stored_len ? &t->frames[lo] : NULL;
}

int frame_check_crc(const struct seg_frame *f, const void *stored, struct error *err)
{
	if (crc32c(0, stored, f->stored_len) != f->crc)
		return error_set(err, TM_E_CORRUPT, "checksum of the frame at slot %u is wrong",
				 f->first_slot);
	return 0;
}

int frame_open(const struct seg_tables *t, const struct seg_frame *f, struct aead *aead,
	       const void *stored, void *plain, struct error *err)
{
	struct seg_aad aad = seg_aad(&t->addr, f->first_slot, f->nslots);

	return aead_open(aead, f->first_slot, &aad, sizeof(aad), stored, f->stored_len, plain, err);
}

int frame_open_method(const struct seg_tables *t, const struct seg_frame *f, struct aead *aead,
		      const void *stored, uint8_t *ret, struct error *err)
{
	struct seg_aad aad = seg_aad(&t->addr, f->first_slot, f->nslots);

	return aead_open_first(aead, f->first_slot, &aad, sizeof(aad), stored, f->stored_len, ret,
			       err);
}
