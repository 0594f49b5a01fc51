/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Little-endian and big-endian integers as they lie on disk: byte arrays with alignment 1
 * and no padding.  Using a raw field as a number does not compile.
 */
#pragma once

#include <stdint.h>

struct le16 {
	uint8_t b[2];
};
struct le32 {
	uint8_t b[4];
};
struct le64 {
	uint8_t b[8];
};

static inline uint16_t le16_get(struct le16 v)
{
	return (uint16_t)(v.b[0] | (unsigned)v.b[1] << 8);
}

static inline uint32_t le32_get(struct le32 v)
{
	return (uint32_t)v.b[0] | (uint32_t)v.b[1] << 8 | (uint32_t)v.b[2] << 16 |
	       (uint32_t)v.b[3] << 24;
}

static inline uint64_t le64_get(struct le64 v)
{
	return (uint64_t)v.b[0] | (uint64_t)v.b[1] << 8 | (uint64_t)v.b[2] << 16 |
	       (uint64_t)v.b[3] << 24 | (uint64_t)v.b[4] << 32 | (uint64_t)v.b[5] << 40 |
	       (uint64_t)v.b[6] << 48 | (uint64_t)v.b[7] << 56;
}

static inline struct le16 le16_of(uint16_t v)
{
	return (struct le16){{(uint8_t)(v & 0xff), (uint8_t)(v >> 8)}};
}

static inline struct le32 le32_of(uint32_t v)
{
	return (struct le32){{(uint8_t)(v & 0xff), (uint8_t)(v >> 8 & 0xff),
			      (uint8_t)(v >> 16 & 0xff), (uint8_t)(v >> 24)}};
}

static inline struct le64 le64_of(uint64_t v)
{
	return (struct le64){{(uint8_t)(v & 0xff), (uint8_t)(v >> 8 & 0xff),
			      (uint8_t)(v >> 16 & 0xff), (uint8_t)(v >> 24 & 0xff),
			      (uint8_t)(v >> 32 & 0xff), (uint8_t)(v >> 40 & 0xff),
			      (uint8_t)(v >> 48 & 0xff), (uint8_t)(v >> 56)}};
}

/* The formats of others. */
struct be16 {
	uint8_t b[2];
};
struct be32 {
	uint8_t b[4];
};
struct be64 {
	uint8_t b[8];
};

static inline uint32_t be32_get(struct be32 v)
{
	return (uint32_t)v.b[3] | (uint32_t)v.b[2] << 8 | (uint32_t)v.b[1] << 16 |
	       (uint32_t)v.b[0] << 24;
}

static inline uint64_t be64_get(struct be64 v)
{
	return (uint64_t)v.b[7] | (uint64_t)v.b[6] << 8 | (uint64_t)v.b[5] << 16 |
	       (uint64_t)v.b[4] << 24 | (uint64_t)v.b[3] << 32 | (uint64_t)v.b[2] << 40 |
	       (uint64_t)v.b[1] << 48 | (uint64_t)v.b[0] << 56;
}

static inline struct be16 be16_of(uint16_t v)
{
	return (struct be16){{(uint8_t)(v >> 8), (uint8_t)(v & 0xff)}};
}

static inline struct be32 be32_of(uint32_t v)
{
	return (struct be32){{(uint8_t)(v >> 24), (uint8_t)(v >> 16 & 0xff),
			      (uint8_t)(v >> 8 & 0xff), (uint8_t)(v & 0xff)}};
}

static inline struct be64 be64_of(uint64_t v)
{
	return (struct be64){{(uint8_t)(v >> 56), (uint8_t)(v >> 48 & 0xff),
			      (uint8_t)(v >> 40 & 0xff), (uint8_t)(v >> 32 & 0xff),
			      (uint8_t)(v >> 24 & 0xff), (uint8_t)(v >> 16 & 0xff),
			      (uint8_t)(v >> 8 & 0xff), (uint8_t)(v & 0xff)}};
}
