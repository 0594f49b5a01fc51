/* SPDX-License-Identifier: Apache-2.0 */
/* From an embedded member back to the object around it. */
#pragma once

#include <stddef.h>

#define container_of(member_ptr, type, member) \
	((type *)(void *)((char *)(member_ptr)-offsetof(type, member)))
