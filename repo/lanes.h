/* SPDX-License-Identifier: Apache-2.0 */
/*
 * HMAC-SHA256 of several messages at once, one in each lane of the vector registers: with AVX-512
 * sixteen take the time of seven one after the other, whatever their number.
 */
#pragma once

#include "crypt.h"

#define LANES_MAX           16      /* messages at once */
#define LANES_MIN           8       /* fewer are not worth it */
#define LANES_MESSAGE_BYTES 0x10000 /* longest message */

struct lanes;

/*
 * *ret is NULL where this build or this processor has none, and where they were not found to
 * compute what mac_do() does.
 */
int lanes_new(const struct secret *key, struct lanes **ret, struct error *err) TM_WUR;
void lanes_free(struct lanes *l);
TM_CLEANUP(struct lanes, lanes_free)

/* n messages of len bytes each.  One thread at a time. */
int lanes_do(struct lanes *l, unsigned n, const uint8_t *const message[], size_t len,
	     uint8_t ret[][KEY_BYTES], struct error *err) TM_WUR;
