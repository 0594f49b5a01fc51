/* SPDX-License-Identifier: Apache-2.0 */
/*
 * While a guest is on overlays, and above all in the moment when a merged overlay is left and the
 * guest's I/O stands (PENDING), somebody has to go on whatever becomes of the agent.  The guard is
 * a process of its own that does nothing but listen:
 *
 *   the agent said "end"                          it ends
 *   the agent's socket closed without that        it runs the recovery that anybody could run
 *   silence for SILENCE_MS after "hold"           it kills the agent, then the same
 *
 * A stopped agent, or one that waits for something that does not come, is of no more use to the
 * guest than a dead one.
 */
#include "guard.h"

#include "proc.h"
#include "recover.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <syslog.h>

#define AGENT_FD     0     /* the socket to the agent */
#define SILENCE_MS   5000  /* while the guest's I/O may stand */
#define WORK_MS      60000 /* the same of one that waits for a disk */
#define BEAT_MS      500   /* how often the agent says that it lives */
#define END_MS       500   /* for a guard to end */
#define KILL_MS      60000
#define TRY_AGAIN_MS 500
#define FAILURES_MAX 3
#define UNBORN_MS    50 /* and so often: how soon a dead agent's lock is free */
#define UNBORN_TRIES 20

#define GUARD_WORDS 5 /* of its command line, before the bases of the run */

#define WORD_HOLD    'h'
#define WORD_RELEASE 'r'
#define WORD_END     'e'

static uint64_t now_ms(void)
{
	return clock_monotonic_ms(&clock_system);
}

/* ---- the agent's side ---- */

struct guard {
	int fd;
	pid_t pid;
	bool held;
	uint64_t said_ms; /* when it heard of us last */
};

int guard_start(const struct journal *j, const char *state_dir, struct guard **ret,
		struct error *err)
{
	auto_free const char **argv = calloc(GUARD_WORDS + j->ndisks + 1, sizeof(*argv));
	auto_free struct guard *g = NULL;
	char pid[16];
	int pair[2], r;

	*ret = NULL;
	if (getenv("TIDEMARK_DEBUG_KILL_AT"))
		return 0;
	g = calloc(1, sizeof(*g));
	if (!g || !argv)
		return error_nomem(err);
	(void)snprintf(pid, sizeof(pid), "%d", (int)getpid());
	argv[0] = "/proc/self/exe";
	argv[1] = RECOVERY_GUARD_WORD;
	argv[2] = state_dir;
	argv[3] = j->path;
	argv[4] = pid;
	for (size_t i = 0; i < j->ndisks; i++)
		argv[GUARD_WORDS + i] = j->disks[i].base;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return error_errno(err, errno, "cannot make sockets for the guard");
	r = spawn_start(argv, pair[1], -1, &g->pid, err);
	(void)close(pair[1]);
	if (r) {
		(void)close(pair[0]);
		return r;
	}
	g->fd = pair[0];
	*ret = tm_steal(g);
	return 0;
}

