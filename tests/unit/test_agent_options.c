/* SPDX-License-Identifier: Apache-2.0 */
#include "test.h"

#include "agent/options.h"

#define MAX_WORDS 24

/* Parses a line cut at spaces. */
static int parse(const char *line, struct options *o, struct error *err)
{
	static char copy[512];
	char *argv[MAX_WORDS + 1] = {0}, *rest = copy;
	int argc = 0;

	*err = (struct error){0};
	(void)snprintf(copy, sizeof(copy), "%s", line);
	while (argc < MAX_WORDS && (argv[argc] = strsep(&rest, " ")))
		argc++;
	return options_parse(argc, argv, o, err);
}

static void options_may_stand_anywhere(void **state)
{
	struct options o;
	struct error err;

	(void)state;
	(void)unsetenv("TIDEMARK_REPO");
	assert_int_equal(
		parse("tidemark -r /repo --json backup qmp:/s --disk a -q --disk b --limit-rate 2M",
		      &o, &err),
		0);
	assert_int_equal(o.command, CMD_BACKUP);
	assert_string_equal(o.repo, "/repo");
	assert_true(o.json && o.quiet);
	assert_int_equal(o.args.n, 1);
	assert_string_equal(o.args.v[0], "qmp:/s");
	assert_int_equal(o.disks.n, 2);
	assert_string_equal(o.disks.v[1], "b");
	assert_int_equal(o.limit_rate, 2 << 20);
	assert_int_equal(o.quiesce, QUIESCE_IF_POSSIBLE);
	options_done(&o);
	assert_int_equal(parse("tidemark list -r /repo --repo=/other", &o, &err), 0);
	assert_string_equal(o.repo, "/other");
	options_done(&o);
	assert_int_equal(parse("tidemark -r /r backup t --description=", &o, &err), 0);
	assert_string_equal(o.description, "");
	options_done(&o);
	assert_int_equal(parse("tidemark -r /r show -- -strange-", &o, &err), 0);
	assert_string_equal(o.args.v[0], "-strange-");
	options_done(&o);
}

static void the_environment_names_the_repository(void **state)
{
	struct options o;
	struct error err;

	(void)state;
	(void)setenv("TIDEMARK_REPO", "/from/env", 1);
	assert_int_equal(parse("tidemark list", &o, &err), 0);
	assert_string_equal(o.repo, "/from/env");
	options_done(&o);
	assert_int_equal(parse("tidemark -r /from/line list", &o, &err), 0);
	assert_string_equal(o.repo, "/from/line");
	options_done(&o);
	assert_int_equal(parse("tidemark -r /r verify --budget 30m", &o, &err), 0);
	assert_int_equal(o.budget_ms, 30 * 60 * 1000);
	options_done(&o);
	(void)unsetenv("TIDEMARK_REPO");
}

