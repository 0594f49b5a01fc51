/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The audit of a bitmap as its own files see it: audit.c chooses clusters of the point and
 * learns what they held, audit_compare.c compares them with what is there now.
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

/* ---- audit_compare.c ---- */
int audit_put(struct piece_sink *sink, struct piece *piece, struct error *err);
