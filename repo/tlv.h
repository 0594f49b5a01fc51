/* SPDX-License-Identifier: Apache-2.0 */
/* Fields of a manifest: tag, flags, length, bytes. */
#pragma once

#include "format.h"

/* tags of the point */
enum point_tag {
	POINT_TAG_GUEST = 1,
	POINT_TAG_GUEST_UUID = 2,
	POINT_TAG_NAME = 3,
	POINT_TAG_DESCRIPTION = 4,
	POINT_TAG_CREATED_MS = 5,
	POINT_TAG_SECONDS_MS = 6,
	POINT_TAG_PARENT = 7,
	POINT_TAG_KIND = 8,
	POINT_TAG_STATE = 9,
	POINT_TAG_QUIESCED = 10,
	POINT_TAG_FREEZE_MS = 11,
	POINT_TAG_TAG = 12,
	POINT_TAG_DISK = 13,
	POINT_TAG_DATA_SEGMENTS = 14,
	POINT_TAG_MAP_SEGMENTS = 15,
	POINT_TAG_MAP_DIGESTS = 16,
};

/* tags inside POINT_TAG_DISK */
enum disk_tag {
	DISK_TAG_NAME = 1,
	DISK_TAG_SIZE = 2,
	DISK_TAG_BLOCK_BITS = 3,
	DISK_TAG_RUNG = 4,
	DISK_TAG_REASON = 5,
	DISK_TAG_FORMAT = 6,
	DISK_TAG_FILE = 7,
	DISK_TAG_BITMAP = 8,
	DISK_TAG_PARENT = 9,
	DISK_TAG_DIRTY_BYTES = 10,
	DISK_TAG_READ_BYTES = 11,
	DISK_TAG_NEW_BYTES = 12,
	DISK_TAG_STORED_BYTES = 13,
	DISK_TAG_ROOT = 14,
	DISK_TAG_SESSIONS = 15,
	DISK_TAG_SKETCH = 16,
	DISK_TAG_PARENT_NUMBER = 17,
	DISK_TAG_PARENT_ROOT = 18,
	DISK_TAG_PARENT_SIZE = 19,
	DISK_TAG_AUDIT = 20,
};

int tlv_add(struct buf *b, unsigned tag, bool critical, const void *bytes, size_t len,
	    struct error *err) TM_WUR;
int tlv_add_u64(struct buf *b, unsigned tag, bool critical, uint64_t v, struct error *err) TM_WUR;
/* Nothing is added for NULL. */
int tlv_add_text(struct buf *b, unsigned tag, const char *text, struct error *err) TM_WUR;

struct tlv {
	unsigned tag;
	bool critical;
	const uint8_t *bytes;
	size_t len;
};

struct tlv_reader {
	const uint8_t *p, *end;
};

/* 1 and a field, 0 at the end, or an error. */
int tlv_next(struct tlv_reader *r, struct tlv *ret, struct error *err) TM_WUR;

int tlv_u64(const struct tlv *t, uint64_t *ret, struct error *err) TM_WUR;
int tlv_id(const struct tlv *t, struct tm_id *ret, struct error *err) TM_WUR;
/* *ret must be NULL: a field comes once. */
int tlv_text(const struct tlv *t, char **ret, struct error *err) TM_WUR;
/* What to do with an unknown tag. */
int tlv_unknown(const struct tlv *t, struct error *err) TM_WUR;
