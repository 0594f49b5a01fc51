/* SPDX-License-Identifier: Apache-2.0 */
/* Child processes: every wait bounded, no zombie left, no descriptor inherited. */
#include "spawn.h"

#include "checked.h"
#include "clock.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#define OUT_MAX       ((size_t)64 << 20) /* of a child's stdout */
#define EXEC_FAILED   127 /* exit status where posix_spawn(3) cannot report it otherwise */
#define ERR_MAX       ((size_t)8 << 10) /* of a child's stderr */
#define TERM_AGAIN_MS 200

struct child {
	pid_t pid;
	int out, err; /* read ends, -1 when closed */
};

static void child_done(struct child *c)
{
	if (c->out >= 0)
		(void)close(c->out);
	if (c->err >= 0)
		(void)close(c->err);
}

/* Signals as a program expects them, whatever this process ignores or blocks. */
static int set_attributes(posix_spawnattr_t *attr)
{
	sigset_t all, none;
	int r;

	(void)sigfillset(&all);
	(void)sigemptyset(&none);
	r = posix_spawnattr_setsigdefault(attr, &all);
	if (!r)
		r = posix_spawnattr_setsigmask(attr, &none);
	if (!r)
		r = posix_spawnattr_setpgroup(
			attr, 0); /* a ^C on the terminal is the agent's to handle */
	if (!r)
		r = posix_spawnattr_setflags(attr, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK |
							   POSIX_SPAWN_SETPGROUP);
	return r;
}

static int spawn(const char *const argv[], int in, int out, int errfd, pid_t *ret,
		 struct error *err)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attr;
	int r = posix_spawn_file_actions_init(&actions);

	if (r)
		return error_errno(err, r, "cannot start %s", argv[0]);
	r = posix_spawnattr_init(&attr);
	if (r) {
		(void)posix_spawn_file_actions_destroy(&actions);
		return error_errno(err, r, "cannot start %s", argv[0]);
	}
	r = in >= 0 ? posix_spawn_file_actions_adddup2(&actions, in, 0)
		    : posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
	if (!r)
		r = out >= 0 ? posix_spawn_file_actions_adddup2(&actions, out, 1)
			     : posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY,
								0);
	if (!r)
		r = errfd >= 0 ? posix_spawn_file_actions_adddup2(&actions, errfd, 2)
			       : posix_spawn_file_actions_addopen(&actions, 2, "/dev/null",
								  O_WRONLY, 0);
	if (!r)
		r = set_attributes(&attr);
	if (!r)
		r = posix_spawnp(ret, argv[0], &actions, &attr, (char *const *)(uintptr_t)argv,
				 environ);
	(void)posix_spawnattr_destroy(&attr);
	(void)posix_spawn_file_actions_destroy(&actions);
	return r ? error_errno(err, r, "cannot start %s", argv[0]) : 0;
}

static int start_piped(const char *const argv[], struct child *c, struct error *err)
{
	int out[2], errp[2], r;

	if (pipe2(out, O_CLOEXEC) < 0)
		return error_errno(err, errno, "pipe");
	if (pipe2(errp, O_CLOEXEC) < 0) {
		r = error_errno(err, errno, "pipe");
		(void)close(out[0]);
		(void)close(out[1]);
		return r;
	}
	r = spawn(argv, -1, out[1], errp[1], &c->pid, err);
	(void)close(out[1]);
	(void)close(errp[1]);
	c->out = out[0];
	c->err = errp[0];
	if (r)
		child_done(c);
	return r;
}

/* Reads what is there into b, up to max bytes; more is read and dropped. Closes *fd at its end. */
static int drain(int *fd, struct buf *b, size_t max, struct error *err)
{
	uint8_t chunk[65536];
	ssize_t n = read(*fd, chunk, sizeof(chunk));
	int r;

	if (n < 0)
		return errno == EINTR ? 0 : error_errno(err, errno, "read from a pipe");
	if (n == 0) {
		(void)close(*fd);
		*fd = -1;
		return 0;
	}
	r = buf_add(b, chunk, min_size((size_t)n, b->len < max ? max - b->len : 0), err);
	explicit_bzero(chunk, (size_t)n); /* it may be a password */
	return r;
}