static void wrong_lines_name_the_wrong_word(void **state)
{
	static const struct {
		const char *line, *word;
	} bad[] = {
		{"tidemark", "no command"},
		{"tidemark frob", "'frob'"},
		{"tidemark list", "TIDEMARK_REPO"},
		{"tidemark -r /r list --frob", "'--frob'"},
		{"tidemark -r /r list -Z", "'-Z'"},
		{"tidemark -r x -Zv list", "'-Z'"},
		{"tidemark -r /r list -xz", "'-x'"},
		{"tidemark -r /r --json -qx list", "'-x'"},
		{"tidemark -r /r list -vr", "'-r' needs"},
		{"tidemark -r /r list --domain", "'--domain' needs"},
		{"tidemark -r /r list --json=yes", "'--json' takes no argument"},
		{"tidemark -r /r list --verbose=yes", "'--verbose' takes no argument"},
		{"tidemark -r /r forget --keep-w=3", "--keep-weekly, --keep-within"},
		{"tidemark -r", "'-r'"},
		{"tidemark -r /r backup", "TARGET"},
		{"tidemark -r /r show a b", "'b'"},
		{"tidemark -r /r list --force", "--force"},
		{"tidemark -r /r restore p", "--to"},
		{"tidemark -r /r show caf\xe9", "UTF-8"},
		{"tidemark -r /r restore p --to x --format vdi", "'vdi'"},
		{"tidemark -r /r backup t --quiesce maybe", "'maybe'"},
		{"tidemark -r /r backup t --limit-rate fast", "'fast'"},
		{"tidemark -r /r backup t --compression 99", "'99'"},
		{"tidemark -r /r backup t --audit 101", "'101'"},
		{"tidemark -r /r backup t --audit 100.0001", "'100.0001'"},
		{"tidemark -r /r backup t --audit 1.23456", "'1.23456'"},
		{"tidemark -r /r backup t --audit .", "'.'"},
		{"tidemark -r /r backup t --audit 99999999999", "'99999999999'"},
		{"tidemark -r /r backup t --audit 1%", "'1%'"},
		{"tidemark -r /r backup t --audit -1", "'-1'"},
		{"tidemark -r /r backup t --collapse push", "'push'"},
		{"tidemark -r /r verify --budget 30", "'30'"},
		{"tidemark -r /r verify --budget 0m", "'0m'"},
		{"tidemark -r /r verify --budget 3mm", "'3mm'"},
		{"tidemark -r /r list --scrub", "--scrub"},
		{"tidemark -r /r forget", "--keep-daily"},
		{"tidemark -r /r forget p --keep-last 1", "not both"},
		{"tidemark -r /r forget p --guest g", "not both"},
		{"tidemark -r /r forget --prune", "needs points"},
		{"tidemark -r /r forget --keep-last -1", "'-1'"},
		{"tidemark -r /r forget --keep-daily 7x", "'7x'"},
		{"tidemark -r /r forget --keep-within 3", "'3'"},
		{"tidemark -r /r forget --keep-within 3w", "'3w'"},
		{"tidemark -r /r forget --keep-within 99999999999y", "'99999999999y'"},
		{"tidemark -r /r forget --keep-tag=", "--keep-tag is empty"},
		{"tidemark -r /r backup t --tag=", "--tag is empty"},
		{"tidemark -r /r backup t --name=", "--name is empty"},
		{"tidemark -r /r list --guest=", "--guest is empty"},
		{"tidemark -r /r restore p --to=", "--to is empty"},
		{"tidemark --repo= list", "--repo is empty"},
		{"tidemark -r /r prune x", "'x'"},
		{"tidemark -r /r prune --max-unused 101", "'101'"},
		{"tidemark -r /r prune --keep-last 1", "--keep-last"},
		{"tidemark -r /r protect", "POINT"},
		{"tidemark -r /r list -v -q", "--verbose and --quiet"},
		{"tidemark -r /r backup t --full --like p", "--full and --like"},
		{"tidemark -r /r forget --keep-last 1 --max-unused 5", "--prune"},
		{"tidemark -r /r forget p --stale-hours 5", "--prune"},
		{"tidemark -r /r key passwd --role full", "--role"},
		{"tidemark -r /r key list --label l", "--label"},
		{"tidemark -r /r key rotate --new-key-file k", "--new-key-file"},
		{"tidemark -r /r backup t --name a/b", "'a/b'"},
		{"tidemark -r /r backup t --limit-rate 99999999999999999999", "too large"},
		{"tidemark -r /r backup t --limit-rate 99999999999999999999G", "too large"},
	};
	struct options o;
	struct error err;

	(void)state;
	(void)unsetenv("TIDEMARK_REPO");
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		assert_int_equal(parse(bad[i].line, &o, &err), TM_E_USAGE);
		if (!strstr(err.text, bad[i].word))
			fail_msg("'%s' says '%s' without %s", bad[i].line, err.text, bad[i].word);
		options_done(&o);
	}
	assert_int_equal(parse("tidemark -r /r list --frob=secret", &o, &err), TM_E_USAGE);
	assert_string_equal(err.text, "there is no option '--frob'");
	options_done(&o);
}

static void help_is_given_with_any_options(void **state)
{
	static const char *const good[] = {
		"tidemark backup --full --like p --help",
		"tidemark forget --stale-hours 3 -h",
		"tidemark key passwd --role full -h",
		"tidemark -vqh",
	};
	struct options o;
	struct error err;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		assert_int_equal(parse(good[i], &o, &err), 0);
		assert_true(o.help);
		options_done(&o);
	}
}

