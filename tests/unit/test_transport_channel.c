/* SPDX-License-Identifier: Apache-2.0 */
/* Lines over a unix socket, against a listener in the same process. */
#include "transport/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cmocka.h>

struct peer {
	char dir[64];
	char path[100];
	int listener;
	int fd;
	struct channel *ch;
};

static uint64_t in_ms(uint64_t ms)
{
	return clock_monotonic_ms(&clock_system) + ms;
}

static int make_listener(const char *path, int backlog)
{
	struct sockaddr_un sa = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	assert_true(fd >= 0);
	assert_int_equal(bind(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	assert_int_equal(listen(fd, backlog), 0);
	return fd;
}

static int set_up(void **state)
{
	struct peer *p = calloc(1, sizeof(*p));

	(void)strcpy(p->dir, "/tmp/tidemark-test-XXXXXX");
	assert_non_null(mkdtemp(p->dir));
	(void)snprintf(p->path, sizeof(p->path), "%s/sock", p->dir);
	p->listener = make_listener(p->path, 5);
	assert_int_equal(channel_connect(p->path, in_ms(1000), &p->ch, NULL), 0);
	p->fd = accept4(p->listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(p->fd >= 0);
	*state = p;
	return 0;
}

static int tear_down(void **state)
{
	struct peer *p = *state;

	channel_free(p->ch);
	if (p->fd >= 0)
		(void)close(p->fd);
	(void)close(p->listener);
	(void)unlink(p->path);
	(void)rmdir(p->dir);
	free(p);
	return 0;
}

static void peer_says(struct peer *p, const char *text, size_t len)
{
	assert_int_equal(write(p->fd, text, len), (ssize_t)len);
}

#define SAY(p, text) peer_says((p), (text), sizeof(text) - 1)

static void lines_arrive_however_they_are_cut(void **state)
{
	struct peer *p = *state;
	auto_buf struct buf line = {0};

	SAY(p, "one\r\ntwo\n\nthr");
	assert_int_equal(channel_recv_line(p->ch, 100, in_ms(1000), &line, NULL), 0);
	assert_string_equal((char *)line.data, "one");
	assert_int_equal(channel_recv_line(p->ch, 100, in_ms(1000), &line, NULL), 0);
	assert_string_equal((char *)line.data, "two");
	assert_int_equal(channel_recv_line(p->ch, 100, in_ms(1000), &line, NULL), 0);
	assert_int_equal(line.len, 0);
	assert_int_equal(channel_recv_line(p->ch, 100, in_ms(30), &line, NULL), TM_E_TIMEOUT);
	SAY(p, "ee\n");
	assert_int_equal(channel_recv_line(p->ch, 100, in_ms(1000), &line, NULL), 0);
	assert_string_equal((char *)line.data, "three");
}

static void nul_bytes_are_passed_on(void **state)
{
	struct peer *p = *state;
	auto_buf struct buf line = {0};

	SAY(p, "a\0b\n");
	assert_int_equal(channel_recv_line(p->ch, 100, in_ms(1000), &line, NULL), 0);
	assert_int_equal(line.len, 3);
	assert_memory_equal(line.data, "a\0b", 4);
}

static void a_line_may_be_just_as_long_as_allowed(void **state)
{
	struct peer *p = *state;
	auto_buf struct buf line = {0};
	struct error err = {0};

	SAY(p, "12345678\r\n12345678\n123456789\n");
	assert_int_equal(channel_recv_line(p->ch, 8, in_ms(1000), &line, NULL), 0);
	assert_int_equal(channel_recv_line(p->ch, 8, in_ms(1000), &line, NULL), 0);
	assert_int_equal(channel_recv_line(p->ch, 8, in_ms(1000), &line, &err), TM_E_PEER);
	assert_non_null(strstr(err.text, "longer than 8 bytes"));
}

static void *send_a_lot(void *data)
{
	struct peer *p = data;
	char block[4096];

	(void)memset(block, 'x', sizeof(block));
	for (unsigned i = 0; i < 2048; i++) {
		if (send(p->fd, block, sizeof(block), MSG_NOSIGNAL) < 0)
			return NULL;
	}
	(void)!send(p->fd, "\n", 1, MSG_NOSIGNAL);
	return NULL;
}

static void huge_lines_come_whole_or_not_at_all(void **state)
{
	struct peer *p = *state;
	auto_buf struct buf line = {0};
	pthread_t t;

	assert_int_equal(pthread_create(&t, NULL, send_a_lot, p), 0);
	assert_int_equal(channel_recv_line(p->ch, 16 << 20, in_ms(20000), &line, NULL), 0);
	assert_int_equal(line.len, 8 << 20);
	(void)pthread_join(t, NULL);
	assert_int_equal(pthread_create(&t, NULL, send_a_lot, p), 0);
	assert_int_equal(channel_recv_line(p->ch, 1 << 20, in_ms(20000), &line, NULL), TM_E_PEER);
	channel_free(tm_steal(p->ch));
	(void)pthread_join(t, NULL);
}

static void a_peer_that_leaves_is_an_error(void **state)
{
	struct peer *p = *state;
	auto_buf struct buf line = {0};

	SAY(p, "last\nhalf");
	(void)close(tm_steal_fd(&p->fd));
	assert_int_equal(channel_recv_line(p->ch, 100, in_ms(1000), &line, NULL), 0);
	assert_int_equal(channel_recv_line(p->ch, 100, in_ms(1000), &line, NULL), TM_E_PEER);
	assert_int_equal(channel_send(p->ch, "x\n", 2, in_ms(1000), NULL), TM_E_PEER);
}

static void sending_is_bounded(void **state)
{
	struct peer *p = *state;
	size_t len = 32 << 20;
	auto_free char *much = calloc(1, len);

	assert_int_equal(channel_send(p->ch, much, len, in_ms(50), NULL), TM_E_TIMEOUT);
}

static void nobody_there_is_notfound(void **state)
{
	struct peer *p = *state;
	struct channel *ch;
	char path[128];

	(void)snprintf(path, sizeof(path), "%s/none", p->dir);
	assert_int_equal(channel_connect(path, in_ms(100), &ch, NULL), TM_E_NOTFOUND);
	(void)close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	assert_int_equal(channel_connect(path, in_ms(100), &ch, NULL), TM_E_NOTFOUND);
	(void)unlink(path);
	assert_int_equal(channel_connect("", in_ms(100), &ch, NULL), TM_E_USAGE);
}

static void a_full_queue_is_waited_for_until_the_deadline(void **state)
{
	struct peer *p = *state;
	struct channel *ch[8] = {0}, *extra;
	char path[128];
	int listener, r = 0;
	unsigned n = 0;

	(void)snprintf(path, sizeof(path), "%s/full", p->dir);
	listener = make_listener(path, 1);
	while (n < 8 && (r = channel_connect(path, in_ms(50), &ch[n], NULL)) == 0)
		n++;
	assert_int_equal(r, TM_E_TIMEOUT);
	(void)close(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
	assert_int_equal(channel_connect(path, in_ms(1000), &extra, NULL), 0);
	channel_free(extra);
	for (unsigned i = 0; i < n; i++)
		channel_free(ch[i]);
	(void)close(listener);
	(void)unlink(path);
}

static void long_paths_are_reached(void **state)
{
	struct peer *p = *state;
	char dir[300], sock[400], cwd[256];
	struct channel *ch;
	int listener;

	(void)snprintf(dir, sizeof(dir), "%s/%0150d", p->dir, 1);
	(void)snprintf(sock, sizeof(sock), "%s/s", dir);
	assert_int_equal(mkdir(dir, 0700), 0);
	assert_non_null(getcwd(cwd, sizeof(cwd)));
	assert_int_equal(chdir(dir), 0);
	listener = make_listener("s", 5);
	assert_int_equal(chdir(cwd), 0);
	assert_int_equal(channel_connect(sock, in_ms(1000), &ch, NULL), 0);
	channel_free(ch);
	(void)close(listener);
	(void)unlink(sock);
	(void)rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(lines_arrive_however_they_are_cut, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(nul_bytes_are_passed_on, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_line_may_be_just_as_long_as_allowed, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(huge_lines_come_whole_or_not_at_all, set_up,
						tear_down),
		cmocka_unit_test_setup_teardown(a_peer_that_leaves_is_an_error, set_up, tear_down),
		cmocka_unit_test_setup_teardown(sending_is_bounded, set_up, tear_down),
		cmocka_unit_test_setup_teardown(nobody_there_is_notfound, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_full_queue_is_waited_for_until_the_deadline,
						set_up, tear_down),
		cmocka_unit_test_setup_teardown(long_paths_are_reached, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
