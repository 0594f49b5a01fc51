/* SPDX-License-Identifier: Apache-2.0 */
/* What shows, once QEMU is dead, that nobody has written to a base since it was frozen. */
#pragma once

#include "common/common.h"

#include <stdbool.h>
#include <stdint.h>

#define BASE_DEVICE_MAX 160 /* with the NUL */

struct base_state {
	bool regular;                 /* a file; else a device */
	uint64_t mtime;               /* ns; of a device's node, where it shows nothing */
	char device[BASE_DEVICE_MAX]; /* of a device: changes with each write; "": not known */
};

/* Writes what is cached of a device to it first, so that only later writes count. */
int base_state_look(const char *path, struct base_state *ret, struct error *err) TM_WUR;
/* False also where it is not known. */
bool base_state_same(const struct base_state *a, const struct base_state *b);
