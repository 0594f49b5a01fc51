/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Connecting to unix sockets.  A path that does not fit into sun_path is reached
 * through a descriptor of its directory, so that only the last part has to fit.
 */
#include "internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

/* Opens the directory of a long path and puts a short name for the socket into *sa. */
static int shorten(const char *path, struct sockaddr_un *sa, int *ret_dir, struct error *err)
{
	const char *slash = strrchr(path, '/');
	auto_free char *dirname = NULL;
	auto_close int dir = -1;
	int n, r = io_dirname(path, &dirname, err);

	if (r)
		return r;
	dir = open(dirname, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dir < 0)
		return error_errno(err, errno, "cannot open directory %s", dirname);
	n = snprintf(sa->sun_path, sizeof(sa->sun_path), "/proc/self/fd/%d/%s", dir,
		     slash ? slash + 1 : path);
	if (n < 0 || (size_t)n >= sizeof(sa->sun_path))
		return error_set(err, TM_E_RANGE, "the name of socket %s is too long", path);
	*ret_dir = tm_steal_fd(&dir);
	return 0;
}

static int connect_failed(const char *path, int errnum, struct error *err)
{
	switch (errnum) {
	case ENOENT:
	case ENOTDIR:
		return error_set(err, TM_E_NOTFOUND, "there is no socket %s", path);
	case ECONNREFUSED:
		return error_set(err, TM_E_NOTFOUND, "nobody listens on socket %s", path);
	case EAGAIN:
		return error_set(err, TM_E_BUSY, "socket %s: its queue of connections is full",
				 path);
	default:
		return error_errno(err, errnum, "cannot connect to socket %s", path);
	}
}

int unix_socket_connect(const char *path, int *ret_fd, struct error *err)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	auto_close int dir = -1, fd = -1;
	size_t len = strlen(path);
	int r;

	if (!len)
		return error_set(err, TM_E_USAGE, "the name of a socket is empty");
	if (len < sizeof(sa.sun_path)) {
		(void)memcpy(sa.sun_path, path, len);
	} else {
		r = shorten(path, &sa, &dir, err);
		if (r)
			return r;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_errno(err, errno, "cannot make a socket");
	/* A unix socket connects at once or not at all: there is no EINPROGRESS. */
	do {
		r = connect(fd, (const struct sockaddr *)&sa, sizeof(sa));
	} while (r < 0 && errno == EINTR);
	if (r < 0)
		return connect_failed(path, errno, err);
	*ret_fd = tm_steal_fd(&fd);
	return 0;
}
