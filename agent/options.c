/* SPDX-License-Identifier: Apache-2.0 */
#include "options_keep.h"

#include <assert.h>
#include <ctype.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

#define ON(c)  (1u << (c))
#define ON_ALL (ON(CMD_COUNT) - 1)

/* Keys of options without a short form begin above the characters. */
enum option_key {
	KEY_REPO = 'r',
	KEY_VERBOSE = 'v',
	KEY_QUIET = 'q',
	KEY_HELP = 'h',
	KEY_JSON = 256,
	KEY_PROGRESS,
	KEY_VERSION,
	KEY_DISK,
	KEY_EXCLUDE_DISK,
	KEY_NAME,
	KEY_DESCRIPTION,
	KEY_TAG,
	KEY_FULL,
	KEY_LIKE,
	KEY_QUIESCE,
	KEY_COLLAPSE,
	KEY_OVERLAY_DIR,
	KEY_OVERLAY_LIMIT,
	KEY_LIMIT_RATE,
	KEY_COMPRESSION,
	KEY_AUDIT,
	KEY_DRY_RUN,
	KEY_GUEST,
	KEY_TO,
	KEY_FORMAT,
	KEY_FORCE,
	KEY_READ_DATA,
	KEY_SCRUB,
	KEY_BUDGET,
	KEY_CHECK,
	KEY_BEFORE_START,
	KEY_ENCRYPT,
	KEY_PASSWORD_FILE,
	KEY_KEY_FILE,
	KEY_NEW_PASSWORD_FILE,
	KEY_NEW_KEY_FILE,
	KEY_ROLE,
	KEY_LABEL,
	KEY_KEEP_LAST,
	KEY_KEEP_HOURLY,
	KEY_KEEP_DAILY,
	KEY_KEEP_WEEKLY,
	KEY_KEEP_MONTHLY,
	KEY_KEEP_YEARLY,
	KEY_KEEP_WITHIN,
	KEY_KEEP_TAG,
	KEY_PRUNE,
	KEY_MAX_UNUSED,
	KEY_STALE_HOURS,
};

struct option_spec {
	int key;
	const char *name;
	const char *arg; /* how its argument is called, NULL: none */
	unsigned commands;
	const char *help;
};

