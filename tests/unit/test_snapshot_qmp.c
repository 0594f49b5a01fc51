/* SPDX-License-Identifier: Apache-2.0 */
/* The QMP and guest agent clients against a peer that follows a script. */
#include "test.h"

#include "../../snapshot/qga.h"
#include "../../snapshot/qmp.h"

#include <errno.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define GREETING "{\"QMP\":{\"version\":{},\"capabilities\":[\"oob\"]}}\n"

/* One step of the peer: waits for a line when wait is set, then sends bytes. */
struct step {
	bool wait;
	const char *send; /* "@ID" stands for the id of the line last read */
	unsigned pause_ms;
};

struct peer {
	char dir[32], path[64];
	int listener;
	pthread_t thread;
	const struct step *steps;
	size_t n;
	char last[4096];
};

static void read_line(struct peer *p, int fd)
{
	size_t len = 0;
	char c;

	while (len < sizeof(p->last) - 1 && read(fd, &c, 1) == 1 && c != '\n')
		p->last[len++] = c;
	p->last[len] = '\0';
}

static void send_bytes(const struct peer *p, int fd, const char *text)
{
	const char *at = strstr(text, "@ID");
	const char *id = strstr(p->last, "\"id\":");

	if (!at) {
		(void)!write(fd, text, strlen(text));
		return;
	}
	(void)!write(fd, text, (size_t)(at - text));
	if (id)
		(void)!write(fd, id + 5, strspn(id + 5, "0123456789"));
	send_bytes(p, fd, at + 3);
}

static void *run_peer(void *data)
{
	struct peer *p = data;
	int fd = accept4(p->listener, NULL, NULL, SOCK_CLOEXEC);

	for (size_t i = 0; fd >= 0 && i < p->n; i++) {
		if (p->steps[i].wait)
			read_line(p, fd);
		if (p->steps[i].pause_ms)
			(void)usleep(p->steps[i].pause_ms * 1000);
		if (p->steps[i].send)
			send_bytes(p, fd, p->steps[i].send);
	}
	if (fd >= 0)
		(void)close(fd);
	return NULL;
}

