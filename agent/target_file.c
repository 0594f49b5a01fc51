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

#define CONNECT_MS  10000 /* for a server to answer */
#define QEMU_IMG_MS 60000 /* to create an empty image */
#define QEMU_NBD_MS 60000 /* to write out its caches and end */

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
	char *dir;     /* private folder of qemu-nbd's socket */
	int dir_lock;  /* rundir.h; or -1 */
	char *socket;
	struct server qemu_nbd;
};

static bool is_nbd_address(const char *to)
{
	return strncmp(to, "nbd://", 6) == 0 || strncmp(to, "nbd+unix://", 11) == 0 ||
	       strncmp(to, "nbds://", 7) == 0 || strncmp(to, "nbds+unix://", 12) == 0;
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

	if (stat(t->opt.to, &st) < 0) {
		if (errno == ENOENT)
			return 0;
		return error_errno(err, errno, "cannot look at %s", t->opt.to);
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

/* It ends with its last connection, and so when we are killed. */
static int start_server(struct target_file *t, struct error *err)
{
	int r = rundir_make(NULL, &t->dir, &t->dir_lock, err);

	if (!r)
		r = text_format(&t->socket, err, "%s/nbd.sock", t->dir);
	if (r)
		return r;
	const char *const argv[] = {"qemu-nbd", "--format=qcow2", "--shared=8", "--discard=unmap",
				    "--socket", t->socket,        "--",         t->partial,
				    NULL};
	return server_start(argv, &t->qemu_nbd, err);
}

/*
 * The socket is there before the server listens on it.  To look whether it does would be a
 * connection, and with the last one it ends: so the one that counts is tried until it comes about.
 */
static int connect_server(struct target_file *t, struct error *err)
{
	const struct nbd_address addr = {.socket = t->socket};
	uint64_t deadline = clock_monotonic_ms(&clock_system) + CONNECT_MS;

	for (;;) {
		struct error e = {0};
		int r = nbd_sink_open(t->opt.loop, &addr, t->opt.size, t->opt.block_size, true,
				      CONNECT_MS, &t->sink, &e);

		if (r == 0)
			return 0;
		if (server_ended(&t->qemu_nbd))
			return error_set(err, TM_E_PEER, "%s cannot be served", t->partial);
		if (r != TM_E_NOTFOUND || clock_monotonic_ms(&clock_system) >= deadline)
			return error_set(err, r, "qemu-nbd does not serve %s: %s", t->partial,
					 e.text);
		clock_sleep_ms(&clock_system, 5);
	}
}

/* qcow2 is left to those who know it: qemu-img makes the file, qemu-nbd writes it. */
static int open_qcow2(struct target_file *t, struct error *err)
{
	char size[24];
	int r;

	(void)snprintf(size, sizeof(size), "%llu", (unsigned long long)t->opt.size);
	const char *const argv[] = {"qemu-img", "create",   "-q", "-f",
				    "qcow2",    t->partial, size, NULL};
	int fd = open(t->partial, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0)
		return error_errno(err, errno, "cannot create %s", t->partial);
	t->made = true;
	hold_partial(t, fd);
	r = spawn_run(argv, QEMU_IMG_MS, NULL, err);
	if (!r)
		r = start_server(t, err);
	if (!r)
		r = connect_server(t, err);
	if (r)
		server_explain(&t->qemu_nbd, err);
	return r;
}

static int open_any(struct target_file *t, struct error *err)
{
	struct nbd_address addr = {.uri = t->opt.to};
	int fd, r;

	if (is_nbd_address(t->opt.to)) {
		t->in_place = true;
		return nbd_sink_open(t->opt.loop, &addr, t->opt.size, t->opt.block_size, false,
				     CONNECT_MS, &t->sink, err);
	}
	r = look_at_target(t, err);
	if (r)
		return r;
	if (t->in_place)
		return file_sink_open(t->opt.loop, t->opt.to, t->opt.size, t->opt.block_size, true,
				      &t->sink, err);
	remove_stale_partials(t->opt.to);
	r = make_partial_name(t, err);
	if (r)
		return r;
	if (strcmp(t->opt.format, "qcow2") == 0)
		return open_qcow2(t, err);
	r = file_sink_open(t->opt.loop, t->partial, t->opt.size, t->opt.block_size, false, &t->sink,
			   err);
	t->made = r == 0;
	if (r)
		return r;
	fd = open(t->partial, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return error_errno(err, errno, "cannot open %s", t->partial);
	hold_partial(t, fd);
	return 0;
}

int target_file_open(const struct target_file_options *opt, struct target_file **ret,
		     struct error *err)
{
	auto_clean(target_file_free) struct target_file *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return error_nomem(err);
	t->opt = *opt;
	t->lock = t->claim = t->dir_lock = -1;
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

static void stop_server(struct target_file *t)
{
	server_stop(&t->qemu_nbd, QEMU_NBD_MS);
	if (t->dir)
		rundir_remove(t->dir);
}

static int sync_file(const char *path, struct error *err)
{
	auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || fsync(fd) < 0)
		return error_errno(err, errno, "cannot sync %s", path);
	return 0;
}

/* Without --force nobody's file may vanish, even one that came while we were writing. */
static int publish(struct target_file *t, struct error *err)
{
	unsigned flags = t->opt.force ? 0 : RENAME_NOREPLACE;
	int r = sync_file(t->partial, err);

	if (r)
		return r;
	if (renameat2(AT_FDCWD, t->partial, AT_FDCWD, t->opt.to, flags) < 0)
		return error_errno(err, errno, "cannot rename %s to %s", t->partial, t->opt.to);
	t->made = false;
	return io_sync_parent(t->opt.to, err);
}

int target_file_finish(struct target_file *t, uint64_t *ret_written_bytes, struct error *err)
{
	struct disk_sink_counts counts = {0};
	int r = disk_sink_finish(t->sink, &counts, err);

	if (r)
		server_explain(&t->qemu_nbd, err);
	disk_sink_free(t->sink);
	t->sink = NULL;
	stop_server(t);
	if (!r && t->partial)
		r = publish(t, err);
	if (!r)
		*ret_written_bytes = counts.written_bytes;
	return r;
}

void target_file_free(struct target_file *t)
{
	if (!t)
		return;
	if (t->sink)
		disk_sink_free(t->sink);
	stop_server(t);
	if (t->made)
		(void)unlink(t->partial);
	if (t->lock >= 0)
		(void)close(t->lock);
	if (t->claim >= 0)
		(void)close(t->claim);
	if (t->dir_lock >= 0)
		(void)close(t->dir_lock);
	free(t->partial);
	free(t->socket);
	free(t->dir);
	free(t);
}
