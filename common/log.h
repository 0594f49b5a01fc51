/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Debug log to stderr, off by default.  Library folders return errors and log
 * nothing above debug; the agent alone speaks to people.
 */
#pragma once

#include "cleanup.h"

#include <stdbool.h>

/* Set once before threads start. */
extern bool log_debug_on;

#define log_debug(...)                                                 \
	do {                                                           \
		if (log_debug_on)                                      \
			log_debug_at(__FILE__, __LINE__, __VA_ARGS__); \
	} while (0)

void log_debug_at(const char *file, int line, const char *fmt, ...) TM_PRINTF(3, 4);
