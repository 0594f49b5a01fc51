/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include "common/common.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>

static char dir[] = "/tmp/tidemark-test-XXXXXX";

static int make_dir(void **state)
{
	(void)state;
	return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
	const char *const argv[] = {"rm", "-rf", "--", dir, NULL};

	(void)state;
	return spawn_run(argv, 10000, NULL, NULL);
}

static char *path_of(const char *name)
{
	char *path = NULL;

	assert_int_equal(io_join(dir, name, &path, NULL), 0);
	return path;
}

static unsigned entries(void)
{
	DIR *d = opendir(dir);
	unsigned n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	(void)closedir(d);
	return n - 2;
}

static void publish_replaces_whole_files(void **state)
{
	auto_free char *path = path_of("file"), *tmp = path_of("file" IO_PUBLISH_TMP);
	auto_buf struct buf b = {0};
	unsigned before = entries();
	struct stat st;

	(void)state;
	assert_int_equal(io_publish(path, "first", 5, 0600, NULL), 0);
	/* What a process left that died in the middle. */
	assert_int_equal(symlink("/etc/passwd", tmp), 0);
	assert_int_equal(io_publish(path, "second!", 7, 0600, NULL), 0);
	assert_int_equal(io_read_file(path, 100, &b, NULL), 0);
	assert_int_equal(b.len, 7);
	assert_memory_equal(b.data, "second!", 7);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(entries(), before + 1);
}

static void what_can_be_published_is(void **state)
{
	auto_free char *a = path_of("one"), *b = path_of("two");
	const char *const paths[] = {a, "/no/such/place/file", b};
	auto_buf struct buf text = {0};
	struct error err = {0};
	bool done[3] = {false, true, false};

	(void)state;
	assert_int_equal(io_publish_all(paths, 3, "text", 4, 0600, done, &err), TM_E_NOTFOUND);
	assert_non_null(strstr(err.text, "/no/such/place"));
	assert_true(done[0] && !done[1] && done[2]);
	assert_int_equal(io_read_file(b, 10, &text, NULL), 0);
	assert_memory_equal(text.data, "text", 4);
	assert_int_equal(io_publish_all(paths, 1, "more", 4, 0600, done, NULL), 0);
	assert_int_equal(io_publish_all(NULL, 0, "", 0, 0600, done, NULL), 0);
	assert_int_equal(io_remove(a, NULL), 0);
	assert_int_equal(io_remove(b, NULL), 0);
}

static void publish_into_nowhere_says_where(void **state)
{
	auto_free char *path = path_of("no/such/file");
	struct error err = {0};

	(void)state;
	assert_int_equal(io_publish(path, "x", 1, 0600, &err), TM_E_NOTFOUND);
	assert_non_null(strstr(err.text, "no/such/file"));
}

static void read_file_is_bounded(void **state)
{
	auto_free char *path = path_of("long");
	auto_buf struct buf b = {0};

	(void)state;
	assert_int_equal(io_publish(path, "123456", 6, 0600, NULL), 0);
	assert_int_equal(io_read_file(path, 5, &b, NULL), TM_E_RANGE);
	assert_int_equal(io_read_file(path, 6, &b, NULL), 0);
	buf_done(&b);
	assert_int_equal(io_read_file("/nowhere/at/all", 6, &b, NULL), TM_E_NOTFOUND);
	assert_int_equal(io_read_file(dir, 6, &b, NULL), TM_E_IO);
}

static void short_files_are_corrupt(void **state)
{
	auto_free char *path = path_of("short");
	auto_close int fd = -1;
	char bytes[8];

	(void)state;
	assert_int_equal(io_publish(path, "1234", 4, 0600, NULL), 0);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_int_equal(io_pread(fd, path, bytes, 4, 0, NULL), 0);
	assert_int_equal(io_pread(fd, path, bytes, 5, 0, NULL), TM_E_CORRUPT);
	assert_int_equal(io_pread(fd, path, bytes, 5, UINT64_MAX, NULL), TM_E_RANGE);
}

static void mkdirs_makes_parents(void **state)
{
	auto_free char *path = path_of("a/b/c"), *file = path_of("file2"),
		       *below = path_of("file2/x");

	(void)state;
	assert_int_equal(io_mkdirs(path, NULL), 0);
	assert_int_equal(io_mkdirs(path, NULL), 0);
	assert_int_equal(io_publish(file, "x", 1, 0600, NULL), 0);
	assert_int_equal(io_mkdirs(file, NULL), TM_E_IO);
	assert_int_equal(io_mkdirs(below, NULL), TM_E_IO);
}

