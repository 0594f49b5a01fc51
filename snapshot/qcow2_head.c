/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2_head.h"

#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

/* Big-endian; of version 2 only what comes before INCOMPATIBLE. */
#define VERSION      4
#define NAME_AT      8
#define NAME_LEN     16
#define INCOMPATIBLE 72
#define HEAD_SIZE    80
#define DATA_APART   4 /* of INCOMPATIBLE */

static uint64_t big_endian(const uint8_t *p, size_t n)
{
	uint64_t v = 0;

	for (size_t i = 0; i < n; i++)
		v = v << 8 | p[i];
	return v;
}

bool qcow2_head_read(const char *path, struct qcow2_head *ret)
{
	uint8_t head[HEAD_SIZE];
	auto_close int fd = -1;
	struct stat st;
	uint64_t len;

	*ret = (struct qcow2_head){0};
	if (stat(path, &st) < 0 || !S_ISREG(st.st_mode))
		return false;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || io_pread(fd, path, head, sizeof(head), 0, NULL) ||
	    memcmp(head, "QFI\xfb", 4) != 0)
		return false;
	ret->data_apart = big_endian(head + VERSION, 4) >= 3 &&
			  (big_endian(head + INCOMPATIBLE, 8) & DATA_APART);
	len = big_endian(head + NAME_LEN, 4);
	return len < sizeof(ret->backing) && io_pread(fd, path, ret->backing, (size_t)len,
						      big_endian(head + NAME_AT, 8), NULL) == 0;
}
