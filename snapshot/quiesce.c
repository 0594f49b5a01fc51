/* SPDX-License-Identifier: Apache-2.0 */
#include "quiesce.h"

#include <string.h>

#define AGENT_OPEN_MS 3000
#define THAW_MS       15000 /* an agent that is slow now is still better than a frozen guest */
#define LEAST_MS      1000  /* for the transaction, however long the freeze took */

static uint64_t now_ms(void)
{
	return clock_monotonic_ms(&clock_system);
}

static int open_and_freeze(struct guest *g, struct freeze *f, struct error *err)
{
	uint64_t count;
	int r;

	if (!g->agent_socket)
		return error_set(err, TM_E_NOTFOUND, "no socket of a guest agent was named");
	if (strcmp(g->state, "running") != 0)
		return error_set(err, TM_E_STALE, "the guest is %s", g->state);
	r = qga_open(g->agent_socket, AGENT_OPEN_MS, &f->agent, err);
	if (r)
		return r;
	f->start_ms = now_ms();
	r = qga_freeze(f->agent, f->limit_ms, &count, err);
	if (!r)
		return 0;
	/* Frozen all the same, perhaps, or in part. */
	if (qga_thaw(f->agent, THAW_MS, NULL))
		error_append(err, "; and whether it is thawed is not known");
	qga_free(tm_steal(f->agent));
	return r;
}

int freeze_begin(struct guest *g, enum quiesce policy, unsigned limit_ms, struct freeze *f,
		 struct text_list *warnings, struct error *err)
{
	struct error e = {0};
	int r = 0;

	*f = (struct freeze){.limit_ms = limit_ms};
	(void)guest_tick(g, "freeze", NULL, 0, 0, NULL);
	if (policy != QUIESCE_NEVER)
		r = open_and_freeze(g, f, &e);
	if (r && policy == QUIESCE_REQUIRE)
		return error_set(err, r, "the guest's file systems cannot be frozen: %s", e.text);
	if (r && g->agent_socket)
		r = text_list_add(warnings, err, "not quiesced: %s", e.text);
	else
		r = 0;
	if (!f->agent)
		f->start_ms = now_ms();
	return r;
}

unsigned freeze_left_ms(const struct freeze *f)
{
	uint64_t used = now_ms() - f->start_ms;

	return used + LEAST_MS < f->limit_ms ? (unsigned)(f->limit_ms - used) : LEAST_MS;
}

int freeze_end(struct freeze *f, uint64_t *ret_ms, struct error *err)
{
	int r = f->agent ? qga_thaw(f->agent, THAW_MS, err) : 0;

	*ret_ms = now_ms() - f->start_ms;
	qga_free(tm_steal(f->agent));
	return r;
}

int freeze_recover(const char *agent_socket, bool check_only, bool *ret_frozen, struct error *err)
{
	auto_clean(qga_free) struct qga *agent = NULL;
	int r = qga_open(agent_socket, AGENT_OPEN_MS, &agent, err);

	if (!r)
		r = qga_frozen(agent, AGENT_OPEN_MS, ret_frozen, err);
	if (!r && *ret_frozen && !check_only)
		r = qga_thaw(agent, THAW_MS, err);
	return r;
}
