/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every option and every command, once.  An option is a row here and a field of
 * struct options.
 */
#include "options_table.h"

#include <assert.h>
#include <stddef.h>

#define ON(c)  (1u << (c))
#define ON_ALL OPTION_OF_ALL

/* The place of a field, which must have the type that the setter writes. */
#define FIELD(type, f)                                                                        \
	(offsetof(struct options, f) +                                                        \
	 0 * sizeof(char[__builtin_types_compatible_p(type, typeof(((struct options *)0)->f)) \
				 ? 1                                                          \
				 : -1]))
#define ENUM_FIELD(f)                  \
	(offsetof(struct options, f) + \
	 0 * sizeof(char[sizeof(((struct options *)0)->f) == sizeof(unsigned) ? 1 : -1]))

#define FLAG(f)         option_set_flag, FIELD(bool, f), NULL, 0, 0
#define TEXT(f)         option_set_text, FIELD(const char *, f), NULL, 0, 0
#define ANY_TEXT(f)     option_set_any_text, FIELD(const char *, f), NULL, 0, 0
#define LIST(f)         option_set_list, FIELD(struct string_list, f), NULL, 0, 0
#define SIZE(f)         option_set_size, FIELD(uint64_t, f), NULL, 0, 0
#define TIME(f)         option_set_time, FIELD(uint64_t, f), NULL, 0, 0
#define NUMBER(f, a, b) option_set_number, FIELD(unsigned, f), NULL, a, b
#define COUNT(f)        option_set_count, FIELD(uint32_t, f), NULL, 0, 0
#define SHARE(f)        option_set_share, FIELD(unsigned, f), NULL, 0, 0
#define WITHIN(f)       option_set_within, offsetof(struct options, f), NULL, 0, 0
#define WORD(f, a, w)   option_set_word, ENUM_FIELD(f), w, a, 0
#define CHOICE(f, w)    option_set_choice, FIELD(const char *, f), w, 0, 0
#define KNOWN_WORD(w)   option_check_word, 0, w, 0, 0

static const char *const quiesce_words[] = {"never", "if-possible", "require", NULL};
static const char *const progress_words[] = {"auto", "always", "never", NULL};
static const char *const collapse_words[] = {"auto", "commit", "pull", NULL};
static const char *const format_words[] = {"raw", "qcow2", NULL};
static const char *const role_words[] = {"full", "backup", "janitor", NULL};

