/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The QMP client.  One thread, one command in flight.  Replies carry the id of their command:
 * the late reply of a command that was given up is recognised and dropped, so that a time-out
 * does not end the connection.  Events are kept in a small ring and decide nothing.
 */
#include "qmp.h"

#include "proc.h"

#include <stdio.h>
#include <string.h>

#define SLICE_MS 200 /* the hooks' rhythm */

struct qmp {
	struct channel *ch; /* NULL once the connection is lost */
	char *path;
	const struct snapshot_hooks *hooks;
	uint64_t last_id;
	pid_t peer; /* 0: not asked yet; -1: cannot be told */
	struct buf line;
	struct qmp_fault fault;
	char events[QMP_EVENTS_MAX][QMP_EVENT_NAME_MAX];
	size_t first_event, nevents;
};

static uint64_t now_ms(void)
{
	return clock_monotonic_ms(&clock_system);
}

void qmp_free(struct qmp *q)
{
	if (!q)
		return;
	if (q->ch)
		channel_free(q->ch);
	buf_done(&q->line);
	free(q->path);
	free(q);
}

static void lose(struct qmp *q)
{
	if (q->ch)
		channel_free(q->ch);
	q->ch = NULL;
}

bool qmp_lost(const struct qmp *q)
{
	return !q->ch;
}

const struct qmp_fault *qmp_fault(const struct qmp *q)
{
	return &q->fault;
}

pid_t qmp_peer(struct qmp *q)
{
	if (!q->peer && !proc_listener(q->path, &q->peer))
		q->peer = -1;
	return q->peer > 0 ? q->peer : 0;
}

/* What was asked goes on: the command is on its way.  The caller looks at the request to stop. */
static void tick(struct qmp *q)
{
	static const struct snapshot_progress waiting = {.phase = "wait"};

	if (q->hooks && q->hooks->tick)
		(void)q->hooks->tick(q->hooks->data, &waiting, NULL);
}

/* One line into q->line.  TM_E_TIMEOUT leaves the connection as it is. */
static int recv_line(struct qmp *q, uint64_t deadline, struct error *err)
{
	for (;;) {
		struct error e = {0};
		uint64_t now = now_ms();
		int r;

		if (!q->ch)
			return error_set(err, TM_E_STALE, "the connection to QEMU at %s is lost",
					 q->path);
		r = channel_recv_line(q->ch, QMP_LINE_MAX, min_u64(deadline, now + SLICE_MS),
				      &q->line, &e);
		if (!r)
			return 0;
		if (r != TM_E_TIMEOUT) {
			lose(q);
			return error_set(err, TM_E_STALE,
					 "the connection to QEMU at %s is lost: %s", q->path,
					 e.text);
		}
		if (now_ms() >= deadline)
			return error_set(err, TM_E_TIMEOUT, "no answer from QEMU at %s in time",
					 q->path);
		tick(q);
	}
}

static void keep_event(struct qmp *q, const char *name)
{
	size_t at;

	if (q->nevents == QMP_EVENTS_MAX) {
		q->first_event = (q->first_event + 1) % QMP_EVENTS_MAX;
		q->nevents--;
	}
	at = (q->first_event + q->nevents++) % QMP_EVENTS_MAX;
	if (snprintf(q->events[at], QMP_EVENT_NAME_MAX, "%s", name) < 0)
		q->events[at][0] = '\0';
}

bool qmp_next_event(struct qmp *q, char name[QMP_EVENT_NAME_MAX])
{
	if (!q->nevents)
		return false;
	(void)memcpy(name, q->events[q->first_event], QMP_EVENT_NAME_MAX);
	q->first_event = (q->first_event + 1) % QMP_EVENTS_MAX;
	q->nevents--;
	return true;
}

/* The next message that is no event.  A line that is not JSON ends the connection. */
static int recv_message(struct qmp *q, uint64_t deadline, bool events_too, json_t **ret,
			struct error *err)
{
	for (;;) {
		json_error_t je;
		json_t *msg;
		const char *event;
		bool late = now_ms() >= deadline; /* a flood of events is no answer */
		int r = recv_line(q, deadline, err);

		if (!r && late)
			r = error_set(err, TM_E_TIMEOUT, "no answer from QEMU at %s in time",
				      q->path);
		if (r)
			return r;
		msg = json_loadb((const char *)q->line.data, q->line.len, JSON_ALLOW_NUL, &je);
		if (!json_is_object(msg)) {
			json_decref(msg);
			lose(q);
			return error_set(err, TM_E_STALE,
					 "QEMU at %s sent something that is no JSON object, the "
					 "connection was "
					 "given up",
					 q->path);
		}
		event = jsonx_text(msg, "event");
		if (!event) {
			*ret = msg;
			return 0;
		}
		log_debug("qmp event %s", event);
		keep_event(q, event);
		json_decref(msg);
		if (events_too) {
			*ret = NULL;
			return 0;
		}
	}
}

