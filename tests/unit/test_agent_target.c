/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include "agent/target.h"

static void qmp_targets_name_sockets(void **state)
{
	struct target t = {0};

	(void)state;
	assert_int_equal(target_parse("qmp:/run/a.sock,agent=/run/b.sock,name=web", &t, NULL), 0);
	assert_int_equal(t.guest.kind, GUEST_QMP);
	assert_string_equal(t.guest.qmp_socket, "/run/a.sock");
	assert_string_equal(t.guest.agent_socket, "/run/b.sock");
	assert_string_equal(t.guest.name, "web");
	target_done(&t);
	assert_int_equal(target_parse("qmp:/run/a.sock", &t, NULL), 0);
	assert_null(t.guest.agent_socket);
	assert_null(t.guest.name);
	target_done(&t);
}

static void image_targets_name_files(void **state)
{
	struct target t = {0};

	(void)state;
	assert_int_equal(target_parse("image:/a.qcow2,/b.raw,name=off,format=qcow2", &t, NULL), 0);
	assert_int_equal(t.guest.kind, GUEST_IMAGE);
	assert_int_equal(t.guest.nimages, 2);
	assert_string_equal(t.guest.images[0], "/a.qcow2");
	assert_string_equal(t.guest.images[1], "/b.raw");
	assert_string_equal(t.guest.image_format, "qcow2");
	assert_string_equal(t.guest.name, "off");
	target_done(&t);
}

static void two_commas_are_one_that_belongs_to_a_name(void **state)
{
	struct target t = {0};

	(void)state;
	assert_int_equal(target_parse("image:/a,,b/,,,/,,,,c.raw,name=x,,y,,", &t, NULL), 0);
	assert_int_equal(t.guest.nimages, 2);
	assert_string_equal(t.guest.images[0], "/a,b/,");
	assert_string_equal(t.guest.images[1], "/,,c.raw");
	assert_string_equal(t.guest.name, "x,y,");
	target_done(&t);
	assert_int_equal(target_parse("qmp:/a,,b.sock,agent=/a,,b.qga", &t, NULL), 0);
	assert_string_equal(t.guest.qmp_socket, "/a,b.sock");
	assert_string_equal(t.guest.agent_socket, "/a,b.qga");
	target_done(&t);
}

static void targets_that_make_no_sense_are_refused(void **state)
{
	static const char *const bad[] = {"",
					  "vm1",
					  "libvirt:vm1",
					  "qmp:",
					  "qmp:/a,",
					  "qmp:/a,name=x,",
					  "image:,/a",
					  "qmp:/a,colour=red",
					  "image:",
					  "image:name=x",
					  "image:/a,name=",
					  "image:/a,name=x@y",
					  "qmp:/a,name=x/y"};
	struct target t = {0};
	struct error err;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		err = (struct error){0};
		assert_int_equal(target_parse(bad[i], &t, &err), TM_E_USAGE);
		assert_non_null(strstr(err.text, bad[i]));
		assert_null(t.text);
	}
}

static void names_of_guests_end_somewhere(void **state)
{
	char word[300];
	struct target t = {0};
	struct error err = {0};

	(void)state;
	(void)snprintf(word, sizeof(word), "image:/a,name=%0255d", 1);
	assert_int_equal(target_parse(word, &t, NULL), 0);
	target_done(&t);
	(void)snprintf(word, sizeof(word), "qmp:/a,name=%0256d", 1);
	assert_int_equal(target_parse(word, &t, &err), TM_E_USAGE);
	assert_non_null(strstr(err.text, "256 bytes"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(qmp_targets_name_sockets),
		cmocka_unit_test(image_targets_name_files),
		cmocka_unit_test(two_commas_are_one_that_belongs_to_a_name),
		cmocka_unit_test(targets_that_make_no_sense_are_refused),
		cmocka_unit_test(names_of_guests_end_somewhere),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
