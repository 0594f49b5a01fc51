/* SPDX-License-Identifier: Apache-2.0 */
/* The agent's side of a freeze.  The guard does it, see freeze_guard.c. */
#include "quiesce.h"

#include "freeze_guard.h"
#include "proc.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define THAW_MS      15000 /* the guard's own patience */
#define GUARD_MS     2000  /* for the guard to start, to speak, to end */
#define LEAST_MS     1000  /* for the transaction, however long the freeze took */
#define GUARD_END_MS 500
#define LOOK_MS      250  /* whether it can still speak */
#define STATE_MS     2000 /* for QEMU to say whether the guest runs */

static uint64_t now_ms(void)
{
	return clock_monotonic_ms(&clock_system);
}

static int start_guard(struct guest *g, struct freeze *f, struct error *err)
{
	char limit[16];
	const char *const argv[] = {"/proc/self/exe", FREEZE_GUARD_WORD, g->agent_socket, limit,
				    NULL};
	int pair[2], r;

	(void)snprintf(limit, sizeof(limit), "%u", f->limit_ms);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return error_errno(err, errno, "cannot make sockets for the guard");
	r = spawn_start(argv, pair[1], -1, &f->guard, err);
	(void)close(pair[1]);
	if (r) {
		(void)close(pair[0]);
		return r;
	}
	f->fd = pair[0];
	return 0;
}

/* The guard's next word.  TM_E_STALE: it has died without one, or somebody stopped it. */
static int hear(const struct freeze *f, unsigned timeout_ms, struct freeze_report *ret,
		struct error *err)
{
	uint64_t deadline = now_ms() + timeout_ms;

	for (;;) {
		struct pollfd p = {f->fd, POLLIN, 0};
		uint64_t now = now_ms();
		ssize_t n;

		if (now >= deadline)
			return error_set(err, TM_E_TIMEOUT,
					 "the process that guards the freeze does not answer");
		if (poll(&p, 1, (int)min_u64(deadline - now, LOOK_MS)) <= 0) {
			if (proc_state(f->guard) == 'T')
				return error_set(err, TM_E_STALE,
						 "the process that guards the freeze was stopped");
			continue;
		}
		n = recv(f->fd, ret, sizeof(*ret), MSG_DONTWAIT);
		if (n < 0 && (errno == EINTR || errno == EAGAIN))
			continue;
		if (n != (ssize_t)sizeof(*ret))
			return error_set(err, TM_E_STALE,
					 "the process that guards the freeze has died");
		ret->text[sizeof(ret->text) - 1] = '\0';
		if (ret->what == FREEZE_FAILED)
			return error_set(err, ret->code < 0 ? (enum tm_code)ret->code : TM_E_PEER,
					 "%s", ret->text);
		return 0;
	}
}

/* A guard that could not thaw goes on trying, beyond our own end. */
static void leave_guard(struct freeze *f)
{
	uint64_t deadline = now_ms() + GUARD_END_MS;

	if (f->fd >= 0)
		(void)close(f->fd);
	f->fd = -1;
	while (f->guard > 0 && !spawn_ended(f->guard) && now_ms() < deadline)
		clock_sleep_ms(&clock_system, 5);
	f->guard = 0;
}

/*
 * The guest agent cannot answer in a guest that is paused.  Who paused it has a reason: it is not
 * continued here, and the guard's thaw comes when it is.
 */
static void explain_state(struct guest *g, struct error *err)
{
	auto_json json_t *status = NULL;
	const char *state;

	if (qmp_call(g->qmp, "query-status", NULL, STATE_MS, &status, NULL))
		return;
	state = jsonx_text(status, "status");
	if (state && strcmp(state, "running") != 0)
		error_append(err,
			     "; the guest was stopped meanwhile (%s), and can be thawed only "
			     "when it is continued",
			     state);
}