const struct option_spec option_specs[] = {
	{0, "disk", "DISK", ON(CMD_BACKUP) | ON(CMD_RESTORE), LIST(disks),
	 "only this disk (may be repeated)"},
	{0, "exclude-disk", "DISK", ON(CMD_BACKUP), LIST(exclude_disks),
	 "all but this disk (may be repeated)"},
	{0, "name", "NAME", ON(CMD_BACKUP), TEXT(name),
	 "name of the point (default: made from the time)"},
	{0, "description", "TEXT", ON(CMD_BACKUP), ANY_TEXT(description),
	 "description of the point"},
	{0, "tag", "TAG", ON(CMD_BACKUP) | ON(CMD_LIST), LIST(tags),
	 "tag of the point (may be repeated)"},
	{0, "full", NULL, ON(CMD_BACKUP), FLAG(full), "read and store every disk whole"},
	{0, "like", "POINT", ON(CMD_BACKUP), TEXT(like),
	 "a point whose content a first backup may share"},
	{0, "quiesce", "WHEN", ON(CMD_BACKUP), WORD(quiesce, QUIESCE_NEVER, quiesce_words),
	 "freeze the guest's file systems: never, if-possible (default), require"},
	{0, "collapse", "HOW", ON(CMD_BACKUP), WORD(collapse, COLLAPSE_MODE_AUTO, collapse_words),
	 "what becomes of overlays: auto (default), commit or pull"},
	{0, "keep-name", NULL, ON(CMD_BACKUP), FLAG(keep_name),
	 "with --collapse pull: the overlay takes the disk's name at the end"},
	{0, "overlay-dir", "DIR", ON(CMD_BACKUP), TEXT(overlay_dir),
	 "where overlays lie while the backup runs (default: beside each disk)"},
	{0, "overlay-limit", "BYTES", ON(CMD_BACKUP), SIZE(overlay_limit),
	 "give up when the guest wrote more than this meanwhile"},
	{0, "limit-rate", "BYTES", ON(CMD_BACKUP), SIZE(limit_rate),
	 "read at most this much a second, and merge overlays no faster"},
	{0, "latency-limit", "MS", ON(CMD_BACKUP), NUMBER(latency_limit, 1, 60000),
	 "read slower while writes of the guest take longer"},
	{0, "compression", "LEVEL", ON(CMD_BACKUP), NUMBER(compression, 1, 19),
	 "zstd level, 1 to 19 (default 1)"},
	{0, "audit", "PERCENT", ON(CMD_BACKUP), SHARE(audit),
	 "of the clean clusters compared as well; 0: one (default: up to 64)"},
	{0, "dry-run", NULL, ON(CMD_BACKUP) | ON(CMD_REPAIR) | ON(CMD_FORGET) | ON(CMD_PRUNE),
	 FLAG(dry_run), "say what would be done, change nothing"},
	{0, "guest", "GUEST", ON(CMD_LIST) | ON(CMD_FORGET), TEXT(guest),
	 "only points of this guest"},
	{0, "keep-last", "N", ON(CMD_FORGET), COUNT(retention.last),
	 "keep the last N points, or 'all'"},
	{0, "keep-hourly", "N", ON(CMD_FORGET), COUNT(retention.hourly),
	 "the newest of each of N hours"},
	{0, "keep-daily", "N", ON(CMD_FORGET), COUNT(retention.daily),
	 "the newest of each of N days"},
	{0, "keep-weekly", "N", ON(CMD_FORGET), COUNT(retention.weekly),
	 "the newest of each of N weeks"},
	{0, "keep-monthly", "N", ON(CMD_FORGET), COUNT(retention.monthly),
	 "the newest of each of N months"},
	{0, "keep-yearly", "N", ON(CMD_FORGET), COUNT(retention.yearly),
	 "the newest of each of N years"},
	{0, "keep-within", "DURATION", ON(CMD_FORGET), WITHIN(retention.within),
	 "all within 2y5m7d3h (years, months, days, hours) of the newest"},
	{0, "keep-tag", "TAG", ON(CMD_FORGET), LIST(keep_tags),
	 "all with this tag, or all of a,b,c (may be repeated)"},
	{0, "prune", NULL, ON(CMD_FORGET), FLAG(prune), "prune afterwards, in the same domain"},
	{0, "max-unused", "PERCENT", ON(CMD_FORGET) | ON(CMD_PRUNE), NUMBER(max_unused, 0, 100),
	 "pruning, rewrite segments with a larger unused share (default 50)"},
	{0, "stale-hours", "HOURS", ON(CMD_FORGET) | ON(CMD_PRUNE), NUMBER(stale_hours, 0, 100000),
	 "pruning, take unfinished backups of that age for dead (default 24)"},
	{0, "to", "WHERE", ON(CMD_RESTORE), TEXT(to),
	 "directory, file, block device or nbd:// or nbd+unix:// address"},
	{0, "format", "FORMAT", ON(CMD_RESTORE), CHOICE(format, format_words),
	 "raw (default) or qcow2"},
	{0, "force", NULL, ON(CMD_RESTORE), FLAG(force), "overwrite what is there"},
	{0, "prove", NULL, ON(CMD_RESTORE), FLAG(prove),
	 "also compare every cluster with its content id (slower)"},
	{0, "read-data", NULL, ON(CMD_VERIFY) | ON(CMD_REPAIR), FLAG(read_data),
	 "also read and check every stored cluster"},
	{0, "scrub", NULL, ON(CMD_VERIFY), FLAG(scrub),
	 "also check every byte of every object against its checksums"},
	{0, "budget", "TIME", ON(CMD_VERIFY), TIME(budget_ms),
	 "stop after TIME (90s, 30m, 2h); the next run goes on there"},
	{0, "check", NULL, ON(CMD_RECOVER), FLAG(check),
	 "only say what is left (exit status 5 if anything)"},
	{0, "before-start", NULL, ON(CMD_RECOVER), FLAG(before_start),
	 "for a start script: make TARGET's disks fit to be started"},
	{0, "encrypt", NULL, ON(CMD_INIT), FLAG(encrypt),
	 "encrypt it, with a password or the key file named (made if missing)"},
	{0, "role", "ROLE", ON(CMD_KEY), WORD(role, REPO_ROLE_FULL, role_words),
	 "of a key to add: full (default), backup, janitor"},
	{0, "label", "TEXT", ON(CMD_INIT) | ON(CMD_KEY), TEXT(label),
	 "of a key to add; readable by all"},
	{0, "new-password-file", "F", ON(CMD_KEY), TEXT(new_password_file),
	 "add, passwd: file with the new password"},
	{0, "new-key-file", "F", ON(CMD_KEY), TEXT(new_key_file),
	 "add, passwd: this key file (made, 0600, if missing)"},
	{0, "domain", "NAME", OPTION_OF_DOMAIN, TEXT(domain),
	 "the domain (default: $TIDEMARK_DOMAIN; of key: all domains)"},
	{'r', "repo", "REPO", ON_ALL, TEXT(repo),
	 "repository: a directory or file:DIR (default: $TIDEMARK_REPO)"},
	{0, "password-file", "F", ON_ALL, TEXT(password_file),
	 "the password is its first line ($TIDEMARK_PASSWORD_FILE)"},
	{0, "key-file", "F", ON_ALL, TEXT(key_file),
	 "key file, or text of a paper key ($TIDEMARK_KEY_FILE)"},
	{0, "json", NULL, ON_ALL, FLAG(json),
	 "results as JSON on stdout, progress as JSON lines on stderr"},
	{0, "progress", "WHEN", ON_ALL, WORD(progress, PROGRESS_AUTO, progress_words),
	 "auto (default), always or never"},
	{'v', "verbose", NULL, ON_ALL, FLAG(verbose), "say more; also debug messages"},
	{'q', "quiet", NULL, ON_ALL, FLAG(quiet), "no progress, no remarks"},
	{'h', "help", NULL, ON_ALL, FLAG(help), "this text"},
	{0, "version", NULL, ON_ALL, FLAG(version), "the version"},
};

