/* SPDX-License-Identifier: Apache-2.0 */
/* Objects as bytes under checksums, for who has no keys. */
#pragma once

#include "internal.h"
#include "segment.h"

/* Whether this version knows what lies under a name, segments aside. */
bool scrub_knows(const struct repo *repo, const char *key);
/* The whole object; true of any repository, so that what an interrupted init left is sound, too. */
int scrub_small(const struct repo *repo, const char *key, const void *bytes, size_t len,
		struct error *err) TM_WUR;

/* The address that a segment of this repository's domain must carry. */
bool scrub_parse_segment(const struct repo *repo, const char *key, struct seg_address *ret);
