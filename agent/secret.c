/* SPDX-License-Identifier: Apache-2.0 */
#include "secret.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <termios.h>

#define SECRET_MAX      (32u << 10) /* a paper key is the longest */
#define PASSWORD_MAX    1024
#define COMMAND_WORDS   32
#define COMMAND_TIMEOUT 60000 /* ms; somebody may have to touch something */

struct secret_text {
	enum repo_secret_kind kind;
	bool there;
	size_t len;
	char bytes[SECRET_MAX + 1];
};

struct secrets {
	struct secret_text used;  /* of the repository */
	struct secret_text fresh; /* of a key to be made */
	struct secret_text from_env;
	char *made; /* a key file, or NULL */
};

int secrets_start(struct agent *a, struct error *err)
{
	struct secrets *s =
		mmap(NULL, sizeof(*s), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *env = getenv("TIDEMARK_PASSWORD");
	size_t len = env ? strlen(env) : 0;

	if (s == MAP_FAILED)
		return error_nomem(err);
	a->secrets = s;
	/* Both only make it harder to find a secret; a system may refuse them. */
	(void)mlock(s, sizeof(*s));
	(void)madvise(s, sizeof(*s), MADV_DONTDUMP);
	if (len == 0)
		return 0;
	(void)prctl(PR_SET_DUMPABLE, 0);
	if (len > PASSWORD_MAX)
		return error_set(err, TM_E_USAGE, "TIDEMARK_PASSWORD is longer than %d bytes",
				 PASSWORD_MAX);
	memcpy(s->from_env.bytes, env, len);
	s->from_env.len = len;
	s->from_env.there = true;
	explicit_bzero(env, len);
	(void)unsetenv("TIDEMARK_PASSWORD");
	return 0;
}

void secrets_stop(struct agent *a)
{
	if (!a->secrets)
		return;
	free(a->secrets->made);
	explicit_bzero(a->secrets, sizeof(*a->secrets));
	(void)munmap(a->secrets, sizeof(*a->secrets));
	a->secrets = NULL;
}

/* ---- sources ---- */

enum source {
	FROM_NOWHERE,
	FROM_KEY_FILE,
	FROM_PASSWORD_FILE,
	FROM_ENV,
	FROM_COMMAND,
};

static const char *env_text(const char *name)
{
	const char *v = getenv(name);

	return v && *v ? v : NULL;
}

/* Options before the environment; *ret is the file or the command. */
static enum source find_source(const struct agent *a, const char **ret)
{
	*ret = a->opt.key_file;
	if (*ret)
		return FROM_KEY_FILE;
	*ret = a->opt.password_file;
	if (*ret)
		return FROM_PASSWORD_FILE;
	*ret = env_text("TIDEMARK_KEY_FILE");
	if (*ret)
		return FROM_KEY_FILE;
	*ret = env_text("TIDEMARK_PASSWORD_FILE");
	if (*ret)
		return FROM_PASSWORD_FILE;
	if (a->secrets->from_env.there)
		return FROM_ENV;
	*ret = env_text("TIDEMARK_PASSWORD_COMMAND");
	return *ret ? FROM_COMMAND : FROM_NOWHERE;
}

bool secret_given(const struct agent *a)
{
	const char *what;

	return find_source(a, &what) != FROM_NOWHERE;
}

/* A password is the first line. */
static int take_line(struct secret_text *t, const char *from, struct error *err)
{
	char *end = memchr(t->bytes, '\n', t->len);

	t->kind = REPO_SECRET_PASSWORD;
	if (end)
		t->len = (size_t)(end - t->bytes);
	if (t->len > 0 && t->bytes[t->len - 1] == '\r')
		t->len--;
	if (t->len == 0)
		return error_set(err, TM_E_DENIED, "%s: the password is empty", from);
	if (t->len > PASSWORD_MAX)
		return error_set(err, TM_E_DENIED, "%s: the password is longer than %d bytes", from,
				 PASSWORD_MAX);
	return 0;
}

/* Not io_read_file: it may be a pipe, and no copy may stay behind. */
static int read_secret(const char *path, struct secret_text *t, struct error *err)
{
	auto_close int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return error_errno(err, errno, "cannot open %s", path);
	t->len = 0;
	for (;;) {
		ssize_t n = read(fd, t->bytes + t->len, sizeof(t->bytes) - t->len);

		if (n < 0 && errno == EINTR) {
			int r = agent_check_interrupt(err);

			if (r)
				return r;
			continue;
		}
		if (n < 0)
			return error_errno(err, errno, "cannot read %s", path);
		if (n == 0)
			return 0;
		t->len += (size_t)n;
		if (t->len == sizeof(t->bytes))
			return error_set(err, TM_E_DENIED, "%s is too long for a secret", path);
	}
}

static int from_key_file(const char *path, struct secret_text *t, struct error *err)
{
	int r = read_secret(path, t, err);

	t->kind = REPO_SECRET_KEY_FILE;
	return r;
}

static int from_password_file(const char *path, struct secret_text *t, struct error *err)
{
	int r = read_secret(path, t, err);

	return r ? r : take_line(t, path, err);
}

/* Words are cut at spaces; there is no shell. */
static int from_command(const char *command, struct secret_text *t, struct error *err)
{
	static const char name[] = "TIDEMARK_PASSWORD_COMMAND";
	auto_free char *copy = NULL;
	auto_buf struct buf out = {0};
	const char *argv[COMMAND_WORDS + 1] = {NULL};
	size_t n = 0;
	char *save = NULL;
	int r = text_copy(command, &copy, err);

	if (r)
		return r;
	for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
		if (n == COMMAND_WORDS)
			return error_set(err, TM_E_USAGE, "%s has more than %d words", name,
					 COMMAND_WORDS);
		argv[n++] = word;
	}
	if (n == 0)
		return error_set(err, TM_E_USAGE, "%s is empty", name);
	r = spawn_run(argv, COMMAND_TIMEOUT, &out, err);
	if (r) {
		error_prefix(err, "%s", name);
		return r;
	}
	t->len = min_size(out.len, SECRET_MAX);
	if (out.data) {
		memcpy(t->bytes, out.data, t->len);
		explicit_bzero(out.data, out.len);
	}
	return take_line(t, name, err);
}

