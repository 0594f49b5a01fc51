/* SPDX-License-Identifier: Apache-2.0 */
#include "options_table.h"

#include <ctype.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

const char *command_name(enum command command)
{
	return option_commands[command].name;
}

void options_done(struct options *opt)
{
	free(opt->args.v);
	free(opt->disks.v);
	free(opt->exclude_disks.v);
	free(opt->tags.v);
	free(opt->keep_tags.v);
	*opt = (struct options){0};
}

/* Keys for getopt: the letter, or above all characters the place in the table. */
#define KEY_FIRST 256

static int key_of(size_t i)
{
	return option_specs[i].letter ? option_specs[i].letter : KEY_FIRST + (int)i;
}

static const struct option_spec *find_spec(int key)
{
	for (size_t i = 0; i < option_nspecs; i++) {
		if (key_of(i) == key)
			return &option_specs[i];
	}
	return NULL;
}

/* getopt's table of all options; a command's own check follows, so that the message can name it. */
static void fill_getopt(struct option longs[OPTIONS_MAX + 1])
{
	for (size_t i = 0; i < option_nspecs; i++)
		longs[i] = (struct option){option_specs[i].name,
					   option_specs[i].arg ? required_argument : no_argument,
					   NULL, key_of(i)};
	longs[option_nspecs] = (struct option){0};
}

static int find_command(const char *word, enum command *ret, struct error *err)
{
	int r;

	for (unsigned i = 0; i < CMD_COUNT; i++) {
		if (strcmp(option_commands[i].name, word) == 0) {
			*ret = (enum command)i;
			return 0;
		}
	}
	r = error_set(err, TM_E_USAGE, "there is no command '%s'; the commands are", word);
	for (unsigned i = 0; i < CMD_COUNT; i++)
		error_append(err, "%s %s", i ? "," : "", option_commands[i].name);
	return r;
}

/* getopt's word for a long option that it does not take: unknown, ambiguous, or given a value. */
static int bad_long(const char *word, bool known, struct error *err)
{
	int len = (int)strcspn(word, "="); /* behind it, perhaps a password */
	size_t n = 0;
	int r;

	if (known)
		return error_set(err, TM_E_USAGE, "the option '%.*s' takes no argument", len, word);
	r = error_set(err, TM_E_USAGE, "there is no option '%.*s'", len, word);
	for (size_t i = 0; i < option_nspecs; i++) {
		if (strncmp(option_specs[i].name, word + 2, (size_t)len - 2) == 0)
			error_append(err, "%s --%s", n++ ? "," : "; it may be short for",
				     option_specs[i].name);
	}
	return r;
}

/* word: the one that getopt was at, perhaps several letters in one. */
static int bad_option(int c, const char *word, struct error *err)
{
	char letter[3] = {'-', (char)optopt, '\0'};
	bool is_long = strncmp(word, "--", 2) == 0;

	if (!is_long && optopt > 0 && optopt < KEY_FIRST && isprint(optopt))
		word = letter;
	if (c == ':')
		return error_set(err, TM_E_USAGE, "the option '%s' needs an argument", word);
	if (is_long)
		return bad_long(word, optopt != 0, err);
	return error_set(err, TM_E_USAGE, "there is no option '%s'", word);
}

bool options_keep_by_time(const struct options *o)
{
	const struct retention *r = &o->retention;

	return r->last || r->hourly || r->daily || r->weekly || r->monthly || r->yearly ||
	       r->within.years || r->within.months || r->within.days || r->within.hours;
}

static bool has_retention(const struct options *o)
{
	return options_keep_by_time(o) || o->keep_tags.n;
}

static int check_forget(const struct options *o, struct error *err)
{
	if (o->args.n == 0 && !has_retention(o))
		return error_set(err, TM_E_USAGE,
				 "forget needs points, or a rule like --keep-daily 7");
	if (o->args.n > 0 && (has_retention(o) || o->guest))
		return error_set(err, TM_E_USAGE, "forget takes either points or rules, not both");
	return 0;
}

static int check_point_name(const char *name, struct error *err)
{
	if (!*name || strchr(name, '@') || strchr(name, '/') || strcmp(name, "latest") == 0)
		return error_set(err, TM_E_USAGE,
				 "'%s' cannot be a point's name: it is empty, 'latest', or has '@' "
				 "or '/' in it",
				 name);
	if (strlen(name) > NAME_MAX)
		return error_set(err, TM_E_USAGE, "--name has %zu bytes; it may have at most %d",
				 strlen(name), NAME_MAX);
	return 0;
}

static const char *from_env(const char *name)
{
	const char *value = getenv(name);

	return value && *value ? value : NULL;
}

static int check(const struct options *o, struct error *err)
{
	const struct command_spec *c = &option_commands[o->command];

	if (o->args.n < c->min_args)
		return error_set(err, TM_E_USAGE, "%s needs %s", c->name, c->args);
	if (o->args.n > c->max_args)
		return error_set(err, TM_E_USAGE, "%s: '%s' is one argument too many", c->name,
				 o->args.v[c->max_args]);
	if (c->needs_repo && !o->repo)
		return error_set(err, TM_E_USAGE, "%s needs a repository: -r REPO or TIDEMARK_REPO",
				 c->name);
	if (o->before_start && (!o->args.n || o->check))
		return error_set(err, TM_E_USAGE, "recover --before-start needs %s",
				 o->check ? "no --check" : "a TARGET");
	if (o->keep_name && o->collapse != COLLAPSE_MODE_PULL)
		return error_set(err, TM_E_USAGE, "--keep-name needs --collapse pull");
	if (o->command == CMD_RESTORE && !o->to)
		return error_set(err, TM_E_USAGE, "restore needs --to DIR, FILE or an nbd address");
	if (o->command == CMD_RESTORE && strcmp(o->to, "-") == 0)
		return error_set(err, TM_E_USAGE,
				 "restore does not write to stdout; a file of that name is ./-");
	if (o->command == CMD_FORGET)
		return check_forget(o, err);
	return o->name ? check_point_name(o->name, err) : 0;
}

