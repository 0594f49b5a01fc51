/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The audit of a bitmap as its own files see it: audit.c chooses clusters of the point by chance
 * and learns what they held, audit_highest.c chooses the one that proves the bitmap's end,
 * audit_compare.c compares them with what is there now.
 */
#pragma once

#include "look.h"
#include "worker.h"

/* A chosen cluster. */
struct audit_pick {
	uint64_t block;
	bool data;                 /* false: a hole in the point */
	uint8_t id[CONTENT_BYTES]; /* of its content, valid with data */
};

struct repo_audit {
	struct repo *repo;
	struct repo_audit_options opt;
	uint64_t blocks; /* of the disk now */
	uint64_t random;
	uint64_t next;   /* choosing a share: goes on with this block */
	bool few_chosen; /* what is chosen by number is done */
	struct look look;
	int look_code; /* how the last load ended */
	struct error look_err;
	unsigned loads;
	struct audit_pick *pick; /* the present choice, by block */
	size_t npicks, cap;

	struct workers workers;
	struct piece_sink sink;
	unsigned works; /* pieces on workers */
	struct repo_audit_counts counts;
	int code; /* of the first failure */
	struct error err;
};

/* ---- audit.c ---- */
/* Looks up a block by look_run or look_run_until, and waits for it.  Runs the loop. */
int audit_look(struct repo_audit *a, int (*how)(struct look *, uint64_t, struct error *),
	       uint64_t block, struct error *err) TM_WUR;
/* Adds a block of the run that was found; a cluster whose content is not known is left out. */
int audit_pick(struct repo_audit *a, uint64_t block, struct error *err) TM_WUR;

/* ---- audit_compare.c ---- */
int audit_put(struct piece_sink *sink, struct piece *piece, struct error *err);
