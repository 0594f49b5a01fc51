/* SPDX-License-Identifier: Apache-2.0 */
/* The program: signals, the guards it is as well, one command, its exit status. */
#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define TIDEMARK_VERSION "0.1.0"

volatile sig_atomic_t agent_interrupted;

static void interrupted(int sig)
{
	(void)sig;
	agent_interrupted = 1;
}

/*
 * A descriptor of ours under the number of a closed standard stream would get what is printed.  A
 * result that nobody can get is an error: what stands for stdout cannot be written.
 */
static void open_standard_streams(void)
{
	for (int i = STDIN_FILENO; i <= STDERR_FILENO; i++) {
		if (fcntl(i, F_GETFD) < 0)
			(void)open("/dev/null",
				   (i == STDOUT_FILENO ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	}
}

/*
 * The first signal asks for a clean end, the second one ends at once; but a session that ends sends
 * several SIGHUP.  What was ignored from the beginning (nohup) stays so.
 */
static int catch_signals(struct error *err)
{
	static const struct {
		int number, flags;
		bool may_be_ignored;
	} caught[] = {{SIGINT, (int)SA_RESETHAND, true},
		      {SIGTERM, (int)SA_RESETHAND, false},
		      {SIGHUP, 0, true}};

	for (size_t i = 0; i < ARRAY_SIZE(caught); i++) {
		struct sigaction sa = {.sa_handler = interrupted, .sa_flags = caught[i].flags}, was;

		if (sigaction(caught[i].number, NULL, &was) < 0)
			return error_errno(err, errno, "cannot catch signals");
		if (caught[i].may_be_ignored && was.sa_handler == SIG_IGN)
			continue;
		if (sigaction(caught[i].number, &sa, NULL) < 0)
			return error_errno(err, errno, "cannot catch signals");
	}
	return 0;
}

/* A pipe that nobody reads is an error like any other. */
static int ignore_broken_pipes(struct error *err)
{
	struct sigaction ignore = {.sa_handler = SIG_IGN};

	if (sigaction(SIGPIPE, &ignore, NULL) < 0)
		return error_errno(err, errno, "cannot ignore SIGPIPE");
	return 0;
}

static int flush_stdout(struct error *err)
{
	if (fflush(stdout) != 0 || ferror(stdout))
		return error_errno(err, errno ? errno : EIO, "cannot write to standard output");
	return 0;
}

static enum exit_status status_of(int code)
{
	switch (code) {
	case TM_E_USAGE:
		return EXIT_USAGE;
	case TM_E_CORRUPT:
		return EXIT_DAMAGE;
	case TM_E_CANCELED:
		return EXIT_INTERRUPTED;
	default:
		return EXIT_FAILED;
	}
}

static int run(struct agent *a, enum exit_status *status, struct error *err)
{
	static command_fn *const functions[CMD_COUNT] = {
		[CMD_INIT] = cmd_init,       [CMD_BACKUP] = cmd_backup,
		[CMD_LIST] = cmd_list,       [CMD_SHOW] = cmd_show,
		[CMD_RESTORE] = cmd_restore, [CMD_VERIFY] = cmd_verify,
		[CMD_REPAIR] = cmd_repair,   [CMD_FORGET] = cmd_forget,
		[CMD_PROTECT] = cmd_protect, [CMD_UNPROTECT] = cmd_unprotect,
		[CMD_PRUNE] = cmd_prune,     [CMD_STATUS] = cmd_status,
		[CMD_RECOVER] = cmd_recover, [CMD_STATS] = cmd_stats,
		[CMD_KEY] = cmd_key,         [CMD_DOMAIN] = cmd_domain,
	};
	int r = catch_signals(err);

	if (!r)
		r = agent_start(a, err);
	if (!r)
		r = functions[a->opt.command](a, status, err);
	progress_end(a);
	return r ? r : flush_stdout(err);
}

/* What the user asked for: the program's texts, or a command. */
static int answer(struct agent *a, enum exit_status *status, struct error *err)
{
	int r = ignore_broken_pipes(err);

	if (r)
		return r;
	if (!a->opt.help && !a->opt.version)
		return run(a, status, err);
	if (a->opt.help)
		options_help(a->opt.command);
	else
		(void)printf("tidemark %s\n", TIDEMARK_VERSION);
	return flush_stdout(err);
}

int main(int argc, char **argv)
{
	struct agent a = {0};
	struct error err = {0};
	enum exit_status status = EXIT_DONE;
	int r;

	open_standard_streams();
	(void)shown_init(); /* without it names are harder to read */
	if (argc == 4 && strcmp(argv[1], FREEZE_GUARD_WORD) == 0)
		return freeze_guard_main(argv[2], argv[3]);
	if (argc >= 5 && strcmp(argv[1], RECOVERY_GUARD_WORD) == 0)
		return recovery_guard_main(argv[2], argv[3], argv[4], &argv[5]);
	r = options_parse(argc, argv, &a.opt, &err);
	log_debug_on = a.opt.verbose;
	if (r) {
		say_error(&a, &err);
		(void)fprintf(stderr, "Try 'tidemark%s%s --help'.\n",
			      a.opt.command < CMD_COUNT ? " " : "",
			      a.opt.command < CMD_COUNT ? command_name(a.opt.command) : "");
		status = EXIT_USAGE;
	} else {
		r = answer(&a, &status, &err);
		if (r) {
			say_error(&a, &err);
			/* what was found stays so, whatever went wrong afterwards */
			if (status != EXIT_RECOVERY && status != EXIT_DAMAGE)
				status = status_of(r);
		} else if (status == EXIT_DONE && a.warned) {
			status = EXIT_WARNED;
		}
		if (a.hung) { /* a thread that never came back uses what would be freed */
			(void)fflush(stdout);
			_exit((int)status);
		}
		agent_stop(&a);
	}
	options_done(&a.opt);
	return (int)status;
}
