/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include "common/common.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>

struct probe {
	struct loop_op op;
	int res;
	unsigned calls;
};

static void probed(struct loop_op *op, int res)
{
	struct probe *p = (struct probe *)(void *)op;

	p->res = res;
	p->calls++;
}

static struct loop *new_loop(unsigned depth)
{
	struct loop *loop = NULL;

	assert_int_equal(loop_new(depth, &loop, NULL), 0);
	return loop;
}

static void run_until(struct loop *loop, const unsigned *calls, unsigned n)
{
	for (int i = 0; i < 1000 && *calls < n; i++)
		assert_int_equal(loop_run_once(loop, 100, NULL), 0);
	assert_int_equal(*calls, n);
}

static void files_are_written_and_read(void **state)
{
	char name[] = "/tmp/tidemark-test-XXXXXX", bytes[6] = "";
	int fd = mkostemp(name, O_CLOEXEC);
	struct loop *loop = new_loop(8);
	struct probe p = {.op.done = probed};

	(void)state;
	assert_true(fd >= 0);
	loop_write(loop, &p.op, fd, "hello", 5, 3);
	assert_int_equal(p.calls, 0);
	run_until(loop, &p.calls, 1);
	assert_int_equal(p.res, 5);
	loop_fdatasync(loop, &p.op, fd);
	run_until(loop, &p.calls, 2);
	assert_int_equal(p.res, 0);
	loop_read(loop, &p.op, fd, bytes, 5, 3);
	run_until(loop, &p.calls, 3);
	assert_int_equal(p.res, 5);
	assert_string_equal(bytes, "hello");
	loop_read(loop, &p.op, -1, bytes, 5, 3);
	run_until(loop, &p.calls, 4);
	assert_int_equal(p.res, -EBADF);
	loop_free(loop);
	(void)close(fd);
	(void)unlink(name);
}

static void names_are_made_moved_and_removed(void **state)
{
	char dir[] = "/tmp/tidemark-test-XXXXXX", sub[64], a[80], b[80];
	struct loop *loop = new_loop(8);
	struct probe p = {.op.done = probed};

	(void)state;
	assert_non_null(mkdtemp(dir));
	(void)snprintf(sub, sizeof(sub), "%s/sub", dir);
	(void)snprintf(a, sizeof(a), "%s/a", sub);
	(void)snprintf(b, sizeof(b), "%s/b", sub);
	loop_mkdirat(loop, &p.op, AT_FDCWD, sub, 0700);
	run_until(loop, &p.calls, 1);
	assert_int_equal(p.res, 0);
	loop_openat(loop, &p.op, AT_FDCWD, a, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);
	run_until(loop, &p.calls, 2);
	assert_true(p.res >= 0);
	(void)close(p.res);
	loop_renameat(loop, &p.op, AT_FDCWD, a, AT_FDCWD, b, RENAME_NOREPLACE);
	run_until(loop, &p.calls, 3);
	assert_int_equal(p.res, 0);
	loop_unlinkat(loop, &p.op, AT_FDCWD, a);
	run_until(loop, &p.calls, 4);
	assert_int_equal(p.res, -ENOENT);
	loop_unlinkat(loop, &p.op, AT_FDCWD, b);
	run_until(loop, &p.calls, 5);
	assert_int_equal(p.res, 0);
	loop_free(loop);
	assert_int_equal(rmdir(sub), 0);
	assert_int_equal(rmdir(dir), 0);
}

static void more_requests_than_the_ring_holds_all_end(void **state)
{
	enum { N = 500 };
	struct loop *loop = new_loop(4);
	struct probe *p = calloc(N, sizeof(*p));
	unsigned done = 0;

	(void)state;
	assert_non_null(p);
	for (unsigned i = 0; i < N; i++) {
		p[i].op.done = probed;
		loop_timer(loop, &p[i].op, i % 3);
	}
	for (int turn = 0; turn < 10000 && done < N; turn++) {
		assert_int_equal(loop_run_once(loop, 100, NULL), 0);
		done = 0;
		for (unsigned i = 0; i < N; i++)
			done += p[i].calls;
	}
	assert_int_equal(done, N);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(p[i].res, 0);
	free(p);
	loop_free(loop);
}