/* The guard is not to be relied upon any more: end it, and do its work. */
static int thaw_ourselves(struct guest *g, struct freeze *f, struct error *err)
{
	bool frozen = true;

	if (f->guard > 0)
		spawn_stop(f->guard, 0);
	f->guard = 0;
	return freeze_recover(g->agent_socket, false, &frozen, err);
}

static int open_and_freeze(struct guest *g, struct freeze *f, struct error *err)
{
	struct freeze_report rep = {0};
	struct error e = {0};
	int r;

	if (!g->agent_socket)
		return error_set(err, TM_E_NOTFOUND, "no socket of a guest agent was named");
	if (strcmp(g->state, "running") != 0)
		return error_set(err, TM_E_STALE, "the guest is %s", g->state);
	r = start_guard(g, f, err);
	if (r)
		return r;
	r = hear(f, GUARD_MS + FREEZE_OPEN_MS + f->limit_ms + THAW_MS, &rep, &e);
	if (!r) {
		f->start_ms = rep.start_ms;
		return 0;
	}
	if (rep.what != FREEZE_FAILED && thaw_ourselves(g, f, NULL))
		error_append(&e, "; and whether the guest is thawed is not known");
	leave_guard(f);
	explain_state(g, &e);
	return error_pass(err, r, &e);
}

int freeze_begin(struct guest *g, enum quiesce policy, unsigned limit_ms, struct freeze *f,
		 struct text_list *warnings, struct error *err)
{
	struct error e = {0};
	int r = 0;

	*f = (struct freeze){.fd = -1, .limit_ms = limit_ms};
	(void)guest_tick(g, "freeze", NULL, 0, 0, NULL);
	if (policy != QUIESCE_NEVER)
		r = open_and_freeze(g, f, &e);
	if (r && policy == QUIESCE_REQUIRE)
		return error_set(err, r, "the guest's file systems cannot be frozen: %s", e.text);
	if (r && g->agent_socket)
		r = text_list_add(warnings, err, "not quiesced: %s", e.text);
	else
		r = 0;
	if (f->fd < 0)
		f->start_ms = now_ms();
	return r;
}

unsigned freeze_left_ms(const struct freeze *f)
{
	uint64_t used = now_ms() - f->start_ms;

	return used + LEAST_MS < f->limit_ms ? (unsigned)(f->limit_ms - used) : LEAST_MS;
}

int freeze_end(struct guest *g, struct freeze *f, struct freeze_result *ret, struct error *err)
{
	uint64_t done_ms = now_ms();
	struct freeze_report rep = {0};
	struct error e = {0};
	int r;

	*ret = (struct freeze_result){.held_ms = done_ms - f->start_ms};
	if (f->fd < 0)
		return 0;
	/* It may have thawed long ago and be gone: then its last word is there to be read. */
	(void)!send(f->fd, "t", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
	r = hear(f, GUARD_MS + THAW_MS, &rep, &e);
	if (r && rep.what != FREEZE_FAILED)
		r = thaw_ourselves(g, f, err);
	else if (r)
		r = error_pass(err, r, &e);
	if (rep.what == FREEZE_ENDED) {
		ret->held_ms = rep.end_ms - rep.start_ms;
		ret->quiesced = rep.thaw_ms >= done_ms;
		ret->count = rep.count;
	} else {
		ret->held_ms = now_ms() - f->start_ms;
	}
	leave_guard(f);
	if (r)
		explain_state(g, err);
	return r;
}

int freeze_recover(const char *agent_socket, bool check_only, bool *ret_frozen, struct error *err)
{
	auto_clean(qga_free) struct qga *agent = NULL;
	int r = qga_open(agent_socket, FREEZE_OPEN_MS, &agent, err);

	if (!r)
		r = qga_frozen(agent, FREEZE_OPEN_MS, ret_frozen, err);
	if (!r && *ret_frozen && !check_only)
		r = qga_thaw(agent, THAW_MS, err);
	return r;
}
