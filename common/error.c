/* SPDX-License-Identifier: Apache-2.0 */
#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define GAP "[...]"

static bool starts_character(char c)
{
	return ((unsigned char)c & 0xc0) != 0x80;
}

/*
 * The beginning says what happened and to what, the end what to do, so it is the middle that goes.
 * Both ends have always the same length: the gap of a text that is put together again is in what
 * goes then.
 */
static void keep_ends(struct error *err, const char *full, size_t len)
{
	size_t keep = (sizeof(err->text) - sizeof(GAP)) / 2;
	size_t head = keep, tail = len - keep;

	while (head && !starts_character(full[head]))
		head--;
	while (tail < len && !starts_character(full[tail]))
		tail++;
	(void)snprintf(err->text, sizeof(err->text), "%.*s" GAP "%s", (int)head, full, full + tail);
}

TM_PRINTF(2, 0)
static void set_text(struct error *err, const char *fmt, va_list ap)
{
	auto_free char *full = NULL;
	va_list again;
	int n;

	va_copy(again, ap);
	n = vsnprintf(err->text, sizeof(err->text), fmt, ap);
	if (n < 0)
		err->text[0] = '\0';
	if (n >= (int)sizeof(err->text)) /* without memory the end is lost */
		full = malloc((size_t)n + 1);
	if (full && vsnprintf(full, (size_t)n + 1, fmt, again) == n)
		keep_ends(err, full, (size_t)n);
	va_end(again);
	/* One phrase, one line, whatever a peer or a file name brought in. */
	for (char *p = err->text; *p; p++) {
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = ' ';
	}
}

TM_PRINTF(2, 3)
static void put_text(struct error *err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	set_text(err, fmt, ap);
	va_end(ap);
}

void error_set_at(struct error *err, enum tm_code code, int errnum, const char *file, int line,
		  const char *fmt, ...)
{
	va_list ap;

	if (!err || err->code)
		return;
	err->code = code;
	err->errnum = errnum;
	err->file = file;
	err->line = line;
	va_start(ap, fmt);
	set_text(err, fmt, ap);
	va_end(ap);
}

static enum tm_code code_of(int errnum)
{
	switch (errnum) {
	case ENOMEM:
		return TM_E_NOMEM;
	case ENOENT:
		return TM_E_NOTFOUND;
	case EEXIST:
		return TM_E_EXISTS;
	case ENOSPC:
	case EDQUOT:
		return TM_E_NOSPACE;
	case EACCES:
	case EPERM:
	case EROFS:
		return TM_E_DENIED;
	case ECANCELED:
		return TM_E_CANCELED;
	case ETIMEDOUT:
		return TM_E_TIMEOUT;
	default:
		return TM_E_IO;
	}
}

int error_errno_at(struct error *err, int errnum, const char *file, int line, const char *fmt, ...)
{
	enum tm_code code = code_of(errnum);
	va_list ap;

	if (!err || err->code)
		return code;
	err->code = code;
	err->errnum = errnum;
	err->file = file;
	err->line = line;
	va_start(ap, fmt);
	set_text(err, fmt, ap);
	va_end(ap);
	error_append(err, ": %s", strerror(errnum));
	return code;
}

void error_prefix(struct error *err, const char *fmt, ...)
{
	struct error old, prefix;
	va_list ap;

	if (!err || !err->code)
		return;
	old = *err;
	va_start(ap, fmt);
	set_text(&prefix, fmt, ap);
	va_end(ap);
	put_text(err, "%s: %s", prefix.text, old.text);
}

void error_append(struct error *err, const char *fmt, ...)
{
	struct error old, more;
	va_list ap;

	if (!err || !err->code)
		return;
	old = *err;
	va_start(ap, fmt);
	set_text(&more, fmt, ap);
	va_end(ap);
	put_text(err, "%s%s", old.text, more.text);
}

void error_clear(struct error *err)
{
	if (err)
		*err = (struct error){0};
}