const size_t option_nspecs = ARRAY_SIZE(option_specs);
static_assert(ARRAY_SIZE(option_specs) <= OPTIONS_MAX, "room in options.c");

const struct command_spec option_commands[CMD_COUNT] = {
	[CMD_INIT] =
		{"init", "", 0, 0, true, "make a repository",
		 "Makes an empty repository in a directory that is empty or does not exist yet.\n"
		 "\n"
		 "With --encrypt nothing of a guest can be read without the password or key file.\n"
		 "Without one of them everything in it is lost: print 'tidemark key export'.\n"},
	[CMD_BACKUP] =
		{"backup", "TARGET...", 1, SIZE_MAX, true, "back up a guest or an image",
		 "Freezes the disks at one instant, reads what changed since the last point in "
		 "this\n"
		 "repository, stores it as a new point, and leaves the guest on its original "
		 "files.\n"
		 "\n"
		 "TARGET is one of\n"
		 "  qmp:/path/qmp.sock[,agent=/path/qga.sock][,name=NAME]   a running guest\n"
		 "  image:/path/disk.qcow2[,...][,name=NAME][,format=FORMAT]\n"
		 "                          disks of a guest that is off\n"
		 "A comma that belongs to a name is written twice.\n"},
	[CMD_LIST] = {"list", "", 0, 0, true, "list the points",
		      "Lists the points, oldest first.\n"},
	[CMD_SHOW] =
		{"show", "POINT", 1, 1, true, "show one point",
		 "Shows everything about one point.\n"
		 "\n"
		 "POINT is an id or its beginning, a point's name, latest, GUEST, GUEST@latest,\n"
		 "GUEST@NAME, or GUEST@2026-11-21T03:00 (the newest at or before; local time, or "
		 "with\n"
		 "Z or +01:00 behind it).\n"},
	[CMD_RESTORE] =
		{"restore", "POINT", 1, 1, true, "write disks of a point",
		 "Writes the disks of a point.  The seal of all that is written is checked: it is "
		 "what\n"
		 "was stored for that place.\n"
		 "Into a directory, the files are called GUEST-DISK.FORMAT.  Files appear under "
		 "their\n"
		 "names only when they are complete.  What a running guest uses is not "
		 "replaced.\n"},
	[CMD_VERIFY] = {"verify", "[POINT...]", 0, SIZE_MAX, true, "check the repository",
			"Checks that every point (or the named ones) is complete and its structure "
			"is sound.\n"
			"Damage is listed with the points, disks and byte ranges it hits; exit "
			"status 4.\n"
			"--scrub needs no key that can read data; --budget without --read-data "
			"scrubs.\n"},
	[CMD_REPAIR] =
		{"repair", "[POINT...]", 0, SIZE_MAX, true, "build again what is damaged",
		 "Scrubs, as verify does, and builds again what can be: maps of points from the "
		 "tables of\n"
		 "their sessions, lost clusters from the same content elsewhere.  Nothing is "
		 "believed that\n"
		 "is not proved.  What cannot be repaired now may be after the next backup: that "
		 "stores\n"
		 "again what the guest still has.  Exit status 4 when damage is left.\n"},
	[CMD_FORGET] = {"forget", "[POINT...]", 0, SIZE_MAX, true,
			"drop points, by name or by rules",
			"Drops the named points, or those that no --keep rule keeps, guest by "
			"guest.  They "
			"are\n"
			"gone at once; their space comes back with prune.  Protected points stay.  "
			"A guest's\n"
			"last point goes only when it is named by id or name: not by rules, nor as "
			"GUEST or latest.\n"},
	[CMD_PROTECT] = {"protect", "POINT...", 1, SIZE_MAX, true, "keep points from being dropped",
			 "Protects points: forget leaves them alone.\n"},
	[CMD_UNPROTECT] = {"unprotect", "POINT...", 1, SIZE_MAX, true,
			   "let points be dropped again", "Takes the protection of points back.\n"},
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
	[CMD_RECOVER] = {"recover", "[TARGET...]", 0, SIZE_MAX, false,
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
		 "  repair     write lost copies of keys, domains and the repository's object "
		 "again\n"
		 "  export     print all secrets as text for paper (read back by --key-file)\n"
		 "\n"
		 "Roles: full; backup (makes backups, cannot read data); janitor (lists, checks,\n"
		 "prunes).  The password of the repository comes from --password-file, "
		 "--key-file,\n"
		 "$TIDEMARK_PASSWORD, the program $TIDEMARK_PASSWORD_COMMAND, or the terminal.\n"
		 "\n"
		 "add --domain NAME makes a key that opens that domain and no other, export the "
		 "same on\n"
		 "paper; rotate --domain NAME makes a new data key for that domain only.\n"},
	[CMD_DOMAIN] =
		{"domain", "ACTION [NAME]", 1, 2, true, "separate the tenants of a repository",
		 "ACTION is one of\n"
		 "  list       show the domains that the key opens\n"
		 "  add NAME   add an empty domain\n"
		 "\n"
		 "Domains share neither keys nor content nor points.  Commands act on that of "
		 "--domain,\n"
		 "else on the only one that the key opens, or the one called default; prune and "
		 "verify\n"
		 "act on all that the key opens.  A tenant's key comes from 'key add --domain "
		 "NAME'.\n"},
};
