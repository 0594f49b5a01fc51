/* SPDX-License-Identifier: Apache-2.0 */
#include "target_file.h"

#include "snapshot/snapshot.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define CONNECT_MS 10000 /* for a server to answer */

#define PARTIAL_BYTES ((size_t)4) /* random ones in a temporary name */
#define YOUNG_S       10          /* a file that was written this recently may not be locked yet */

TM_CLEANUP(DIR, closedir)

struct target_file {
	struct target_file_options opt;
	struct disk_sink *sink;
	char *partial; /* the temporary name, NULL: written in place */
	bool made;     /* partial exists */
	int lock;      /* on partial, as long as somebody fills it; or -1 */
	int claim;     /* on what is to be replaced or written over; or -1 */
	bool in_place; /* a device or a server: old data may show through */
};

/* Of any kind that there may be: whether it knows that one is libnbd's to say. */
bool target_file_is_nbd(const char *to)
{
	size_t scheme = strspn(to, "abcdefghijklmnopqrstuvwxyz+");

	return strncmp(to, "nbd", 3) == 0 && strncmp(to + scheme, "://", 3) == 0;
}

static int make_partial_name(struct target_file *t, struct error *err)
{
	uint8_t random[PARTIAL_BYTES];
	char hex[2 * sizeof(random) + 1];
	int r = random_bytes(random, sizeof(random), err);

	if (r)
		return r;
	hex_encode(random, sizeof(random), hex);
	return text_format(&t->partial, err, "%s.%s.partial", t->opt.to, hex);
}

/* A byte that nobody else locks, QEMU least of all (block/file-posix.c: below 1000). */
#define LOCK_BYTE 4096

