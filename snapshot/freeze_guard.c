/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process that holds the guest's file systems still, and lets go of them.
 *
 *   agent                          guard                            guest agent
 *     spawn  ───────────────────▶  connect, synchronise  ────────▶
 *                                  freeze                ────────▶
 *     ◀──────────────── "frozen"
 *     transaction
 *     "thaw" ───────────────────▶  thaw                  ────────▶
 *     ◀──────────────── "thawed"
 *
 * QEMU serves one client of the guest agent's socket at a time, so the guard owns the connection
 * and nobody else has to be able to thaw.  It thaws on whatever comes first: the agent's word, the
 * end of the agent (its socket closes), the deadline on CLOCK_MONOTONIC.  It is a program of its
 * own, started before the freeze: a stopped, killed or hanging agent changes nothing for it.
 */
#include "freeze_guard.h"

#include "qga.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#define AGENT_FD       0     /* the socket to the agent */
#define THAW_MS        15000 /* an agent that is slow now is still better than a frozen guest */
#define KEEP_TRYING    86400 /* seconds after which even that is given up */
#define OFTEN          600   /* seconds for which others hardly get to the guest agent */
#define OFTEN_MS       500
#define SELDOM_MS      5000
#define TRANSACTION_MS 1000 /* of the limit is left to the transaction */

static uint64_t now_ms(void)
{
	return clock_monotonic_ms(&clock_system);
}

/* Never waits: an agent that does not listen must not keep the guest frozen. */
static void report(const struct freeze_report *rep)
{
	if (send(AGENT_FD, rep, sizeof(*rep), MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		log_debug("the agent has gone");
}

static void report_failure(struct freeze_report *rep, const struct error *e)
{
	rep->what = FREEZE_FAILED;
	rep->code = (int)e->code;
	(void)snprintf(rep->text, sizeof(rep->text), "%.*s", (int)sizeof(rep->text) - 1, e->text);
	report(rep);
}

/*
 * Thawing failed, and the agent was told.  A guest that somebody paused may go on tomorrow.  Each
 * attempt lets others use the socket in between.
 */
static void keep_trying(const char *socket)
{
	uint64_t often = now_ms() + OFTEN * UINT64_C(1000),
		 deadline = now_ms() + KEEP_TRYING * UINT64_C(1000);

	while (now_ms() < deadline) {
		auto_clean(qga_free) struct qga *agent = NULL;
		int r = qga_open(socket, FREEZE_OPEN_MS, &agent, NULL);

		if (r == TM_E_NOTFOUND)
			return; /* QEMU has ended, and the guest with it */
		if (!r && qga_thaw(agent, FREEZE_OPEN_MS, NULL) == 0)
			return;
		qga_free(tm_steal(agent));
		clock_sleep_ms(&clock_system, now_ms() < often ? OFTEN_MS : SELDOM_MS);
	}
}

/* True when the agent said "thaw"; false when it is gone or the deadline has passed. */
static bool wait_for_word(uint64_t deadline)
{
	for (;;) {
		struct pollfd p = {AGENT_FD, POLLIN, 0};
		uint64_t now = now_ms();
		char word;

		if (now >= deadline)
			return false;
		if (poll(&p, 1, (int)min_u64(deadline - now, 60000)) > 0)
			return recv(AGENT_FD, &word, 1, MSG_DONTWAIT) == 1;
	}
}

/* One freeze from its beginning to its end.  A code means that the guest may still be frozen. */
static int hold(struct qga *agent, unsigned limit_ms, struct freeze_report *rep)
{
	unsigned freeze_ms = limit_ms > 2 * TRANSACTION_MS ? limit_ms - TRANSACTION_MS : limit_ms;
	struct error e = {0};
	int r, rt;

	rep->start_ms = now_ms();
	r = qga_freeze(agent, freeze_ms, &rep->count, &e);
	if (!r) {
		rep->what = FREEZE_HELD;
		report(rep);
		rep->asked = wait_for_word(rep->start_ms + limit_ms);
	}
	/* After a failure it may be frozen all the same, or in part. */
	rep->thaw_ms = now_ms();
	rt = qga_thaw(agent, THAW_MS, &e);
	rep->end_ms = now_ms();
	if (rt)
		error_append(
			&e, "; whether the guest is thawed is not known, process %d goes on trying",
			(int)getpid());
	if (r || rt) {
		report_failure(rep, &e);
	} else {
		rep->what = FREEZE_ENDED;
		report(rep);
	}
	return rt;
}

int freeze_guard_main(const char *socket, const char *limit)
{
	const struct sigaction ignore = {.sa_handler = SIG_IGN};
	static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGQUIT};
	auto_clean(qga_free) struct qga *agent = NULL;
	struct freeze_report rep = {0};
	struct error err = {0};
	unsigned long limit_ms = strtoul(limit, NULL, 10);
	int r;

	for (size_t i = 0; i < ARRAY_SIZE(ignored); i++)
		(void)sigaction(ignored[i], &ignore, NULL);
	(void)prctl(PR_SET_NAME, "tidemark-thaw");
	if (!limit_ms || limit_ms > FREEZE_LIMIT_MAX_MS)
		return EXIT_FAILURE;
	r = qga_open(socket, FREEZE_OPEN_MS, &agent, &err);
	if (r) {
		report_failure(&rep, &err);
		return EXIT_SUCCESS;
	}
	r = hold(agent, (unsigned)limit_ms, &rep);
	qga_free(tm_steal(agent));
	if (r)
		keep_trying(socket);
	return EXIT_SUCCESS;
}
