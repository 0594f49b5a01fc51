/* SPDX-License-Identifier: Apache-2.0 */
/* Where a restored disk gets its name, also on file systems that know less. */
#include "test.h"

#include "agent/target_file.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/stat.h>

#define SIZE  ((uint64_t)1 << 20)
#define BLOCK 65536U

static struct loop *loop;
static char dir[64], path[100];
static bool knows_noreplace;

int __real_renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags);
int __wrap_renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags);

/* As over NFS. */
int __wrap_renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
	if (flags && !knows_noreplace) {
		errno = EINVAL;
		return -1;
	}
	return __real_renameat2(from_dir, from, to_dir, to, flags);
}

static struct target_file *open_target(const char *to, bool force)
{
	const struct target_file_options opt = {.loop = loop,
						.to = to,
						.format = "raw",
						.size = SIZE,
						.block_size = BLOCK,
						.force = force};
	struct target_file *t = NULL;
	struct error err = {0};

	if (target_file_open(&opt, &t, &err))
		fail_msg("%s", err.text);
	return t;
}

static uint64_t bytes_of(const char *file)
{
	struct stat st;

	assert_int_equal(stat(file, &st), 0);
	return (uint64_t)st.st_size;
}

static void a_finished_file_gets_its_name_everywhere(void **state)
{
	struct error err = {0};
	struct disk_sink_counts counts;

	(void)state;
	for (int knows = 0; knows < 2; knows++) {
		struct target_file *t = open_target(path, false);

		knows_noreplace = knows;
		if (target_file_finish(t, &counts, &err))
			fail_msg("%s", err.text);
		target_file_free(t);
		assert_int_equal(bytes_of(path), SIZE);
		assert_int_equal(unlink(path), 0);
	}
}

/* One that came while the disk was being written. */
static void nobodys_file_is_replaced_unasked(void **state)
{
	struct error err = {0};
	struct disk_sink_counts counts;

	(void)state;
	for (int knows = 0; knows < 2; knows++) {
		struct target_file *t = open_target(path, false);

		knows_noreplace = knows;
		assert_int_equal(io_publish(path, "precious", 8, 0600, NULL), 0);
		error_clear(&err);
		assert_int_equal(target_file_finish(t, &counts, &err), TM_E_EXISTS);
		assert_non_null(strstr(err.text, path));
		target_file_free(t);
		assert_int_equal(bytes_of(path), 8);
		assert_int_equal(unlink(path), 0);
	}
}

static int set_up(void **state)
{
	(void)state;
	(void)strcpy(dir, "/tmp/tidemark-test-XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	(void)snprintf(path, sizeof(path), "%s/disk", dir);
	return loop_new(64, &loop, NULL);
}

/* Nothing else may be left in it. */
static int tear_down(void **state)
{
	(void)state;
	loop_free(loop);
	return rmdir(dir);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(a_finished_file_gets_its_name_everywhere),
		TEST(nobodys_file_is_replaced_unasked),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
