/* SPDX-License-Identifier: Apache-2.0 */
#include "buf.h"

#include "checked.h"

#include <stdio.h>
#include <string.h>

void buf_done(struct buf *b)
{
	free(b->data);
	*b = (struct buf){0};
}

int buf_reserve(struct buf *b, size_t more, struct error *err)
{
	size_t need, cap = b->cap ? b->cap : 64;
	uint8_t *data;

	if (__builtin_add_overflow(b->len, more, &need))
		return error_nomem(err);
	if (need <= b->cap)
		return 0;
	while (cap < need) {
		if (!size_mul(cap, 2, &cap))
			return error_nomem(err);
	}
	data = realloc(b->data, cap);
	if (!data)
		return error_nomem(err);
	b->data = data;
	b->cap = cap;
	return 0;
}

int buf_add(struct buf *b, const void *bytes, size_t len, struct error *err)
{
	int r = buf_reserve(b, len, err);

	if (r)
		return r;
	if (len)
		(void)memcpy(b->data + b->len, bytes, len);
	b->len += len;
	return 0;
}

TM_PRINTF(3, 0)
static int add_formatted(struct buf *b, struct error *err, const char *fmt, va_list ap)
{
	va_list again;
	int n, r;

	va_copy(again, ap);
	n = vsnprintf(NULL, 0, fmt, again);
	va_end(again);
	if (n < 0)
		return error_set(err, TM_E_RANGE, "cannot format a text");
	r = buf_reserve(b, (size_t)n + 1, err);
	if (r)
		return r;
	if (vsnprintf((char *)b->data + b->len, (size_t)n + 1, fmt, ap) != n)
		return error_set(err, TM_E_RANGE, "cannot format a text");
	b->len += (size_t)n;
	return 0;
}

int buf_printf(struct buf *b, struct error *err, const char *fmt, ...)
{
	va_list ap;
	int r;

	va_start(ap, fmt);
	r = add_formatted(b, err, fmt, ap);
	va_end(ap);
	return r;
}

int text_format(char **ret, struct error *err, const char *fmt, ...)
{
	struct buf b = {0};
	va_list ap;
	int r;

	va_start(ap, fmt);
	r = add_formatted(&b, err, fmt, ap);
	va_end(ap);
	if (r) {
		buf_done(&b);
		return r;
	}
	*ret = (char *)b.data;
	return 0;
}

int text_copy(const char *text, char **ret, struct error *err)
{
	char *copy = strdup(text);

	if (!copy)
		return error_nomem(err);
	*ret = copy;
	return 0;
}