static void peer_start(struct peer *p, const struct step *steps, size_t n)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};

	(void)strcpy(p->dir, "/tmp/tidemark-test-XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	(void)snprintf(p->path, sizeof(p->path), "%s/s", p->dir);
	(void)strcpy(addr.sun_path, p->path);
	p->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(p->listener, (const struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(p->listener, 4), 0);
	p->steps = steps;
	p->n = n;
	assert_int_equal(pthread_create(&p->thread, NULL, run_peer, p), 0);
}

static void peer_end(struct peer *p)
{
	(void)pthread_join(p->thread, NULL);
	(void)close(p->listener);
	(void)unlink(p->path);
	(void)rmdir(p->dir);
}

#define START(p, ...)                                     \
	static const struct step steps[] = {__VA_ARGS__}; \
	struct peer p = {0};                              \
	peer_start(&p, steps, ARRAY_SIZE(steps))
#define OPENING                                         \
	{false, GREETING, 0},                           \
	{                                               \
		true, "{\"return\":{},\"id\":@ID}\n", 0 \
	}

static struct qmp *open_qmp(struct peer *p)
{
	struct error err = {0};
	struct qmp *q = NULL;

	if (qmp_open(p->path, 2000, NULL, &q, &err))
		fail_msg("%s", err.text);
	return q;
}

static void answers_are_matched_by_id(void **state)
{
	START(p, OPENING,
	      {true, "{\"event\":\"RESUME\",\"data\":{}}\n{\"return\":1,\"id\":9999}\n{\"ret", 20},
	      {false, "urn\":{\"x\":7},\"id\":@ID}\n", 20});
	struct qmp *q = open_qmp(&p);
	char name[QMP_EVENT_NAME_MAX];
	json_t *v = NULL;
	uint64_t x = 0;

	(void)state;
	assert_int_equal(qmp_call(q, "query-x", NULL, 2000, &v, NULL), 0);
	assert_true(jsonx_u64(v, "x", &x));
	assert_int_equal(x, 7);
	assert_true(qmp_next_event(q, name));
	assert_string_equal(name, "RESUME");
	assert_false(qmp_next_event(q, name));
	json_decref(v);
	qmp_free(q);
	peer_end(&p);
}

static void a_refusal_has_class_and_reason(void **state)
{
	START(p, OPENING,
	      {true,
	       "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no such node\"},\"id\":@ID}\n",
	       0},
	      {true, "{\"return\":{},\"id\":@ID}\n", 0});
	struct qmp *q = open_qmp(&p);
	struct error err = {0};

	(void)state;
	assert_int_equal(qmp_call(q, "blockdev-del", NULL, 2000, NULL, &err), TM_E_PEER);
	assert_string_equal(qmp_fault(q)->class, "GenericError");
	assert_string_equal(qmp_fault(q)->desc, "no such node");
	assert_non_null(strstr(err.text, "blockdev-del"));
	assert_false(qmp_lost(q));
	assert_int_equal(qmp_call(q, "next", NULL, 2000, NULL, NULL), 0);
	qmp_free(q);
	peer_end(&p);
}

static void a_late_answer_is_dropped(void **state)
{
	START(p, OPENING, {true, NULL, 300}, {false, "{\"return\":{\"x\":1},\"id\":@ID}\n", 0},
	      {true, "{\"return\":{\"x\":2},\"id\":@ID}\n", 0});
	struct qmp *q = open_qmp(&p);
	json_t *v = NULL;
	uint64_t x = 0;

	(void)state;
	assert_int_equal(qmp_call(q, "slow", NULL, 100, NULL, NULL), TM_E_TIMEOUT);
	assert_int_equal(qmp_call(q, "quick", NULL, 3000, &v, NULL), 0);
	assert_true(jsonx_u64(v, "x", &x));
	assert_int_equal(x, 2);
	json_decref(v);
	qmp_free(q);
	peer_end(&p);
}

static void a_peer_that_dies_is_noticed(void **state)
{
	START(p, OPENING, {true, "{\"retu", 0});
	struct qmp *q = open_qmp(&p);

	(void)state;
	assert_int_equal(qmp_call(q, "x", NULL, 2000, NULL, NULL), TM_E_STALE);
	assert_true(qmp_lost(q));
	assert_int_equal(qmp_call(q, "x", NULL, 2000, NULL, NULL), TM_E_STALE);
	qmp_free(q);
	peer_end(&p);
}

static void garbage_ends_the_connection(void **state)
{
	START(p, OPENING, {true, "[1,2]\n", 0});
	struct qmp *q = open_qmp(&p);

	(void)state;
	assert_int_equal(qmp_call(q, "x", NULL, 2000, NULL, NULL), TM_E_STALE);
	assert_true(qmp_lost(q));
	qmp_free(q);
	peer_end(&p);
}

static void no_greeting_means_that_another_holds_the_socket(void **state)
{
	START(p, {false, NULL, 300});
	struct error err = {0};
	struct qmp *q = NULL;

	(void)state;
	assert_int_equal(qmp_open(p.path, 100, NULL, &q, &err), TM_E_BUSY);
	assert_non_null(strstr(err.text, "another program holds the QMP socket"));
	assert_null(q);
	peer_end(&p);
}

static void other_protocols_are_named_so(void **state)
{
	START(p, {false, "SSH-2.0-OpenSSH\r\n", 0});
	struct error err = {0};
	struct qmp *q = NULL;

	(void)state;
	assert_int_equal(qmp_open(p.path, 1000, NULL, &q, &err), TM_E_PEER);
	assert_non_null(strstr(err.text, "not a QMP socket"));
	peer_end(&p);
}

static void json_without_greeting_is_not_qmp(void **state)
{
	START(p, {false, "{\"hello\":1}\n", 0});
	struct qmp *q = NULL;

	(void)state;
	assert_int_equal(qmp_open(p.path, 1000, NULL, &q, NULL), TM_E_PEER);
	peer_end(&p);
}

static void nobody_listens(void **state)
{
	struct qmp *q = NULL;

	(void)state;
	assert_int_equal(qmp_open("/tmp/tidemark-no-such-socket", 1000, NULL, &q, NULL),
			 TM_E_NOTFOUND);
}

static void a_flood_of_events_is_bounded(void **state)
{
	static char flood[200 * 32 + 64];
	static struct step steps[] = {OPENING, {true, flood, 0}};
	struct peer p = {0};
	char name[QMP_EVENT_NAME_MAX];
	struct qmp *q;
	size_t n = 0;

	(void)state;
	flood[0] = '\0';
	for (unsigned i = 0; i < 200; i++)
		(void)snprintf(flood + strlen(flood), 32, "{\"event\":\"E%u\"}\n", i);
	(void)strcat(flood, "{\"return\":{},\"id\":@ID}\n");
	peer_start(&p, steps, ARRAY_SIZE(steps));
	q = open_qmp(&p);
	assert_int_equal(qmp_call(q, "x", NULL, 2000, NULL, NULL), 0);
	while (qmp_next_event(q, name))
		n++;
	assert_int_equal(n, QMP_EVENTS_MAX);
	assert_string_equal(name, "E199");
	qmp_free(q);
	peer_end(&p);
}

static int count_ticks(void *data, const struct snapshot_progress *p, struct error *err)
{
	(void)p;
	(void)err;
	++*(unsigned *)data;
	return 0;
}

static void waiting_calls_the_hook(void **state)
{
	START(p, OPENING, {true, "{\"return\":{},\"id\":@ID}\n", 700});
	unsigned ticks = 0;
	const struct snapshot_hooks hooks = {count_ticks, &ticks};
	struct qmp *q = NULL;

	(void)state;
	assert_int_equal(qmp_open(p.path, 1000, &hooks, &q, NULL), 0);
	assert_int_equal(qmp_call(q, "x", NULL, 2000, NULL, NULL), 0);
	assert_true(ticks >= 2);
	qmp_free(q);
	peer_end(&p);
}

/* ---- guest agent ---- */

static void agent_synchronises_past_old_replies(void **state)
{
	START(p, {true, "{\"return\":\"old\"}\nnoise\n\xff{\"return\": 1}\n", 0},
	      {false, "\xff{\"return\": @ID}\n", 0}, {true, "{\"return\": \"thawed\"}\n", 0},
	      {true, "{\"return\": 3}\n", 0});
	struct qga *a = NULL;
	bool frozen = true;
	uint64_t n = 0;

	(void)state;
	assert_int_equal(qga_open(p.path, 2000, &a, NULL), 0);
	assert_int_equal(qga_frozen(a, 2000, &frozen, NULL), 0);
	assert_false(frozen);
	assert_int_equal(qga_freeze(a, 2000, &n, NULL), 0);
	assert_int_equal(n, 3);
	qga_free(a);
	peer_end(&p);
}

static void agent_that_is_not_there_is_a_timeout(void **state)
{
	START(p, {true, NULL, 300});
	struct qga *a = NULL;

	(void)state;
	assert_int_equal(qga_open(p.path, 100, &a, NULL), TM_E_TIMEOUT);
	peer_end(&p);
}

static void agent_reports_refusals(void **state)
{
	START(p, {true, "\xff{\"return\": @ID}\n", 0},
	      {true, "{\"error\":{\"class\":\"GenericError\",\"desc\":\"disabled\"}}\n", 0});
	struct error err = {0};
	struct qga *a = NULL;
	uint64_t n;

	(void)state;
	assert_int_equal(qga_open(p.path, 2000, &a, NULL), 0);
	assert_int_equal(qga_freeze(a, 1000, &n, &err), TM_E_PEER);
	assert_non_null(strstr(err.text, "disabled"));
	qga_free(a);
	peer_end(&p);
}

static void agent_counts_what_it_froze(void **state)
{
	START(p, {true, "\xff{\"return\": @ID}\n", 0}, {true, "{\"return\": -5}\n", 0},
	      {true, "{\"return\": \"abc\"}\n", 0}, {true, "{\"return\": 0}\n", 0});
	struct error err = {0};
	struct qga *a = NULL;
	uint64_t n = 7;

	(void)state;
	assert_int_equal(qga_open(p.path, 2000, &a, NULL), 0);
	assert_int_equal(qga_freeze(a, 1000, &n, &err), TM_E_PEER);
	assert_non_null(strstr(err.text, "guest-fsfreeze-freeze"));
	assert_int_equal(qga_freeze(a, 1000, &n, NULL), TM_E_PEER);
	assert_int_equal(n, 7);
	assert_int_equal(qga_freeze(a, 1000, &n, NULL), 0);
	assert_int_equal(n, 0);
	qga_free(a);
	peer_end(&p);
}

static void thaw_survives_a_lost_reply(void **state)
{
	/* The thaw's reply is lost; after a new synchronisation the status says thawed. */
	START(p, {true, "\xff{\"return\": @ID}\n", 0}, {true, NULL, 0},
	      {true, "\xff{\"return\": @ID}\n", 0}, {true, "{\"return\": \"thawed\"}\n", 0});
	struct qga *a = NULL;

	(void)state;
	assert_int_equal(qga_open(p.path, 2000, &a, NULL), 0);
	assert_int_equal(qga_thaw(a, 6000, NULL), 0);
	qga_free(a);
	peer_end(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(answers_are_matched_by_id),
		cmocka_unit_test(a_refusal_has_class_and_reason),
		cmocka_unit_test(a_late_answer_is_dropped),
		cmocka_unit_test(a_peer_that_dies_is_noticed),
		cmocka_unit_test(garbage_ends_the_connection),
		cmocka_unit_test(no_greeting_means_that_another_holds_the_socket),
		cmocka_unit_test(other_protocols_are_named_so),
		cmocka_unit_test(json_without_greeting_is_not_qmp),
		cmocka_unit_test(nobody_listens),
		cmocka_unit_test(a_flood_of_events_is_bounded),
		cmocka_unit_test(waiting_calls_the_hook),
		cmocka_unit_test(agent_synchronises_past_old_replies),
		cmocka_unit_test(agent_that_is_not_there_is_a_timeout),
		cmocka_unit_test(agent_reports_refusals),
		cmocka_unit_test(agent_counts_what_it_froze),
		cmocka_unit_test(thaw_survives_a_lost_reply),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
