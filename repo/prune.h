/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The janitor, as its own files see it (docs/format.md, "Janitor protocol").
 *
 *	prune.c        the protocol: flags and lists in their order
 *	prune_mark.c   the maps of all roots ─▸ bits of slots in use
 *	prune_sweep.c  segments without a bit go; mostly empty ones are written again
 *	seg_compact.c  the bytes of a rewritten segment
 *	prune_tidy.c   what no protocol needs
 */
#pragma once

#include "cache.h"
#include "manifest.h"
#include "points.h"

/* What is in use of one session; [0] data, [1] map. */
struct mark {
	struct tm_id sid;
	struct mark_segments {
		uint64_t **bits;  /* by segment: slots in use; NULL: none */
		uint32_t *nslots; /* by segment: what the manifest says, 0: not known */
		uint32_t n;
	} seg[2];
};

struct prune {
	struct repo *repo;
	const struct repo_prune_options *opt;
	struct repo_prune_report report;
	uint32_t run;
	uint64_t stored_bytes, removed_stored; /* segments: before, and what went */

	struct id_set stored;    /* sessions with segments, listed before everything else */
	struct id_set tombs;     /* DEAD: by tombstone */
	struct id_set verdicts;  /* DEAD: by verdict */
	struct id_set markers;   /* K */
	struct id_set committed; /* sessions in P */
	struct id_set pinned;    /* points that open sessions build on */
	struct name_list points; /* P */

	struct mark **marks; /* hash table */
	size_t nmarks, cap;
};

static inline struct mark_segments *mark_segments(struct mark *m, uint8_t type)
{
	return &m->seg[type == SEGMENT_MAP];
}

static inline unsigned mark_words(uint8_t type)
{
	return (1U << seg_slots_log2(type)) / 64;
}

static inline bool prune_is_dead(const struct prune *p, const struct tm_id *sid)
{
	return id_set_has(&p->tombs, sid) || id_set_has(&p->verdicts, sid);
}

int prune_tick(const struct prune *p, struct error *err) TM_WUR;
/* Removes (or, in a dry run, counts) an object. */
int prune_remove(struct prune *p, const char *key, uint64_t size, struct error *err) TM_WUR;

/* ---- prune_mark.c ---- */

/* The session's mark; NULL when nothing of it is in use. */
struct mark *mark_find(const struct prune *p, const struct tm_id *sid);
/* Whether any slot is in use; m may be NULL. */
bool mark_any(const struct mark *m);
/* TM_E_NOTFOUND: the manifest is not there. */
int mark_point(struct prune *p, const struct point_name *name, struct error *err) TM_WUR;
void marks_free(struct prune *p);

/* ---- prune_sweep.c ---- */

int sweep_session(struct prune *p, const struct tm_id *sid, struct error *err) TM_WUR;

/* ---- prune_tidy.c ---- */

int tidy(struct prune *p, struct error *err) TM_WUR;

/* ---- seg_compact.c ---- */

static inline bool slot_live(const uint64_t *bits, uint32_t slot)
{
	return bits && (bits[slot / 64] >> slot % 64 & 1);
}

/* Whether any slot of a frame is in use. */
bool frame_live(const struct seg_frame *f, const uint64_t *bits);
/* Whether every slot in use is stored. */
bool tables_hold(const struct seg_tables *t, const uint64_t *bits);
/*
 * A segment whose frames without a live slot are left out; the others are copied as they are,
 * after their checksums were compared.  object: all bytes of the old one, whose tables are t.
 */
int seg_compact(const struct seg_tables *t, const uint8_t *object, const uint64_t *bits,
		uint32_t generation, uint32_t run, struct buf *ret, struct error *err) TM_WUR;