static const struct option_spec specs[] = {
	{KEY_DISK, "disk", "DISK", ON(CMD_BACKUP) | ON(CMD_RESTORE),
	 "only this disk (may be repeated)"},
	{KEY_EXCLUDE_DISK, "exclude-disk", "DISK", ON(CMD_BACKUP),
	 "all but this disk (may be repeated)"},
	{KEY_NAME, "name", "NAME", ON(CMD_BACKUP),
	 "name of the point (default: made from the time)"},
	{KEY_DESCRIPTION, "description", "TEXT", ON(CMD_BACKUP), "description of the point"},
	{KEY_TAG, "tag", "TAG", ON(CMD_BACKUP) | ON(CMD_LIST),
	 "tag of the point (may be repeated)"},
	{KEY_FULL, "full", NULL, ON(CMD_BACKUP), "read and store every disk whole"},
	{KEY_LIKE, "like", "POINT", ON(CMD_BACKUP),
	 "a point whose content a first backup may share"},
	{KEY_QUIESCE, "quiesce", "WHEN", ON(CMD_BACKUP),
	 "freeze the guest's file systems: never, if-possible (default), require"},
	{KEY_COLLAPSE, "collapse", "HOW", ON(CMD_BACKUP),
	 "how the overlay is merged back: auto (default) or commit"},
	{KEY_OVERLAY_DIR, "overlay-dir", "DIR", ON(CMD_BACKUP),
	 "where overlays lie while the backup runs (default: beside each disk)"},
	{KEY_OVERLAY_LIMIT, "overlay-limit", "BYTES", ON(CMD_BACKUP),
	 "give up when the guest wrote more than this meanwhile"},
	{KEY_LIMIT_RATE, "limit-rate", "BYTES", ON(CMD_BACKUP), "read at most this much a second"},
	{KEY_COMPRESSION, "compression", "LEVEL", ON(CMD_BACKUP),
	 "zstd level, 1 to 19 (default 1)"},
	{KEY_AUDIT, "audit", "PERCENT", ON(CMD_BACKUP),
	 "clean clusters to re-read; this version offers 0 only (default)"},
	{KEY_DRY_RUN, "dry-run", NULL, ON(CMD_BACKUP) | ON(CMD_FORGET) | ON(CMD_PRUNE),
	 "say what would be done, change nothing"},
	{KEY_GUEST, "guest", "GUEST", ON(CMD_LIST) | ON(CMD_FORGET), "only points of this guest"},
	{KEY_KEEP_LAST, "keep-last", "N", ON(CMD_FORGET), "keep the last N points, or 'all'"},
	{KEY_KEEP_HOURLY, "keep-hourly", "N", ON(CMD_FORGET), "the newest of each of N hours"},
	{KEY_KEEP_DAILY, "keep-daily", "N", ON(CMD_FORGET), "the newest of each of N days"},
	{KEY_KEEP_WEEKLY, "keep-weekly", "N", ON(CMD_FORGET), "the newest of each of N weeks"},
	{KEY_KEEP_MONTHLY, "keep-monthly", "N", ON(CMD_FORGET), "the newest of each of N months"},
	{KEY_KEEP_YEARLY, "keep-yearly", "N", ON(CMD_FORGET), "the newest of each of N years"},
	{KEY_KEEP_WITHIN, "keep-within", "DURATION", ON(CMD_FORGET),
	 "all within 2y5m7d3h (years, months, days, hours) of the newest"},
	{KEY_KEEP_TAG, "keep-tag", "TAG", ON(CMD_FORGET), "all with this tag (may be repeated)"},
	{KEY_PRUNE, "prune", NULL, ON(CMD_FORGET), "prune afterwards"},
	{KEY_MAX_UNUSED, "max-unused", "PERCENT", ON(CMD_FORGET) | ON(CMD_PRUNE),
	 "rewrite segments with a larger unused share (default 50)"},
	{KEY_STALE_HOURS, "stale-hours", "HOURS", ON(CMD_FORGET) | ON(CMD_PRUNE),
	 "take unfinished backups of that age for dead (default 24)"},
	{KEY_TO, "to", "WHERE", ON(CMD_RESTORE),
	 "directory, file, block device or nbd:// or nbd+unix:// address"},
	{KEY_FORMAT, "format", "FORMAT", ON(CMD_RESTORE), "raw (default) or qcow2"},
	{KEY_FORCE, "force", NULL, ON(CMD_RESTORE), "overwrite what is there"},
	{KEY_READ_DATA, "read-data", NULL, ON(CMD_VERIFY),
	 "also read and check every stored cluster"},
	{KEY_SCRUB, "scrub", NULL, ON(CMD_VERIFY),
	 "also check every byte of every object against its checksums"},
	{KEY_BUDGET, "budget", "TIME", ON(CMD_VERIFY),
	 "stop after TIME (90s, 30m, 2h); the next run goes on there"},
	{KEY_CHECK, "check", NULL, ON(CMD_RECOVER),
	 "only say what is left (exit status 5 if anything)"},
	{KEY_BEFORE_START, "before-start", NULL, ON(CMD_RECOVER),
	 "for a start script: make TARGET's disks fit to be started"},
	{KEY_ENCRYPT, "encrypt", NULL, ON(CMD_INIT),
	 "encrypt it, with a password or the key file named (made if missing)"},
	{KEY_ROLE, "role", "ROLE", ON(CMD_KEY), "of a key to add: full (default), backup, janitor"},
	{KEY_LABEL, "label", "TEXT", ON(CMD_INIT) | ON(CMD_KEY),
	 "of a key to add; readable by all"},
	{KEY_NEW_PASSWORD_FILE, "new-password-file", "F", ON(CMD_KEY),
	 "add, passwd: file with the new password"},
	{KEY_NEW_KEY_FILE, "new-key-file", "F", ON(CMD_KEY),
	 "add, passwd: make this key file (0600)"},
	{KEY_REPO, "repo", "REPO", ON_ALL,
	 "repository: a directory or file:DIR (default: $TIDEMARK_REPO)"},
	{KEY_PASSWORD_FILE, "password-file", "F", ON_ALL,
	 "the password is its first line ($TIDEMARK_PASSWORD_FILE)"},
	{KEY_KEY_FILE, "key-file", "F", ON_ALL,
	 "key file, or text of a paper key ($TIDEMARK_KEY_FILE)"},
	{KEY_JSON, "json", NULL, ON_ALL,
	 "results as JSON on stdout, progress as JSON lines on stderr"},
	{KEY_PROGRESS, "progress", "WHEN", ON_ALL, "auto (default), always or never"},
	{KEY_VERBOSE, "verbose", NULL, ON_ALL, "say more; also debug messages"},
	{KEY_QUIET, "quiet", NULL, ON_ALL, "no progress, no remarks"},
	{KEY_HELP, "help", NULL, ON_ALL, "this text"},
	{KEY_VERSION, "version", NULL, ON_ALL, "the version"},
};

