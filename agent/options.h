/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line.  One table describes every option of every command; parsing
 * and --help are both made from it, so they cannot disagree.
 */
#pragma once

#include "repo/repo.h"
#include "snapshot/snapshot.h"

#include <limits.h>

enum command {
	CMD_INIT,
	CMD_BACKUP,
	CMD_LIST,
	CMD_SHOW,
	CMD_RESTORE,
	CMD_VERIFY,
	CMD_REPAIR,
	CMD_FORGET,
	CMD_PROTECT,
	CMD_UNPROTECT,
	CMD_PRUNE,
	CMD_STATUS,
	CMD_RECOVER,
	CMD_STATS,
	CMD_KEY,
	CMD_DOMAIN,
	CMD_COUNT,
};

enum progress_mode {
	PROGRESS_AUTO,
	PROGRESS_ALWAYS,
	PROGRESS_NEVER,
};

#define AUDIT_FEW UINT_MAX /* a small number of clusters, whatever the disk's size */

struct string_list {
	const char **v; /* the array is owned, the strings are argv's */
	size_t n;
};

int string_list_add(struct string_list *list, const char *value, struct error *err) TM_WUR;

/* All strings are borrowed from argv or the environment. */
struct options {
	enum command command;
	bool help;
	bool version;
	const char *repo;   /* -r or TIDEMARK_REPO, else NULL */
	const char *domain; /* --domain or TIDEMARK_DOMAIN, else NULL */
	bool json;
	bool verbose;
	bool quiet;
	enum progress_mode progress;
	struct string_list args; /* TARGET…, POINT… */

	struct string_list disks;
	struct string_list exclude_disks;
	struct string_list tags;
	const char *name;
	const char *description;
	const char *overlay_dir;
	const char *like;
	const char *guest;
	const char *to;
	const char *format;
	bool full;
	bool dry_run;
	bool force;
	bool prove;
	bool read_data;
	bool scrub;
	uint64_t budget_ms; /* 0: none */
	bool check;
	bool before_start;
	bool prune;
	struct retention retention; /* tags: borrowed from keep_tags */
	struct string_list keep_tags;
	unsigned max_unused; /* percent */
	unsigned stale_hours;
	enum quiesce quiesce;
	enum collapse_mode collapse;
	bool keep_name;
	uint64_t overlay_limit; /* bytes, 0: none */
	uint64_t limit_rate;    /* bytes per second, 0: none */
	unsigned latency_limit; /* ms of a write of the guest, 0: none */
	unsigned audit;         /* parts of a million, 0: none, AUDIT_FEW */
	unsigned compression;   /* zstd level, 0: the default */
	bool encrypt;
	const char *password_file;
	const char *key_file;
	const char *new_password_file;
	const char *new_key_file;
	const char *label;
	enum repo_role role;
};

/* TM_E_USAGE names the wrong word.  *ret must be released with options_done(), also on failure. */
/* Whether there is a rule for forget besides tags. */
bool options_keep_by_time(const struct options *o);

int options_parse(int argc, char **argv, struct options *ret, struct error *err) TM_WUR;
void options_done(struct options *opt);

/* The help of one command, or of the whole program when command is CMD_COUNT, to stdout. */
void options_help(enum command command);

const char *command_name(enum command command);
