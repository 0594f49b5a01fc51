/* SPDX-License-Identifier: Apache-2.0 */
/* A segment in memory, frame by frame, and sealing it as the object it is put as. */
#include "segment.h"

#include "seg_aad.h"

#include <string.h>

size_t frame_max_data(const struct seg_address *a, unsigned nslots)
{
	if (a->type == SEGMENT_MAP)
		return PAGE_MAX_BYTES;
	return (size_t)nslots << a->block_bits;
}

int seg_writer_new(struct seg_writer **ret, struct error *err)
{
	/* A frame may begin below the target and end above it. */
	size_t cap = SEGMENT_TARGET_PAYLOAD + ((size_t)FRAME_MAX_SLOTS << MAX_BLOCK_BITS) / 4;
	struct seg_writer *w = malloc(sizeof(*w));

	if (!w)
		return error_nomem(err);
	w->mem = malloc(SEG_HEADROOM + cap); /* touched only as far as it is used */
	if (!w->mem) {
		free(w);
		return error_nomem(err);
	}
	w->cap = cap;
	*ret = w;
	return 0;
}

void seg_writer_free(struct seg_writer *w)
{
	if (!w)
		return;
	free(w->mem);
	free(w);
}

void seg_begin(struct seg_writer *w, const struct seg_address *addr,
	       const struct seg_sealing *sealing)
{
	w->addr = *addr;
	w->sealing = *sealing;
	w->payload = 0;
	w->nslots = w->nframes = w->nextras = 0;
	w->object = NULL;
	w->object_len = 0;
}

bool seg_has_room(const struct seg_writer *w, unsigned nslots, size_t len)
{
	size_t end = w->payload + 1 + len + TAG_BYTES;

	if (w->nslots + nslots > 1U << seg_slots_log2(w->addr.type) || w->nframes == SEG_MAX_FRAMES)
		return false;
	return end <= w->cap && (w->nframes == 0 || w->payload < SEGMENT_TARGET_PAYLOAD);
}

void seg_add_frame(struct seg_writer *w, unsigned nslots, uint8_t method, const void *data,
		   size_t len)
{
	uint8_t *to = w->mem + SEG_HEADROOM + w->payload;

	assert(seg_has_room(w, nslots, len));
	to[0] = method;
	memcpy(to + 1, data, len);
	w->frames[w->nframes++] = (struct format_frame){
		.first_slot = le16_of((uint16_t)w->nslots),
		.nslots = le16_of((uint16_t)nslots),
		.stored_len = le32_of((uint32_t)(1 + len + TAG_BYTES)),
	};
	w->payload += 1 + len + TAG_BYTES;
	w->nslots += nslots;
}

bool seg_add_gap(struct seg_writer *w, unsigned nslots)
{
	if (w->nslots + nslots > 1U << seg_slots_log2(w->addr.type) || w->nframes == SEG_MAX_FRAMES)
		return false;
	w->frames[w->nframes++] = (struct format_frame){
		.first_slot = le16_of((uint16_t)w->nslots),
		.nslots = le16_of((uint16_t)nslots),
	};
	w->nslots += nslots;
	return true;
}

static struct le64 desc_place(unsigned kind, unsigned disk, uint64_t block)
{
	return le64_of(block | (uint64_t)disk << 48 | (uint64_t)kind << 56);
}

void seg_describe(struct seg_writer *w, uint32_t slot, unsigned disk, uint64_t block,
		  const uint8_t id[CONTENT_BYTES])
{
	assert(slot < DATA_SLOTS && disk < MAX_DISKS && block < MAX_BLOCKS);
	w->descs[slot].place = desc_place(DESC_SLOT, disk, block);
	memcpy(w->descs[slot].b, id, CONTENT_BYTES);
}

unsigned seg_hole_records(uint64_t count)
{
	static_assert(MAX_BLOCKS / UINT32_MAX < SEGMENT_MAX_EXTRAS, "a segment has room for all");
	return (unsigned)div_round_up(count, UINT32_MAX);
}

void seg_add_hole(struct seg_writer *w, unsigned disk, uint64_t block, uint64_t count)
{
	assert(w->nextras + seg_hole_records(count) <= SEGMENT_MAX_EXTRAS);
	while (count > 0) {
		struct format_desc *d = &w->extras[w->nextras];
		uint32_t n = (uint32_t)min_u64(count, UINT32_MAX);
		struct le32 len = le32_of(n);

		memset(d, 0, sizeof(*d));
		d->place = desc_place(DESC_HOLE, disk, block);
		memcpy(d->b, len.b, sizeof(len.b));
		w->nextras++;
		block += n;
		count -= n;
	}
}

/* b of an alias record */
struct alias {
	struct le32 count;
	struct le32 session;
	struct le64 ordinal;
};
static_assert(sizeof(struct alias) == CONTENT_BYTES, "docs/format.md");

static bool alias_joins(struct format_desc *d, unsigned disk, uint64_t block, uint32_t session,
			uint64_t ordinal)
{
	struct alias a;
	uint32_t n;

	memcpy(&a, d->b, sizeof(a));
	n = le32_get(a.count);
	if (desc_kind(d) != DESC_ALIAS || desc_disk(d) != disk || n == UINT32_MAX ||
	    desc_block(d) + n != block || le32_get(a.session) != session ||
	    le64_get(a.ordinal) + n != ordinal)
		return false;
	a.count = le32_of(n + 1);
	memcpy(d->b, &a, sizeof(a));
	return true;
}