struct command_spec {
	const char *name;
	const char *args; /* as in usage */
	size_t min_args, max_args;
	bool needs_repo;
	const char *summary; /* for the list of commands */
	const char *text;    /* for the command's own help */
};

static const struct command_spec commands[CMD_COUNT] = {
	[CMD_INIT] =
		{"init", "", 0, 0, true, "make a repository",
		 "Makes an empty repository in a directory that is empty or does not exist yet.\n"
		 "\n"
		 "With --encrypt nothing of a guest can be read without the password or key file.\n"
		 "Without one of them everything in it is lost: print 'tidemark key export'.\n"},
	[CMD_BACKUP] =
		{"backup", "TARGET...", 1, 64, true, "back up a guest or an image",
		 "Freezes the disks at one instant, reads what changed since the last point in "
		 "this\n"
		 "repository, stores it as a new point, and leaves the guest on its original "
		 "files.\n"
		 "\n"
		 "TARGET is one of\n"
		 "  qmp:/path/qmp.sock[,agent=/path/qga.sock][,name=NAME]   a running guest\n"
		 "  image:/path/disk.qcow2[,...][,name=NAME][,format=FORMAT]\n"
		 "                          disks of a guest that is off\n"},
	[CMD_LIST] = {"list", "", 0, 0, true, "list the points",
		      "Lists the points, oldest first.\n"},
	[CMD_SHOW] =
		{"show", "POINT", 1, 1, true, "show one point",
		 "Shows everything about one point.\n"
		 "\n"
		 "POINT is an id or its beginning, a point's name, latest, GUEST, GUEST@latest,\n"
		 "GUEST@NAME, or GUEST@2026-11-21T03:00 (the newest at or before).\n"},
	[CMD_RESTORE] =
		{"restore", "POINT", 1, 1, true, "write disks of a point",
		 "Writes the disks of a point; every cluster is checked before it is written.\n"
		 "Into a directory, the files are called GUEST-DISK.FORMAT.  Files appear under "
		 "their\n"
		 "names only when they are complete.\n"},
	[CMD_VERIFY] = {"verify", "[POINT...]", 0, 64, true, "check the repository",
			"Checks that every point (or the named ones) is complete and its structure "
			"is sound.\n"
			"Damage is listed with the points, disks and byte ranges it hits; exit "
			"status 4.\n"
			"--scrub needs no key that can read data; --budget without --read-data "
			"scrubs.\n"},
	[CMD_FORGET] = {"forget", "[POINT...]", 0, 64, true, "drop points, by name or by rules",
			"Drops the named points, or those that no --keep rule keeps, guest by "
			"guest.  They "
			"are\n"
			"gone at once; their space comes back with prune.  Protected points stay, "
			"and rules\n"
			"never take a guest's last point.\n"},
	[CMD_PROTECT] = {"protect", "POINT...", 1, 64, true, "keep points from being dropped",
			 "Protects points: forget leaves them alone.\n"},
	[CMD_UNPROTECT] = {"unprotect", "POINT...", 1, 64, true, "let points be dropped again",
			   "Takes the protection of points back.\n"},
	[CMD_PRUNE] = {"prune", "", 0, 0, true, "free the space of dropped points",
		       "Removes what no point needs any more.  It may run beside backups, here and "
		       "elsewhere,\n"
		       "and may be interrupted: run it again.\n"},
	[CMD_STATUS] = {"status", "TARGET", 1, 1, false,
			"show disks, bitmaps and leftovers of a guest",
			"Shows the disks of a guest, which would be backed up and why, the bitmaps "
			"and what\n"
			"they are based on, and what interrupted runs left.  With a repository it "
			"also says\n"
			"how much a backup would read now.\n"},
	[CMD_RECOVER] = {"recover", "[TARGET...]", 0, 64, false,
			 "put right what an interrupted run left",
			 "Finishes or undoes interrupted runs: of TARGET, or all that this host's "
			 "journals know.\n"
			 "With --before-start it says nothing when nothing is left, asks no "
			 "repository, and\n"
			 "waits for a backup that is just ending.  Start the guest only after exit "
			 "status 0.\n"},
	[CMD_STATS] = {"stats", "", 0, 0, true, "show what points and guests cost",
		       "Shows for each point and guest: RAW, the sizes of its disks; DATA, what of "
		       "it is\n"
		       "not empty; STORED, what its backup added; UNIQUE, what would be freed if "
		       "this\n"
		       "point alone were deleted.\n"},
	[CMD_KEY] =
		{"key", "ACTION [ID]", 1, 2, true, "change who can open the repository",
		 "ACTION is one of\n"
		 "  list       show the keys\n"
		 "  add        add a password or key file (--role, --label, --new-...)\n"
		 "  remove ID  remove a key; the last full key stays\n"
		 "  passwd     another password or key file for the key in use\n"
		 "  rotate     a new data key: keys lost before do not read later points\n"
		 "  repair     write damaged copies of keys again\n"
		 "  export     print all secrets as text for paper (read back by --key-file)\n"
		 "\n"
		 "Roles: full; backup (makes backups, cannot read data); janitor (lists, checks,\n"
		 "prunes).  The password of the repository comes from --password-file, "
		 "--key-file,\n"
		 "$TIDEMARK_PASSWORD, the program $TIDEMARK_PASSWORD_COMMAND, or the terminal.\n"},
};

