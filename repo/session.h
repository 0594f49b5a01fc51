/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A session as its own files see it:
 *
 *	session.c   begin, disks, commit (the protocol)
 *	marker.c    the objects that announce a session and what it builds on
 *	pipeline.c  pieces → frames
 *	decide.c    which clusters have to be stored at all
 *	sibling.c   other points that have the same content
 *	output.c    frames and map nodes → segments → store
 */
#pragma once

#include "ahead.h"
#include "cache.h"
#include "content.h"
#include "look.h"
#include "manifest.h"
#include "map.h"
#include "page_out.h"
#include "ration.h"
#include "segment.h"
#include "worker.h"

/* Steps of a piece: its runs and clusters, each zero or stored. */
#define WORK_MAX_STEPS (PIECE_RUNS + PIECE_CLUSTERS)

enum work_state {
	WORK_HASHING, /* on a worker */
	WORK_HASHED,
	WORK_COMPRESSING, /* on a worker */
	WORK_COMPRESSED,
};

enum compare {
	COMPARE_UNKNOWN,
	COMPARE_YES,
	COMPARE_NO,
};

struct cluster {
	uint64_t block;
	const uint8_t *data; /* in the piece */
	bool zero;
	enum compare compare; /* with what the parent has, where it has something */
	uint8_t id[CONTENT_BYTES];
};

enum step_kind {
	STEP_HOLE,
	STEP_FRAME, /* at: index of the frame */
	STEP_TWIN,  /* the content is known; at: index of the cluster */
};

/* What becomes of a range of blocks.  Blocks without a step stay as in the parent. */
struct work_step {
	uint64_t block, count;
	enum step_kind kind;
	unsigned at;
};

struct work_frame {
	unsigned first, n; /* clusters */
	uint8_t method;
	const uint8_t *data; /* encoded: in out, or the clusters themselves */
	size_t len;
};

/* A piece on its way. */
struct work {
	struct pool_task task;
	struct repo_session *s;
	struct work *next;
	struct piece *piece;
	enum work_state state;
	unsigned nclusters, nframes, nsteps;
	struct cluster cluster[PIECE_CLUSTERS];
	struct work_frame frame[PIECE_CLUSTERS];
	struct work_step step[WORK_MAX_STEPS];
	uint8_t *out;
	int code; /* of the worker */
	struct error err;
	/* while being decided: */
	unsigned run, cluster_at;
	uint64_t in_run; /* blocks of the run */
	/* while being appended: */
	unsigned at; /* step */
	bool stored; /* the step's frame is in the segment, or its hole recorded */
	uint64_t ref;
};

/* A segment on its way to the store; reused. */
struct seg_job {
	struct pool_task task;
	struct store_req req;
	struct repo_session *s;
	struct seg_job *next;
	struct seg_writer *w;
	int code;
	uint8_t digest[DIGEST_BYTES]; /* of a map's nodes */
	char key[KEY_MAX];
};

/* One kind of segments of a session. */
struct seg_out {
	uint8_t type;
	struct seg_job *open; /* or NULL */
	uint32_t next_index;
	struct own_segments own;
	uint64_t bytes; /* of payload and tables so far */
};

struct session_disk {
	char *name;
	uint64_t size;
	/* table: the parent's, this session, sessions of pinned points */
	struct disk_map map;
	uint32_t own;      /* index of this session */
	uint32_t nforeign; /* entries behind it */
	bool used_own;
};

/* A session that the content index refers to; the first one is this session. */
struct content_source {
	struct table_entry e;
	uint32_t at; /* index in the table of the disk being written, plus 1; 0: not known yet */
};

/* A disk of another point that may have much in common with the disk being written. */
struct candidate {
	struct tm_id point;
	char object[KEY_MAX];
	uint64_t blocks;
	struct disk_map map;
	uint32_t *source; /* by index of its session table: which content source, 0: none yet */
	unsigned hits;
	bool wanted, taken;
};

/* An id of a candidate's sketch. */
struct sketch_hit {
	uint64_t v;
	uint32_t candidate;
};

struct siblings {
	struct candidate *v;
	uint32_t n, nwanted, ntaken;
	bool listed;
	struct sketch_hit *hit; /* by v */
	size_t nhits;
	/* the candidate whose content is being added to the index: */
	struct candidate *now;
	bool pinning, pinned, broken;
	uint64_t block; /* next */
	struct look look;
	struct store_req req;
	struct buf pin;
	char key[KEY_MAX];
};

struct repo_session {
	struct repo *repo;
	struct pool *pool;
	char *guest;
	struct tm_id sid, source;
	uint32_t seq;
	struct session_keys keys;
	struct workers workers;
	struct tm_id *pins;
	uint32_t npins, last_pin; /* that hold; number of the last one put */
	bool committed;

	/* heartbeat */
	struct store_req beat_req;
	struct format_flag beat;
	uint64_t beat_ms; /* of the last one, monotonic */
	bool beating;
	char beat_key[KEY_MAX];

	int code; /* the first failure */
	struct error err;

	struct seg_out data, map;
	struct seg_job *idle;
	unsigned in_flight;
	struct page_out page_out;

