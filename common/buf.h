/* SPDX-License-Identifier: Apache-2.0 */
/* A growable byte buffer.  All bytes are owned by the buffer. */
#pragma once

#include "error.h"

#include <stdarg.h>
#include <stdint.h>

struct buf {
	uint8_t *data;
	size_t len;
	size_t cap;
};

#define auto_buf __attribute__((cleanup(buf_done)))

/* {0} is a valid empty buffer. */
void buf_done(struct buf *b);

/* Room for `more` bytes behind len; len does not change. */
int buf_reserve(struct buf *b, size_t more, struct error *err) TM_WUR;

int buf_add(struct buf *b, const void *bytes, size_t len, struct error *err) TM_WUR;

/* Appends formatted text; the buffer stays NUL-terminated behind len. */
int buf_printf(struct buf *b, struct error *err, const char *fmt, ...) TM_WUR TM_PRINTF(3, 4);

/* asprintf that reports errors our way; the caller owns *ret. */
int text_format(char **ret, struct error *err, const char *fmt, ...) TM_WUR TM_PRINTF(3, 4);

int text_copy(const char *text, char **ret, struct error *err) TM_WUR;
