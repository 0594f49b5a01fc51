/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file is known by its inode number and time of birth.  The device number is no part of it: it
 * differs after a reboot or another mount of the same file system.
 */
#include "identity.h"

#include "guest.h"
#include "proc.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#define NS_PER_S UINT64_C(1000000000)

/* An errno where it cannot be told; *ret is zero then. */
static int look(const char *path, struct file_identity *ret)
{
	struct statx st;

	*ret = (struct file_identity){0};
	if (statx(AT_FDCWD, path, 0, STATX_TYPE | STATX_INO | STATX_BTIME, &st) < 0)
		return errno;
	if (!S_ISREG(st.stx_mode))
		return 0;
	ret->inode = st.stx_ino;
	if ((st.stx_mask & STATX_BTIME) && st.stx_btime.tv_sec > 0)
		ret->born = (uint64_t)st.stx_btime.tv_sec * NS_PER_S + st.stx_btime.tv_nsec;
	return 0;
}

struct file_identity identity_of(const char *path)
{
	struct file_identity id;

	(void)look(path, &id);
	return id;
}

enum identity identity_look(const char *path, const struct file_identity *was)
{
	struct file_identity now;
	int e = look(path, &now);

	if (!was->inode)
		return IDENTITY_UNKNOWN;
	if (e)
		return e == ENOENT ? IDENTITY_GONE : IDENTITY_UNKNOWN;
	if (!now.inode)
		return IDENTITY_OTHER;
	if (now.inode != was->inode || (now.born && was->born && now.born != was->born))
		return IDENTITY_OTHER;
	return IDENTITY_SAME;
}

static enum identity look_later(const char *path, const struct file_identity *was)
{
	return was->born ? identity_look(path, was) : IDENTITY_UNKNOWN;
}

const char *identity_exchanged(const struct journal_disk *d)
{
	enum identity base = look_later(d->base, &d->base_id),
		      overlay = look_later(d->overlay, &d->overlay_id);

	if (base == IDENTITY_OTHER && overlay != IDENTITY_OTHER)
		return d->base;
	return overlay == IDENTITY_OTHER && base == IDENTITY_SAME ? d->overlay : NULL;
}

bool identity_open_elsewhere(struct guest *g, const char *path)
{
	return path && g->kind == GUEST_QMP && g->qmp && proc_qemu_lacks(qmp_peer(g->qmp), path);
}
