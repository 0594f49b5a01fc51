/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The owner holds a lock (flock) on the directory for as long as it lives.  One that is older than
 * the moment between making and locking it, and not locked, has no owner any more.
 */
#include "rundir.h"

#include "buf.h"
#include "cleanup.h"
#include "log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define PREFIX  "tidemark-run-"
#define RANDOM  "XXXXXX"
#define YOUNG_S 60

TM_CLEANUP(DIR, closedir)

static const char *parent_dir(void)
{
	const char *run = getenv("XDG_RUNTIME_DIR");

	if (geteuid() == 0)
		return access("/run", W_OK) == 0 ? "/run" : "/tmp";
	/* Names of sockets are short. */
	return run && strlen(run) <= sizeof(((struct sockaddr_un *)0)->sun_path) / 2 &&
			       access(run, W_OK) == 0
		       ? run
		       : "/tmp";
}

static int open_dir(int parent, const char *name)
{
	return openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

/* By its descriptor: the name may be somebody else's by now.  Takes fd over. */
static void empty(int fd)
{
	auto_clean(closedir) DIR *dir = fdopendir(fd);
	const struct dirent *e;

	if (!dir)
		(void)close(fd);
	while (dir && (e = readdir(dir))) {
		struct stat st;

		if (fstatat(dirfd(dir), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
		    !S_ISDIR(st.st_mode))
			(void)unlinkat(dirfd(dir), e->d_name, 0);
	}
}

void rundir_remove(const char *path)
{
	int fd = open_dir(AT_FDCWD, path);

	if (fd >= 0)
		empty(fd);
	(void)rmdir(path);
}

static bool is_dead(int fd)
{
	struct stat st;

	return fstat(fd, &st) == 0 && (geteuid() == 0 || st.st_uid == geteuid()) &&
	       st.st_ctim.tv_sec + YOUNG_S < time(NULL) && flock(fd, LOCK_EX | LOCK_NB) == 0;
}

static void sweep(const char *parent)
{
	auto_clean(closedir) DIR *dir = opendir(parent);
	const struct dirent *e;

	while (dir && (e = readdir(dir))) {
		auto_close int fd = -1;

		if (strncmp(e->d_name, PREFIX, strlen(PREFIX)) != 0 ||
		    strlen(e->d_name) != strlen(PREFIX RANDOM))
			continue;
		fd = open_dir(dirfd(dir), e->d_name);
		if (fd < 0 || !is_dead(fd))
			continue;
		log_debug("removed %s/%s, whose owner is gone", parent, e->d_name);
		empty(tm_steal_fd(&fd));
		(void)unlinkat(dirfd(dir), e->d_name, AT_REMOVEDIR);
	}
}

static int give_to_owner_of(const char *like, const char *dir, struct error *err)
{
	struct stat st;

	if (!like || geteuid() != 0 || stat(like, &st) < 0 || st.st_uid == 0)
		return 0;
	if (chown(dir, st.st_uid, st.st_gid) < 0)
		return error_errno(err, errno, "cannot give %s to QEMU's user", dir);
	return 0;
}

int rundir_make(const char *like, char **ret, int *ret_lock, struct error *err)
{
	const char *parent = parent_dir();
	auto_free char *dir = NULL;
	auto_close int fd = -1;
	int r;

	sweep(parent);
	r = text_format(&dir, err, "%s/" PREFIX RANDOM, parent);
	if (r)
		return r;
	if (!mkdtemp(dir))
		return error_errno(err, errno, "cannot make a directory for sockets in %s", parent);
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0)
		r = error_errno(err, errno, "cannot lock %s", dir);
	if (!r)
		r = give_to_owner_of(like, dir, err);
	if (r) {
		(void)rmdir(dir);
		return r;
	}
	*ret = tm_steal(dir);
	*ret_lock = tm_steal_fd(&fd);
	return 0;
}
