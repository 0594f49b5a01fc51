/* SPDX-License-Identifier: Apache-2.0 */
#include "shim.h"

#include "wrap.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_FDS     1024
#define MAX_FLIGHTS 512
#define NO_EVENT    SIZE_MAX

struct shim shim;

/* A call of the loop on its way. */
struct flight {
	struct loop_op *op;
	loop_done_fn *done; /* the caller's */
	size_t event;
	int inject; /* result of a call that was not made */
	char *open_path;
};

static char *fd_path[MAX_FDS];
static struct flight flights[MAX_FLIGHTS];

static void *must(void *p)
{
	if (!p)
		abort();
	return p;
}

/* ---- faults ---- */

static bool faulty(void)
{
	if (!shim.root)
		return false;
	shim.calls++;
	if (shim.fault == FAULT_NONE || shim.fail_at == 0)
		return false;
	return shim.for_good ? shim.calls >= shim.fail_at : shim.calls == shim.fail_at;
}

/* 0, or the negative errno that this call has to end with. */
static int fault_now(void)
{
	if (!faulty() || shim.fault == FAULT_SHORT)
		return 0;
	shim.hits++;
	return shim.fault == FAULT_EIO ? -EIO : -ENOSPC;
}

/* The same for a transfer, which may also be cut short. */
static int fault_transfer(uint32_t *len)
{
	if (!faulty())
		return 0;
	if (shim.fault != FAULT_SHORT) {
		shim.hits++;
		return shim.fault == FAULT_EIO ? -EIO : -ENOSPC;
	}
	if (*len > 1) {
		shim.hits++;
		*len = *len / 2;
	}
	return 0;
}

/* ---- names ---- */

static void fd_set_path(int fd, const char *path)
{
	if (fd < 0 || fd >= MAX_FDS)
		return;
	free(fd_path[fd]);
	fd_path[fd] = path ? must(strdup(path)) : NULL;
}

/* The path below root, or NULL when it is elsewhere.  The caller owns it. */
static char *below_root(int dirfd, const char *path)
{
	size_t len = shim.root ? strlen(shim.root) : 0;
	char *r = NULL;

	if (!shim.root)
		return NULL;
	if (path[0] == '/') {
		if (strncmp(path, shim.root, len) != 0 || (path[len] && path[len] != '/'))
			return NULL;
		return must(strdup(path + len + (path[len] == '/')));
	}
	if (dirfd < 0 || dirfd >= MAX_FDS || !fd_path[dirfd])
		return NULL;
	if (strcmp(path, ".") == 0)
		return must(strdup(fd_path[dirfd]));
	if (asprintf(&r, "%s%s%s", fd_path[dirfd], fd_path[dirfd][0] ? "/" : "", path) < 0)
		abort();
	return r;
}

static char *path_of_fd(int fd)
{
	return fd >= 0 && fd < MAX_FDS && fd_path[fd] ? must(strdup(fd_path[fd])) : NULL;
}

/* ---- record ---- */

/* Takes path and to over. */
static size_t event_add(enum shim_kind kind, char *path, char *to)
{
	if (!shim.root || !shim.record || !path) {
		free(path);
		free(to);
		return NO_EVENT;
	}
	if (shim.nevents == shim.cap) {
		shim.cap = shim.cap ? 2 * shim.cap : 256;
		shim.events = must(reallocarray(shim.events, shim.cap, sizeof(struct shim_event)));
	}
	shim.events[shim.nevents] = (struct shim_event){
		.kind = kind, .issued = ++shim.tick, .done = UINT32_MAX, .path = path, .to = to};
	return shim.nevents++;
}

static void event_end(size_t event, int res)
{
	if (event == NO_EVENT || event >= shim.nevents)
		return;
	shim.events[event].done = ++shim.tick;
	shim.events[event].res = res;
	if (shim.events[event].kind == SHIM_WRITE && res >= 0)
		shim.events[event].len = (size_t)res;
}