static void spawn_takes_output_and_status(void **state)
{
	const char *const echo[] = {"echo", "two words", NULL};
	const char *const fails[] = {"ls", "/no/such/place", NULL};
	const char *const nothing[] = {"/no/such/program", NULL};
	const char *const sleeps[] = {"sleep", "60", NULL};
	auto_buf struct buf out = {0};
	struct error err = {0};
	pid_t pid;

	(void)state;
	assert_int_equal(spawn_run(echo, 10000, &out, NULL), 0);
	assert_string_equal((char *)out.data, "two words\n");
	assert_int_equal(spawn_run(fails, 10000, NULL, &err), TM_E_PEER);
	assert_non_null(strstr(err.text, "/no/such/place"));
	assert_int_equal(spawn_run(nothing, 10000, NULL, NULL), TM_E_NOTFOUND);
	assert_int_equal(spawn_run(sleeps, 50, NULL, NULL), TM_E_TIMEOUT);
	assert_int_equal(spawn_start(sleeps, -1, -1, &pid, NULL), 0);
	assert_false(spawn_ended(pid));
	spawn_stop(pid, 1000);
	assert_true(spawn_ended(pid));
}

/* As a qemu-nbd does that is told to end before its main loop has begun. */
static void a_server_that_forgets_a_signal_is_told_again(void **state)
{
	char script[256], ready[PATH_MAX], ended[PATH_MAX];
	const char *const argv[] = {"sh", "-c", script, NULL};
	pid_t pid;

	(void)state;
	(void)snprintf(ready, sizeof(ready), "%s/ready", dir);
	(void)snprintf(ended, sizeof(ended), "%s/ended", dir);
	(void)snprintf(script, sizeof(script),
		       "cd %s; trap 'trap \"touch ended; exit\" TERM' TERM; touch ready;"
		       "while :; do sleep 0.01; done",
		       dir);
	assert_int_equal(spawn_start(argv, -1, -1, &pid, NULL), 0);
	for (int i = 0; i < 10000 && access(ready, F_OK); i++)
		clock_sleep_ms(&clock_system, 1);
	spawn_stop(pid, 60000);
	assert_int_equal(access(ended, F_OK), 0);
}

static void what_a_server_said_is_told(void **state)
{
	static const char *const fails[] = {
		"sh", "-c", "echo first >&2; printf '\\033[2Jthe reason\\n\\n' >&2", NULL};
	/* More than a pipe holds: it must not wait for us. */
	static const char *const talks[] = {
		"sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo line $i >&2; i=$((i+1)); done",
		NULL};
	static const char *const waits[] = {"sh", "-c", "echo a client left >&2; exec sleep 60",
					    NULL};
	struct server s = {0};
	struct error err = {0};

	(void)state;
	server_explain(&s, &err);
	assert_int_equal(server_start(fails, &s, NULL), 0);
	for (unsigned i = 0; !server_ended(&s) && i < 1000; i++)
		clock_sleep_ms(&clock_system, 10);
	assert_true(server_ended(&s));
	(void)error_set(&err, TM_E_PEER, "no image");
	server_explain(&s, &err);
	assert_string_equal(err.text, "no image; sh has ended, and said: ?[2Jthe reason");
	server_stop(&s, 1000);
	assert_int_equal(server_start(talks, &s, NULL), 0);
	for (unsigned i = 0; !server_ended(&s) && i < 1000; i++)
		clock_sleep_ms(&clock_system, 10);
	assert_true(server_ended(&s));
	err = (struct error){.code = TM_E_PEER};
	server_explain(&s, &err);
	assert_non_null(strstr(err.text, "sh has ended, and said: line "));
	server_stop(&s, 1000);
	/* One that was killed had no reason of its own. */
	assert_int_equal(server_start(waits, &s, NULL), 0);
	err = (struct error){.code = TM_E_PEER};
	server_explain(&s, &err);
	assert_string_equal(err.text, "");
	clock_sleep_ms(&clock_system, 100);
	assert_int_equal(kill(s.pid, SIGKILL), 0);
	for (unsigned i = 0; !server_ended(&s) && i < 1000; i++)
		clock_sleep_ms(&clock_system, 10);
	server_explain(&s, &err);
	assert_string_equal(err.text, "; sh was ended by signal 9");
	server_stop(&s, 1000);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(publish_replaces_whole_files),
		cmocka_unit_test(what_a_server_said_is_told),
		cmocka_unit_test(what_can_be_published_is),
		cmocka_unit_test(publish_into_nowhere_says_where),
		cmocka_unit_test(read_file_is_bounded),
		cmocka_unit_test(short_files_are_corrupt),
		cmocka_unit_test(mkdirs_makes_parents),
		cmocka_unit_test(spawn_takes_output_and_status),
		cmocka_unit_test(a_server_that_forgets_a_signal_is_told_again),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
