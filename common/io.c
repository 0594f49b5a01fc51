/* SPDX-License-Identifier: Apache-2.0 */
#include "io.h"

#include "checked.h"
#include "id.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

int io_pread(int fd, const char *path, void *buf, size_t len, uint64_t offset, struct error *err)
{
	uint8_t *p = buf;

	if (offset > INT64_MAX || len > INT64_MAX - offset)
		return error_set(err, TM_E_RANGE, "%s: offset %llu is too large", path,
				 (unsigned long long)offset);
	while (len) {
		ssize_t n = pread(fd, p, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_errno(err, errno, "%s: read of %zu bytes at offset %llu", path,
					   len, (unsigned long long)offset);
		if (n == 0)
			return error_set(err, TM_E_CORRUPT,
					 "%s ends at offset %llu, %zu bytes early", path,
					 (unsigned long long)offset, len);
		p += n;
		len -= (size_t)n;
		offset += (size_t)n;
	}
	return 0;
}

int io_pwrite(int fd, const char *path, const void *buf, size_t len, uint64_t offset,
	      struct error *err)
{
	const uint8_t *p = buf;

	if (offset > INT64_MAX || len > INT64_MAX - offset)
		return error_set(err, TM_E_RANGE, "%s: offset %llu is too large", path,
				 (unsigned long long)offset);
	while (len) {
		ssize_t n = pwrite(fd, p, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_errno(err, n ? errno : EIO,
					   "%s: write of %zu bytes at offset %llu", path, len,
					   (unsigned long long)offset);
		p += n;
		len -= (size_t)n;
		offset += (size_t)n;
	}
	return 0;
}

int io_read_file(const char *path, size_t max, struct buf *ret, struct error *err)
{
	auto_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
	auto_buf struct buf b = {0};
	struct stat st;
	int r;

	if (fd < 0)
		return error_errno(err, errno, "cannot open %s", path);
	if (fstat(fd, &st) < 0)
		return error_errno(err, errno, "cannot look at %s", path);
	if (!S_ISREG(st.st_mode))
		return error_set(err, TM_E_IO, "%s is not a regular file", path);
	if (st.st_size < 0 || (uint64_t)st.st_size > max)
		return error_set(err, TM_E_RANGE,
				 "%s is %lld bytes long, more than the %zu that make sense", path,
				 (long long)st.st_size, max);
	r = buf_reserve(&b, (size_t)st.st_size + 1, err);
	if (r)
		return r;
	r = io_pread(fd, path, b.data, (size_t)st.st_size, 0, err);
	if (r)
		return r;
	b.len = (size_t)st.st_size;
	b.data[b.len] = '\0'; /* for callers that parse text */
	*ret = b;
	b = (struct buf){0};
	return 0;
}

int io_rename_by_link(int from_dir, const char *from, int to_dir, const char *to)
{
	if (linkat(from_dir, from, to_dir, to, 0) < 0)
		return -errno;
	(void)unlinkat(from_dir, from, 0); /* a leftover is harmless */
	return 0;
}

int io_sync_dir(const char *dir, struct error *err)
{
	auto_close int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return error_errno(err, errno, "cannot open directory %s", dir);
	if (fsync(fd) < 0)
		return error_errno(err, errno, "cannot sync directory %s", dir);
	return 0;
}

int io_sync_file(const char *path, struct error *err)
{
	auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fsync(fd) < 0)
		return error_errno(err, errno, "cannot sync %s", path);
	return 0;
}

int io_dirname(const char *path, char **ret, struct error *err)
{
	const char *slash = strrchr(path, '/');

	if (!slash)
		return text_copy(".", ret, err);
	if (slash == path)
		return text_copy("/", ret, err);
	return text_format(ret, err, "%.*s", (int)(slash - path), path);
}

int io_join(const char *dir, const char *name, char **ret, struct error *err)
{
	size_t len = strlen(dir);

	return text_format(ret, err, "%s%s%s", dir, len && dir[len - 1] == '/' ? "" : "/", name);
}

int io_sync_parent(const char *path, struct error *err)
{
	auto_free char *dir = NULL;
	int r = io_dirname(path, &dir, err);

	return r ? r : io_sync_dir(dir, err);
}

static int make_dir(const char *path, struct error *err)
{
	if (mkdir(path, 0700) == 0)
		return io_sync_parent(path, err);
	if (errno == EEXIST)
		return 0;
	return error_errno(err, errno, "cannot make directory %s", path);
}

int io_mkdirs(const char *path, struct error *err)
{
	auto_free char *part = NULL;
	struct stat st;
	int r = text_copy(path, &part, err);

	if (r)
		return r;
	for (char *p = part + 1; *part && *p; p++) {
		if (*p != '/')
			continue;
		*p = '\0';
		r = make_dir(part, err);
		*p = '/';
		if (r)
			return r;
	}
	r = make_dir(path, err);
	if (r)
		return r;
	if (stat(path, &st) < 0)
		return error_errno(err, errno, "cannot look at %s", path);
	if (!S_ISDIR(st.st_mode))
		return error_set(err, TM_E_IO, "%s is not a directory", path);
	return 0;
}

int io_remove(const char *path, struct error *err)
{
	if (unlink(path) < 0) {
		if (errno == ENOENT)
			return 0;
		return error_errno(err, errno, "cannot remove %s", path);
	}
	return io_sync_parent(path, err);
}