void shim_start(const char *root, bool record)
{
	shim_clear();
	shim.root = must(strdup(root));
	shim.record = record;
}

/* ---- what is there at the start ---- */

static void load_file(const char *path, const char *below)
{
	FILE *file = must(fopen(path, "re"));
	uint8_t *bytes = NULL;
	size_t len = 0, e;
	int c;

	event_end(event_add(SHIM_CREATE, must(strdup(below)), NULL), 0);
	while ((c = fgetc(file)) != EOF) {
		if ((len & (len - 1)) == 0)
			bytes = must(realloc(bytes, len ? 2 * len : 1));
		bytes[len++] = (uint8_t)c;
	}
	(void)fclose(file);
	e = event_add(SHIM_WRITE, must(strdup(below)), NULL);
	shim.events[e].bytes = bytes;
	event_end(e, (int)len);
	event_end(event_add(SHIM_SYNC, must(strdup(below)), NULL), 0);
}

static int load_one(const char *path, const struct stat *sb, int type, struct FTW *ftw)
{
	const char *below = path + strlen(shim.root);

	(void)sb;
	(void)ftw;
	below += *below == '/';
	if (type == FTW_F)
		load_file(path, below);
	else if (*below)
		event_end(event_add(SHIM_MKDIR, must(strdup(below)), NULL), 0);
	return 0;
}

static int load_sync(const char *path, const struct stat *sb, int type, struct FTW *ftw)
{
	const char *below = path + strlen(shim.root);

	(void)sb;
	(void)ftw;
	if (type == FTW_D)
		event_end(event_add(SHIM_SYNC, must(strdup(below + (*below == '/'))), NULL), 0);
	return 0;
}

void shim_load(void)
{
	if (nftw(shim.root, load_one, 16, FTW_PHYS) != 0 ||
	    nftw(shim.root, load_sync, 16, FTW_PHYS) != 0)
		abort();
}

void shim_arm(enum shim_fault fault, unsigned fail_at, bool for_good)
{
	shim.calls = shim.hits = 0;
	shim.fault = fault;
	shim.fail_at = fail_at;
	shim.for_good = for_good;
}

void shim_disarm(void)
{
	shim.fault = FAULT_NONE;
}

void shim_mark(void)
{
	event_end(event_add(SHIM_MARK, must(strdup("")), NULL), 0);
}

void shim_stop(void)
{
	free(shim.root);
	shim.root = NULL;
	for (int i = 0; i < MAX_FDS; i++)
		fd_set_path(i, NULL);
}

void shim_clear(void)
{
	shim_stop();
	for (size_t i = 0; i < shim.nevents; i++) {
		free(shim.events[i].path);
		free(shim.events[i].to);
		free(shim.events[i].bytes);
	}
	free(shim.events);
	shim = (struct shim){.root = NULL};
}

/* ---- calls of the loop ---- */

static void flight_done(struct loop_op *op, int res)
{
	struct flight *f = flights;

	while (f->op != op)
		f++;
	if (f->inject)
		res = f->inject;
	if (f->open_path && res >= 0)
		fd_set_path(res, f->open_path);
	free(f->open_path);
	f->op = NULL;
	event_end(f->event, res);
	op->done = f->done;
	op->done(op, res);
}

/* Makes op come back through the shim; with a fault, without having been anywhere. */
static bool flight_start(struct loop *loop, struct loop_op *op, size_t event, int fault)
{
	struct flight *f = flights;

	while (f->op && f < flights + MAX_FLIGHTS - 1)
		f++;
	if (f->op)
		abort();
	*f = (struct flight){.op = op, .done = op->done, .event = event, .inject = fault};
	op->done = flight_done;
	if (fault)
		loop_defer(loop, op);
	return fault == 0;
}

static struct flight *flight_of(const struct loop_op *op)
{
	struct flight *f = flights;