/* ---- asking ---- */

/* One line from the terminal; an interruption ends it. */
static int read_tty(struct secret_text *t, struct error *err)
{
	t->len = 0;
	for (;;) {
		ssize_t n = read(STDIN_FILENO, t->bytes + t->len, PASSWORD_MAX + 1 - t->len);
		int r = agent_check_interrupt(err);

		if (r)
			return r;
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_errno(err, errno, "cannot read the password");
		t->len += (size_t)n;
		if (n == 0 || memchr(t->bytes, '\n', t->len) || t->len > PASSWORD_MAX)
			return take_line(t, "the terminal", err);
	}
}

static int ask(const char *prompt, struct secret_text *t, struct error *err)
{
	struct termios was, quiet;
	int r;

	if (tcgetattr(STDIN_FILENO, &was) < 0)
		return error_errno(err, errno, "cannot ask for the password");
	quiet = was;
	quiet.c_lflag &= ~(tcflag_t)(ECHO | ECHOE | ECHOK | ECHONL);
	quiet.c_lflag |= ICANON;
	if (tcsetattr(STDIN_FILENO, TCSAFLUSH, &quiet) < 0)
		return error_errno(err, errno, "cannot switch the terminal's echo off");
	(void)fprintf(stderr, "%s: ", prompt);
	r = read_tty(t, err);
	(void)tcsetattr(STDIN_FILENO, TCSAFLUSH, &was);
	(void)fputc('\n', stderr);
	return r;
}

static int no_secret(const char *options, struct error *err)
{
	return error_set(err, TM_E_DENIED,
			 "a password or key file is needed and there is no terminal to ask at: use "
			 "%s",
			 options);
}

/* Twice, because nobody sees what is typed. */
static int ask_new(struct secret_text *t, struct error *err)
{
	struct secret_text *again;
	bool same;
	int r = ask("new password", t, err);

	if (r)
		return r;
	again = calloc(1, sizeof(*again));
	if (!again)
		return error_nomem(err);
	r = ask("the same again", again, err);
	same = again->len == t->len && memcmp(again->bytes, t->bytes, t->len) == 0;
	explicit_bzero(again, sizeof(*again));
	free(again);
	if (r)
		return r;
	return same ? 0 : error_set(err, TM_E_DENIED, "the two passwords differ");
}

/* ---- what the commands use ---- */

static struct repo_secret as_secret(const struct secret_text *t)
{
	return (struct repo_secret){.kind = t->kind, .bytes = t->bytes, .len = t->len};
}

