/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot that another program took during a backup stands on our overlay.  With QEMU gone only
 * its header tells so: without the overlay it could not be opened any more.  It is looked for
 * beside the overlay, where QEMU and libvirt put it.
 */
#include "recover.h"

#include "qcow2_head.h"

#include <string.h>

static bool stands_on(const char *path, const char *overlay)
{
	const char *slash = strrchr(overlay, '/');
	auto_free char *dir = NULL, *joined = NULL;
	struct qcow2_head head;

	/* A guest writes what it likes into a raw disk: no other name is even looked up. */
	if (!qcow2_head_read(path, &head) ||
	    !text_ends_with(head.backing, slash ? slash + 1 : overlay))
		return false;
	if (head.backing[0] != '/' &&
	    (io_dirname(path, &dir, NULL) || io_join(dir, head.backing, &joined, NULL)))
		return false;
	return same_file(joined ? joined : head.backing, overlay);
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
