/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scope-bound clean-up.  A variable declared with one of the auto_ markers is
 * released when it leaves its scope and must therefore always be initialised.
 * tm_steal() is the one way to let a value out of such a variable.
 */
#pragma once

#include <stdlib.h>
#include <unistd.h>

#define TM_WUR               __attribute__((warn_unused_result))
#define TM_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))

/* Declares cleanup_<free function> for `type` pointers: NULL is left alone. */
#define TM_CLEANUP(type, release)                      \
	static inline void cleanup_##release(type **p) \
	{                                              \
		if (*p)                                \
			release(*p);                   \
	}
#define auto_clean(release) __attribute__((cleanup(cleanup_##release)))

static inline void cleanup_free(void *p)
{
	free(*(void **)p);
}

static inline void cleanup_close(const int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
}

#define auto_free  __attribute__((cleanup(cleanup_free)))
#define auto_close __attribute__((cleanup(cleanup_close)))

#define tm_steal(p)                            \
	__extension__({                        \
		__typeof__(p) tm_stolen = (p); \
		(p) = NULL;                    \
		tm_stolen;                     \
	})

static inline int tm_steal_fd(int *fd)
{
	int stolen = *fd;

	*fd = -1;
	return stolen;
}
