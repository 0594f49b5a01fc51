/* SPDX-License-Identifier: Apache-2.0 */
#include "proc.h"

#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define LOOKS         3
#define LOOK_AGAIN_MS 10

TM_CLEANUP(DIR, closedir)

/* A block device may have another file for each name space. */
static bool same_file(const struct stat *a, const struct stat *b)
{
	if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode))
		return a->st_rdev == b->st_rdev;
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/* *ret_seen: what the process has open can be told. */
static bool look_at_open(pid_t pid, const struct stat *want, bool *ret_seen)
{
	auto_clean(closedir) DIR *dir = NULL;
	const struct dirent *e;
	char path[64];

	(void)snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	*ret_seen = dir != NULL;
	while (dir && (e = readdir(dir))) {
		struct stat st;

		if (e->d_name[0] == '.')
			continue;
		if (fstatat(dirfd(dir), e->d_name, &st, 0) < 0)
			*ret_seen = false;
		else if (same_file(&st, want))
			return true;
	}
	return false;
}

static bool holds(pid_t pid, const struct stat *want)
{
	bool seen;

	return look_at_open(pid, want, &seen);
}

/* Who listens on its socket may be another one that started it, and gave the socket to it. */
static bool is_qemu(pid_t pid)
{
	char path[64], exe[PATH_MAX];
	const char *slash;
	ssize_t n;

	(void)snprintf(path, sizeof(path), "/proc/%d/exe", (int)pid);
	n = readlink(path, exe, sizeof(exe) - 1);
	if (n <= 0)
		return false;
	exe[n] = '\0';
	slash = strrchr(exe, '/');
	return slash && strncmp(slash + 1, "qemu", 4) == 0;
}

/* A file that is opened again just now may be missed once: it has a lower number then. */
bool proc_qemu_lacks(pid_t pid, const char *path)
{
	struct stat st;
	bool seen;

	if (pid <= 0 || !is_qemu(pid) || stat(path, &st) < 0)
		return false;
	for (unsigned looks = 0; looks < LOOKS; looks++) {
		if (looks)
			clock_sleep_ms(&clock_system, LOOK_AGAIN_MS);
		if (look_at_open(pid, &st, &seen) || !seen)
			return false;
	}
	return true;
}

bool proc_has_open(pid_t pid, const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && holds(pid, &st);
}

/* The next process; 0 at the end. */
static pid_t next_process(DIR *proc)
{
	const struct dirent *e;

	while ((e = readdir(proc))) {
		if (isdigit((unsigned char)e->d_name[0]))
			return (pid_t)strtol(e->d_name, NULL, 10);
	}
	return 0;
}

/* A file of /proc/PID, at most max - 1 bytes, NUL-terminated.  *ret_len: its length. */
static bool read_proc(pid_t pid, const char *name, char *text, size_t max, size_t *ret_len)
{
	auto_close int fd = -1;
	char path[64];
	ssize_t n;

	(void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd >= 0 ? read(fd, text, max - 1) : -1;
	if (n < 0)
		return false;
	text[n] = '\0';
	*ret_len = (size_t)n;
	return true;
}

/* The third field of proc(5); the second ends with the last ')' and may hold anything. */
char proc_state(pid_t pid)
{
	char text[1024];
	const char *p;
	size_t len;

	if (!read_proc(pid, "stat", text, sizeof(text), &len))
		return 'X';
	p = strrchr(text, ')');
	if (!p || p[1] != ' ' || !p[2])
		return 'X';
	return p[2];
}

/* starttime in proc(5) */
#define START_TIME_FIELD 22

uint64_t proc_start(pid_t pid)
{
	char text[1024];
	const char *p;
	size_t len;

	if (!read_proc(pid, "stat", text, sizeof(text), &len))
		return 0;
	p = strrchr(text, ')'); /* the name may hold anything */
	if (proc_state(pid) == 'Z')
		return 0; /* dead, and its parent has not heard yet */
	for (unsigned field = 2; p && field < START_TIME_FIELD; field++)
		p = strchr(p + 1, ' ');
	return p ? strtoull(p + 1, NULL, 10) : 0;
}

bool proc_is_guard(pid_t pid)
{
	char name[PROC_NAME_MAX];
	size_t len;

	return read_proc(pid, "comm", name, sizeof(name), &len) &&
	       strcmp(name, PROC_GUARD_NAME "\n") == 0;
}

bool proc_find_holder(const char *path, pid_t *ret_pid, char name[PROC_NAME_MAX])
{
	auto_clean(closedir) DIR *proc = opendir("/proc");
	struct stat want;
	size_t len;
	pid_t pid;

	if (!proc || stat(path, &want) < 0)
		return false;
	while ((pid = next_process(proc))) {
		if (pid == getpid() || !holds(pid, &want))
			continue;
		if (!read_proc(pid, "comm", name, PROC_NAME_MAX, &len))
			name[0] = '\0';
		name[strcspn(name, "\n")] = '\0';
		*ret_pid = pid;
		return true;
	}
	return false;
}

void proc_holder_text(const char *path, char text[PROC_NAME_MAX + 32])
{
	char name[PROC_NAME_MAX];
	pid_t pid;

	text[0] = '\0';
	if (proc_find_holder(path, &pid, name))
		(void)snprintf(text, PROC_NAME_MAX + 32, " (process %d, %s)", (int)pid, name);
}

static bool ends_with(const char *text, const char *end)
{
	size_t n = strlen(text), m = strlen(end);

	return n >= m && strcmp(text + n - m, end) == 0;
}

bool proc_find_command(const char *program, const char *argument_end, pid_t *ret_pid)
{
	auto_clean(closedir) DIR *proc = opendir("/proc");
	char line[16384];
	pid_t pid;

	while (proc && (pid = next_process(proc))) {
		const char *slash;
		size_t len;

		if (pid == getpid() || !read_proc(pid, "cmdline", line, sizeof(line), &len))
			continue;
		slash = strrchr(line, '/');
		if (strcmp(slash ? slash + 1 : line, program) != 0)
			continue;
		for (const char *p = line; p < line + len; p += strlen(p) + 1) {
			if (ends_with(p, argument_end)) {
				*ret_pid = pid;
				return true;
			}
		}
	}
	return false;
}

bool proc_listener(const char *path, pid_t *ret_pid)
{
	auto_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct ucred peer;
	socklen_t len = sizeof(peer);

	if (fd < 0 || strlen(path) >= sizeof(addr.sun_path))
		return false;
	(void)memcpy(addr.sun_path, path, strlen(path) + 1);
	/* A place in the queue is enough: the kernel knows who listens. */
	if (connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0 ||
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
		return false;
	if (ret_pid)
		*ret_pid = peer.pid;
	return true;
}
