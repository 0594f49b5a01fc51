/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments: up to 1024 clusters (or 16384 map nodes) in frames, with their tables in front
 * (docs/format.md, "Segments").
 */
#pragma once

#include "keys.h"

/* Whom a segment belongs to: what its frames are bound to. */
struct seg_address {
	struct tm_id repo, domain, session;
	uint8_t type;
	uint8_t block_bits;
	uint32_t index;
};

/* Slots of a segment of this type. */
static inline unsigned seg_slots_log2(uint8_t type)
{
	return type == SEGMENT_DATA ? DATA_SLOTS_LOG2 : MAP_SLOTS_LOG2;
}

#define SEG_MAX_FRAMES 1024
/* Room for the tables before the payload, which is therefore built in its place. */
#define SEG_HEADROOM                                                                    \
	(sizeof(struct format_segment) + SEG_MAX_FRAMES * sizeof(struct format_frame) + \
	 (DATA_SLOTS + SEGMENT_MAX_EXTRAS) * sizeof(struct format_desc) + TAG_BYTES)

/* Plaintext of a frame: method byte, then data of at most this many bytes. */
size_t frame_max_data(const struct seg_address *a, unsigned nslots);

/* ---- writing ---- */

struct seg_writer {
	struct seg_address addr;
	struct seg_sealing sealing; /* also generation and run of the object */
	uint8_t *mem;               /* SEG_HEADROOM, payload */
	size_t cap;                 /* of the payload */
	size_t payload;
	uint32_t nslots, nframes, nextras;
	struct format_frame frames[SEG_MAX_FRAMES];
	struct format_desc descs[DATA_SLOTS];
	struct format_desc extras[SEGMENT_MAX_EXTRAS];
	/* after seg_seal(): */
	const uint8_t *object; /* inside mem */
	size_t object_len;
	uint32_t head_crc;
};

int seg_writer_new(struct seg_writer **ret, struct error *err) TM_WUR;
void seg_writer_free(struct seg_writer *w);

void seg_begin(struct seg_writer *w, const struct seg_address *addr,
	       const struct seg_sealing *sealing);

/* Whether a frame of so many slots and bytes still fits. */
bool seg_has_room(const struct seg_writer *w, unsigned nslots, size_t len);
/* Appends a frame, its bytes encoded by method (FRAME_*); the slots' descriptors follow with
 * seg_describe(). */
void seg_add_frame(struct seg_writer *w, unsigned nslots, uint8_t method, const void *data,
		   size_t len);
/* Slots that are not there, as if compaction had removed them.  False when there is no room. */
bool seg_add_gap(struct seg_writer *w, unsigned nslots);
void seg_describe(struct seg_writer *w, uint32_t slot, unsigned disk, uint64_t block,
		  const uint8_t id[CONTENT_BYTES]);
/* How many extra records a hole of so many blocks takes. */
unsigned seg_hole_records(uint64_t count);
/* There must be room for its records. */
void seg_add_hole(struct seg_writer *w, unsigned disk, uint64_t block, uint64_t count);
/* A block that refers to a cluster elsewhere; joins the record before where it goes on.  There must
 * be room for a record. */
void seg_add_alias(struct seg_writer *w, unsigned disk, uint64_t block, uint32_t session,
		   uint64_t ordinal);

/* Encrypts and checksums in place; on any thread. */
int seg_seal(struct seg_writer *w, struct aead *aead, const struct session_keys *keys,
	     struct error *err) TM_WUR;

/* ---- reading ---- */

struct seg_frame {
	uint64_t offset; /* in the object */
	uint32_t stored_len;
	uint32_t crc;
	uint16_t first_slot, nslots;
};

/* The tables of a segment, checked. */
struct seg_tables {
	struct seg_address addr;
	uint32_t generation, run;
	struct seg_sealing sealing;
	uint32_t nslots, nframes, nextras;
	uint32_t head_crc;
	uint64_t object_len;
	struct session_keys keys;
	struct secret key; /* of the frames; only with has_key */
	bool has_key;
	struct seg_frame *frames;  /* nframes */
	struct format_desc *descs; /* nslots + nextras; NULL for map segments */
};

void seg_tables_free(struct seg_tables *t);
TM_CLEANUP(struct seg_tables, seg_tables_free)

/* Bytes at the object's begin that hold header and tables: from the first sizeof(format_segment).
 */
int seg_tables_len(const struct seg_address *want, const void *head, size_t len, size_t *ret,
		   struct error *err) TM_WUR;

/* bytes: at least what seg_tables_len() says.  The aead is only used during the call. */
int seg_tables_parse(const struct seg_address *want, const struct domain_keys *keys,
		     const void *bytes, size_t len, struct aead *aead, struct seg_tables **ret,
		     struct error *err) TM_WUR;

/* Without keys: header and frame table only, for scrubbing. */
int seg_tables_scan(const struct seg_address *want, const void *bytes, size_t len,
		    struct seg_tables **ret, struct error *err) TM_WUR;

/* The frame that holds slot; NULL when no such slot or removed. */
const struct seg_frame *seg_find(const struct seg_tables *t, uint32_t slot);

static inline uint64_t desc_block(const struct format_desc *d)
{
	return le64_get(d->place) & 0xffffffffffff;
}
static inline unsigned desc_disk(const struct format_desc *d)
{
	return (unsigned)(le64_get(d->place) >> 48 & 0xff);
}
static inline unsigned desc_kind(const struct format_desc *d)
{
	return (unsigned)(le64_get(d->place) >> 56);
}

int frame_check_crc(const struct seg_frame *f, const void *stored, struct error *err) TM_WUR;

/* Opens a frame whose key has been set: plain gets stored_len - TAG_BYTES bytes. */
int frame_open(const struct seg_tables *t, const struct seg_frame *f, struct aead *aead,
	       const void *stored, void *plain, struct error *err) TM_WUR;

/* Only its method; aead_open_rest() opens what follows.  Not proved before that. */
int frame_open_method(const struct seg_tables *t, const struct seg_frame *f, struct aead *aead,
		      const void *stored, uint8_t *ret, struct error *err) TM_WUR;
