/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors: a code for the program, a text for the human, both made at the point
 * of failure.  Functions return 0 or a negative enum tm_code; callers branch on
 * the code, never on the text.  A `struct error *` is always the last argument,
 * lives on the caller's stack, and may be NULL.
 */
#pragma once

#include "cleanup.h"

#include <stddef.h>

/* One code per reaction of the caller. */
enum tm_code {
	TM_OK = 0,
	TM_E_NOMEM = -1,       /* out of memory */
	TM_E_IO = -2,          /* the system refused or failed an operation; see errnum */
	TM_E_CORRUPT = -3,     /* stored bytes are not what was written */
	TM_E_UNSUPPORTED = -4, /* newer format, missing feature */
	TM_E_STALE = -5,       /* state changed under us; looking again may help */
	TM_E_RANGE = -6,       /* offset, length or count outside its limits */
	TM_E_BUSY = -7,        /* somebody else holds it */
	TM_E_CANCELED = -8,    /* asked to stop */
	TM_E_NOTFOUND = -9,    /* no such object, disk, point, ... */
	TM_E_EXISTS = -10,     /* there is one already */
	TM_E_USAGE = -11,      /* the person asked for something that cannot be asked */
	TM_E_TIMEOUT = -12,    /* no answer within the bound */
	TM_E_PEER = -13,       /* the other side (QEMU, agent, NBD server) answered with an error */
	TM_E_NOSPACE = -14,    /* ENOSPC, EDQUOT */
	TM_E_DENIED = -15,     /* EACCES, EPERM, wrong key */
};

struct error {
	enum tm_code code;
	int errnum;       /* errno, or 0 */
	const char *file; /* where it was made */
	int line;
	char text[768]; /* one phrase, no newline; of a longer one the middle is left out */
};

/*
 * Fills *err (unless it is NULL or already set: the first error wins) and yields
 * the literal code, so that compiler and analyzers know that the path failed.
 */
#define error_set(err, code, ...) \
	(error_set_at((err), (code), 0, __FILE__, __LINE__, __VA_ARGS__), (int)(code))

/* The same with ": strerror(errnum)" appended; yields the code that fits errnum. */
#define error_errno(err, errnum, ...) \
	error_errno_at((err), (errnum), __FILE__, __LINE__, __VA_ARGS__)

#define error_nomem(err) error_set((err), TM_E_NOMEM, "out of memory")

void error_set_at(struct error *err, enum tm_code code, int errnum, const char *file, int line,
		  const char *fmt, ...) TM_PRINTF(6, 7);

int error_errno_at(struct error *err, int errnum, const char *file, int line, const char *fmt, ...)
	TM_PRINTF(5, 6);

/* If code says that something went wrong, hands over what `from` says of it, at which the caller
 * had to look first; yields code. */
static inline int error_pass(struct error *err, int code, const struct error *from)
{
	if (code && err && !err->code) {
		*err = *from;
		err->code = (enum tm_code)code;
	}
	return code;
}

/* Puts "<text>: " before the message.  Does nothing when err is NULL or not set. */
void error_prefix(struct error *err, const char *fmt, ...) TM_PRINTF(2, 3);

/* Appends text, for what the person can do about it. */
void error_append(struct error *err, const char *fmt, ...) TM_PRINTF(2, 3);

void error_clear(struct error *err);
