/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot that another program took during a backup stands on our overlay.  With QEMU gone only
 * its header tells so: without the overlay it could not be opened any more.  It is looked for
 * beside the overlay, where QEMU and libvirt put it.
 */
#include "recover.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

/* The header of a qcow2 image: an offset of 8 bytes, and the length in 4, big-endian. */
#define NAME_AT      8
#define NAME_LEN     16
#define HEAD_SIZE    20
#define NAME_LONGEST 1023 /* longer ones QEMU does not open */

static uint64_t big_endian(const uint8_t *p, size_t n)
{
	uint64_t v = 0;

	for (size_t i = 0; i < n; i++)
		v = v << 8 | p[i];
	return v;
}

/* Whatever cannot be read is no such image. */
static bool stands_on(const char *path, const char *overlay)
{
	const char *slash = strrchr(overlay, '/');
	char name[NAME_LONGEST + 1];
	auto_free char *dir = NULL, *joined = NULL;
	uint8_t head[HEAD_SIZE];
	auto_close int fd = -1;
	struct stat st;
	uint64_t len;

	if (stat(path, &st) < 0 || !S_ISREG(st.st_mode))
		return false;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || io_pread(fd, path, head, sizeof(head), 0, NULL) ||
	    memcmp(head, "QFI\xfb", 4) != 0)
		return false;
	len = big_endian(head + NAME_LEN, 4);
	if (!len || len > NAME_LONGEST ||
	    io_pread(fd, path, name, (size_t)len, big_endian(head + NAME_AT, 8), NULL))
		return false;
	name[len] = '\0';
	/* A guest writes what it likes into a raw disk: no other name is even looked up. */
	if (!text_ends_with(name, slash ? slash + 1 : overlay))
		return false;
	if (name[0] != '/' && (io_dirname(path, &dir, NULL) || io_join(dir, name, &joined, NULL)))
		return false;
	return same_file(joined ? joined : name, overlay);
}

int recover_check_above(const char *overlay, struct error *err)
{
	auto_text_list struct text_list files = {0};
	auto_free char *dir = NULL;
	int r = io_dirname(overlay, &dir, err);

	if (!r)
		r = recover_list_dir(dir, "", &files, err);
	for (size_t i = 0; !r && i < files.n; i++) {
		if (stands_on(files.v[i], overlay))
			return error_set(
				err, TM_E_STALE,
				"another program took a snapshot, %s, and it stands on the overlay "
				"%s: nothing is touched.  Have it merged into that overlay "
				"('qemu-img commit' of it, with the guest off), then run recovery",
				files.v[i], overlay);
	}
	return r;
}
