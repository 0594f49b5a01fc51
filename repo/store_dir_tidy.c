/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What crashes left in a directory store: files in tmp/ whose put did not come to its end, and
 * empty folders.  A put whose folder goes makes it again, so nobody has to be asked.
 */
#include "store_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define FOLDERS_DEEP 8

static bool is_dot(const char *name)
{
	return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static int open_folder(int parent, const char *name, DIR **ret, const struct dir_store *d,
		       struct error *err)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);

	*ret = fd >= 0 ? fdopendir(fd) : NULL;
	if (*ret)
		return 0;
	if (fd < 0 && errno == ENOENT)
		return TM_E_NOTFOUND;
	(void)error_errno(err, errno, "opening %s/…/%s", d->path, name);
	if (fd >= 0)
		(void)close(fd);
	return TM_E_IO;
}

/* ---- tmp/ ---- */

/* The names that puts give. */
static bool is_temporary(const char *name)
{
	uint8_t bytes[8];

	return strlen(name) == 2 * sizeof(bytes) && hex_decode(name, bytes, sizeof(bytes));
}

static int tidy_file(const struct dir_store *d, int fd, const char *name,
		     struct store_leftovers *left, struct error *err)
{
	struct stat sb;
	uint64_t ms;

	if (fstatat(fd, name, &sb, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT
			       ? 0
			       : error_errno(err, errno, "looking at %s/tmp/%s", d->path, name);
	ms = sb.st_mtim.tv_sec > 0 ? (uint64_t)sb.st_mtim.tv_sec * 1000 : 0;
	if (!S_ISREG(sb.st_mode) || ms >= left->before_ms)
		return 0;
	if (!left->dry_run && unlinkat(fd, name, 0) < 0 && errno != ENOENT)
		return error_errno(err, errno, "cannot remove %s/tmp/%s", d->path, name);
	left->files++;
	left->bytes += (uint64_t)sb.st_size;
	return 0;
}

static int tidy_tmp(const struct dir_store *d, struct store_leftovers *left, struct error *err)
{
	const struct dirent *e;
	DIR *dir;
	int r = open_folder(d->root, "tmp", &dir, d, err);

	if (r < 0)
		return r == TM_E_NOTFOUND ? 0 : r;
	errno = 0;
	while (r == 0 && (e = readdir(dir))) {
		if (is_temporary(e->d_name))
			r = tidy_file(d, dirfd(dir), e->d_name, left, err);
		errno = 0;
	}
	if (r == 0 && errno != 0)
		r = error_errno(err, errno, "listing %s/tmp", d->path);
	(void)closedir(dir);
	return r;
}

/* ---- folders ---- */

static int tidy_below(const struct dir_store *d, int parent, const char *name, unsigned depth,
		      struct error *err);

/* Removes it where it is empty. */
static int tidy_folder(const struct dir_store *d, int parent, const char *name, unsigned depth,
		       struct error *err)
{
	int r = depth < FOLDERS_DEEP ? tidy_below(d, parent, name, depth + 1, err) : 0;

	if (r == 0 && unlinkat(parent, name, AT_REMOVEDIR) < 0 && errno != ENOTEMPTY &&
	    errno != EEXIST && errno != ENOENT && errno != ENOTDIR)
		r = error_errno(err, errno, "cannot remove folder %s of %s", name, d->path);
	return r;
}

static int tidy_below(const struct dir_store *d, int parent, const char *name, unsigned depth,
		      struct error *err)
{
	const struct dirent *e;
	DIR *dir;
	int r = open_folder(parent, name, &dir, d, err);

	if (r < 0)
		return r == TM_E_NOTFOUND ? 0 : r;
	errno = 0;
	while (r == 0 && (e = readdir(dir))) {
		if (!is_dot(e->d_name) && (e->d_type == DT_DIR || e->d_type == DT_UNKNOWN))
			r = tidy_folder(d, dirfd(dir), e->d_name, depth, err);
		errno = 0;
	}
	if (r == 0 && errno != 0)
		r = error_errno(err, errno, "listing folder %s of %s", name, d->path);
	(void)closedir(dir);
	return r;
}

int dir_tidy(struct store *st, struct store_leftovers *left, struct error *err)
{
	const struct dir_store *d = dir_of(st);
	int r = tidy_tmp(d, left, err);

	if (r == 0 && !left->dry_run)
		r = tidy_below(d, d->root, "d", 0, err);
	return r;
}
