/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's image locks (block/file-posix.c): who uses a permission holds byte 100 + permission, who
 * does not want others to use it holds byte 200 + permission, all as shared locks of the open file.
 * Holding 200 + write and 200 + resize keeps every QEMU from opening the image for writing, as its
 * own "Failed to get "write" lock" says, and nobody from reading it.
 */
#include "base_lock.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#define BYTE_WRITE         101
#define BYTE_OTHERS_WRITE  201
#define BYTE_OTHERS_RESIZE 203

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

void base_unlock(struct journal_disk *d)
{
	if (d->lock >= 0)
		(void)close(d->lock);
	d->lock = -1;
}
