/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the commands share: the context of one run, and the way the program
 * speaks.  Results go to stdout, everything else to stderr; only this folder
 * prints.
 */
#pragma once

#include "common/common.h"
#include "options.h"
#include "repo/repo.h"

#include <jansson.h>
#include <signal.h>
#include <stdio.h>

enum exit_status {
	EXIT_DONE = 0,
	EXIT_FAILED = 1,
	EXIT_USAGE = 2,
	EXIT_WARNED = 3,
	EXIT_DAMAGE = 4,
	EXIT_RECOVERY = 5,
	EXIT_INTERRUPTED = 130,
};

/* Requests the kernel may hold at once: reads of all connections, repository writes, timers. */
#define AGENT_LOOP_DEPTH 256

struct secrets;

struct agent {
	struct options opt;
	struct loop *loop;
	struct pool *pool;
	struct repo *repo;       /* opened by agent_open_repo() */
	char *state_dir;         /* made by agent_state_dir() */
	char *repo_url;          /* absolute, as recorded in journals */
	struct secrets *secrets; /* secret.c */
	json_t *warnings;        /* array of strings; of the object being made */
	bool warned;             /* anything, in the whole run */
	bool hung;               /* a thread waits for a repository still, and has the secrets */
	struct {
		uint64_t shown_ms; /* when progress was last printed, monotonic */
		bool bar;          /* a bar stands on the terminal's line */
	} progress;
};

/* Set by the first SIGINT, SIGTERM or SIGHUP. */
extern volatile sig_atomic_t agent_interrupted;

/* ---- agent.c ---- */

int agent_start(struct agent *a, struct error *err) TM_WUR;
void agent_stop(struct agent *a);

/* Keeps those that ask for an end from this thread, until its mask is *ret_was again. */
void agent_block_signals(sigset_t *ret_was);

/* The store of -r REPO.  create: a missing directory is made. */
int agent_open_store(struct agent *a, bool create, struct store **ret, struct error *err) TM_WUR;
/* With the domain of --domain in use.  When it does not answer the process ends (deadline.h). */
int agent_open_repo(struct agent *a, struct error *err) TM_WUR;
/* The same without a limit, for a thread that may hang. */
int agent_open_unbounded(struct agent *a, struct error *err) TM_WUR;

/* Of copies that are missing or damaged, and a key from before a rotation. */
void agent_warn_opened(struct agent *a);

/*
 * The result of several things of which one failing does not keep another from being done: the
 * first failure, in *err, or an interruption; other errors are said at once.  r and one: of the
 * thing just done (0: it was), so_far: what this gave after those before it.
 */
int agent_result(struct agent *a, int so_far, int r, const struct error *one,
		 struct error *err) TM_WUR;

/* left: domains from this one on. */
typedef int agent_domain_fn(struct agent *a, void *data, size_t left, struct error *err);
/*
 * Calls fn in the domain of --domain, else in each that the key opens.  A failure in one does not
 * keep it from the others, and is the result all the same.
 */
int agent_each_domain(struct agent *a, agent_domain_fn *fn, void *data, struct error *err) TM_WUR;

/* Fills a->state_dir: TIDEMARK_STATE_DIR, XDG_STATE_HOME/tidemark, or the default; makes it. */
int agent_state_dir(struct agent *a, struct error *err) TM_WUR;

/* TM_E_CANCELED after a signal; for the tick functions. */
int agent_check_interrupt(struct error *err) TM_WUR;

/* ---- shown.c ---- */

/* Before all others here, once: characters are UTF-8, whatever the environment says.  False: the
 * system has no such locale, and what is not ASCII will be shown as \xNN. */
bool shown_init(void);

/*
 * Text that others wrote, for a terminal: control characters, and what is no UTF-8, as \xNN.  What
 * is too long ends in "...".
 */
#define SHOWN_MAX 512
struct shown {
	int columns; /* of the terminal that it takes */
	char s[SHOWN_MAX];
};
struct shown shown(const char *text);
/* The same of any length, to a stream. */
void show_text(FILE *out, const char *text);

/* The width of a column of a table, in columns of the terminal, that is `width` wide so far and
 * gets this text as well. */
int column_with(int width, const char *text);
/* shown(), filled up with blanks to a column's width. */
struct shown shown_column(const char *text, int width);

/* ---- output.c ---- */

/* "tidemark: <text>" to stderr. */
void say_error(const struct agent *a, const struct error *err);
/* "tidemark: warning: <text>", remembered for JSON and the exit status. */
void say_warning(struct agent *a, const char *fmt, ...) TM_PRINTF(2, 3);
/* A remark; not with --quiet or --json. */
void say(struct agent *a, const char *fmt, ...) TM_PRINTF(2, 3);
/* What was done to a guest besides what was asked for; not with --quiet. */
void say_done(struct agent *a, const char *fmt, ...) TM_PRINTF(2, 3);

/* A number, or null for UINT64_MAX (new reference). */
json_t *json_bytes(uint64_t bytes);
/* Text that others wrote, or null for NULL (new reference): "?" for each byte behind ASCII where it
 * is no UTF-8. */
json_t *json_text(const char *text);

/* Prints a JSON value and a newline to stdout; takes the reference. */
int print_json(json_t *value, struct error *err) TM_WUR;

/* Forgets for JSON output all warnings but the first n. */
void drop_warnings(struct agent *a, size_t n);
/* The warnings so far, for an object under "warnings" (new reference); the list starts anew. */
json_t *take_warnings(struct agent *a);
/* print_json() of an object, with the warnings so far in it. */
int print_json_warned(struct agent *a, json_t *object, struct error *err) TM_WUR;

/*
 * Progress of one disk: a bar on a terminal, a JSON event a line with --json.
 * done >= total ends the bar.  Cheap when called often.
 */
void progress_show(struct agent *a, const char *phase, const char *disk, uint64_t done,
		   uint64_t total);
void progress_end(struct agent *a);

/* ---- point_json.c ---- */

/* A point as list and show print it (new reference, NULL without memory); all: as show does. */
json_t *point_json(const struct point *p, bool all);

/* ---- the commands: each returns 0 or a code, and may set *ret_status ---- */

typedef int command_fn(struct agent *a, enum exit_status *ret_status, struct error *err);
command_fn cmd_init, cmd_backup, cmd_list, cmd_show, cmd_restore, cmd_verify, cmd_repair,
	cmd_forget, cmd_protect, cmd_unprotect, cmd_prune, cmd_status, cmd_recover, cmd_stats,
	cmd_key, cmd_domain;
