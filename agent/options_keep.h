/* SPDX-License-Identifier: Apache-2.0 */
/* The options of forget and prune. */
#pragma once

#include "options.h"

int string_list_add(struct string_list *list, const char *value, struct error *err) TM_WUR;

/* One of --keep-…, --prune, --max-unused, --stale-hours. */
int options_keep_apply(struct options *o, const char *option, const char *value,
		       struct error *err) TM_WUR;
/* Whether forget was told what to do. */
int options_keep_check(const struct options *o, struct error *err) TM_WUR;
