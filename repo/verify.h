/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verifying, as its own files see it.
 *
 *	verify.c       phases and report
 *	verify_walk.c  the maps: which nodes and clusters are used; later: whom damage hits
 *	verify_points.c  points whose manifest is gone
 *	verify_map.c   maps against the descriptor tables, with read_data
 *	verify_data.c  segments: tables, sizes, and with read_data every frame
 *	verify_scrub.c all objects, every byte, without a data key
 *	verify_domain.c  the objects of the domains themselves
 *	verify_ring.c  budgets: where a run stops and the next one goes on
 *
 * Nodes and segments shared by many points are looked at once.
 */
#pragma once

#include "cache.h"
#include "decode.h"
#include "map.h"
#include "points.h"

/* A segment that some point refers to. */
struct vseg {
	struct tm_id sid;
	uint8_t type;
	uint32_t index;
	uint32_t nwords; /* of each bit set */
	uint64_t *used;  /* slots that points refer to */
	uint64_t *bad;   /* slots that cannot be read; NULL: none */
	bool needed;     /* by a point */
	bool all_bad;
	bool again;    /* the object was not found: to be read once more */
	bool scrubbed; /* one of its generations */
	unsigned retries;
	uint64_t size;    /* of the object, once known */
	uint64_t checked; /* bytes of it that were looked at */
	char *reason;     /* of the first damage */
	char *key;
	ssize_t damage; /* index in the report, or -1 */
};

struct verifier {
	struct repo *repo;
	const struct repo_verify_options *opt;
	struct repo_verify_report *report;
	struct name_list names; /* of all points, when opt->points is NULL */
	struct vseg **seg;      /* hash table */
	size_t nseg, cap;
	bool damage;
	uint64_t done, total; /* bytes, for tick */
	uint64_t next_tick;
	struct id_set counted; /* points whose manifests are in the report's numbers */
	struct id_set gone;    /* points that are dead by now: what they lack is no damage */
	int code;              /* of tick */
	struct error err;
};

static inline bool bit_get(const uint64_t *bits, uint32_t i)
{
	return bits && (bits[i / 64] >> i % 64 & 1);
}
static inline void bit_set(uint64_t *bits, uint32_t i)
{
	bits[i / 64] |= UINT64_C(1) << i % 64;
}

/* All phases; the report is filled. */
int verifier_run(struct verifier *v, struct error *err) TM_WUR;
void verifier_done(struct verifier *v);

/*
 * Who may not write verifies all the same: remembers that a record could not be put.  `so` says
 * what follows from that.
 */
int verify_unrecorded(struct verifier *v, const char *so, const struct error *why,
		      struct error *err) TM_WUR;

/* What is damage and goes into the report; other codes end the verification. */
bool verify_is_damage(int code);

/* A load of the cache that is waited for: start it with .wait.done = verify_cache_there. */
struct verify_cache_wait {
	struct cache_wait wait;
	int code;
	bool done;
};
void verify_cache_there(struct cache_wait *wait, int code);
int verify_cache_wait(struct verifier *v, struct verify_cache_wait *w, struct error *err) TM_WUR;
/* Runs the loop once and tells the caller about progress.  Requests cannot be taken back: an error
 * of the loop is logged, and waiting goes on. */
void verify_wait(struct verifier *v);

int vseg_get(struct verifier *v, const struct tm_id *sid, uint8_t type, uint32_t index,
	     struct vseg **ret, struct error *err) TM_WUR;
/* Remembers damage of count slots from slot; UINT32_MAX: of all. */
int vseg_damaged(struct verifier *v, struct vseg *s, uint32_t slot, uint32_t count,
		 const char *reason, struct error *err) TM_WUR;

int verify_mark(struct verifier *v, const struct point *p, const struct point_disk *d,
		struct error *err) TM_WUR;
int verify_blame(struct verifier *v, const struct point *p, const struct point_disk *d,
		 struct error *err) TM_WUR;
/* Points that were deleted while this ran go into v->gone: what they lack is no damage. */
int verify_find_gone(struct verifier *v, struct error *err) TM_WUR;
/* After the marks of all points. */
int verify_lost_points(struct verifier *v, struct error *err) TM_WUR;
/* Whether the report means such a point; which. */
bool verify_is_lost_point(const struct repo *repo, const char *object, struct tm_id *ret);

/* Blocks that a session changed. */
struct change {
	uint64_t block, count;
	uint64_t ref; /* of the first, ascending; REF_HOLE */
};

struct changes {
	struct change *v; /* owned; by block */
	size_t n, cap;
};

/* The index of the point's own session in the disk's table; UINT32_MAX: it is not there. */
uint32_t verify_own_index(const struct point *p, const struct point_disk *d);
/* What the descriptor tables say.  TM_E_CORRUPT: they cannot be read; what is there is in *ret. */
int changes_load(struct verifier *v, const struct point *p, const struct point_disk *d,
		 uint32_t own, struct changes *ret, struct error *err) TM_WUR;
/* The map against what the session says that it stored. */
int verify_map(struct verifier *v, const struct point *p, const struct point_disk *d,
	       struct error *err) TM_WUR;
/* Valid until the next call of the cache. */
int verify_node_bytes(struct verifier *v, const struct point_disk *d, uint64_t ref,
		      const uint8_t **ret, size_t *ret_len, struct error *err) TM_WUR;
int verify_tables(struct verifier *v, struct vseg *s, struct error *err) TM_WUR;
/* An object that is cut has lost the frames that end behind it; one that is too long, none. */
int verify_size(struct verifier *v, struct vseg *s, const struct seg_tables *t, uint64_t size,
		struct error *err) TM_WUR;
int verify_read(struct verifier *v, struct error *err) TM_WUR;
/* A reference to tables, loading them when needed. */
int verify_load_tables(struct verifier *v, const struct vseg *s, struct tables **ret,
		       struct error *err) TM_WUR;
int verify_scrub(struct verifier *v, struct error *err) TM_WUR;
void damage_done(struct repo_damage *d);
bool damage_has(const struct repo_verify_report *r, const char *object);
int damage_add(struct repo_verify_report *r, const char *object, const char *reason,
	       struct error *err) TM_WUR;
int damage_add_range(struct repo_damage *d, const struct tm_id *point, const char *disk,
		     uint64_t offset, uint64_t length, struct error *err) TM_WUR;

/* ---- budgets ---- */

struct ring {
	struct verifier *v;
	char level;
	uint64_t until; /* monotonic ms; 0: no budget */
	uint64_t n;     /* objects done */
	char last[KEY_MAX];
};

int ring_open(struct ring *ring, struct verifier *v, char level, struct error *err) TM_WUR;
/* True for at least one object. */
bool ring_goes_on(const struct ring *ring);
void ring_did(struct ring *ring, const char *key);
/* Leaves the record for the next run, where it can. */
int ring_close(struct ring *ring, struct error *err) TM_WUR;