static int from_source(struct agent *a, enum source source, const char *what, struct secret_text *t,
		       struct error *err)
{
	(void)prctl(PR_SET_DUMPABLE, 0);
	switch (source) {
	case FROM_KEY_FILE:
		return from_key_file(what, t, err);
	case FROM_PASSWORD_FILE:
		return from_password_file(what, t, err);
	case FROM_COMMAND:
		return from_command(what, t, err);
	case FROM_ENV:
		*t = a->secrets->from_env;
		return take_line(t, "TIDEMARK_PASSWORD", err);
	case FROM_NOWHERE:
		break;
	}
	abort(); /* asked for by the callers */
}

static int get(void *data, struct repo_secret *ret, struct error *err)
{
	struct agent *a = data;
	struct secret_text *t = &a->secrets->used;
	auto_free char *prompt = NULL;
	const char *what = NULL;
	enum source source = find_source(a, &what);
	int r = 0;

	if (t->there) {
		*ret = as_secret(t);
		return 0;
	}
	if (source != FROM_NOWHERE) {
		r = from_source(a, source, what, t, err);
	} else if (!isatty(STDIN_FILENO)) {
		r = no_secret("--password-file, --key-file or TIDEMARK_PASSWORD_COMMAND", err);
		error_prefix(err, "the repository is encrypted");
	} else {
		(void)prctl(PR_SET_DUMPABLE, 0);
		r = text_format(&prompt, err, "password of %s", a->opt.repo);
		r = r ? r : ask(prompt, t, err);
	}
	t->there = r == 0;
	*ret = as_secret(t);
	return r;
}

struct repo_credentials secret_credentials(struct agent *a)
{
	return (struct repo_credentials){.get = get, .data = a, .given = secret_given(a)};
}

struct repo_secret secret_used(const struct agent *a)
{
	return as_secret(&a->secrets->used);
}

/* An interrupted run may have made it; and what is there is never replaced. */
static int use_key_file(struct agent *a, const char *path, struct secret_text *t, struct error *err)
{
	struct repo_secret secret;
	int r = from_key_file(path, t, err);

	secret = as_secret(t);
	if (r == 0 && !repo_key_file_ok(&secret))
		return error_set(err, TM_E_EXISTS,
				 "%s is there already and is no key file: name another one, or "
				 "remove it if nobody needs it",
				 path);
	if (r == 0)
		say(a, "key file %s is there already and is used as it is", path);
	return r;
}

/* Whole and durable, unless there is one. */
static int make_key_file(struct agent *a, const char *path, struct secret_text *t,
			 struct error *err)
{
	auto_close int fd = -1;
	int r;

	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 && errno == EEXIST)
		return use_key_file(a, path, t, err);
	if (fd < 0)
		return error_errno(err, errno, "cannot make the key file %s", path);
	r = text_copy(path, &a->secrets->made, err);
	r = r ? r : repo_key_file_new(t->bytes, err);
	t->kind = REPO_SECRET_KEY_FILE;
	t->len = REPO_KEY_FILE_TEXT - 1;
	r = r ? r : io_pwrite(fd, path, t->bytes, t->len, 0, err);
	if (!r && fsync(fd) < 0)
		r = error_errno(err, errno, "cannot write %s to disk", path);
	r = r ? r : io_sync_parent(path, err);
	if (r)
		(void)unlink(path);
	return r;
}

int secret_new(struct agent *a, struct repo_secret *ret, struct error *err)
{
	struct secret_text *t = &a->secrets->fresh;
	const char *what = NULL;
	enum source source;
	int r;

	(void)prctl(PR_SET_DUMPABLE, 0);
	if (a->opt.command == CMD_INIT) {
		source = find_source(a, &what);
	} else {
		what = a->opt.new_key_file ? a->opt.new_key_file : a->opt.new_password_file;
		source = a->opt.new_key_file ? FROM_KEY_FILE
			 : what              ? FROM_PASSWORD_FILE
					     : FROM_NOWHERE;
	}
	if (source == FROM_KEY_FILE && (a->opt.command != CMD_INIT || access(what, F_OK) < 0))
		r = make_key_file(a, what, t, err);
	else if (source != FROM_NOWHERE)
		r = from_source(a, source, what, t, err);
	else if (isatty(STDIN_FILENO))
		r = ask_new(t, err);
	else
		r = no_secret(a->opt.command == CMD_INIT ? "--password-file or --key-file"
							 : "--new-password-file or --new-key-file",
			      err);
	*ret = as_secret(t);
	return r;
}

void secret_forget(struct agent *a)
{
	if (a->secrets && a->secrets->made && unlink(a->secrets->made) < 0 && errno != ENOENT)
		say_warning(a, "the key file %s stays behind and opens nothing", a->secrets->made);
}
