/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of a disk has to be reported, in ascending order, asked from the source ahead
 * of the reading.  Two stages, each a ring of asks in disk order:
 *
 *	dirty map ──▸ dirty extents ──▸ allocation asked inside the large ones ──▸ ranges
 *	(windows)     (whole disk for SOURCE_MAP_DATA)
 *
 * For a sample the windows are its extents, and what of them is not dirty goes on.
 *
 * Asks of a ring run side by side; new ones wait while more than a bounded number of
 * extents is kept.  Nothing here calls the user back: mapper_pump() starts requests,
 * mapper_next() takes what is known.
 */
#pragma once

#include "internal.h"

#define MAPPER_WINDOWS 8  /* dirty maps asked ahead */
#define MAPPER_REFINED 32 /* dirty extents, or parts of such, between the stages and the reader */

struct mapper;

struct ask {
	struct source_req req;
	struct mapper *m;
	struct ask_ring *ring;
	uint64_t offset, end;      /* what is asked */
	uint64_t cursor;           /* the answer reaches up to here */
	uint64_t next_cursor;      /* written by the source */
	struct extents reply, set; /* set: in whole blocks, within [offset, end) */
	bool running;
	bool whole; /* nothing was asked: all of it is data */
	/* the consumer's place */
	uint64_t taken; /* up to here */
	size_t i;       /* next extent of set */
};

struct ask_ring {
	enum source_map map;
	struct ask *v;
	unsigned n, head, count;
	uint64_t window; /* bytes in the next ask */
	bool adapts;     /* window follows the density of the answers */
};

struct map_range {
	uint64_t offset, length; /* whole blocks, but for the end of the disk */
	bool zero;               /* reads as zeroes */
};

enum mapper_state {
	MAPPER_RANGE,
	MAPPER_WAIT, /* pump, and run the loop */
	MAPPER_END,
};

struct mapper {
	struct block_source *src;
	uint64_t block_size;
	const struct extents *sample; /* of the dirty map only these are asked for; or NULL */
	size_t sample_at;             /* the extent that is asked for next */
	uint64_t next;                /* up to here the disk has been asked for */
	struct map_range dirty;       /* rest of the dirty extent that is being refined */
	struct ask_ring windows, refined;
	struct ask windows_v[MAPPER_WINDOWS], refined_v[MAPPER_REFINED];
	unsigned running;
	uint64_t answers;     /* counts replies, to see that the source is alive */
	uint64_t dirty_bytes; /* known so far */
	bool refine;          /* allocation is asked at all */
	bool refining;        /* … and inside the present dirty extent */
	bool stopped;
	int code; /* of the first failure */
	struct error err;
};

/* The mapper may not move afterwards. */
void mapper_init(struct mapper *m, struct block_source *src, const struct reader_options *opt);
void mapper_done(struct mapper *m);

/* Starts what may be started; nothing once it has failed or was stopped. */
void mapper_pump(struct mapper *m);
void mapper_stop(struct mapper *m);

enum mapper_state mapper_next(struct mapper *m, struct map_range *ret);

/* dirty_bytes is final. */
bool mapper_complete(const struct mapper *m);

/* Whether options and source go together; for everything that uses a mapper. */
int reader_check(const struct block_source *src, const struct reader_options *opt,
		 struct error *err) TM_WUR;