/* Nobody else fills the file, nor removes it. */
static bool lock_partial(int fd)
{
	struct flock lock = {
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = LOCK_BYTE, .l_len = 1};

	return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

/* As soon as the file is there.  Takes fd over. */
static void hold_partial(struct target_file *t, int fd)
{
	t->lock = fd;
	if (!lock_partial(fd))
		log_debug("%s: no locks on its file system", t->partial);
}

static bool is_partial_of(const char *file, const char *name)
{
	size_t len = strlen(name);

	return strncmp(file, name, len) == 0 && file[len] == '.' &&
	       strspn(file + len + 1, "0123456789abcdef") == 2 * PARTIAL_BYTES &&
	       strcmp(file + len + 1 + 2 * PARTIAL_BYTES, ".partial") == 0;
}

/* What a restore to the same name left that was killed. */
static void remove_stale_partials(const char *to)
{
	const char *slash = strrchr(to, '/'), *name = slash ? slash + 1 : to;
	auto_clean(closedir) DIR *dir = NULL;
	auto_free char *path = NULL;
	const struct dirent *e;

	if (io_dirname(to, &path, NULL) == 0)
		dir = opendir(path);
	while (dir && (e = readdir(dir))) {
		auto_close int fd = -1;
		struct stat st;

		if (!is_partial_of(e->d_name, name))
			continue;
		fd = openat(dirfd(dir), e->d_name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
		if (fd >= 0 && fstat(fd, &st) == 0 && st.st_mtim.tv_sec + YOUNG_S < time(NULL) &&
		    lock_partial(fd) && unlinkat(dirfd(dir), e->d_name, 0) == 0)
			log_debug("removed %s/%s of a restore that was killed", path, e->d_name);
	}
}

/* What lies under the final name already, if anything. */
static int look_at_target(struct target_file *t, struct error *err)
{
	struct stat st;

	t->in_place = target_file_is_nbd(t->opt.to);
	if (t->in_place && strcmp(t->opt.format, "raw") != 0)
		return error_set(err, TM_E_USAGE,
				 "%s: the server decides about the format; restore to it as raw",
				 t->opt.to);
	if (t->in_place)
		return 0;
	if (stat(t->opt.to, &st) < 0) {
		if (errno != ENOENT)
			return error_errno(err, errno, "cannot look at %s", t->opt.to);
		if (!t->opt.force && lstat(t->opt.to, &st) == 0)
			return error_set(err, TM_E_EXISTS,
					 "%s is a link to what is not there; --force replaces it",
					 t->opt.to);
		return 0;
	}
	if (S_ISBLK(st.st_mode)) {
		if (strcmp(t->opt.format, "raw") != 0)
			return error_set(err, TM_E_USAGE,
					 "%s is a block device: restore to it as raw", t->opt.to);
		t->in_place = true;
		return image_claim(t->opt.to, &t->claim, err);
	}
	if (!S_ISREG(st.st_mode))
		return error_set(err, TM_E_USAGE, "%s is neither a regular file nor a block device",
				 t->opt.to);
	if (!t->opt.force)
		return error_set(err, TM_E_EXISTS, "%s exists already; --force replaces it",
				 t->opt.to);
	return image_claim(t->opt.to, &t->claim, err);
}

static int open_any(struct target_file *t, struct error *err)
{
	struct nbd_address addr = {.uri = t->opt.to};
	int fd, r = look_at_target(t, err);

	if (r)
		return r;
	if (target_file_is_nbd(t->opt.to))
		return nbd_sink_open(t->opt.loop, &addr, t->opt.size, t->opt.block_size, CONNECT_MS,
				     &t->sink, err);
	if (t->in_place)
		return file_sink_open(t->opt.loop, t->opt.to, t->opt.size, t->opt.block_size, true,
				      &t->sink, err);
	remove_stale_partials(t->opt.to);
	r = make_partial_name(t, err);
	if (r)
		return r;
	if (strcmp(t->opt.format, "qcow2") == 0)
		r = qcow2_sink_open(t->opt.loop, t->partial, t->opt.size, t->opt.block_size,
				    &t->sink, err);
	else
		r = file_sink_open(t->opt.loop, t->partial, t->opt.size, t->opt.block_size, false,
				   &t->sink, err);
	t->made = r == 0;
	if (r)
		return r;
	fd = open(t->partial, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return error_errno(err, errno, "cannot open %s", t->partial);
	hold_partial(t, fd);
	return 0;
}

int target_file_look(const struct target_file_options *opt, char **ret_place, struct error *err)
{
	struct target_file t = {.opt = *opt, .claim = -1};
	int r = look_at_target(&t, err);

	if (t.claim >= 0)
		(void)close(t.claim);
	if (r)
		return r;
	if (target_file_is_nbd(opt->to))
		return text_copy(opt->to, ret_place, err);
	*ret_place = realpath(opt->to, NULL);
	if (!*ret_place && errno != ENOENT)
		return error_errno(err, errno, "cannot look at %s", opt->to);
	return *ret_place ? 0 : text_copy(opt->to, ret_place, err);
}

int target_file_open(const struct target_file_options *opt, struct target_file **ret,
		     struct error *err)
{
	auto_clean(target_file_free) struct target_file *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return error_nomem(err);
	t->opt = *opt;
	t->lock = t->claim = -1;
	r = open_any(t, err);
	if (r)
		return r;
	*ret = tm_steal(t);
	return 0;
}

struct piece_sink *target_file_sink(struct target_file *t)
{
	return disk_sink_pieces(t->sink);
}

bool target_file_needs_zeroes(const struct target_file *t)
{
	return t->in_place;
}

void target_file_abort(struct target_file *t, const char *why)
{
	if (t->sink)
		disk_sink_abort(t->sink, why);
}

/* Without --force nobody's file may vanish, even one that came while we were writing. */
static int publish(struct target_file *t, struct error *err)
{
	unsigned flags = t->opt.force ? 0 : RENAME_NOREPLACE;
	int res = 0;

	if (renameat2(AT_FDCWD, t->partial, AT_FDCWD, t->opt.to, flags) < 0)
		res = -errno;
	if (flags && (res == -EINVAL || res == -ENOSYS))
		res = io_rename_by_link(AT_FDCWD, t->partial, AT_FDCWD, t->opt.to);
	if (res < 0)
		return error_errno(err, -res, "cannot rename %s to %s", t->partial, t->opt.to);
	t->made = false;
	return io_sync_parent(t->opt.to, err);
}

int target_file_finish(struct target_file *t, struct disk_sink_counts *ret, struct error *err)
{
	int r = disk_sink_finish(t->sink, ret, err);

	disk_sink_free(t->sink);
	t->sink = NULL;
	if (!r && t->partial)
		r = publish(t, err);
	return r;
}

void target_file_free(struct target_file *t)
{
	if (!t)
		return;
	if (t->sink)
		disk_sink_free(t->sink);
	if (t->made)
		(void)unlink(t->partial);
	if (t->lock >= 0)
		(void)close(t->lock);
	if (t->claim >= 0)
		(void)close(t->claim);
	free(t->partial);
	free(t);
}
