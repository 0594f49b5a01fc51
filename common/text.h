/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes and times as people write and read them. */
#pragma once

#include "error.h"

#include <stdbool.h>
#include <stdint.h>

/* "123", "64K", "1.5G": bytes, with K M G T P as powers of 1024. */
int size_parse(const char *text, uint64_t *ret, struct error *err) TM_WUR;

/* Well-formed UTF-8 (RFC 3629). */
bool text_is_utf8(const char *text);

#define SIZE_TEXT_MAX 16
/* "0 B", "64.0 KiB", "1.5 GiB". */
void size_format(uint64_t bytes, char text[SIZE_TEXT_MAX]);

#define TIME_TEXT_MAX 40
/* RFC 3339 in UTC with seconds: "2026-11-21T03:00:00Z".  ms is Unix time in milliseconds. */
void time_format_utc(uint64_t ms, char text[TIME_TEXT_MAX]);

/* Local time for tables: "2026-11-21 03:00:00". */
void time_format_local(uint64_t ms, char text[TIME_TEXT_MAX]);

/*
 * RFC 3339 or a prefix of it ("2026-11-21", "2026-11-21T03:00"); without a zone it is
 * local time.  *ret is the last millisecond the text can mean, so that "newest at or
 * before" includes the whole day, minute or second named.
 */
int time_parse(const char *text, uint64_t *ret, struct error *err) TM_WUR;
