/* SPDX-License-Identifier: Apache-2.0 */
#include "server.h"

#include "cleanup.h"
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SAID_MAX 400 /* bytes of its last line that are told */

int server_start(const char *const argv[], struct server *ret, struct error *err)
{
	auto_close int in = -1, out = -1;
	int fds[2], flags, r;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return error_errno(err, errno, "pipe");
	out = fds[0];
	in = fds[1];
	/* Ends of a pipe have flags of their own: neither side ever waits. */
	for (size_t i = 0; i < 2; i++) {
		flags = fcntl(fds[i], F_GETFL);
		if (flags < 0 || fcntl(fds[i], F_SETFL, flags | O_NONBLOCK) < 0)
			return error_errno(err, errno, "pipe");
	}
	r = spawn_start(argv, -1, in, &ret->pid, err);
	if (r)
		return r;
	ret->name = argv[0];
	ret->said = tm_steal_fd(&out);
	return 0;
}

bool server_ended(struct server *s)
{
	int status = 0;

	if (!s->pid)
		return true;
	if (waitpid(s->pid, &status, WNOHANG) == 0)
		return false;
	s->pid = 0;
	s->ended_by = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
	return true;
}

/* Keeps the end of what there is: the reason stands last. */
static void read_end(int fd, char text[SAID_MAX + 1])
{
	char all[2 * SAID_MAX];
	size_t len = 0;
	ssize_t n;

	/* The pipe holds 64 KiB; who writes faster than this reads is not waited for. */
	for (unsigned i = 0; i < 256; i++) {
		n = read(fd, all + len, sizeof(all) - len);
		if (n <= 0)
			break;
		len += (size_t)n;
		if (len > SAID_MAX) {
			(void)memmove(all, all + len - SAID_MAX, SAID_MAX);
			len = SAID_MAX;
		}
	}
	(void)memcpy(text, all, len);
	text[len] = '\0';
}

static const char *last_line(char *text)
{
	size_t len = strlen(text);
	char *line;

	while (len && text[len - 1] == '\n')
		text[--len] = '\0';
	line = strrchr(text, '\n');
	line = line ? line + 1 : text;
	for (char *p = line; *p; p++) {
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = '?';
	}
	return line;
}

void server_explain(struct server *s, struct error *err)
{
	char text[SAID_MAX + 1];
	const char *line;

	if (!s->name || !server_ended(s))
		return;
	read_end(s->said, text);
	line = last_line(text);
	/* What it said before somebody killed it, of clients that left, is no reason. */
	if (s->ended_by == SIGKILL || s->ended_by == SIGTERM)
		line = "";
	error_append(err, "; %s %s", s->name, s->ended_by ? "was ended by signal" : "has ended");
	if (s->ended_by)
		error_append(err, " %d", s->ended_by);
	if (*line)
		error_append(err, ", and said: %s", line);
}

void server_stop(struct server *s, unsigned timeout_ms)
{
	if (!s->name)
		return;
	if (s->pid)
		spawn_stop(s->pid, timeout_ms);
	(void)close(s->said);
	*s = (struct server){0};
}
