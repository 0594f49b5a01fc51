/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the sinks have in common: pieces are cut into writes and zeroings, which run
 * side by side on a fixed set of ops; a piece goes back when all of its ops have
 * ended.  The kinds (file, NBD) supply the ops.
 */
#pragma once

#include "internal.h"

struct sink_slot;

/* One write, zeroing or flush.  A kind embeds it in its own. */
struct sink_op {
	struct disk_sink *sink;
	struct sink_slot *slot; /* the piece it belongs to; NULL: a flush */
	const uint8_t *data;    /* NULL: zeroes */
	uint64_t offset, length;
	struct sink_op *next;
};

struct disk_sink_ops {
	/* Each ends with one sink_op_end(), which never comes from inside the start. */
	void (*write)(struct disk_sink *sink, struct sink_op *op);
	void (*zero)(struct disk_sink *sink, struct sink_op *op);
	void (*flush)(struct disk_sink *sink, struct sink_op *op);
	/* Ends what is running, if the kind can. May be NULL. */
	void (*abort)(struct disk_sink *sink);
	void (*free)(struct disk_sink *sink);
};

struct disk_sink {
	const struct disk_sink_ops *ops;
	struct piece_sink pieces;
	struct loop *loop;
	uint64_t size;
	uint32_t block_size;
	bool skip_zeroes;     /* the target reads as zeroes already */
	uint64_t write_unit;  /* writes are multiples of it (the buffer's padding goes along) … */
	uint64_t write_limit; /* … but do not go beyond this: the target's own size */
	uint64_t write_max;   /* bytes in one write */
	uint64_t zero_max;    /* bytes in one zeroing */
	/* own */
	struct sink_op *idle;
	struct sink_slot *queue, **queue_end; /* pieces with ops that are not yet started */
	struct sink_slot *idle_slots;
	unsigned running;     /* ops */
	unsigned nslots_busy; /* pieces */
	uint64_t written_bytes;
	int code; /* of the first failure */
	struct error err;
};

/* After the public fields above are set. */
int sink_init(struct disk_sink *sink, struct error *err) TM_WUR;
void sink_add_op(struct disk_sink *sink, struct sink_op *op);
void sink_op_end(struct sink_op *op, int code, const struct error *err);
void sink_done(struct disk_sink *sink);
