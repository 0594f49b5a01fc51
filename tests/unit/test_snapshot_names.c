/* SPDX-License-Identifier: Apache-2.0 */
/* Names of images after a pull. */
#include "test.h"

#include "../../snapshot/names.h"

#include <sys/stat.h>

static char dir[64];

static int enter(void **state)
{
	(void)state;
	(void)strcpy(dir, "/tmp/tidemark-names.XXXXXX");
	return mkdtemp(dir) && chdir(dir) == 0 ? 0 : -1;
}

static int leave(void **state)
{
	(void)state;
	for (const char *const *p =
		     (const char *const[]){"disk.qcow2", "disk.qcow2.1-0.tidemark-name",
					   "disk.qcow2.2-0.tidemark-name",
					   "disk.qcow2.tidemark-moved", "other", NULL};
	     *p; p++)
		(void)unlink(*p);
	return chdir("/") == 0 && rmdir(dir) == 0 ? 0 : -1;
}

static void put(const char *name, const char *text)
{
	FILE *f = fopen(name, "w");

	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static char first_byte(const char *name)
{
	FILE *f = fopen(name, "r");
	int c;

	assert_non_null(f);
	c = fgetc(f);
	assert_int_equal(fclose(f), 0);
	return (char)c;
}

static void assert_true_name(const char *file, const char *want)
{
	char *name = NULL;

	assert_int_equal(names_true(file, &name, NULL), 0);
	assert_string_equal(name, want);
	free(name);
}

static void the_overlay_takes_the_name_and_has_both(void **state)
{
	(void)state;
	put("disk.qcow2", "old");
	put("disk.qcow2.1-0.tidemark-name", "new");
	assert_true_name("disk.qcow2.1-0.tidemark-name", "disk.qcow2.1-0.tidemark-name");
	for (unsigned again = 0; again < 2; again++) {
		assert_int_equal(
			names_take_over("disk.qcow2.1-0.tidemark-name", "disk.qcow2", NULL), 0);
		assert_int_equal(first_byte("disk.qcow2"), 'n');
		assert_true_name("disk.qcow2.1-0.tidemark-name", "disk.qcow2");
		assert_true_name("disk.qcow2", "disk.qcow2");
	}
	/* Once more: the second name of the one that goes is of no use any more. */
	put("disk.qcow2.2-0.tidemark-name", "third");
	assert_int_equal(names_take_over("disk.qcow2.2-0.tidemark-name", "disk.qcow2", NULL), 0);
	assert_int_equal(first_byte("disk.qcow2"), 't');
	assert_int_equal(access("disk.qcow2.1-0.tidemark-name", F_OK), -1);
}

static void only_other_names_of_the_same_file_are_tidied(void **state)
{
	(void)state;
	put("disk.qcow2", "data");
	put("disk.qcow2.2-0.tidemark-name", "an overlay whose journal was lost");
	put("other", "x");
	assert_int_equal(link("disk.qcow2", "disk.qcow2.1-0.tidemark-name"), 0);
	names_tidy("./disk.qcow2", "./disk.qcow2.1-0.tidemark-name");
	assert_int_equal(access("disk.qcow2.1-0.tidemark-name", F_OK), 0);
	names_tidy("./disk.qcow2", NULL);
	assert_int_equal(access("disk.qcow2.1-0.tidemark-name", F_OK), -1);
	assert_int_equal(access("disk.qcow2.2-0.tidemark-name", F_OK), 0);
	assert_int_equal(access("disk.qcow2", F_OK), 0);
	assert_int_equal(access("other", F_OK), 0);
}

static void a_moved_disk_is_refused_until_its_note_is_gone(void **state)
{
	struct error err = {0};

	(void)state;
	put("disk.qcow2", "old");
	assert_int_equal(names_check_moved("disk.qcow2", NULL), 0);
	assert_int_equal(names_note_moved("disk.qcow2", "/images/new.qcow2", NULL), 0);
	assert_int_equal(names_check_moved("disk.qcow2", &err), TM_E_STALE);
	assert_non_null(strstr(err.text, "to /images/new.qcow2: start"));
	assert_int_equal(names_forget_moved("disk.qcow2", NULL), 0);
	assert_int_equal(names_check_moved("disk.qcow2", NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(the_overlay_takes_the_name_and_has_both, enter,
						leave),
		cmocka_unit_test_setup_teardown(only_other_names_of_the_same_file_are_tidied, enter,
						leave),
		cmocka_unit_test_setup_teardown(a_moved_disk_is_refused_until_its_note_is_gone,
						enter, leave),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
