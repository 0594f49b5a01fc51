/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing a segment again without what is not in use.  References are logical and frames
 * are bound to their slots, so nothing is decrypted and no map changes.
 */
#include "prune.h"

#include <string.h>

bool frame_live(const struct seg_frame *f, const uint64_t *bits)
{
	for (uint32_t i = 0; i < f->nslots; i++)
		if (slot_live(bits, (uint32_t)f->first_slot + i))
			return true;
	return false;
}

bool tables_hold(const struct seg_tables *t, const uint64_t *bits)
{
	uint32_t slots = 1U << seg_slots_log2(t->addr.type);

	for (uint32_t i = 0; i < slots; i++)
		if (slot_live(bits, i) && !seg_find(t, i))
			return false;
	return true;
}

/* Frame table and payload; *ret_payload counts the latter's bytes. */
static int copy_frames(const struct seg_tables *t, const uint8_t *object, const uint64_t *bits,
		       struct format_frame *frames, uint8_t *payload, uint64_t *ret_payload,
		       struct error *err)
{
	uint64_t at = 0;

	for (uint32_t i = 0; i < t->nframes; i++) {
		const struct seg_frame *f = &t->frames[i];
		int r;

		frames[i] = (struct format_frame){.first_slot = le16_of(f->first_slot),
						  .nslots = le16_of(f->nslots)};
		if (f->stored_len == 0 || !frame_live(f, bits))
			continue;
		r = frame_check_crc(f, object + f->offset, err);
		if (r < 0)
			return r;
		frames[i].stored_len = le32_of(f->stored_len);
		frames[i].crc = le32_of(f->crc);
		memcpy(payload + at, object + f->offset, f->stored_len);
		at += f->stored_len;
	}
	*ret_payload = at;
	return 0;
}

int seg_compact(const struct seg_tables *t, const uint8_t *object, const uint64_t *bits,
		uint32_t generation, uint32_t run, struct buf *ret, struct error *err)
{
	auto_buf struct buf b = {0};
	auto_free struct format_frame *frames =
		calloc(t->nframes ? t->nframes : 1, sizeof(*frames));
	size_t frames_len = t->nframes * sizeof(*frames), desc_len;
	struct format_segment h;
	uint64_t payload;
	uint8_t *p;
	int r;

	if (!frames)
		return error_nomem(err);
	memcpy(&h, object, sizeof(h));
	desc_len = le32_get(h.desc_len);
	r = buf_reserve(&b, (size_t)t->object_len, err); /* never more than before */
	if (r < 0)
		return r;
	p = b.data;
	r = copy_frames(t, object, bits, frames, p + sizeof(h) + frames_len + desc_len, &payload,
			err);
	if (r < 0)
		return r;
	memcpy(p + sizeof(h), frames, frames_len);
	memcpy(p + sizeof(h) + frames_len, object + sizeof(h) + frames_len, desc_len);
	h.generation = le32_of(generation);
	h.run = le32_of(run);
	h.payload_len = le64_of(payload);
	h.frames_crc = le32_of(crc32c(0, frames, frames_len));
	format_head_seal(&h, sizeof(h));
	memcpy(p, &h, sizeof(h));
	b.len = sizeof(h) + frames_len + desc_len + (size_t)payload;
	buf_done(ret);
	*ret = b;
	b = (struct buf){0};
	return 0;
}