	while (f->op != op)
		f++;
	return f;
}

void __wrap_loop_read(struct loop *loop, struct loop_op *op, int fd, void *buf, uint32_t len,
		      uint64_t offset)
{
	int fault = fault_transfer(&len);

	if (!shim.root || flight_start(loop, op, NO_EVENT, fault))
		__real_loop_read(loop, op, fd, buf, len, offset);
}

void __wrap_loop_write(struct loop *loop, struct loop_op *op, int fd, const void *buf, uint32_t len,
		       uint64_t offset)
{
	int fault = fault_transfer(&len);
	size_t e;

	if (!shim.root) {
		__real_loop_write(loop, op, fd, buf, len, offset);
		return;
	}
	e = event_add(SHIM_WRITE, path_of_fd(fd), NULL);
	if (e != NO_EVENT) {
		shim.events[e].bytes = must(malloc(len + 1));
		memcpy(shim.events[e].bytes, buf, len);
		shim.events[e].len = len;
		shim.events[e].offset = offset;
	}
	if (flight_start(loop, op, e, fault))
		__real_loop_write(loop, op, fd, buf, len, offset);
}

void __wrap_loop_fdatasync(struct loop *loop, struct loop_op *op, int fd)
{
	int fault = fault_now();

	if (!shim.root || flight_start(loop, op, event_add(SHIM_SYNC, path_of_fd(fd), NULL), fault))
		__real_loop_fdatasync(loop, op, fd);
}

void __wrap_loop_fsync(struct loop *loop, struct loop_op *op, int fd)
{
	int fault = fault_now();

	if (!shim.root || flight_start(loop, op, event_add(SHIM_SYNC, path_of_fd(fd), NULL), fault))
		__real_loop_fsync(loop, op, fd);
}

void __wrap_loop_openat(struct loop *loop, struct loop_op *op, int dirfd, const char *path,
			int flags, uint32_t mode)
{
	int fault = fault_now();
	size_t e = NO_EVENT;

	if (!shim.root) {
		__real_loop_openat(loop, op, dirfd, path, flags, mode);
		return;
	}
	if (flags & O_CREAT)
		e = event_add(SHIM_CREATE, below_root(dirfd, path), NULL);
	if (!flight_start(loop, op, e, fault))
		return;
	flight_of(op)->open_path = below_root(dirfd, path);
	__real_loop_openat(loop, op, dirfd, path, flags, mode);
}

void __wrap_loop_mkdirat(struct loop *loop, struct loop_op *op, int dirfd, const char *path,
			 uint32_t mode)
{
	int fault = fault_now();

	if (!shim.root ||
	    flight_start(loop, op, event_add(SHIM_MKDIR, below_root(dirfd, path), NULL), fault))
		__real_loop_mkdirat(loop, op, dirfd, path, mode);
}

void __wrap_loop_renameat(struct loop *loop, struct loop_op *op, int olddir, const char *old,
			  int newdir, const char *new, uint32_t flags)
{
	int fault = fault_now();

	if (!shim.root ||
	    flight_start(loop, op,
			 event_add(SHIM_RENAME, below_root(olddir, old), below_root(newdir, new)),
			 fault))
		__real_loop_renameat(loop, op, olddir, old, newdir, new, flags);
}

void __wrap_loop_unlinkat(struct loop *loop, struct loop_op *op, int dirfd, const char *path)
{
	int fault = fault_now();

	if (!shim.root ||
	    flight_start(loop, op, event_add(SHIM_UNLINK, below_root(dirfd, path), NULL), fault))
		__real_loop_unlinkat(loop, op, dirfd, path);
}

/* ---- blocking calls ---- */

/* Ends a call that gives 0 or -1. */
static int answer(size_t event, int res)
{
	int saved = errno;

	event_end(event, res < 0 ? -saved : res);
	errno = saved;
	return res;
}

