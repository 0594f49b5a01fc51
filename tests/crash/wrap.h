/* SPDX-License-Identifier: Apache-2.0 */
/* The calls that the linker leads through the shim (meson.build lists the same names). */
#pragma once

#include "common/common.h"

#include <dirent.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

/* NOLINTBEGIN(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */

#define WRAP(type, name, ...)            \
	type __real_##name(__VA_ARGS__); \
	type __wrap_##name(__VA_ARGS__)

WRAP(void, loop_read, struct loop *, struct loop_op *, int, void *, uint32_t, uint64_t);
WRAP(void, loop_write, struct loop *, struct loop_op *, int, const void *, uint32_t, uint64_t);
WRAP(void, loop_fdatasync, struct loop *, struct loop_op *, int);
WRAP(void, loop_fsync, struct loop *, struct loop_op *, int);
WRAP(void, loop_openat, struct loop *, struct loop_op *, int, const char *, int, uint32_t);
WRAP(void, loop_mkdirat, struct loop *, struct loop_op *, int, const char *, uint32_t);
WRAP(void, loop_renameat, struct loop *, struct loop_op *, int, const char *, int, const char *,
     uint32_t);
WRAP(void, loop_unlinkat, struct loop *, struct loop_op *, int, const char *);
WRAP(int, open64, const char *, int, ...);
WRAP(int, openat64, int, const char *, int, ...);
WRAP(int, fsync, int);
WRAP(int, mkdir, const char *, mode_t);
WRAP(int, unlink, const char *);
WRAP(int, unlinkat, int, const char *, int);
WRAP(int, linkat, int, const char *, int, const char *, int);
WRAP(int, fstatat64, int, const char *, struct stat *, int);
WRAP(int, stat64, const char *, struct stat *);
WRAP(int, fstatvfs64, int, struct statvfs *);
WRAP(DIR *, opendir, const char *);
WRAP(DIR *, fdopendir, int);
WRAP(struct dirent *, readdir64, DIR *);

/* NOLINTEND(bugprone-reserved-identifier,cert-dcl37-c,cert-dcl51-cpp) */
