/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The guest agent speaks JSON lines without ids.  A reply that was given up would answer the next
 * command, so after each failure the line is synchronised again with guest-sync-delimited: both
 * sides put the byte 0xFF, which no JSON text holds, before it, and the reply repeats a number.
 */
#include "qga.h"

#include "jsonx.h"

#include <string.h>

#define QGA_LINE_MAX ((size_t)1 << 20)
#define QGA_MARK     0xFF
#define THAW_TRY_MS  2000 /* one attempt of several */

struct qga {
	struct channel *ch; /* NULL once the connection is lost */
	char *path;
	bool synced;
	uint64_t sync_id;
	struct buf line;
};

static uint64_t now_ms(void)
{
	return clock_monotonic_ms(&clock_system);
}

void qga_free(struct qga *a)
{
	if (!a)
		return;
	if (a->ch)
		channel_free(a->ch);
	buf_done(&a->line);
	free(a->path);
	free(a);
}

static int transfer_failed(struct qga *a, int code, const struct error *e, struct error *err)
{
	a->synced = false;
	if (code == TM_E_TIMEOUT)
		return error_set(err, TM_E_TIMEOUT, "the guest agent at %s does not answer",
				 a->path);
	if (a->ch)
		channel_free(a->ch);
	a->ch = NULL;
	return error_set(err, TM_E_STALE, "the connection to the guest agent at %s is lost: %s",
			 a->path, e->text);
}

static int send_text(struct qga *a, const json_t *msg, bool marked, uint64_t deadline,
		     struct error *err)
{
	static const uint8_t mark = QGA_MARK;
	auto_free char *text = json_dumps(msg, JSON_COMPACT);
	auto_buf struct buf line = {0};
	struct error e = {0};
	int r;

	if (!text)
		return error_nomem(err);
	r = marked ? buf_add(&line, &mark, 1, err) : 0;
	if (!r)
		r = buf_printf(&line, err, "%s\n", text);
	if (r)
		return r;
	log_debug("qga > %s", text);
	r = a->ch ? channel_send(a->ch, line.data, line.len, deadline, &e) : TM_E_STALE;
	if (!r)
		return 0;
	if (a->ch)
		channel_free(a->ch); /* perhaps half a command is on its way */
	a->ch = NULL;
	a->synced = false;
	return error_set(err, r == TM_E_TIMEOUT ? TM_E_TIMEOUT : TM_E_STALE,
			 "the connection to the guest agent at %s is lost: %s", a->path, e.text);
}

/* The next line that is a JSON object, after its last mark if there is one. NULL: no JSON. */
static int recv_text(struct qga *a, uint64_t deadline, bool *ret_marked, json_t **ret,
		     struct error *err)
{
	struct error e = {0};
	const uint8_t *text, *mark;
	json_error_t je;
	int r;

	r = a->ch ? channel_recv_line(a->ch, QGA_LINE_MAX, deadline, &a->line, &e) : TM_E_STALE;
	if (r)
		return transfer_failed(a, r, &e, err);
	text = a->line.data;
	mark = a->line.len ? memrchr(text, QGA_MARK, a->line.len) : NULL;
	*ret_marked = mark != NULL;
	if (mark)
		text = mark + 1;
	*ret = json_loadb((const char *)text, a->line.len - (size_t)(text - a->line.data),
			  JSON_ALLOW_NUL, &je);
	return 0;
}

static int reconnect(struct qga *a, uint64_t deadline, struct error *err)
{
	return a->ch ? 0 : channel_connect(a->path, deadline, &a->ch, err);
}

/* Drops everything that older commands left on the line. */
static int sync_line(struct qga *a, uint64_t deadline, struct error *err)
{
	auto_json json_t *msg = NULL;
	int r;

	if (a->synced)
		return 0;
	r = reconnect(a, deadline, err);
	if (!r)
		r = jsonx_make(&msg, err, "{s:s, s:{s:I}}", "execute", "guest-sync-delimited",
			       "arguments", "id", (json_int_t)++a->sync_id);
	if (!r)
		r = send_text(a, msg, true, deadline, err);
	while (!r) {
		auto_json json_t *reply = NULL;
		bool marked = false;
		uint64_t id;

		r = recv_text(a, deadline, &marked, &reply, err);
		if (!r && now_ms() > deadline)
			r = error_set(err, TM_E_TIMEOUT, "the guest agent at %s does not answer",
				      a->path);
		if (!r && marked && jsonx_u64(reply, "return", &id) && id == a->sync_id) {
			a->synced = true;
			return 0;
		}
	}
	return r;
}

static int call(struct qga *a, const char *command, unsigned timeout_ms, json_t **ret,
		struct error *err)
{
	uint64_t deadline = now_ms() + timeout_ms;
	auto_json json_t *msg = NULL, *reply = NULL;
	const json_t *fault;
	const char *desc;
	json_t *value;
	bool marked;
	int r = sync_line(a, deadline, err);

