/* SPDX-License-Identifier: Apache-2.0 */
/* TARGET of the command line: which guest, and how to reach it. */
#pragma once

#include "options.h"

struct target {
	struct guest_target guest; /* points into the rest */
	char *text;                /* the word, cut into pieces */
	const char **images;
	size_t nimages;
};

#define auto_target __attribute__((cleanup(target_done)))

int target_parse(const char *word, struct target *ret, struct error *err) TM_WUR;
void target_done(struct target *t);

/* All of them, *ret has words->n; or none, so that a wrong one is found before anything is done. */
int targets_parse(const struct string_list *words, struct target **ret, struct error *err) TM_WUR;
void targets_done(struct target *v, size_t n);