/* Reads both pipes to their ends. */
static int collect(struct child *c, uint64_t deadline, struct buf *out, struct buf *errs,
		   struct error *err)
{
	while (c->out >= 0 || c->err >= 0) {
		struct pollfd p[2] = {{c->out, POLLIN, 0}, {c->err, POLLIN, 0}};
		uint64_t now = clock_monotonic_ms(&clock_system);
		int r = 0;

		if (now >= deadline)
			return error_set(err, TM_E_TIMEOUT, "it did not end in time");
		if (poll(p, 2, (int)min_u64(deadline - now, 1000)) < 0 && errno != EINTR)
			return error_errno(err, errno, "poll");
		if (c->out >= 0 && p[0].revents)
			r = drain(&c->out, out, OUT_MAX, err);
		if (!r && c->err >= 0 && p[1].revents)
			r = drain(&c->err, errs, ERR_MAX, err);
		if (r)
			return r;
	}
	return 0;
}

/* Waits for the end without leaving a zombie.  The pipes are closed, so it is near. */
static int reap(pid_t pid, uint64_t deadline)
{
	int status;

	for (;;) {
		pid_t r = waitpid(pid, &status, WNOHANG);

		if (r == pid)
			return status;
		if (r < 0 && errno != EINTR)
			return -1;
		if (clock_monotonic_ms(&clock_system) >= deadline) {
			(void)kill(pid, SIGKILL);
			deadline = UINT64_MAX;
		}
		clock_sleep_ms(&clock_system, 1);
	}
}

/* The last non-empty line of what a program complained: there the reason stands. */
static const char *complaint(struct buf *errs)
{
	char *text, *line;

	if (buf_add(errs, "", 1, NULL))
		return "no memory for its message";
	text = (char *)errs->data;
	while ((line = strrchr(text, '\n')) && line[1] == '\0')
		*line = '\0';
	line = strrchr(text, '\n');
	return line ? line + 1 : text;
}

int spawn_run(const char *const argv[], unsigned timeout_ms, struct buf *ret_out, struct error *err)
{
	uint64_t deadline = clock_monotonic_ms(&clock_system) + timeout_ms;
	auto_buf struct buf out = {0}, errs = {0};
	struct child c = {-1, -1, -1};
	int r = start_piped(argv, &c, err), status;

	if (r)
		return r;
	r = collect(&c, deadline, &out, &errs, err);
	child_done(&c);
	if (r)
		(void)kill(c.pid, SIGKILL);
	status = reap(c.pid, deadline);
	if (r) {
		error_prefix(err, "%s", argv[0]);
		return r;
	}
	if (status < 0)
		return error_set(err, TM_E_IO, "%s: its exit status was lost", argv[0]);
	if (WIFSIGNALED(status))
		return error_set(err, TM_E_PEER, "%s was ended by signal %d", argv[0],
				 WTERMSIG(status));
	if (WEXITSTATUS(status) == EXEC_FAILED)
		return error_set(err, TM_E_NOTFOUND, "cannot start %s: no such program", argv[0]);
	if (ret_out) {
		r = buf_add(&out, "", 1, err); /* text stays NUL-terminated */
		if (r)
			return r;
		out.len--;
		buf_done(ret_out);
		*ret_out = out;
		out = (struct buf){0};
	}
	if (WEXITSTATUS(status)) {
		const char *said = complaint(&errs);

		return error_set(err, TM_E_PEER, "%s: exit status %d%s%s", argv[0],
				 WEXITSTATUS(status), *said ? ": " : ", without a word", said);
	}
	return 0;
}

int spawn_start(const char *const argv[], int in, int errors, pid_t *ret, struct error *err)
{
	return spawn(argv, in, -1, errors, ret, err);
}

bool spawn_ended(pid_t pid)
{
	int status;
	pid_t r = waitpid(pid, &status, WNOHANG);

	return r == pid || (r < 0 && errno == ECHILD);
}

void spawn_stop(pid_t pid, unsigned timeout_ms)
{
	uint64_t now = clock_monotonic_ms(&clock_system), again = now;
	uint64_t deadline = now + timeout_ms;

	for (; !spawn_ended(pid); now = clock_monotonic_ms(&clock_system)) {
		if (now >= again) {
			(void)kill(pid, SIGTERM);
			again = now + TERM_AGAIN_MS;
		}
		if (now >= deadline) {
			(void)reap(pid, now); /* kills it */
			return;
		}
		clock_sleep_ms(&clock_system, 1);
	}
}
