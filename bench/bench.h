/* SPDX-License-Identifier: Apache-2.0 */
/* What the programs of the bench share: they measure, and end at the first thing that is wrong. */
#pragma once

#include "common/common.h"

#include <stdio.h>
#include <stdlib.h>

static inline void must(bool ok, const char *what)
{
	if (ok)
		return;
	perror(what);
	exit(1);
}

/* For calls that explain themselves. */
static inline void must_do(int code, const struct error *err)
{
	if (code >= 0)
		return;
	(void)fprintf(stderr, "%s\n", err->text);
	exit(1);
}
