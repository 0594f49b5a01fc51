/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A piece is what travels between a source and a sink of disk data: some
 * clusters and runs of zeroes of one disk in ascending order, at most
 * PIECE_CLUSTERS clusters of data and PIECE_RUNS runs.
 *
 *	NBD reader ──piece──▸ repository session        (backup)
 *	repository reader ──piece──▸ file or NBD sink   (restore)
 *
 * A producer owns a fixed set of pieces; that is the bound on memory and the
 * back-pressure.  Handing a piece over with piece_sink_put() lends it to the
 * consumer until the consumer calls piece_release().  All of it on the loop
 * thread.
 */
#pragma once

#include "error.h"

#include <stdbool.h>
#include <stdint.h>

#define PIECE_CLUSTERS 16
#define PIECE_RUNS     32

struct piece_run {
	uint64_t block; /* first block (cluster number) */
	uint64_t count; /* blocks; at most PIECE_CLUSTERS in all data runs together */
	uint32_t first; /* data runs: index of the first cluster in piece.data */
	bool zero;      /* reads as zeroes; has no data */
};

struct piece {
	uint64_t seq; /* 0, 1, 2 … of one disk; a sink may get them in any order */
	uint32_t nruns;
	uint32_t nclusters;
	struct piece_run run[PIECE_RUNS];
	uint8_t *data; /* nclusters × block size; the disk's ragged end is filled up with zeroes */
	void (*release)(struct piece *piece);
	struct piece *next; /* for the present holder */
};

struct piece_sink {
	/* Takes the piece over.  An earlier asynchronous failure is reported here, too; the piece
	 * is not taken then. */
	int (*put)(struct piece_sink *sink, struct piece *piece, struct error *err);
};

static inline int piece_sink_put(struct piece_sink *sink, struct piece *piece, struct error *err)
{
	return sink->put(sink, piece, err);
}

static inline void piece_release(struct piece *piece)
{
	piece->release(piece);
}
