/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CRC-32C: the processor's instruction where there is one, else a table.  The
 * fast path runs three independent streams, because the instruction has a
 * latency of three cycles; their results are joined with precomputed shifts.
 */
#include "crc32c.h"

#include <pthread.h>
#include <string.h>

#define POLY 0x82f63b78u

static uint32_t table[256];
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

static void table_fill(void)
{
	for (uint32_t i = 0; i < 256; i++) {
		uint32_t c = i;

		for (int k = 0; k < 8; k++)
			c = c & 1 ? POLY ^ (c >> 1) : c >> 1;
		table[i] = c;
	}
}

static uint32_t crc_table(uint32_t c, const uint8_t *p, size_t len)
{
	(void)pthread_once(&table_once, table_fill);
	while (len--)
		c = table[(c ^ *p++) & 0xff] ^ (c >> 8);
	return c;
}

#if defined(__x86_64__)
#include <nmmintrin.h>

#define STREAM ((size_t)1024) /* bytes of one of the three streams in a round */

/* The CRC register after STREAM and 2 * STREAM zero bytes, by byte of the register. */
static uint32_t shift1[4][256], shift2[4][256];
static pthread_once_t shift_once = PTHREAD_ONCE_INIT;

/* What becomes of a register is the sum of what becomes of its bits. */
static void shift_fill(void)
{
	static const uint8_t zeroes[STREAM];

	for (unsigned bit = 0; bit < 32; bit++) {
		uint32_t once = crc_table(UINT32_C(1) << bit, zeroes, STREAM);
		uint32_t twice = crc_table(once, zeroes, STREAM);

		for (uint32_t i = 0; i < 256; i++) {
			if (!(i >> bit % 8 & 1))
				continue;
			shift1[bit / 8][i] ^= once;
			shift2[bit / 8][i] ^= twice;
		}
	}
}

static uint32_t shift(const uint32_t t[4][256], uint32_t c)
{
	return t[0][c & 0xff] ^ t[1][c >> 8 & 0xff] ^ t[2][c >> 16 & 0xff] ^ t[3][c >> 24];
}

static uint64_t load64(const uint8_t *p)
{
	uint64_t v;

	(void)memcpy(&v, p, sizeof(v));
	return v;
}

__attribute__((target("sse4.2"))) static uint32_t crc_sse42(uint32_t crc, const uint8_t *p,
							    size_t len)
{
	uint64_t c = crc;

	(void)pthread_once(&shift_once, shift_fill);
	for (; len >= 3 * STREAM; len -= 3 * STREAM, p += 3 * STREAM) {
		uint64_t c1 = 0, c2 = 0;

		for (size_t i = 0; i < STREAM; i += 8) {
			c = _mm_crc32_u64(c, load64(p + i));
			c1 = _mm_crc32_u64(c1, load64(p + STREAM + i));
			c2 = _mm_crc32_u64(c2, load64(p + 2 * STREAM + i));
		}
		c = shift(shift2, (uint32_t)c) ^ shift(shift1, (uint32_t)c1) ^ (uint32_t)c2;
	}
	for (; len >= 8; len -= 8, p += 8)
		c = _mm_crc32_u64(c, load64(p));
	while (len--)
		c = _mm_crc32_u8((uint32_t)c, *p++);
	return (uint32_t)c;
}
#endif

uint32_t crc32c(uint32_t crc, const void *data, size_t len)
{
#if defined(__x86_64__)
	if (__builtin_cpu_supports("sse4.2"))
		return ~crc_sse42(~crc, data, len);
#endif
	return ~crc_table(~crc, data, len);
}
