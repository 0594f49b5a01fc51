/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nodes of a disk's map, and the pages they are stored in (docs/format.md, "Map").
 *
 * A reference says where something is: session (index into the disk's session table) and
 * ordinal, 60 bits together.  Data ordinals count clusters, node ordinals count nodes.
 */
#pragma once

#include "format.h"

#define REF_HOLE UINT64_MAX
/* In memory only: nobody knows what this refers to, for the node is lost. */
#define REF_LOST (UINT64_MAX - 1)

static inline uint64_t ref_of(uint32_t session, uint64_t ordinal)
{
	return (uint64_t)session << 40 | ordinal;
}
static inline uint32_t ref_session(uint64_t ref)
{
	return (uint32_t)(ref >> 40);
}
static inline uint64_t ref_ordinal(uint64_t ref)
{
	return ref & MAX_ORDINAL;
}

struct node {
	unsigned level; /* 0: leaf, its entries are blocks */
	uint64_t pos;   /* which of its level, from the disk's begin */
	uint64_t e[NODE_CHILDREN];
};

static inline unsigned node_entries(unsigned level)
{
	return level == 0 ? NODE_LEAF_BLOCKS : NODE_CHILDREN;
}

/* Blocks covered by one entry of a node of this level. */
static inline uint64_t entry_blocks(unsigned level)
{
	return level == 0 ? 1 : (uint64_t)NODE_LEAF_BLOCKS << 8 * (level - 1);
}

/* Blocks covered by a node of this level. */
static inline uint64_t node_blocks(unsigned level)
{
	return (uint64_t)NODE_LEAF_BLOCKS << 8 * level;
}

/* The level of the root of a disk of so many blocks (at most MAX_BLOCKS). */
unsigned root_level(uint64_t blocks);

void node_clear(struct node *n, unsigned level, uint64_t pos);
bool node_is_hole(const struct node *n);

/* Bytes written to out[NODE_MAX_BYTES].  A node that is all hole cannot be encoded. */
size_t node_encode(const struct node *n, uint8_t *out);

/* The references of a node as they are stored: entries that ascend by one.  Between runs: holes. */
struct node_runs {
	unsigned n;
	struct node_run {
		uint64_t ref; /* of the first entry */
		uint32_t first, count;
	} v[NODE_CHILDREN];
};

/* Expects the node of that level and position, and sessions below nsessions. */
int node_decode_runs(const uint8_t *bytes, size_t len, unsigned level, uint64_t pos,
		     uint32_t nsessions, struct node_runs *ret, struct error *err) TM_WUR;
/* The same, entry by entry. */
int node_decode(const uint8_t *bytes, size_t len, unsigned level, uint64_t pos, uint32_t nsessions,
		struct node *ret, struct error *err) TM_WUR;

/* ---- pages ---- */

struct page_writer {
	unsigned n;
	size_t len; /* of nodes */
	uint16_t end[PAGE_MAX_NODES];
	uint8_t nodes[PAGE_TARGET_BYTES + NODE_MAX_BYTES];
};

/* True when the page is full and must be finished before another node is added. */
bool page_add(struct page_writer *p, const struct node *n);
/* Writes the page to out[PAGE_MAX_BYTES] and empties the writer. */
size_t page_finish(struct page_writer *p, uint8_t *out);

/* Checks a page of nslots nodes. */
int page_check(const uint8_t *page, size_t len, unsigned nslots, struct error *err) TM_WUR;
/* Node i of a page that has been checked. */
const uint8_t *page_node(const uint8_t *page, unsigned i, size_t *ret_len);
