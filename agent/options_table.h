/* SPDX-License-Identifier: Apache-2.0 */
/* The tables of options and commands, and how the text of an option becomes a value. */
#pragma once

#include "options.h"

struct option_spec {
	int letter; /* of its short form, 0: none */
	const char *name;
	const char *arg;   /* how its argument is called, NULL: none */
	unsigned commands; /* bits 1 << enum command */

	/* Puts value (NULL without an argument) into the field; TM_E_USAGE names the option. */
	int (*set)(const struct option_spec *spec, void *field, const char *value,
		   struct error *err);
	size_t field;             /* offset in struct options */
	const char *const *words; /* that it takes, NULL at the end */
	unsigned min, max;        /* of a number; the value of the first word is min */

	const char *help;
};

#define OPTION_OF_ALL ((1u << CMD_COUNT) - 1)
#define OPTIONS_MAX   96
/* Of commands that act on a domain. */
#define OPTION_OF_DOMAIN                                                              \
	(1u << CMD_BACKUP | 1u << CMD_LIST | 1u << CMD_SHOW | 1u << CMD_RESTORE |     \
	 1u << CMD_VERIFY | 1u << CMD_REPAIR | 1u << CMD_FORGET | 1u << CMD_PROTECT | \
	 1u << CMD_UNPROTECT | 1u << CMD_PRUNE | 1u << CMD_STATUS | 1u << CMD_STATS | \
	 1u << CMD_KEY)

extern const struct option_spec option_specs[];
extern const size_t option_nspecs; /* at most OPTIONS_MAX */

struct command_spec {
	const char *name;
	const char *args; /* as in usage */
	size_t min_args, max_args;
	bool needs_repo;
	const char *summary; /* for the list of commands */
	const char *text;    /* for the command's own help */
};

extern const struct command_spec option_commands[CMD_COUNT];

/* ---- options_value.c: kinds of values, for option_spec.set ---- */

typedef int option_set_fn(const struct option_spec *spec, void *field, const char *value,
			  struct error *err);

option_set_fn option_set_flag; /* bool */
option_set_fn option_set_text; /* const char *, borrowed; not empty */
option_set_fn option_set_any_text;
option_set_fn option_set_list;   /* struct string_list */
option_set_fn option_set_size;   /* uint64_t, bytes */
option_set_fn option_set_time;   /* uint64_t, milliseconds */
option_set_fn option_set_number; /* unsigned, from min to max */
option_set_fn option_set_share;  /* unsigned, parts of a million */
option_set_fn option_set_count;  /* uint32_t, or RETAIN_ALL */
option_set_fn option_set_within; /* struct retention's within */
option_set_fn option_set_word;   /* an enum, from min in the order of words */
option_set_fn option_set_choice; /* const char *, one of words */
option_set_fn option_check_word; /* one of words, kept nowhere */
