/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Files replaced as a whole.  Several take each step together: what a file system has to write for
 * the first of them to be safe is most of what it has to write for all.
 */
#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct publication {
	const char *path;
	char *tmp;
	char *dir;
	int fd;
	int code; /* of the step that failed, or 0 */
};

struct publications {
	struct publication *v;
	size_t n;
};

static void publications_done(struct publications *p)
{
	for (size_t i = 0; i < p->n; i++) {
		if (p->v[i].fd >= 0)
			(void)close(p->v[i].fd);
		free(p->v[i].tmp);
		free(p->v[i].dir);
	}
	free(p->v);
}

static int write_tmp(struct publication *p, const void *bytes, size_t len, mode_t mode,
		     struct error *err)
{
	int r = text_format(&p->tmp, err, "%s" IO_PUBLISH_TMP, p->path);

	if (!r)
		r = io_dirname(p->path, &p->dir, err);
	if (r)
		return r;
	if (unlink(p->tmp) < 0 && errno != ENOENT && errno != ENOTDIR)
		return error_errno(err, errno, "cannot remove %s", p->tmp);
	p->fd = open(p->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode);
	if (p->fd < 0)
		return error_errno(err, errno, "cannot create %s", p->tmp);
	r = io_pwrite(p->fd, p->tmp, bytes, len, 0, err);
	/* Begun now, it is done by the time the first of the files is synced. */
	if (!r)
		(void)sync_file_range(p->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
	return r;
}

static int sync_tmp(struct publication *p, struct error *err)
{
	if (fsync(p->fd) < 0)
		return error_errno(err, errno, "cannot sync %s", p->tmp);
	if (close(tm_steal_fd(&p->fd)) < 0)
		return error_errno(err, errno, "cannot close %s", p->tmp);
	return 0;
}

static int give_name(const struct publication *p, struct error *err)
{
	if (rename(p->tmp, p->path) < 0)
		return error_errno(err, errno, "cannot rename %s to %s", p->tmp, p->path);
	return 0;
}

/* One sync of a directory is for all that have their names in it. */
static int sync_dir(const struct publications *p, size_t i, struct error *err)
{
	for (size_t k = 0; k < i; k++) {
		if (!p->v[k].code && strcmp(p->v[k].dir, p->v[i].dir) == 0)
			return 0;
	}
	return io_sync_dir(p->v[i].dir, err);
}

static void take_steps(const struct publications *p, const void *bytes, size_t len, mode_t mode,
		       struct error *err)
{
	for (size_t i = 0; i < p->n; i++)
		p->v[i].code = write_tmp(&p->v[i], bytes, len, mode, err);
	for (size_t i = 0; i < p->n; i++) {
		if (!p->v[i].code)
			p->v[i].code = sync_tmp(&p->v[i], err);
	}
	for (size_t i = 0; i < p->n; i++) {
		if (!p->v[i].code)
			p->v[i].code = give_name(&p->v[i], err);
		if (p->v[i].code && p->v[i].tmp)
			(void)unlink(p->v[i].tmp);
	}
	for (size_t i = 0; i < p->n; i++) {
		if (!p->v[i].code)
			p->v[i].code = sync_dir(p, i, err);
	}
}

int io_publish_all(const char *const paths[], size_t n, const void *bytes, size_t len, mode_t mode,
		   bool *done, struct error *err)
{
	__attribute__((cleanup(publications_done))) struct publications p = {0};
	int r = 0;

	p.v = calloc(n + 1, sizeof(*p.v));
	if (!p.v)
		return error_nomem(err);
	for (; p.n < n; p.n++)
		p.v[p.n] = (struct publication){.path = paths[p.n], .fd = -1};
	take_steps(&p, bytes, len, mode, err);
	for (size_t i = 0; i < n; i++) {
		done[i] = !p.v[i].code;
		if (!r)
			r = p.v[i].code;
	}
	return r;
}

int io_publish(const char *path, const void *bytes, size_t len, mode_t mode, struct error *err)
{
	bool done;

	return io_publish_all(&path, 1, bytes, len, mode, &done, err);
}
