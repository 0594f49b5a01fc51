/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HMAC-SHA256 of several messages at once, one in each lane of the vector registers.  With AVX-512
 * a call takes the time of seven messages one after the other, for one as for sixteen.
 */
#pragma once

#include "crypt.h"

#define LANES_MAX           16      /* messages at once */
#define LANES_MIN           8       /* fewer are not worth it */
#define LANES_MESSAGE_BYTES 0x10000 /* longest message */

struct lanes;

/*
 * NULL where this build has none, where this processor hashes one after the other as quickly, where
 * they were not found to compute what mac_do() does, and without memory.  The first call of a
 * process takes some milliseconds, to find that out.
 */
struct lanes *lanes_new(const struct secret *key);
void lanes_free(struct lanes *l);
TM_CLEANUP(struct lanes, lanes_free)

/*
 * n messages of len bytes each.  One thread at a time.  False: ret is undefined, and l must not be
 * used again, because it may still refer to the messages.
 */
bool lanes_do(struct lanes *l, unsigned n, const uint8_t *const message[], size_t len,
	      uint8_t ret[][KEY_BYTES]) TM_WUR;
