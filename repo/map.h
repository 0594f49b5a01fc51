/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The map of a disk: a radix tree from blocks to references, path-copied from the parent
 * point's tree.  Writer and cursor do no I/O: when they need a stored node they return
 * MAP_NEED, the caller fetches the node that `need` names, supplies it, and calls again
 * with the same arguments.
 */
#pragma once

#include "node.h"

#define MAP_NEED 1

struct map_need {
	uint64_t ref;
	unsigned level;
	uint64_t pos;
};

struct map_root {
	uint64_t ref; /* REF_HOLE: the disk is all hole */
	uint64_t blocks;
	uint32_t nsessions; /* of the session table */
};

/* ---- writing: runs in ascending order, one root-to-leaf path in memory ---- */

/* Stores a node; *ret gets its ordinal. */
typedef int map_emit_fn(void *data, const struct node *n, uint64_t *ret, struct error *err);

struct map_level {
	bool open, dirty;
	struct node node;
};

struct map_writer {
	uint64_t blocks;
	unsigned root;    /* level */
	uint32_t own;     /* index of this session in the table */
	uint64_t next;    /* blocks before are done */
	bool resuming;    /* the last call returned MAP_NEED */
	bool cut;         /* the parent has blocks behind the end */
	uint64_t old_ref; /* the parent's tree at old_level, position 0 */
	unsigned old_level;
	uint64_t root_ref; /* of the new tree as far as it is closed */
	bool root_known;   /* root_ref is valid */
	struct map_need need;
	map_emit_fn *emit;
	void *data;
	struct map_level level[NODE_MAX_LEVEL + 1];
};

/* parent may be NULL. own: index of this session in the table, not below parent->nsessions. */
void map_writer_init(struct map_writer *w, uint64_t blocks, uint32_t own,
		     const struct map_root *parent, map_emit_fn *emit, void *data);

/* Blocks [block, block + count) become ref, ref + 1, … or all holes.  0, MAP_NEED or an error. */
int map_writer_set(struct map_writer *w, uint64_t block, uint64_t count, uint64_t ref,
		   struct error *err) TM_WUR;
/* *ret is the new root.  0, MAP_NEED or an error. */
int map_writer_end(struct map_writer *w, uint64_t *ret, struct error *err) TM_WUR;
int map_writer_supply(struct map_writer *w, const uint8_t *bytes, size_t len,
		      struct error *err) TM_WUR;
/* The node is lost.  Every block of it has to be set, then. */
void map_writer_supply_lost(struct map_writer *w);

/* ---- reading ---- */

struct map_run {
	uint64_t block, count;
	uint64_t ref; /* of the first block, ascending by 1; or REF_HOLE, REF_LOST */
};

struct map_cursor {
	struct map_root root;
	unsigned level; /* of the root */
	uint64_t next;
	struct map_need need;
	struct map_level path[NODE_MAX_LEVEL + 1];
};

void map_cursor_init(struct map_cursor *c, const struct map_root *root);
void map_cursor_seek(struct map_cursor *c, uint64_t block);
/* The next run, never empty; one of count 0 at the end.  0, MAP_NEED or an error. */
int map_cursor_next(struct map_cursor *c, struct map_run *ret, struct error *err) TM_WUR;
/* The run that ends with the block sought, which has to be inside the disk; not moved on.  0 or
 * MAP_NEED. */
int map_cursor_until(struct map_cursor *c, struct map_run *ret) TM_WUR;
/* The reference of the leaf that holds the block sought, without reading it; REF_HOLE or REF_LOST
 * where there is none.  0 or MAP_NEED. */
int map_cursor_leaf(struct map_cursor *c, uint64_t *ret) TM_WUR;
int map_cursor_supply(struct map_cursor *c, const uint8_t *bytes, size_t len,
		      struct error *err) TM_WUR;
/* The node is lost: runs of it have REF_LOST. */
void map_cursor_supply_lost(struct map_cursor *c);
