/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file has its time of last change.  A device has none: its node is made anew with each start of
 * the host, and libvirt gives each QEMU a node of its own.  The kernel counts what is written to a
 * device, from when it is there until the host is started again.
 */
#include "base_state.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define KERNEL_TEXT_MAX 512
#define STAT_WRITTEN    7 /* which of its numbers */
#define STAT_DISCARDED  14

/* What the kernel says in a file of its own, which has no size. */
static bool read_text(const char *path, char text[KERNEL_TEXT_MAX])
{
	auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, KERNEL_TEXT_MAX - 1);

	text[n > 0 ? n : 0] = '\0';
	return n > 0;
}

/* A partition has it at its disk. */
static bool is_counted(const char *sys)
{
	static const char *const where[] = {"queue/iostats", "../queue/iostats"};

	for (size_t i = 0; i < ARRAY_SIZE(where); i++) {
		char path[96], text[KERNEL_TEXT_MAX];

		(void)snprintf(path, sizeof(path), "%s/%s", sys, where[i]);
		if (read_text(path, text))
			return text[0] == '1';
	}
	return false;
}

/* Sectors written, and discarded where the kernel counts them (Documentation/block/stat.rst). */
static bool count_sectors(const char *sys, uint64_t *ret)
{
	char path[96], text[KERNEL_TEXT_MAX], *end;
	unsigned n = 0;

	*ret = 0;
	(void)snprintf(path, sizeof(path), "%s/stat", sys);
	if (!read_text(path, text))
		return false;
	for (char *at = text;; at = end) {
		uint64_t v = strtoull(at, &end, 10);

		if (end == at)
			return n >= STAT_WRITTEN;
		n++;
		if (n == STAT_WRITTEN || n == STAT_DISCARDED)
			*ret += v;
	}
}

static void look_device(const char *path, const struct stat *st, struct base_state *ret)
{
	char sys[64], boot[KERNEL_TEXT_MAX];
	struct error e = {0};
	uint64_t sectors = 0;

	(void)snprintf(sys, sizeof(sys), "/sys/dev/block/%u:%u", major(st->st_rdev),
		       minor(st->st_rdev));
	if (io_sync_file(path, &e) || !read_text("/proc/sys/kernel/random/boot_id", boot) ||
	    !is_counted(sys) || !count_sectors(sys, &sectors)) {
		log_debug("%s: what is written to it is not known %s", path, e.text);
		return;
	}
	/* One that went and came back has another node, and counts from nothing. */
	(void)snprintf(ret->device, BASE_DEVICE_MAX,
		       "boot %.36s node %" PRIu64 " of %" PRIu64 " sectors %" PRIu64, boot,
		       (uint64_t)st->st_ino, ret->mtime, sectors);
}

int base_state_look(const char *path, struct base_state *ret, struct error *err)
{
	struct stat st;

	*ret = (struct base_state){0};
	if (stat(path, &st) < 0)
		return error_errno(err, errno, "cannot look at %s", path);
	ret->regular = S_ISREG(st.st_mode);
	if (st.st_mtim.tv_sec >= 0)
		ret->mtime =
			(uint64_t)st.st_mtim.tv_sec * 1000000000 + (uint64_t)st.st_mtim.tv_nsec;
	if (S_ISBLK(st.st_mode))
		look_device(path, &st, ret);
	return 0;
}

bool base_state_same(const struct base_state *a, const struct base_state *b)
{
	if (a->regular || b->regular)
		return a->regular == b->regular && a->mtime == b->mtime;
	return *a->device && strcmp(a->device, b->device) == 0;
}
