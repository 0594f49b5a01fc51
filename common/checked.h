/* SPDX-License-Identifier: Apache-2.0 */
/* Arithmetic on offsets, lengths and sizes that may come from elsewhere. */
#pragma once

#include "cleanup.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* offset + length; false when it would wrap. */
static inline bool range_end(uint64_t offset, uint64_t length, uint64_t *ret)
{
	return !__builtin_add_overflow(offset, length, ret);
}

/* [offset, offset + length) lies inside [0, size). */
static inline bool range_inside(uint64_t offset, uint64_t length, uint64_t size)
{
	return offset <= size && length <= size - offset;
}

static inline bool size_mul(size_t n, size_t item, size_t *ret)
{
	return !__builtin_mul_overflow(n, item, ret);
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static inline size_t min_size(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* unit must be a power of two */
static inline uint64_t align_down(uint64_t v, uint64_t unit)
{
	return v & ~(unit - 1);
}

/* False when the aligned value does not fit. */
static inline bool align_up(uint64_t v, uint64_t unit, uint64_t *ret)
{
	if (__builtin_add_overflow(v, unit - 1, &v))
		return false;
	*ret = v & ~(unit - 1);
	return true;
}

static inline uint64_t div_round_up(uint64_t v, uint64_t unit)
{
	return v / unit + (v % unit != 0);
}