void seg_add_alias(struct seg_writer *w, unsigned disk, uint64_t block, uint32_t session,
		   uint64_t ordinal)
{
	const struct alias a = {
		.count = le32_of(1), .session = le32_of(session), .ordinal = le64_of(ordinal)};
	struct format_desc *d = &w->extras[w->nextras];

	if (w->nextras > 0 && alias_joins(d - 1, disk, block, session, ordinal))
		return;
	assert(w->nextras < SEGMENT_MAX_EXTRAS);
	d->place = desc_place(DESC_ALIAS, disk, block);
	memcpy(d->b, &a, sizeof(a));
	w->nextras++;
}

static int seal_frames(struct seg_writer *w, struct aead *aead, const struct session_keys *keys,
		       struct error *err)
{
	const struct secret *base = w->addr.type == SEGMENT_DATA ? &keys->data : &keys->meta;
	auto_secret struct secret key = {{0}};
	uint8_t *p = w->mem + SEG_HEADROOM;
	int r;

	r = segment_key(base, w->addr.type, w->addr.index, &w->sealing, &key, err);
	if (r == 0)
		r = aead_set_key(aead, &key, err);
	for (uint32_t i = 0; r == 0 && i < w->nframes; i++) {
		struct format_frame *f = &w->frames[i];
		uint32_t stored = le32_get(f->stored_len);
		struct seg_aad aad =
			seg_aad(&w->addr, le16_get(f->first_slot), le16_get(f->nslots));

		if (stored == 0)
			continue; /* a gap */
		r = aead_seal(aead, le16_get(f->first_slot), &aad, sizeof(aad), p,
			      stored - TAG_BYTES, p, err);
		if (r < 0)
			return r;
		f->crc = le32_of(crc32c(0, p, stored));
		p += stored;
	}
	return r;
}

/* Writes the descriptor table right before the payload; *ret_len 0 for a map segment. */
static int seal_descs(struct seg_writer *w, struct aead *aead, const struct session_keys *keys,
		      size_t *ret_len, struct error *err)
{
	auto_secret struct secret key = {{0}};
	struct seg_aad aad = seg_aad(&w->addr, SEG_AAD_DESCS, w->nslots);
	size_t slots = w->nslots * sizeof(w->descs[0]), extras = w->nextras * sizeof(w->extras[0]);
	uint8_t *p = w->mem + SEG_HEADROOM - slots - extras - TAG_BYTES;
	int r;

	if (w->addr.type == SEGMENT_MAP) {
		*ret_len = 0;
		return 0;
	}
	memcpy(p, w->descs, slots);
	memcpy(p + slots, w->extras, extras);
	r = segment_key(&keys->meta, w->addr.type, w->addr.index, &w->sealing, &key, err);
	if (r == 0)
		r = aead_set_key(aead, &key, err);
	if (r == 0)
		r = aead_seal(aead, SEG_AAD_DESCS, &aad, sizeof(aad), p, slots + extras, p, err);
	*ret_len = slots + extras + TAG_BYTES;
	return r;
}

int seg_seal(struct seg_writer *w, struct aead *aead, const struct session_keys *keys,
	     struct error *err)
{
	struct format_segment h = {.domain = w->addr.domain, .session = w->addr.session};
	size_t desc_len = 0, frames_len = w->nframes * sizeof(w->frames[0]);
	uint8_t *p;
	int r;

	r = seal_frames(w, aead, keys, err);
	if (r == 0)
		r = seal_descs(w, aead, keys, &desc_len, err);
	if (r < 0)
		return r;
	p = w->mem + SEG_HEADROOM - desc_len - frames_len - sizeof(h);
	memcpy(p + sizeof(h), w->frames, frames_len);
	format_head_init(&h.head, MAGIC_SEGMENT, sizeof(h), &w->addr.repo);
	h.index = le32_of(w->addr.index);
	h.generation = h.sealed_generation = le32_of(w->sealing.generation);
	h.run = h.sealed_run = le32_of(w->sealing.run);
	h.type = w->addr.type;
	h.block_bits = w->addr.block_bits;
	h.cipher = CIPHER_AES256_GCM;
	h.nslots = le32_of(w->nslots);
	h.nframes = le32_of(w->nframes);
	h.nextras = le32_of(w->nextras);
	h.desc_len = le32_of((uint32_t)desc_len);
	h.payload_len = le64_of(w->payload);
	memcpy(h.wrap, keys->wrap, WRAP_BYTES);
	h.frames_crc = le32_of(crc32c(0, p + sizeof(h), frames_len));
	h.desc_crc = le32_of(crc32c(0, p + sizeof(h) + frames_len, desc_len));
	format_head_seal(&h, sizeof(h));
	w->head_crc = le32_get(h.crc);
	memcpy(p, &h, sizeof(h));
	w->object = p;
	w->object_len = sizeof(h) + frames_len + desc_len + w->payload;
	return 0;
}
