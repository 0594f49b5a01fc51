/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where clusters of known content are: content id → place, in bounded memory.
 *
 * 256 open-addressed tables, chosen by the id's first byte, grow one at a time, so that
 * growing costs little beyond what is held.  Ids are keyed hashes, so that the tables fill
 * evenly.  A full index takes nothing more; nothing is ever thrown out, so that what is
 * found depends on the order of insertion alone.
 */
#pragma once

#include "format.h"

#define CONTENT_TABLES      256
#define CONTENT_MAX_ENTRIES (3u << 20) /* clusters of 64 KiB: 192 GiB */
/* 24 bytes each, a fifth of them free: 90 MiB when full. */
#define CONTENT_TABLE_SLOTS (CONTENT_MAX_ENTRIES / 4 * 5 / CONTENT_TABLES)

/* Announced, but not in a segment yet. */
#define CONTENT_PENDING UINT64_MAX

struct content_entry {
	uint8_t id[CONTENT_BYTES];
	uint64_t place; /* 0: free; 1: pending; else source × 2^40 + ordinal, plus 2 */
};

struct content_table {
	struct content_entry *v;
	uint32_t cap, n;
};

struct content_index {
	struct content_table table[CONTENT_TABLES];
	uint32_t n, max;
};

void content_init(struct content_index *c, uint32_t max);
void content_done(struct content_index *c);

/* The place, CONTENT_PENDING among them; false when the content is not known. */
bool content_find(const struct content_index *c, const uint8_t id[CONTENT_BYTES],
		  uint64_t *ret_place);
/* Adds or changes an entry.  When the index is full, new ones are left out. */
int content_put(struct content_index *c, const uint8_t id[CONTENT_BYTES], uint64_t place,
		struct error *err) TM_WUR;

/* Bytes that the index occupies. */
size_t content_memory(const struct content_index *c);
