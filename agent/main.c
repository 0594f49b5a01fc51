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

/* A descriptor of ours under the number of a closed standard stream would get what is printed. */
static void open_standard_streams(void)
{
	int fd;

	do {
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	} while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd > STDERR_FILENO)
		(void)close(fd);
}

/* The first signal asks for a clean end, the second one ends at once. */
static int catch_signals(struct error *err)
{
	struct sigaction sa = {.sa_handler = interrupted, .sa_flags = (int)SA_RESETHAND};
	struct sigaction ignore = {.sa_handler = SIG_IGN};

	if (sigaction(SIGINT, &sa, NULL) < 0 || sigaction(SIGTERM, &sa, NULL) < 0 ||
	    sigaction(SIGPIPE, &ignore, NULL) < 0)
		return error_errno(err, errno, "cannot catch signals");
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
	if (!r && (fflush(stdout) != 0 || ferror(stdout)))
		r = error_errno(err, errno ? errno : EIO, "cannot write to standard output");
	return r;
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
	} else if (a.opt.help) {
		options_help(a.opt.command);
	} else if (a.opt.version) {
		(void)printf("tidemark %s\n", TIDEMARK_VERSION);
	} else {
		r = run(&a, &status, &err);
		if (r) {
			say_error(&a, &err);
			if (status != EXIT_RECOVERY)
				status = status_of(r);
		} else if (status == EXIT_DONE && a.warned) {
			status = EXIT_WARNED;
		}
		agent_stop(&a);
	}
	options_done(&a.opt);
	return (int)status;
}
