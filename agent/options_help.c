/* SPDX-License-Identifier: Apache-2.0 */
/* --help, made from the tables. */
#include "options_table.h"

#include <stdio.h>

static void help_option(const struct option_spec *s)
{
	char left[64];
	bool has_short = s->letter;

	(void)snprintf(left, sizeof(left), "%s%c%s--%s%s%s", has_short ? "-" : " ",
		       has_short ? s->letter : ' ', has_short ? ", " : "  ", s->name,
		       s->arg ? " " : "", s->arg ? s->arg : "");
	(void)printf("  %-26s %s\n", left, s->help);
}

static void help_options(enum command command, bool of_all)
{
	for (size_t i = 0; i < option_nspecs; i++) {
		bool all = option_specs[i].commands == OPTION_OF_ALL;

		if (all == of_all && (all || (option_specs[i].commands & (1u << command))))
			help_option(&option_specs[i]);
	}
}

static bool has_options(enum command command)
{
	for (size_t i = 0; i < option_nspecs; i++)
		if (option_specs[i].commands != OPTION_OF_ALL &&
		    option_specs[i].commands & (1u << command))
			return true;
	return false;
}

void options_help(enum command command)
{
	if (command == CMD_COUNT) {
		(void)printf("usage: tidemark [-r REPO] [options] COMMAND ...\n\n"
			     "Incremental backups of running QEMU/KVM guests.\n\ncommands:\n");
		for (unsigned i = 0; i < CMD_COUNT; i++)
			(void)printf("  %-10s %s\n", option_commands[i].name,
				     option_commands[i].summary);
		(void)printf("\noptions:\n");
		help_options(command, true);
		(void)printf("\n'tidemark COMMAND --help' tells more.\n"
			     "exit status: 0 done, 1 failed, 2 usage, 3 done with a warning, 4 "
			     "damage found,\n"
			     "5 recovery needed, 130 interrupted\n");
		return;
	}
	(void)printf("usage: tidemark [-r REPO] [options] %s%s%s%s\n\n%s",
		     option_commands[command].name, command == CMD_RESTORE ? " --to WHERE" : "",
		     *option_commands[command].args ? " " : "", option_commands[command].args,
		     option_commands[command].text);
	if (has_options(command))
		(void)printf("\noptions of %s:\n", option_commands[command].name);
	help_options(command, false);
	(void)printf("\noptions of every command:\n");
	help_options(command, true);
}
