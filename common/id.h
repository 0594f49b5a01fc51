/* SPDX-License-Identifier: Apache-2.0 */
/* 128-bit ids (repositories, points, disks), printed as 32 lower-case hex digits. */
#pragma once

#include "error.h"

#include <stdbool.h>
#include <stdint.h>

#define TM_ID_BYTES 16
#define TM_ID_HEX   32 /* characters, without the terminating NUL */

struct tm_id {
	uint8_t b[TM_ID_BYTES];
};

struct tm_id_text {
	char s[TM_ID_HEX + 1];
};

/* Fills buf with random bytes from the kernel. */
int random_bytes(void *buf, size_t len, struct error *err) TM_WUR;

/* 16 random bytes. */
int id_new(struct tm_id *ret, struct error *err) TM_WUR;

/*
 * 48 bits of Unix time in milliseconds (big-endian, so that ids sort by time)
 * and 80 random bits.  Nothing may depend on the time being right.
 */
int id_new_timed(uint64_t now_ms, struct tm_id *ret, struct error *err) TM_WUR;

/* The time of a timed id, Unix milliseconds. */
uint64_t id_time_ms(const struct tm_id *id);

struct tm_id_text id_text(const struct tm_id *id);

/* Exactly 32 lower-case hex digits, nothing after them. */
bool id_parse(const char *text, struct tm_id *ret);

bool id_equal(const struct tm_id *a, const struct tm_id *b);
bool id_is_zero(const struct tm_id *id);

/* Lower-case hex of `len` bytes into text[2 * len + 1]. */
void hex_encode(const void *bytes, size_t len, char *text);

/* Exactly 2 * len lower-case hex digits at text. */
bool hex_decode(const char *text, void *bytes, size_t len);
