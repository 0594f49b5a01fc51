/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asking a repository that may hang, by who has more to do: on a thread of its own, which is left
 * alone when no answer comes.  It shares nothing with the others but the secrets, which are its own
 * from then on.
 */
#pragma once

#include "agent.h"

/* On that thread, with a repository open; data as given to apart_open(). */
typedef int apart_fn(struct agent *apart, void *data, struct error *err);

/*
 * Opens a repository for an agent of its own, *ret, and calls fn, unless it is NULL.
 * repo: as in -r, and no domain is in use; NULL: that of a, with its domain.  data: from malloc(),
 * or NULL; taken over in every case, and freed with *ret.
 * TM_E_TIMEOUT and a->hung: no answer within the limit (deadline.h); then none is asked any more.
 */
int apart_open(struct agent *a, const char *repo, apart_fn *fn, void *data, struct agent **ret,
	       struct error *err) TM_WUR;

/* Its warnings become those of a.  apart may be NULL. */
void apart_free(struct agent *a, struct agent *apart);
