/* SPDX-License-Identifier: Apache-2.0 */
/*
 * File helpers.  Each one checks every result, continues after EINTR and short
 * transfers, and names the path it failed on.  Files are made 0600, folders 0700.
 */
#pragma once

#include "buf.h"
#include "error.h"

#include <stdbool.h>
#include <sys/types.h>

/* Exactly len bytes; a file that ends before is TM_E_CORRUPT. `path` is for messages only. */
int io_pread(int fd, const char *path, void *buf, size_t len, uint64_t offset,
	     struct error *err) TM_WUR;
int io_pwrite(int fd, const char *path, const void *buf, size_t len, uint64_t offset,
	      struct error *err) TM_WUR;

/* The whole file, which may not be longer than max bytes.  TM_E_NOTFOUND when there is none. */
int io_read_file(const char *path, size_t max, struct buf *ret, struct error *err) TM_WUR;

/*
 * Publishes a file durably: temporary file beside it, write, fsync, rename over
 * `path`, fsync of the directory.  After a crash there is the old file or the new
 * one, whole, and perhaps `path` IO_PUBLISH_TMP, which the next call replaces.  mode
 * is the file's permission bits.  One writer of a path at a time.
 */
#define IO_PUBLISH_TMP ".tmp"
int io_publish(const char *path, const void *bytes, size_t len, mode_t mode,
	       struct error *err) TM_WUR;
/*
 * The same for n paths: all are written, then synced, renamed, and their directories synced.  done
 * has n elements: whether that was done.  The code is that of a file that failed, *err of the first
 * failure.
 */
int io_publish_all(const char *const paths[], size_t n, const void *bytes, size_t len, mode_t mode,
		   bool *done, struct error *err) TM_WUR;

/*
 * A rename that replaces nothing, where the file system does not know RENAME_NOREPLACE (EINVAL or
 * ENOSYS), as over a network: by a hard link.  0 or -errno; -EEXIST: the name is taken.
 */
int io_rename_by_link(int from_dir, const char *from, int to_dir, const char *to) TM_WUR;

/* Makes path and missing parents (0700), syncing each new entry into its parent. */
int io_mkdirs(const char *path, struct error *err) TM_WUR;

/* fsync of a directory, of the directory that holds path. */
int io_sync_dir(const char *dir, struct error *err) TM_WUR;
int io_sync_parent(const char *path, struct error *err) TM_WUR;
/* fsync of a file that others write. */
int io_sync_file(const char *path, struct error *err) TM_WUR;

/* Removes a file and syncs its directory; no such file is success. */
int io_remove(const char *path, struct error *err) TM_WUR;

/* The directory part of path ("." when it has none); the caller owns *ret. */
int io_dirname(const char *path, char **ret, struct error *err) TM_WUR;

/* dir "/" name; the caller owns *ret. */
int io_join(const char *dir, const char *name, char **ret, struct error *err) TM_WUR;