static int read_greeting(struct qmp *q, uint64_t deadline, struct error *err)
{
	auto_json json_t *msg = NULL;
	struct error e = {0};
	int r = recv_message(q, deadline, false, &msg, &e);

	if (r == TM_E_TIMEOUT)
		return error_set(err, TM_E_BUSY,
				 "another program holds the QMP socket %s (QEMU greets one client "
				 "at a time)",
				 q->path);
	if (r || !json_is_object(json_object_get(msg, "QMP")))
		return error_set(err, TM_E_PEER, "%s is not a QMP socket: %s", q->path,
				 r ? e.text : "it greets with something else");
	return 0;
}

int qmp_open_channel(struct channel *ch, const char *path, unsigned timeout_ms,
		     const struct snapshot_hooks *hooks, struct qmp **ret, struct error *err)
{
	auto_clean(qmp_free) struct qmp *q = calloc(1, sizeof(*q));
	int r;

	if (!q) {
		channel_free(ch);
		return error_nomem(err);
	}
	q->ch = ch;
	q->hooks = hooks;
	r = text_copy(path, &q->path, err);
	if (!r)
		r = read_greeting(q, now_ms() + timeout_ms, err);
	if (!r)
		r = qmp_call(q, "qmp_capabilities", NULL, timeout_ms, NULL, err);
	if (r)
		return r;
	*ret = tm_steal(q);
	return 0;
}

int qmp_open(const char *path, unsigned timeout_ms, const struct snapshot_hooks *hooks,
	     struct qmp **ret, struct error *err)
{
	struct channel *ch;
	int r = channel_connect(path, now_ms() + timeout_ms, &ch, err);

	if (r == TM_E_TIMEOUT)
		error_prefix(err, "another program holds the QMP socket, or QEMU hangs");
	return r ? r : qmp_open_channel(ch, path, timeout_ms, hooks, ret, err);
}

/* Takes args over. */
static int send_command(struct qmp *q, const char *command, json_t *args, uint64_t deadline,
			struct error *err)
{
	auto_json json_t *msg = NULL;
	auto_free char *text = NULL;
	auto_buf struct buf line = {0};
	struct error e = {0};
	int r;

	r = jsonx_make(&msg, err, "{s:s, s:I, s:o*}", "execute", command, "id",
		       (json_int_t)++q->last_id, "arguments", args);
	if (r)
		return r;
	text = json_dumps(msg, JSON_COMPACT);
	if (!text)
		return error_nomem(err);
	if (!q->ch)
		return error_set(err, TM_E_STALE, "the connection to QEMU at %s is lost", q->path);
	log_debug("qmp > %s", text);
	r = buf_printf(&line, err, "%s\n", text);
	if (r)
		return r;
	r = channel_send(q->ch, line.data, line.len, deadline, &e);
	if (r) {
		lose(q); /* perhaps half a command is on its way */
		return error_set(err, r == TM_E_TIMEOUT ? TM_E_TIMEOUT : TM_E_STALE,
				 "the connection to QEMU at %s is lost: %s", q->path, e.text);
	}
	return 0;
}

static int take_fault(struct qmp *q, const char *command, const json_t *fault, struct error *err)
{
	const char *class = jsonx_text(fault, "class"), *desc = jsonx_text(fault, "desc");

	if (snprintf(q->fault.class, sizeof(q->fault.class), "%s", class ? class : "") < 0 ||
	    snprintf(q->fault.desc, sizeof(q->fault.desc), "%s", desc ? desc : "no reason given") <
		    0)
		q->fault = (struct qmp_fault){0};
	log_debug("qmp < refused: %s", q->fault.desc);
	return error_set(err, TM_E_PEER, "QEMU refused %s: %s", command, q->fault.desc);
}

/* For tests of faults: the longest wait for an answer, in milliseconds. */
static unsigned bounded(unsigned timeout_ms)
{
	const char *debug = getenv("TIDEMARK_DEBUG_QMP_MS");
	unsigned long most = debug ? strtoul(debug, NULL, 10) : 0;

	return most && most < timeout_ms ? (unsigned)most : timeout_ms;
}

int qmp_call(struct qmp *q, const char *command, json_t *args, unsigned timeout_ms, json_t **ret,
	     struct error *err)
{
	uint64_t deadline = now_ms() + bounded(timeout_ms);
	int r = send_command(q, command, args, deadline, err);

	while (!r) {
		auto_json json_t *msg = NULL;
		json_t *value;
		const json_t *fault;
		uint64_t id;

		r = recv_message(q, deadline, false, &msg, err);
		if (r)
			break;
		fault = json_object_get(msg, "error");
		if (!jsonx_u64(msg, "id", &id)) {
			if (!fault)
				continue;
			id = q->last_id; /* QEMU could not even read the command */
		}
		if (id != q->last_id)
			continue; /* of a command given up before */
		if (fault)
			return take_fault(q, command, fault, err);
		value = json_object_get(msg, "return");
		if (!value)
			return error_set(err, TM_E_PEER,
					 "QEMU answered %s with neither result nor error", command);
		if (ret)
			*ret = json_incref(value);
		return 0;
	}
	error_prefix(err, "%s", command);
	return r;
}

void qmp_pause(struct qmp *q, unsigned ms)
{
	json_t *msg = NULL;

	if (!q->ch)
		clock_sleep_ms(&clock_system, ms);
	else if (recv_message(q, now_ms() + ms, true, &msg, NULL) == 0)
		json_decref(msg); /* a late reply, or an event */
}
