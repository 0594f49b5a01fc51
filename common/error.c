/* SPDX-License-Identifier: Apache-2.0 */
#include "error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

TM_PRINTF(2, 0)
static void set_text(struct error *err, const char *fmt, va_list ap)
{
	if (vsnprintf(err->text, sizeof(err->text), fmt, ap) < 0)
		err->text[0] = '\0';
	/* One phrase, one line, whatever a peer or a file name brought in. */
	for (char *p = err->text; *p; p++) {
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = ' ';
	}
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
	char old[sizeof(err->text)];
	size_t len;
	va_list ap;

	if (!err || !err->code)
		return;
	(void)memcpy(old, err->text, sizeof(old));
	va_start(ap, fmt);
	set_text(err, fmt, ap);
	va_end(ap);
	len = strlen(err->text);
	if (snprintf(err->text + len, sizeof(err->text) - len, ": %s", old) < 0)
		err->text[len] = '\0';
}

void error_append(struct error *err, const char *fmt, ...)
{
	size_t len;
	va_list ap;

	if (!err || !err->code)
		return;
	len = strlen(err->text);
	va_start(ap, fmt);
	if (vsnprintf(err->text + len, sizeof(err->text) - len, fmt, ap) < 0)
		err->text[len] = '\0';
	va_end(ap);
}

void error_clear(struct error *err)
{
	if (err)
		*err = (struct error){0};
}
