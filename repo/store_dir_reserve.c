/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room that a directory store keeps back for what deletes: to free anything, forget and prune have
 * to write first.  It is a file tmp/reserve, really allocated, whose content means nothing; a put
 * that finds no room cuts from it what it needs.  Any length of it is right, so there is nothing to
 * recover, and two who change it at once do no harm.
 */
#include "store_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#define RESERVE_FILE "reserve"
#define RESERVE_BYTES \
	(UINT64_C(10) << 20) /* a segment that prune rewrites has at most half its 16 MiB */
#define RESERVE_ROOM 4       /* so much more has to be free for it to be made */
#define RESERVE_CUT  (UINT64_C(64) << 10) /* cuts are multiples */
#define FILL_BYTES   (64u << 10)

/* fd of the reserve; -1: there is none, or it cannot be used. */
static int open_reserve(const struct dir_store *d, int flags, struct stat *ret)
{
	int fd = openat(d->tmp, RESERVE_FILE, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | flags,
			0600);

	if (fd >= 0 && (fstat(fd, ret) < 0 || !S_ISREG(ret->st_mode))) {
		(void)close(fd);
		fd = -1;
	}
	return fd;
}

/* Where allocating alone is not known, or promises nothing, bytes that cannot be compressed. */
static int fill(int fd, uint64_t from, struct error *err)
{
	uint8_t bytes[FILL_BYTES];
	int r = 0;

	for (; r == 0 && from < RESERVE_BYTES; from += FILL_BYTES) {
		r = random_bytes(bytes, sizeof(bytes), err);
		r = r ? r : io_pwrite(fd, "tmp/" RESERVE_FILE, bytes, sizeof(bytes), from, err);
	}
	return r;
}

static int grow(int fd, uint64_t from, struct error *err)
{
	struct stat sb;

	if (fallocate(fd, 0, 0, (off_t)RESERVE_BYTES) < 0 && errno != EOPNOTSUPP)
		return error_errno(err, errno, "allocating the reserve");
	if (fstat(fd, &sb) < 0)
		return error_errno(err, errno, "looking at the reserve");
	if ((uint64_t)sb.st_blocks * 512 < RESERVE_BYTES) {
		int r = fill(fd, from - from % FILL_BYTES, err);

		if (r < 0)
			return r;
	}
	return fsync(fd) < 0 ? error_errno(err, errno, "syncing the reserve") : 0;
}

static bool has_room(int fd, uint64_t bytes)
{
	struct statvfs v;

	return fstatvfs(fd, &v) == 0 && (uint64_t)v.f_bavail * v.f_frsize / RESERVE_ROOM >= bytes;
}

/* A store that has no room for it, or may only be read, works without. */
static void make_reserve(const struct dir_store *d)
{
	struct error err = {0};
	struct stat sb;
	auto_close int fd = -1;

	if (fstatat(d->tmp, RESERVE_FILE, &sb, AT_SYMLINK_NOFOLLOW) == 0 &&
	    (uint64_t)sb.st_size >= RESERVE_BYTES)
		return;
	if (!has_room(d->tmp, RESERVE_BYTES))
		return;
	fd = open_reserve(d, O_CREAT, &sb);
	if (fd >= 0 && grow(fd, (uint64_t)sb.st_size, &err) < 0) {
		log_debug("%s: %s", d->path, err.text);
		if (ftruncate(fd, sb.st_size) < 0)
			log_debug("%s: the reserve: %s", d->path, strerror(errno));
	}
}

void dir_reserve(struct store *st, bool use)
{
	struct dir_store *d = dir_of(st);

	d->use_reserve = use;
	if (!use)
		make_reserve(d);
}

bool dir_reserve_cut(const struct dir_store *d, uint64_t bytes)
{
	struct stat sb;
	auto_close int fd = d->use_reserve ? open_reserve(d, 0, &sb) : -1;
	uint64_t cut = (bytes / RESERVE_CUT + 2) * RESERVE_CUT;
	uint64_t size = fd >= 0 ? (uint64_t)sb.st_size : 0;

	if (size == 0)
		return false;
	if (size <= cut)
		return unlinkat(d->tmp, RESERVE_FILE, 0) == 0; /* its inode, too */
	/* some file systems give freed blocks away only once that is durable */
	return ftruncate(fd, (off_t)(size - cut)) == 0 && fsync(fd) == 0;
}