static void polls_and_timers_can_be_cancelled(void **state)
{
	struct loop *loop = new_loop(4);
	struct probe timer = {.op.done = probed}, wait = {.op.done = probed};
	int fds[2];

	(void)state;
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	loop_timer(loop, &timer.op, 60000);
	loop_poll(loop, &wait.op, fds[0], POLLIN);
	assert_int_equal(loop_run_once(loop, 0, NULL), 0);
	assert_int_equal(timer.calls + wait.calls, 0);
	assert_int_equal(write(fds[1], "x", 1), 1);
	run_until(loop, &wait.calls, 1);
	assert_true(wait.res & POLLIN);
	loop_cancel(loop, &timer.op);
	run_until(loop, &timer.calls, 1);
	assert_int_equal(timer.res, -ECANCELED);
	(void)close(fds[0]);
	(void)close(fds[1]);
	loop_free(loop);
}

static void waiting_ends_with_its_timeout(void **state)
{
	struct loop *loop = new_loop(4);
	uint64_t start = clock_monotonic_ms(&clock_system);

	(void)state;
	assert_int_equal(loop_run_once(loop, 30, NULL), 0);
	assert_true(clock_monotonic_ms(&clock_system) - start >= 25);
	loop_free(loop);
}

static void deferred_calls_come_on_a_fresh_stack(void **state)
{
	struct loop *loop = new_loop(4);
	struct probe p = {.op.done = probed, .res = 1};

	(void)state;
	loop_defer(loop, &p.op);
	assert_int_equal(p.calls, 0);
	assert_int_equal(loop_run_once(loop, -1, NULL), 0);
	assert_int_equal(p.calls, 1);
	assert_int_equal(p.res, 0);
	loop_free(loop);
}

struct counted_watch {
	struct loop_watch watch;
	unsigned calls;
	uint64_t idle_ms;
};

static void watched(struct loop_watch *watch, uint64_t idle_ms)
{
	struct counted_watch *w = container_of(watch, struct counted_watch, watch);

	w->calls++;
	w->idle_ms = idle_ms;
}

static void a_watch_sees_that_nothing_moves(void **state)
{
	struct loop *loop = new_loop(4);
	struct counted_watch w = {.watch.tick = watched};
	struct probe timer = {.op.done = probed}, work = {.op.done = probed};

	(void)state;
	loop_set_watch(loop, &w.watch);
	loop_timer(loop, &timer.op, 250); /* a timer is no progress */
	for (int i = 0; i < 20 && w.idle_ms < 400; i++)
		assert_int_equal(loop_run_once(loop, -1, NULL), 0);
	assert_true(w.calls >= 2 && w.idle_ms >= 400);
	loop_read(loop, &work.op, -1, &w, 1, 0);
	assert_int_equal(loop_run_once(loop, -1, NULL), 0);
	for (unsigned n = w.calls; n == w.calls;)
		assert_int_equal(loop_run_once(loop, -1, NULL), 0);
	assert_true(w.idle_ms < 400);
	loop_set_watch(loop, NULL);
	loop_free(loop);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(files_are_written_and_read),
		cmocka_unit_test(names_are_made_moved_and_removed),
		cmocka_unit_test(more_requests_than_the_ring_holds_all_end),
		cmocka_unit_test(polls_and_timers_can_be_cancelled),
		cmocka_unit_test(waiting_ends_with_its_timeout),
		cmocka_unit_test(deferred_calls_come_on_a_fresh_stack),
		cmocka_unit_test(a_watch_sees_that_nothing_moves),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
