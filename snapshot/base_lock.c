/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's image locks (block/file-posix.c): who uses a permission holds byte 100 + permission, who
 * does not want others to use it holds byte 200 + permission, all as shared locks of the open file.
 * Holding 200 + write and 200 + resize keeps every QEMU from opening the image for writing, as its
 * own "Failed to get "write" lock" says, and nobody from reading it.  Holding all of them as one
 * who writes and shares with nobody keeps every QEMU out.
 */
#include "base_lock.h"

#include "proc.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#define BYTE_FIRST         100
#define BYTE_WRITE         101
#define BYTE_RESIZE        103
#define BYTE_OTHERS_READ   200
#define BYTE_OTHERS_WRITE  201
#define BYTE_OTHERS_RESIZE 203
#define BYTES_ALL          (BYTE_OTHERS_RESIZE + 1 - BYTE_FIRST)

static int lock_byte(int fd, off_t byte)
{
	struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

	return fcntl(fd, F_OFD_SETLK, &lock);
}

/* Keeps others from opening it for writing; who has it so already is not asked. */
static int keep_writers_out(const char *path, int *ret, struct error *err)
{
	auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return error_errno(err, errno, "cannot open %s", path);
	if (lock_byte(fd, BYTE_OTHERS_WRITE) < 0 || lock_byte(fd, BYTE_OTHERS_RESIZE) < 0)
		return error_errno(err, errno, "cannot lock %s", path);
	*ret = tm_steal_fd(&fd);
	return 0;
}

int base_lock(struct journal_disk *d, struct error *err)
{
	return d->lock >= 0 ? 0 : keep_writers_out(d->base, &d->lock, err);
}

int image_lock(const char *path, int *ret, struct error *err)
{
	struct flock writer = {
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = BYTE_WRITE, .l_len = 1};
	auto_close int fd = -1;
	int r = keep_writers_out(path, &fd, err);

	if (r)
		return r;
	/* QEMU takes its own locks before it looks at ours, as we do: one of both sees the other.
	 */
	if (fcntl(fd, F_OFD_GETLK, &writer) < 0)
		return error_errno(err, errno, "cannot ask for the locks on %s", path);
	if (writer.l_type != F_UNLCK)
		return error_set(err, TM_E_BUSY, "%s is open for writing", path);
	*ret = tm_steal_fd(&fd);
	return 0;
}

static int in_use(const char *path, struct error *err)
{
	char holder[PROC_NAME_MAX + 32];

	proc_holder_text(path, holder);
	return error_set(err, TM_E_BUSY, "%s is in use by a running program%s", path, holder);
}

int image_claim(const char *path, int *ret_lock, struct error *err)
{
	static const off_t bytes[] = {BYTE_WRITE, BYTE_RESIZE, BYTE_OTHERS_READ, BYTE_OTHERS_WRITE,
				      BYTE_OTHERS_RESIZE};
	struct flock any = {
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = BYTE_FIRST, .l_len = BYTES_ALL};
	auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	bool known = fd >= 0;

	*ret_lock = -1;
	for (size_t i = 0; known && i < ARRAY_SIZE(bytes); i++) {
		known = lock_byte(fd, bytes[i]) == 0;
		if (!known && (errno == EAGAIN || errno == EACCES))
			return in_use(path, err);
	}
	/* First ours, then theirs, as in image_lock(). */
	if (!known || fcntl(fd, F_OFD_GETLK, &any) < 0) {
		log_debug("%s: whether it is in use is not known: %s", path, strerror(errno));
		return 0;
	}
	if (any.l_type != F_UNLCK)
		return in_use(path, err);
	*ret_lock = tm_steal_fd(&fd);
	return 0;
}

void base_unlock(struct journal_disk *d)
{
	if (d->lock >= 0)
		(void)close(d->lock);
	d->lock = -1;
}
