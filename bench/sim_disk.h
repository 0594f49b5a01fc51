/* SPDX-License-Identifier: Apache-2.0 */
/* A disk that is computed: sparse, as large as wanted, its changes chosen by a seed. */
#pragma once

#include "transport/transport.h"

struct sim_disk {
	struct block_source src;
	struct loop *loop;
	struct loop_op turn;
	struct source_req *answered, **answered_end;
	uint64_t block_size;
	uint64_t *dirty; /* block numbers, ascending */
	size_t ndirty;
	uint64_t epoch;
	const uint8_t *content; /* real data to take blocks from, or NULL: zeroes */
	uint64_t ncontent;      /* blocks */
	bool plain;             /* not stamped: blocks may be equal */
	uint64_t read_bytes;
};

void sim_disk_init(struct sim_disk *d, struct loop *loop, uint64_t size, uint64_t block_size);
void sim_disk_done(struct sim_disk *d);

/* `n` different blocks are dirty, in runs of `run`. */
void sim_disk_choose(struct sim_disk *d, size_t n, size_t run, uint64_t seed);

uint64_t sim_mix(uint64_t x);
