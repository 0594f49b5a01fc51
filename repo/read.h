/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading a disk, as its own files see it.
 *
 *	read_plan.c  map ─▸ plans: which clusters make a piece, in which frames they are;
 *	             frames of a batch of plans are grouped into fetches
 *	read.c       fetches ─▸ decode on workers ─▸ pieces ─▸ sink
 */
#pragma once

#include "cache.h"
#include "decode.h"
#include "map.h"

/* Disk bytes planned at a time; two batches are in memory at most. */
#define BATCH_BYTES (32u << 20)
#define MAX_PLANS   1024 /* of a batch */
#define FETCH_BYTES (1u << 20)
#define FETCH_GAP   (64u << 10)
#define MAX_GETS    8
#define HELD_BYTES \
	(32u << 20)  /* fetched and not yet decoded; what the next piece needs may go above */
#define MAX_LOADS 16 /* tables at a time */

struct reader;

/* A range of a segment on its way; shared by the frames in it. */
struct fetch {
	struct store_req req;
	struct reader *r;
	struct fetch *next; /* to be issued */
	struct tables *t;
	uint64_t offset;
	size_t len;
	uint64_t first_seq; /* the first plan that needs it */
	unsigned refs;      /* wants */
	bool there;
	unsigned retries;
	struct cache_wait wait; /* for the tables of a later generation */
	uint8_t *buf;
	size_t held; /* of buf */
};

/* A frame that a plan needs. */
struct want {
	struct tables *t; /* referenced */
	const struct seg_frame *f;
	struct fetch *fetch;
	uint64_t seq;
};

struct plan_cluster {
	uint64_t block;
	uint64_t ref;
	uint32_t slot;
	unsigned want;
};

/* A piece to be. */
struct plan {
	struct plan *next;
	uint64_t seq;
	uint64_t done_bytes; /* progress once it is delivered: end of its last run */
	unsigned nruns, nclusters, nwants;
	unsigned resolved; /* clusters whose want is known */
	struct piece_run run[PIECE_RUNS];
	struct plan_cluster cluster[PIECE_CLUSTERS];
	struct want want[PIECE_CLUSTERS];
};

/* A piece and its buffer. */
struct read_piece {
	struct piece p;
	struct pool_task task;
	struct reader *r;
	struct read_piece *next;
	struct plan *plan;
	int code;
	struct error err;
};

struct plan_list {
	struct plan *first, **end;
	unsigned n;
};

enum plan_phase {
	PLAN_COLLECT, /* runs of the map */
	PLAN_RESOLVE, /* tables of their segments */
	PLAN_DONE,    /* the end of the disk is planned */
};

struct reader {
	struct repo *repo;
	struct pool *pool;
	const struct point_disk *disk;
	struct piece_sink *sink;
	bool zero_runs, prove; /* as in repo_read_options */
	unsigned group;        /* blocks that share a frame, at most */
	struct workers workers;

	int code; /* the first failure */
	struct error err;

	struct map_cursor cursor;
	enum plan_phase phase;
	struct map_run run; /* what is left of the present one */
	bool at_end;
	uint64_t next_seq;
	struct plan_list batch; /* being made */
	unsigned batch_clusters;
	struct plan *resolve_at;
	bool node_loading;
	struct cache_wait node_wait;
	unsigned loading; /* tables */

	struct plan_list ready; /* planned, in order */
	struct plan *idle_plans;
	struct fetch *issue, **issue_end;
	unsigned gets;
	size_t held; /* bytes of all fetches */

	struct read_piece *pieces;
	unsigned npieces;
	struct read_piece *idle_pieces;
	unsigned out; /* pieces with a worker or the sink */
	uint64_t done_bytes;
	bool pumping, pump_again;
};

void reader_fail(struct reader *r, int code, const struct error *err);
void reader_pump(struct reader *r);

/* Makes plans until it has to wait or has enough. */
void reader_plan(struct reader *r);
void plan_list_init(struct plan_list *l);
void plan_list_add(struct plan_list *l, struct plan *p);
/* Drops the plan's frames and keeps it for reuse. */
void plan_release(struct reader *r, struct plan *p);
void want_release(struct want *w);
void fetch_free(struct fetch *f);
