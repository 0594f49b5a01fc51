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

#define BYTE_OTHERS_WRITE  201
#define BYTE_OTHERS_RESIZE 203

static int lock_byte(int fd, off_t byte)
{
	struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};

	return fcntl(fd, F_OFD_SETLK, &lock);
}

int base_lock(struct journal_disk *d, struct error *err)
{
	auto_close int fd = open(d->base, O_RDONLY | O_CLOEXEC);

	if (d->lock >= 0)
		return 0;
	if (fd < 0)
		return error_errno(err, errno, "cannot open %s", d->base);
	if (lock_byte(fd, BYTE_OTHERS_WRITE) < 0 || lock_byte(fd, BYTE_OTHERS_RESIZE) < 0)
		return error_errno(err, errno, "cannot lock %s", d->base);
	d->lock = tm_steal_fd(&fd);
	return 0;
}

void base_unlock(struct journal_disk *d)
{
	if (d->lock >= 0)
		(void)close(d->lock);
	d->lock = -1;
}