static void any_number_of_points_may_be_named(void **state)
{
	static char line[] = "tidemark -r /r forget";
	char *argv[100], *rest = line;
	struct options o;
	struct error err = {0};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(argv); i++)
		argv[i] = i < 4 ? strsep(&rest, " ") : argv[0];
	assert_int_equal(options_parse(ARRAY_SIZE(argv), argv, &o, &err), 0);
	assert_int_equal(o.args.n, ARRAY_SIZE(argv) - 4);
	options_done(&o);
}

static void retention_is_read(void **state)
{
	struct options o;
	struct error err;

	(void)state;
	assert_int_equal(parse("tidemark -r /r forget --keep-last all --keep-daily 7 --keep-within "
			       "2y5m7d3h --keep-tag a --keep-tag b --prune --max-unused 5",
			       &o, &err),
			 0);
	assert_int_equal(o.retention.last, RETAIN_ALL);
	assert_int_equal(o.retention.daily, 7);
	assert_int_equal(o.retention.within.years, 2);
	assert_int_equal(o.retention.within.months, 5);
	assert_int_equal(o.retention.within.days, 7);
	assert_int_equal(o.retention.within.hours, 3);
	assert_int_equal(o.keep_tags.n, 2);
	assert_true(o.prune);
	assert_int_equal(o.max_unused, 5);
	assert_int_equal(o.stale_hours, PRUNE_STALE_HOURS);
	options_done(&o);
}

static void shares_are_parts_of_a_million(void **state)
{
	static const struct {
		const char *line;
		unsigned parts;
	} good[] = {
		{"tidemark -r /r backup t", AUDIT_FEW},
		{"tidemark -r /r backup t --audit 0", 0},
		{"tidemark -r /r backup t --audit 0.0001", 1},
		{"tidemark -r /r backup t --audit 2.5", 25000},
		{"tidemark -r /r backup t --audit 100", 1000000},
		{"tidemark -r /r backup t --audit 100.0000", 1000000},
	};
	struct options o;
	struct error err;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		assert_int_equal(parse(good[i].line, &o, &err), 0);
		assert_int_equal(o.audit, good[i].parts);
		options_done(&o);
	}
}

static void help_needs_nothing_else(void **state)
{
	struct options o;
	struct error err;

	(void)state;
	assert_int_equal(parse("tidemark --help", &o, &err), 0);
	assert_int_equal(o.command, CMD_COUNT);
	options_done(&o);
	assert_int_equal(parse("tidemark restore --help", &o, &err), 0);
	assert_true(o.help);
	assert_int_equal(o.command, CMD_RESTORE);
	options_done(&o);
}

static void secrets_come_from_one_place(void **state)
{
	struct options o;
	struct error err;

	(void)state;
	assert_int_equal(parse("tidemark -r /r key add --role backup --new-key-file k --label l "
			       "--password-file p",
			       &o, &err),
			 0);
	assert_int_equal(o.command, CMD_KEY);
	assert_int_equal(o.role, REPO_ROLE_BACKUP);
	assert_string_equal(o.new_key_file, "k");
	assert_string_equal(o.password_file, "p");
	options_done(&o);
	assert_int_equal(parse("tidemark -r /r key list", &o, &err), 0);
	assert_int_equal(o.role, REPO_ROLE_FULL);
	options_done(&o);
	assert_int_equal(parse("tidemark -r /r list --key-file k --password-file p", &o, &err),
			 TM_E_USAGE);
	options_done(&o);
	assert_int_equal(parse("tidemark -r /r key add --role king", &o, &err), TM_E_USAGE);
	assert_non_null(strstr(err.text, "janitor"));
	options_done(&o);
	assert_int_equal(parse("tidemark -r /r backup qmp:/s --encrypt", &o, &err), TM_E_USAGE);
	options_done(&o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(options_may_stand_anywhere),
		cmocka_unit_test(the_environment_names_the_repository),
		cmocka_unit_test(wrong_lines_name_the_wrong_word),
		cmocka_unit_test(help_is_given_with_any_options),
		cmocka_unit_test(any_number_of_points_may_be_named),
		cmocka_unit_test(retention_is_read),
		cmocka_unit_test(shares_are_parts_of_a_million),
		cmocka_unit_test(help_needs_nothing_else),
		cmocka_unit_test(secrets_come_from_one_place),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