static int refuse(int fault)
{
	errno = -fault;
	return -1;
}

static int opened(int dirfd, const char *path, int flags, int fd)
{
	int saved = errno;

	if (shim.root && fd >= 0) {
		char *below = below_root(dirfd, path);

		fd_set_path(fd, below);
		if (flags & O_CREAT)
			event_end(event_add(SHIM_CREATE, below, NULL), 0);
		else
			free(below);
	}
	errno = saved;
	return fd;
}

int __wrap_open64(const char *path, int flags, ...)
{
	int fault = fault_now();
	unsigned mode = 0;
	va_list ap;

	va_start(ap, flags);
	if (flags & O_CREAT)
		mode = va_arg(ap, unsigned);
	va_end(ap);
	return fault ? refuse(fault)
		     : opened(AT_FDCWD, path, flags, __real_open64(path, flags, mode));
}

int __wrap_openat64(int dirfd, const char *path, int flags, ...)
{
	int fault = fault_now();
	unsigned mode = 0;
	va_list ap;

	va_start(ap, flags);
	if (flags & O_CREAT)
		mode = va_arg(ap, unsigned);
	va_end(ap);
	return fault ? refuse(fault)
		     : opened(dirfd, path, flags, __real_openat64(dirfd, path, flags, mode));
}

int __wrap_fsync(int fd)
{
	int fault = fault_now();
	size_t e = event_add(SHIM_SYNC, path_of_fd(fd), NULL);

	return answer(e, fault ? refuse(fault) : __real_fsync(fd));
}

int __wrap_mkdir(const char *path, mode_t mode)
{
	int fault = fault_now();
	size_t e = event_add(SHIM_MKDIR, below_root(AT_FDCWD, path), NULL);

	return answer(e, fault ? refuse(fault) : __real_mkdir(path, mode));
}

int __wrap_unlink(const char *path)
{
	int fault = fault_now();
	size_t e = event_add(SHIM_UNLINK, below_root(AT_FDCWD, path), NULL);

	return answer(e, fault ? refuse(fault) : __real_unlink(path));
}

int __wrap_unlinkat(int dirfd, const char *path, int flags)
{
	int fault = fault_now();
	size_t e = event_add(SHIM_UNLINK, below_root(dirfd, path), NULL);

	return answer(e, fault ? refuse(fault) : __real_unlinkat(dirfd, path, flags));
}

int __wrap_linkat(int olddir, const char *old, int newdir, const char *new, int flags)
{
	int fault = fault_now();
	size_t e = event_add(SHIM_LINK, below_root(olddir, old), below_root(newdir, new));

	return answer(e, fault ? refuse(fault) : __real_linkat(olddir, old, newdir, new, flags));
}

int __wrap_fstatat64(int dirfd, const char *path, struct stat *sb, int flags)
{
	int fault = fault_now();

	return fault ? refuse(fault) : __real_fstatat64(dirfd, path, sb, flags);
}

int __wrap_stat64(const char *path, struct stat *sb)
{
	int fault = fault_now();

	return fault ? refuse(fault) : __real_stat64(path, sb);
}

/* No room, so that no store here makes its reserve: it would be most of what is copied. */
int __wrap_fstatvfs64(int fd, struct statvfs *ret)
{
	(void)fd;
	*ret = (struct statvfs){0};
	return 0;
}

DIR *__wrap_opendir(const char *path)
{
	int fault = fault_now();

	if (!fault)
		return __real_opendir(path);
	errno = -fault;
	return NULL;
}

DIR *__wrap_fdopendir(int fd)
{
	int fault = fault_now();

	if (!fault)
		return __real_fdopendir(fd);
	errno = -fault;
	return NULL;
}

struct dirent *__wrap_readdir64(DIR *dir)
{
	int fault = fault_now();

	if (!fault)
		return __real_readdir64(dir);
	errno = -fault;
	return NULL;
}