	struct session_disk *disks;
	unsigned ndisks;

	/* the disk that is being written */
	bool disk_open;
	struct piece_sink sink;
	struct map_writer map_writer;
	uint64_t parent_size;
	bool has_parent;
	bool last_block_seen;
	uint64_t next_decide, next_append; /* seq */
	uint64_t next_block;               /* behind the last one decided */
	bool whole;                        /* every block has to be named */
	bool gap;                          /* one was not */
	struct look look;                  /* into the parent */
	struct content_index content;
	struct siblings siblings;
	struct content_source *sources;
	uint32_t nsources;
	uint64_t new_bytes, stored_bytes, same_bytes, known_bytes, lost_bytes;
	struct lost lost;   /* what must not be referred to */
	struct work *works; /* all that are on their way */
	struct work *idle_works;
	bool pumping, pump_again;
	bool loading; /* a map node */
	struct cache_wait load;
	struct ahead ahead;
	struct { /* where it is: piece, run, block of the run; for tables: piece, cluster */
		uint64_t seq, in_run, tables_seq;
		uint32_t run, cluster;
	} ahead_at;
	struct ration ration;
};

static inline struct session_disk *session_disk(struct repo_session *s)
{
	return &s->disks[s->ndisks - 1];
}

/* Remembers the first failure. */
void session_fail(struct repo_session *s, int code, const struct error *err);
/* Hands it to a caller. */
int session_failure(const struct repo_session *s, struct error *err);
void session_pump(struct repo_session *s);

/* ---- marker.c ---- */
int marker_put(struct repo_session *s, struct error *err) TM_WUR;
int marker_pin(struct repo_session *s, const struct tm_id *point, const char *manifest_key,
	       struct error *err) TM_WUR;
/* The same in steps: the object to put under key; after the put, the look at the point. */
bool marker_pinned(const struct repo_session *s, const struct tm_id *point);
int marker_make_pin(struct repo_session *s, const struct tm_id *point, char key[KEY_MAX],
		    struct buf *ret, struct error *err) TM_WUR;
int marker_check_pin(struct repo_session *s, const struct tm_id *point, const char *manifest_key,
		     struct error *err) TM_WUR;

/* Says that the session is alive, once an hour; call it often. */
void marker_beat(struct repo_session *s);

/* ---- pipeline.c ---- */
int pipeline_put(struct piece_sink *sink, struct piece *piece, struct error *err);
/* Gives the map writer the node it needs, *code 0 or an error; true when it has to be loaded first.
 */
bool session_supply(struct repo_session *s, int *code, struct error *err);
/* Loads what the pieces on their way will need of the parent's map. */
void pipeline_ahead(struct repo_session *s);
void pipeline_free(struct repo_session *s);

/* ---- decide.c ---- */

/* Makes the steps and frames of a hashed piece.  0, LOOK_WAIT (then call again) or an error. */
int decide(struct repo_session *s, struct work *w, struct error *err) TM_WUR;
/* Whether to compare it with the parent's cluster at ref.  Asked in the order of the clusters at
 * first; the answer stays. */
int decide_worth(struct repo_session *s, struct cluster *c, uint64_t ref, bool *ret,
		 struct error *err) TM_WUR;
void decide_begin_disk(struct repo_session *s);
void decide_end_disk(struct repo_session *s);
/* The cluster's frame has got this ordinal. */
int decide_stored(struct repo_session *s, const struct cluster *c, uint64_t ordinal,
		  struct error *err) TM_WUR;
/* Where a twin's content is, as a reference for the disk being written. */
int decide_twin(struct repo_session *s, const struct cluster *c, uint64_t *ret_ref,
		struct error *err) TM_WUR;

/* ---- sibling.c ---- */

void sketch_add(struct sketch *k, const uint8_t id[CONTENT_BYTES]);
/* A cluster that would have to be stored: does a candidate have it? */
void siblings_ask(struct repo_session *s, const uint8_t id[CONTENT_BYTES]);
/* Adds the content of the candidates that are wanted.  0, LOOK_WAIT or an error. */
int siblings_take(struct repo_session *s, struct error *err) TM_WUR;
void siblings_free(struct repo_session *s);
static inline bool session_looks(const struct repo_session *s)
{
	return s->look.waiting || s->siblings.pinning || s->siblings.look.waiting;
}

/* ---- output.c: OUT_WAIT means that all segments are on their way to the store ---- */
#define OUT_WAIT 1
/* The frame's first ordinal. 0, OUT_WAIT or an error. */
int output_frame(struct repo_session *s, const struct work *w, const struct work_frame *f,
		 uint64_t *ret, struct error *err) TM_WUR;
int output_hole(struct repo_session *s, uint64_t block, uint64_t count, struct error *err) TM_WUR;
int output_alias(struct repo_session *s, uint64_t block, uint64_t ref, struct error *err) TM_WUR;
int output_node(void *data, const struct node *n, uint64_t *ret, struct error *err) TM_WUR;
int output_end_disk(struct repo_session *s, struct error *err) TM_WUR;
void output_close(struct repo_session *s);
void output_free(struct repo_session *s);
