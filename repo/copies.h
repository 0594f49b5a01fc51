/* SPDX-License-Identifier: Apache-2.0 */
/* Objects that lie in the store twice, since all depends on them: "repo", key slots, domains. */
#pragma once

#include "internal.h"

#define COPIES 2

struct copies {
	bool there[COPIES], whole[COPIES];
	struct buf bytes; /* of a whole copy; owned */
};
/* What was read of them, and of each that is not right by itself why. */
struct copies_read {
	struct copies copies;
	struct error err[COPIES];
};
struct copy_names {
	char key[COPIES][KEY_MAX];
};

/* A copy that was read and is right by itself.  True: the first one; its bytes are taken from b.
 * Of two that differ, the first one is right. */
bool copies_take(struct copies *c, unsigned copy, struct buf *b);
/* New ones, a before b. */
int copies_put(const struct repo *repo, const struct copy_names *n, const void *bytes, size_t len,
	       struct error *err) TM_WUR;
/* Puts the bytes of the whole copy in place of the one that is not; *count grows by those put. */
int copies_mend(const struct repo *repo, const struct copy_names *n, const struct copies *c,
		size_t *count, struct error *err) TM_WUR;
/* The same, but a copy that only could not be read now is an error, and stays. */
int copies_mend_read(const struct repo *repo, const struct copy_names *n,
		     const struct copies_read *c, size_t *count, struct error *err) TM_WUR;
