/* SPDX-License-Identifier: Apache-2.0 */
/* A store that counts what is asked of the one below it. */
#pragma once

#include "repo/internal.h"

struct counting {
	struct store st;
	struct store *below; /* owned */
	/* Set by the user once there is one: names can be read from then on.  Borrowed. */
	const struct repo *repo;
	uint64_t puts, gets, lists, heads;
	uint64_t put_bytes, got_bytes;
	/* of put_bytes: frames of data, what lies before them, map segments, manifests */
	uint64_t payload, tables, map, points;
	unsigned rtt_ms; /* that every put, get, list and head takes longer */
	struct counted_req *idle;
};

/* The directory store of `dir`, counted; freed by its ops like any store. */
struct counting *counting_open(struct loop *loop, const char *dir, bool create);
void counting_reset(struct counting *c);
/* Members of a JSON object. */
void counting_print(const struct counting *c);
