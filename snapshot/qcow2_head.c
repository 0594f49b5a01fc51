/* SPDX-License-Identifier: Apache-2.0 */
#include "qcow2_head.h"

#include <assert.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#define DATA_APART 4 /* of incompatible */

/* Of version 2 only what comes before `incompatible`. */
struct file_head {
	uint8_t magic[4];
	struct be32 version;
	struct be64 name_at;
	struct be32 name_len;
	uint8_t of_no_interest[52];
	struct be64 incompatible;
};
static_assert(sizeof(struct file_head) == 80, "qcow2.txt");

bool qcow2_head_read(const char *path, struct qcow2_head *ret)
{
	struct file_head head;
	auto_close int fd = -1;
	struct stat st;
	uint64_t len;

	*ret = (struct qcow2_head){0};
	if (stat(path, &st) < 0 || !S_ISREG(st.st_mode))
		return false;
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0 || io_pread(fd, path, &head, sizeof(head), 0, NULL) ||
	    memcmp(head.magic, "QFI\xfb", 4) != 0)
		return false;
	ret->data_apart = be32_get(head.version) >= 3 && (be64_get(head.incompatible) & DATA_APART);
	len = be32_get(head.name_len);
	return len < sizeof(ret->backing) &&
	       io_pread(fd, path, ret->backing, (size_t)len, be64_get(head.name_at), NULL) == 0;
}