const char *command_name(enum command command)
{
	return commands[command].name;
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

/* The index of value among the words. */
static int parse_word(const char *option, const char *value, const char *const words[], size_t n,
		      int *ret, struct error *err)
{
	int r;

	for (size_t i = 0; i < n; i++) {
		if (strcmp(value, words[i]) == 0) {
			*ret = (int)i;
			return 0;
		}
	}
	r = error_set(err, TM_E_USAGE, "--%s does not know '%s'; it takes", option, value);
	for (size_t i = 0; i < n; i++)
		error_append(err, "%s %s", i ? "," : "", words[i]);
	return r;
}

static int parse_level(const char *value, int *ret, struct error *err)
{
	char *end;
	long v = strtol(value, &end, 10);

	if (!*value || *end || v < 1 || v > 19)
		return error_set(err, TM_E_USAGE, "--compression '%s' is not a level from 1 to 19",
				 value);
	*ret = (int)v;
	return 0;
}

/* "90s", "30m", "2h", "1d". */
static int parse_time(const char *value, uint64_t *ret_ms, struct error *err)
{
	static const struct {
		char unit;
		uint64_t ms;
	} units[] = {{'s', 1000}, {'m', 60000}, {'h', 3600000}, {'d', 86400000}};
	char *end = NULL;
	unsigned long v = isdigit((unsigned char)value[0]) ? strtoul(value, &end, 10) : 0;

	for (size_t i = 0; end && *end && !end[1] && i < ARRAY_SIZE(units); i++) {
		if (*end != units[i].unit || v == 0 || v > 1000000)
			continue;
		*ret_ms = v * units[i].ms;
		return 0;
	}
	return error_set(err, TM_E_USAGE, "--budget '%s' is not a time like 90s, 30m or 2h", value);
}

static int parse_audit(const char *value, struct error *err)
{
	if (strcmp(value, "0") == 0)
		return 0;
	return error_set(
		err, TM_E_USAGE,
		"--audit '%s': this version has no audit of clean clusters, only --audit 0", value);
}

static const struct option_spec *find_spec(int key)
{
	for (size_t i = 0; i < ARRAY_SIZE(specs); i++) {
		if (specs[i].key == key)
			return &specs[i];
	}
	return NULL;
}

/* Options with a word or a number as their value. */
static int apply_value(struct options *o, int key, const char *value, struct error *err)
{
	static const char *const quiesce[] = {"never", "if-possible", "require"};
	static const char *const progress[] = {"auto", "always", "never"};
	static const char *const collapse[] = {"auto", "commit"};
	static const char *const format[] = {"raw", "qcow2"};
	static const char *const role[] = {"full", "backup", "janitor"}; /* from 1 */
	const struct option_spec *spec = find_spec(key);
	int word = 0, r;

	switch (key) {
	case KEY_QUIESCE:
		r = parse_word("quiesce", value, quiesce, ARRAY_SIZE(quiesce), &word, err);
		o->quiesce = (enum quiesce)word;
		return r;
	case KEY_PROGRESS:
		r = parse_word("progress", value, progress, ARRAY_SIZE(progress), &word, err);
		o->progress = (enum progress_mode)word;
		return r;
	case KEY_COLLAPSE: /* auto has one way to choose from */
		return parse_word("collapse", value, collapse, ARRAY_SIZE(collapse), &word, err);
	case KEY_FORMAT:
		o->format = value;
		return parse_word("format", value, format, ARRAY_SIZE(format), &word, err);
	case KEY_ROLE:
		r = parse_word("role", value, role, ARRAY_SIZE(role), &word, err);
		o->role = (enum repo_role)(word + 1);
		return r;
	case KEY_LIMIT_RATE:
		return size_parse(value, &o->limit_rate, err);
	case KEY_OVERLAY_LIMIT:
		return size_parse(value, &o->overlay_limit, err);
	case KEY_COMPRESSION:
		return parse_level(value, &o->compression, err);
	case KEY_BUDGET:
		return parse_time(value, &o->budget_ms, err);
	case KEY_AUDIT:
		return parse_audit(value, err);
	default:
		return options_keep_apply(o, spec ? spec->name : "", value, err);
	}
}

static int apply(struct options *o, int key, const char *value, struct error *err)
{
	switch (key) {
	case KEY_REPO:
		o->repo = value;
		return 0;
	case KEY_JSON:
		o->json = true;
		return 0;
	case KEY_VERBOSE:
		o->verbose = true;
		return 0;
	case KEY_QUIET:
		o->quiet = true;
		return 0;
	case KEY_HELP:
		o->help = true;
		return 0;
	case KEY_VERSION:
		o->version = true;
		return 0;
	case KEY_DISK:
		return string_list_add(&o->disks, value, err);
	case KEY_EXCLUDE_DISK:
		return string_list_add(&o->exclude_disks, value, err);
	case KEY_TAG:
		return string_list_add(&o->tags, value, err);
	case KEY_NAME:
		o->name = value;
		return 0;
	case KEY_DESCRIPTION:
		o->description = value;
		return 0;
	case KEY_OVERLAY_DIR:
		o->overlay_dir = value;
		return 0;
	case KEY_GUEST:
		o->guest = value;
		return 0;
	case KEY_TO:
		o->to = value;
		return 0;
	case KEY_PASSWORD_FILE:
		o->password_file = value;
		return 0;
	case KEY_KEY_FILE:
		o->key_file = value;
		return 0;
	case KEY_NEW_PASSWORD_FILE:
		o->new_password_file = value;
		return 0;
	case KEY_NEW_KEY_FILE:
		o->new_key_file = value;
		return 0;
	case KEY_LABEL:
		o->label = value;
		return 0;
	case KEY_ENCRYPT:
		o->encrypt = true;
		return 0;
	case KEY_FULL:
		o->full = true;
		return 0;
	case KEY_LIKE:
		o->like = value;
		return 0;
	case KEY_DRY_RUN:
		o->dry_run = true;
		return 0;
	case KEY_FORCE:
		o->force = true;
		return 0;
	case KEY_READ_DATA:
		o->read_data = true;
		return 0;
	case KEY_SCRUB:
		o->scrub = true;
		return 0;
	case KEY_CHECK:
		o->check = true;
		return 0;
	case KEY_BEFORE_START:
		o->before_start = true;
		return 0;
	default:
		return apply_value(o, key, value, err);
	}
}

/* getopt's table of all options; a command's own check follows, so that the message can name it. */
static void fill_getopt(struct option longs[ARRAY_SIZE(specs) + 1])
{
	for (size_t i = 0; i < ARRAY_SIZE(specs); i++)
		longs[i] = (struct option){specs[i].name,
					   specs[i].arg ? required_argument : no_argument, NULL,
					   specs[i].key};
	longs[ARRAY_SIZE(specs)] = (struct option){0};
}

static int find_command(const char *word, enum command *ret, struct error *err)
{
	int r;

	for (unsigned i = 0; i < CMD_COUNT; i++) {
		if (strcmp(commands[i].name, word) == 0) {
			*ret = (enum command)i;
			return 0;
		}
	}
	r = error_set(err, TM_E_USAGE, "there is no command '%s'; the commands are", word);
	for (unsigned i = 0; i < CMD_COUNT; i++)
		error_append(err, "%s %s", i ? "," : "", commands[i].name);
	return r;
}

static int bad_option(int c, char **argv, struct error *err)
{
	const char *word = argv[optind - 1];

	if (c == ':')
		return error_set(err, TM_E_USAGE, "the option '%s' needs an argument", word);
	if (optopt && isprint(optopt) && word[0] == '-' && word[1] != '-')
		return error_set(err, TM_E_USAGE, "there is no option '-%c'", optopt);
	return error_set(err, TM_E_USAGE, "there is no option '%s'%s", word,
			 optopt ? ", or it takes no argument" : ", or it is ambiguous");
}

static int check(const struct options *o, struct error *err)
{
	const struct command_spec *c = &commands[o->command];

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
	if (o->password_file && o->key_file)
		return error_set(err, TM_E_USAGE,
				 "--password-file and --key-file exclude each other");
	if (o->new_password_file && o->new_key_file)
		return error_set(err, TM_E_USAGE,
				 "--new-password-file and --new-key-file exclude each other");
	if (o->command == CMD_RESTORE && !o->to)
		return error_set(err, TM_E_USAGE, "restore needs --to DIR, FILE or an nbd address");
	if (o->command == CMD_FORGET)
		return options_keep_check(o, err);
	return 0;
}

struct words {
	struct options *o;
	bool have_command;
	bool used[ARRAY_SIZE(specs)];
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
	struct option longs[ARRAY_SIZE(specs) + 1];
	int c, r = 0;

	fill_getopt(longs);
	opterr = 0;
	optind = 0;
	while (!r && (c = getopt_long(argc, argv, "-:r:vqh", longs, NULL)) != -1) {
		const struct option_spec *spec = find_spec(c);

		if (c == 1) {
			r = take_word(w, optarg, err);
		} else if (!spec) {
			r = bad_option(c, argv, err);
		} else {
			w->used[spec - specs] = true;
			r = apply(w->o, c, optarg, err);
		}
	}
	for (; !r && optind < argc; optind++) /* behind "--" */
		r = take_word(w, argv[optind], err);
	return r;
}

/* Each option used must be one of the command's. */
static int check_used(const struct words *w, struct error *err)
{
	for (size_t i = 0; i < ARRAY_SIZE(specs); i++) {
		if (w->used[i] && !(specs[i].commands & ON(w->o->command)))
			return error_set(err, TM_E_USAGE, "%s has no option --%s",
					 command_name(w->o->command), specs[i].name);
	}
	return 0;
}

static int parse_words(int argc, char **argv, struct options *o, struct error *err)
{
	struct words w = {.o = o};
	int r = take_words(&w, argc, argv, err);

	if (r)
		return r;
	if (w.have_command)
		return check_used(&w, err);
	if (o->help || o->version)
		return 0;
	return error_set(err, TM_E_USAGE, "no command given");
}

int options_parse(int argc, char **argv, struct options *ret, struct error *err)
{
	int r;

	*ret = (struct options){
		.command = CMD_COUNT,
		.quiesce = QUIESCE_IF_POSSIBLE,
		.format = "raw",
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
	if (!ret->repo) {
		ret->repo = getenv("TIDEMARK_REPO");
		if (ret->repo && !*ret->repo)
			ret->repo = NULL;
	}
	return check(ret, err);
}

static void help_option(const struct option_spec *s)
{
	char left[64];
	bool has_short = s->key < 256;

	(void)snprintf(left, sizeof(left), "%s%c%s--%s%s%s", has_short ? "-" : " ",
		       has_short ? s->key : ' ', has_short ? ", " : "  ", s->name,
		       s->arg ? " " : "", s->arg ? s->arg : "");
	(void)printf("  %-26s %s\n", left, s->help);
}

static void help_options(enum command command, bool of_all)
{
	for (size_t i = 0; i < ARRAY_SIZE(specs); i++) {
		bool all = specs[i].commands == ON_ALL;

		if (all == of_all && (all || (specs[i].commands & ON(command))))
			help_option(&specs[i]);
	}
}

void options_help(enum command command)
{
	if (command == CMD_COUNT) {
		(void)printf("usage: tidemark [-r REPO] [options] COMMAND ...\n\n"
			     "Incremental backups of running QEMU/KVM guests.\n\ncommands:\n");
		for (unsigned i = 0; i < CMD_COUNT; i++)
			(void)printf("  %-10s %s\n", commands[i].name, commands[i].summary);
		(void)printf("\noptions:\n");
		help_options(command, true);
		(void)printf("\n'tidemark COMMAND --help' tells more.\n"
			     "exit status: 0 done, 1 failed, 2 usage, 3 done with a warning, 4 "
			     "damage found,\n"
			     "5 recovery needed, 130 interrupted\n");
		return;
	}
	(void)printf("usage: tidemark [-r REPO] [options] %s%s%s%s\n\n%s", commands[command].name,
		     command == CMD_RESTORE ? " --to WHERE" : "",
		     *commands[command].args ? " " : "", commands[command].args,
		     commands[command].text);
	(void)printf("\noptions of %s:\n", commands[command].name);
	help_options(command, false);
	(void)printf("\noptions of every command:\n");
	help_options(command, true);
}