	if (!r)
		r = jsonx_make(&msg, err, "{s:s}", "execute", command);
	if (!r)
		r = send_text(a, msg, false, deadline, err);
	if (!r)
		r = recv_text(a, deadline, &marked, &reply, err);
	if (r) {
		error_prefix(err, "%s", command);
		return r;
	}
	fault = json_object_get(reply, "error");
	value = json_object_get(reply, "return");
	if (fault) {
		desc = jsonx_text(fault, "desc");
		return error_set(err, TM_E_PEER, "the guest agent refused %s: %s", command,
				 desc ? desc : "no reason given");
	}
	if (!value) {
		a->synced = false;
		return error_set(err, TM_E_PEER, "the guest agent answered %s with something else",
				 command);
	}
	if (ret)
		*ret = json_incref(value);
	return 0;
}

int qga_open_channel(struct channel *ch, const char *path, unsigned timeout_ms, struct qga **ret,
		     struct error *err)
{
	auto_clean(qga_free) struct qga *a = calloc(1, sizeof(*a));
	int r;

	if (!a) {
		channel_free(ch);
		return error_nomem(err);
	}
	a->ch = ch;
	r = text_copy(path, &a->path, err);
	if (!r)
		r = random_bytes(&a->sync_id, 4, err); /* older clients' numbers are not ours */
	if (!r)
		r = sync_line(a, now_ms() + timeout_ms, err);
	if (r)
		return r;
	*ret = tm_steal(a);
	return 0;
}

int qga_open(const char *path, unsigned timeout_ms, struct qga **ret, struct error *err)
{
	struct channel *ch;
	int r = channel_connect(path, now_ms() + timeout_ms, &ch, err);

	if (r) {
		error_prefix(err, "guest agent");
		return r;
	}
	return qga_open_channel(ch, path, timeout_ms, ret, err);
}

int qga_ping(struct qga *a, unsigned timeout_ms, struct error *err)
{
	return call(a, "guest-ping", timeout_ms, NULL, err);
}

int qga_info(struct qga *a, unsigned timeout_ms, char **ret_version, struct error *err)
{
	auto_json json_t *info = NULL;
	const char *version;
	int r = call(a, "guest-info", timeout_ms, &info, err);

	if (r)
		return r;
	version = jsonx_text(info, "version");
	return text_copy(version ? version : "unknown", ret_version, err);
}

int qga_frozen(struct qga *a, unsigned timeout_ms, bool *ret, struct error *err)
{
	auto_json json_t *state = NULL;
	int r = call(a, "guest-fsfreeze-status", timeout_ms, &state, err);

	if (r)
		return r;
	if (!json_is_string(state))
		return error_set(err, TM_E_PEER,
				 "the guest agent does not tell whether it is frozen");
	*ret = strcmp(json_string_value(state), "thawed") != 0;
	return 0;
}

/* Freezing and thawing are answered with the number of file systems, and with nothing else. */
static int call_for_count(struct qga *a, const char *command, unsigned timeout_ms,
			  uint64_t *ret_count, struct error *err)
{
	auto_json json_t *count = NULL;
	int r = call(a, command, timeout_ms, &count, err);

	if (r)
		return r;
	if (!json_is_integer(count) || json_integer_value(count) < 0)
		return error_set(err, TM_E_PEER,
				 "the guest agent answered %s with no number of file systems",
				 command);
	*ret_count = (uint64_t)json_integer_value(count);
	return 0;
}

int qga_freeze(struct qga *a, unsigned timeout_ms, uint64_t *ret_count, struct error *err)
{
	return call_for_count(a, "guest-fsfreeze-freeze", timeout_ms, ret_count, err);
}

int qga_thaw(struct qga *a, unsigned timeout_ms, struct error *err)
{
	uint64_t deadline = now_ms() + timeout_ms;
	struct error e;
	int r;

	do {
		uint64_t left = deadline - now_ms();
		unsigned step = (unsigned)min_u64(left, THAW_TRY_MS);
		uint64_t count;
		bool frozen = true;

		e = (struct error){0};
		r = call_for_count(a, "guest-fsfreeze-thaw", step, &count, &e);
		if (!r)
			return 0;
		/* The reply may be what was lost: ask. */
		if (qga_frozen(a, step, &frozen, NULL) == 0 && !frozen)
			return 0;
		clock_sleep_ms(&clock_system, 50);
	} while (now_ms() < deadline);
	return error_set(err, r == TM_E_TIMEOUT ? TM_E_TIMEOUT : TM_E_PEER,
			 "the guest's file systems could not be thawed: %s", e.text);
}