static void say(struct guard *g, char word)
{
	if (send(g->fd, &word, 1, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		log_debug("the guard does not listen");
	g->said_ms = now_ms();
}

void guard_hold(struct guard *g)
{
	if (!g || g->held)
		return;
	g->held = true;
	say(g, WORD_HOLD);
}

void guard_beat(struct guard *g)
{
	if (g && g->held && now_ms() - g->said_ms >= BEAT_MS)
		say(g, WORD_HOLD);
}

void guard_release(struct guard *g)
{
	if (!g || !g->held)
		return;
	g->held = false;
	say(g, WORD_RELEASE);
}

void guard_end(struct guard *g)
{
	uint64_t deadline = now_ms() + END_MS;

	if (!g)
		return;
	say(g, WORD_END);
	(void)close(g->fd);
	while (!spawn_ended(g->pid) && now_ms() < deadline)
		clock_sleep_ms(&clock_system, 2);
	free(g);
}

/* ---- the guard's side ---- */

/* What ended the wait. */
enum verdict {
	AGENT_DONE,
	AGENT_DEAD,
	AGENT_SILENT,
};

/*
 * An agent that waits for its disk or for a processor does what it can: who takes its place would
 * have to wait for the same.
 */
static bool is_at_work(pid_t agent)
{
	char state = proc_state(agent);

	return state == 'D' || state == 'R';
}

/*
 * Silence is counted in beats that the guard itself was awake for.  Where the guard was stopped,
 * alone or with the agent (a frozen control group, a host that was paused), what the agent said is
 * still to be read, and what it did not say in that time proves nothing.
 */
static enum verdict listen_to_agent(pid_t agent)
{
	uint64_t silent = 0;
	bool held = false;

	for (;;) {
		struct pollfd p = {AGENT_FD, POLLIN, 0};
		uint64_t began = now_ms();
		char word = 0;
		ssize_t n;

		if (poll(&p, 1, held ? BEAT_MS : -1) <= 0) {
			silent += min_u64(now_ms() - began, BEAT_MS);
			if (held && silent >= SILENCE_MS &&
			    (silent >= WORK_MS || !is_at_work(agent)))
				return AGENT_SILENT;
			continue;
		}
		n = recv(AGENT_FD, &word, 1, MSG_DONTWAIT);
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (n <= 0)
			return AGENT_DEAD;
		if (word == WORD_END)
			return AGENT_DONE;
		held = word == WORD_HOLD;
		silent = 0;
	}
}

/* A process in the middle of a request to a disk that hangs ends only when that comes back. */
static void kill_agent(int pidfd)
{
	struct pollfd p = {pidfd, POLLIN, 0};

	if (pidfd_send_signal(pidfd, SIGKILL, NULL, 0) < 0)
		return;
	syslog(LOG_WARNING, "the agent said nothing while the guest's writes stood: killed");
	(void)poll(&p, 1, KILL_MS);
}

/* The journal, or when that was lost a copy beside a base.  NULL: there is none, all is done. */
static char *find_journal(const char *journal, char *const bases[])
{
	char *path = NULL;

	if (access(journal, F_OK) == 0 && text_copy(journal, &path, NULL) == 0)
		return path;
	for (size_t i = 0; bases[i]; i++) {
		auto_free char *copy = NULL;

		if (text_format(&copy, NULL, "%s" JOURNAL_SUFFIX, bases[i]) == 0 &&
		    access(copy, F_OK) == 0)
			return tm_steal(copy);
	}
	return NULL;
}

static void remove_tmp(const char *path, const char *suffix)
{
	auto_free char *tmp = NULL;

	if (text_format(&tmp, NULL, "%s%s" IO_PUBLISH_TMP, path, suffix) == 0 &&
	    io_remove(tmp, NULL))
		log_debug("cannot remove %s", tmp);
}

/* It died while it wrote its first journal: nothing was done, and nobody looks for what is there.
 */
static void remove_unborn(const char *state_dir, const char *journal, char *const bases[])
{
	auto_free char *key = NULL, *path = NULL;
	auto_close int lock = -1;
	int r = journal_key_of(journal, &key, NULL);

	if (!r)
		r = journal_lock(state_dir, key, NULL, &lock, NULL);
	/* One that is just dying has closed its socket, but not yet its lock. */
	for (unsigned i = 0; r == TM_E_BUSY && i < UNBORN_TRIES; i++) {
		clock_sleep_ms(&clock_system, UNBORN_MS);
		r = journal_lock(state_dir, key, NULL, &lock, NULL);
	}
	if (r)
		return; /* who has the lock writes over them */
	path = find_journal(journal, bases);
	if (path)
		return;
	remove_tmp(journal, "");
	for (size_t i = 0; bases[i]; i++)
		remove_tmp(bases[i], JOURNAL_SUFFIX);
}

static void put_in_order(const char *state_dir, const char *journal, char *const bases[])
{
	const struct recover_options opt = {.state_dir = state_dir, .unguarded = true};
	uint64_t deadline = now_ms() + GUARD_TRIES_MS;
	struct error last = {0};

	for (unsigned failures = 0; failures < FAILURES_MAX && now_ms() < deadline;) {
		auto_recover_report struct recover_report report = {0};
		auto_free char *path = find_journal(journal, bases);
		struct error err = {0};
		int r = path ? recover_journal(path, &opt, &report, &err) : 0;

		if (!r) {
			for (size_t i = 0; i < report.lines.n; i++)
				syslog(LOG_NOTICE, "%s", report.lines.v[i]);
			if (!path)
				remove_unborn(state_dir, journal, bases);
			return;
		}
		if (strcmp(err.text, last.text) != 0)
			syslog(LOG_ERR, "%s", err.text);
		last = err;
		/* An agent that is just dying, a QEMU that hangs; the rest a person decides. */
		if (r != TM_E_BUSY && r != TM_E_TIMEOUT)
			failures++;
		clock_sleep_ms(&clock_system, TRY_AGAIN_MS);
	}
}

int recovery_guard_main(const char *state_dir, const char *journal, const char *agent,
			char *const bases[])
{
	static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGQUIT};
	const struct sigaction ignore = {.sa_handler = SIG_IGN};
	auto_close int pidfd = -1;
	enum verdict verdict;
	pid_t pid = (pid_t)strtol(agent, NULL, 10);

	for (size_t i = 0; i < ARRAY_SIZE(ignored); i++)
		(void)sigaction(ignored[i], &ignore, NULL);
	/* What the agent was started with may be somebody's lock or pipe. */
	(void)close_range(AGENT_FD + 3, ~0u, 0);
	(void)unsetenv("TIDEMARK_DEBUG_STOP_AT"); /* that was meant for the agent */
	(void)prctl(PR_SET_NAME, PROC_GUARD_NAME);
	openlog("tidemark", LOG_PID, LOG_DAEMON);
	/* As long as it is our parent, its number is its own. */
	if (pid > 0 && getppid() == pid)
		pidfd = pidfd_open(pid, 0);
	if (getppid() != pid)
		(void)close(tm_steal_fd(&pidfd));
	verdict = listen_to_agent(pid);
	if (verdict == AGENT_DONE)
		return EXIT_SUCCESS;
	if (verdict == AGENT_SILENT && pidfd >= 0)
		kill_agent(pidfd);
	put_in_order(state_dir, journal, bases);
	return EXIT_SUCCESS;
}
