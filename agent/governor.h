/* SPDX-License-Identifier: Apache-2.0 */
/*
 * backup --latency-limit: reading slows while the guest's own writes take longer than a bound.
 *
 * Twice a second it looks at the writes since the last look.  When more than one in a hundred was
 * slow, the rate is half of what was just read; otherwise a quarter is added, until the rate no
 * longer holds anything back.  It never falls below GOVERNOR_LEAST, so that a backup comes to its
 * end on a host that is always busy.
 */
#pragma once

#include "snapshot/snapshot.h"

#define GOVERNOR_LEAST ((uint64_t)1 << 20) /* bytes per second */
#define GOVERNOR_MS    500                 /* between two looks */

struct governor {
	uint64_t slow_ns; /* a write is slow from here on; 0: there is no governor */
	uint64_t limit;   /* of --limit-rate, bytes per second; 0: none */
	uint64_t rate;    /* for the reader: bytes per second, 0: no limit */
	uint64_t fastest; /* bytes per second that were reached without a limit */
	uint64_t next_ms; /* monotonic */
	uint64_t last_ms;
	uint64_t last_bytes;
	struct write_counts last;
	uint64_t slowed_ms; /* how long the rate was held down, in all */
};

void governor_init(struct governor *g, uint64_t slow_ms, uint64_t limit);

/* A disk's reading begins: read_bytes counts from 0 again. */
void governor_disk(struct governor *g, uint64_t now_ms);

/* Is it time to look? */
bool governor_due(const struct governor *g, uint64_t now_ms);

/* A look: the guest's writes so far, and the bytes read so far from this disk.  Sets g->rate. */
void governor_look(struct governor *g, uint64_t now_ms, uint64_t read_bytes,
		   const struct write_counts *writes);