struct words {
	struct options *o;
	bool have_command;
	bool used[OPTIONS_MAX];
};

/* A word that is no option: the command, then its arguments. */
static int take_word(struct words *w, const char *word, struct error *err)
{
	if (w->have_command)
		return string_list_add(&w->o->args, word, err);
	w->have_command = true;
	return find_command(word, &w->o->command, err);
}

/* All words of the line; options may stand anywhere. */
static int take_words(struct words *w, int argc, char **argv, struct error *err)
{
	struct option longs[OPTIONS_MAX + 1];
	int c, r = 0, at = 1;

	fill_getopt(longs);
	opterr = 0;
	optind = 0;
	for (; !r && (c = getopt_long(argc, argv, "-:r:vqh", longs, NULL)) != -1; at = optind) {
		const struct option_spec *spec = find_spec(c);

		if (c == 1) {
			r = take_word(w, optarg, err);
		} else if (!spec) {
			r = bad_option(c, argv[at], err);
		} else {
			w->used[spec - option_specs] = true;
			r = spec->set(spec, (char *)w->o + spec->field, optarg, err);
		}
	}
	for (; !r && optind < argc; optind++) /* behind "--" */
		r = take_word(w, argv[optind], err);
	return r;
}

/* Each option used must be one of the command's. */
static int check_used(const struct words *w, struct error *err)
{
	for (size_t i = 0; i < option_nspecs; i++) {
		if (w->used[i] && !(option_specs[i].commands & (1u << w->o->command)))
			return error_set(err, TM_E_USAGE, "%s has no option --%s",
					 command_name(w->o->command), option_specs[i].name);
	}
	return 0;
}

static bool is_used(const struct words *w, const char *option)
{
	for (size_t i = 0; i < option_nspecs; i++) {
		if (strcmp(option_specs[i].name, option) == 0)
			return w->used[i];
	}
	return false;
}

/* Options that say nothing with another one, or without it. */
static int check_pairs(const struct words *w, struct error *err)
{
	static const struct {
		const char *option, *other;
	} exclude[] = {{"verbose", "quiet"},
		       {"full", "like"},
		       {"password-file", "key-file"},
		       {"new-password-file", "new-key-file"}};
	static const char *const of_prune[] = {"max-unused", "stale-hours"};

	for (size_t i = 0; i < ARRAY_SIZE(exclude); i++) {
		if (is_used(w, exclude[i].option) && is_used(w, exclude[i].other))
			return error_set(err, TM_E_USAGE, "--%s and --%s exclude each other",
					 exclude[i].option, exclude[i].other);
	}
	for (size_t i = 0; w->o->command == CMD_FORGET && i < ARRAY_SIZE(of_prune); i++) {
		if (is_used(w, of_prune[i]) && !w->o->prune)
			return error_set(err, TM_E_USAGE, "forget --%s needs --prune", of_prune[i]);
	}
	return 0;
}

/* Not all options of key are those of each of its actions. */
static int check_key(const struct words *w, struct error *err)
{
	static const char *const of_add[] = {"role", "label"};
	static const char *const of_new[] = {"new-password-file", "new-key-file"};
	const char *action = w->o->args.n ? w->o->args.v[0] : "";
	const char *option = NULL;
	bool add = strcmp(action, "add") == 0;

	if (w->o->command != CMD_KEY)
		return 0;
	for (size_t i = 0; !add && i < ARRAY_SIZE(of_add); i++)
		option = is_used(w, of_add[i]) ? of_add[i] : option;
	for (size_t i = 0; !add && strcmp(action, "passwd") != 0 && i < ARRAY_SIZE(of_new); i++)
		option = is_used(w, of_new[i]) ? of_new[i] : option;
	if (option)
		return error_set(err, TM_E_USAGE, "key %s has no option --%s", action, option);
	return 0;
}

static int parse_words(int argc, char **argv, struct options *o, struct error *err)
{
	struct words w = {.o = o};
	int r = take_words(&w, argc, argv, err);

	if (r)
		return r;
	if (w.have_command)
		r = check_used(&w, err);
	if (r || o->help || o->version)
		return r;
	if (!w.have_command)
		return error_set(err, TM_E_USAGE, "no command given");
	r = check_pairs(&w, err);
	return r ? r : check_key(&w, err);
}

int options_parse(int argc, char **argv, struct options *ret, struct error *err)
{
	int r;

	*ret = (struct options){
		.command = CMD_COUNT,
		.quiesce = QUIESCE_IF_POSSIBLE,
		.format = "raw",
		.audit = AUDIT_FEW,
		.role = REPO_ROLE_FULL,
		.max_unused = PRUNE_MAX_UNUSED,
		.stale_hours = PRUNE_STALE_HOURS,
	};
	/* Journals, points and JSON output hold text. */
	for (int i = 1; i < argc; i++) {
		if (!text_is_utf8(argv[i]))
			return error_set(err, TM_E_USAGE, "argument %d is not UTF-8: '%s'", i,
					 argv[i]);
	}
	r = parse_words(argc, argv, ret, err);
	if (r || ret->help || ret->version)
		return r;
	if (!ret->repo)
		ret->repo = from_env("TIDEMARK_REPO");
	/* what key does to one domain or to all has to be said */
	if (!ret->domain && OPTION_OF_DOMAIN & 1u << ret->command && ret->command != CMD_KEY)
		ret->domain = from_env("TIDEMARK_DOMAIN");
	return check(ret, err);
}
