/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the sinks have in common: pieces are cut into writes and zeroings, which run
 * side by side on a fixed set of ops; a piece goes back when all of its ops have
 * ended.  The kinds (file, NBD) supply the ops.  In a target with a layout (a qcow2 image)
 * the disk's bytes lie elsewhere than in the disk.
 */
#pragma once

#include "internal.h"

struct sink_slot;

/* One write, zeroing, read or flush.  A kind embeds it in its own. */
struct sink_op {
	struct disk_sink *sink;
	struct sink_slot *slot;  /* the piece it belongs to; NULL: the layout's, or a flush */
	const uint8_t *data;     /* NULL: zeroes */
	uint8_t *into;           /* not NULL: a read, of a layout */
	uint64_t offset, length; /* in the target */
	uint64_t disk_bytes;     /* of the disk's in it; the rest is padding */
	struct sink_op *next;
};

struct disk_sink_ops {
	/* Each ends with one sink_op_end(), which never comes from inside the start. */
	void (*write)(struct disk_sink *sink, struct sink_op *op);
	void (*zero)(struct disk_sink *sink, struct sink_op *op);
	/* NULL: the kind has no layouts. */
	void (*read)(struct disk_sink *sink, struct sink_op *op);
	void (*flush)(struct disk_sink *sink, struct sink_op *op);
	/* Ends what is running, if the kind can. May be NULL. */
	void (*abort)(struct disk_sink *sink);
	void (*free)(struct disk_sink *sink);
};

struct sink_layout;

struct sink_layout_ops {
	/*
	 * Where data of the disk go: makes op's offset that of the target, and its length no
	 * longer than what lies there in one.  False: op has become a read or write of the
	 * layout's own tables instead.  When that has ended well it is asked again; nothing else
	 * is, until then.
	 */
	bool (*place)(struct sink_layout *layout, struct sink_op *op);
	/*
	 * After the last piece: what the layout has left to write, one op after another, which
	 * run side by side.  False: no more.
	 */
	bool (*rest)(struct sink_layout *layout, struct sink_op *op);
	void (*free)(struct sink_layout *layout);
};

/* Where the bytes of a disk lie in a target that reads as zeroes. */
struct sink_layout {
	const struct sink_layout_ops *ops;
};

struct disk_sink {
	const struct disk_sink_ops *ops;
	struct sink_layout *layout; /* owned; NULL: all lies where it does in the disk */
	struct piece_sink pieces;
	struct loop *loop;
	uint64_t size;
	uint32_t block_size;
	bool skip_zeroes;     /* the target reads as zeroes already */
	bool no_flush;        /* the target cannot be asked for one */
	uint64_t write_unit;  /* writes are multiples of it (the buffer's padding goes along) … */
	uint64_t write_limit; /* … but do not go beyond this: the target's own size */
	uint64_t write_max;   /* bytes in one write */
	uint64_t zero_max;    /* bytes in one zeroing */
	/* own */
	struct sink_op *idle;
	bool held; /* an op of the layout's own has to end before another part is placed */
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
