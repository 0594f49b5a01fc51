/* SPDX-License-Identifier: Apache-2.0 */
/* Where journals stand, and when they are written. */
#include "journal.h"

#include "base_lock.h"
#include "guard.h"
#include "guest.h"
#include "proc.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>

static const char *const phase_names[] = {
	[JOURNAL_PREPARING] = "preparing", [JOURNAL_FREEZING] = "freezing",
	[JOURNAL_FROZEN] = "frozen",       [JOURNAL_PULLING] = "pulling",
	[JOURNAL_PULLED] = "pulled",       [JOURNAL_COMMITTING] = "committing",
	[JOURNAL_PIVOTING] = "pivoting",   [JOURNAL_PIVOTED] = "pivoted",
	[JOURNAL_SETTLING] = "settling",
};

const char *journal_phase_name(enum journal_phase phase)
{
	return phase_names[phase];
}

bool journal_phase_parse(const char *text, enum journal_phase *ret)
{
	for (enum journal_phase p = JOURNAL_PREPARING; p <= JOURNAL_SETTLING; p++) {
		if (strcmp(text, phase_names[p]) == 0) {
			*ret = p;
			return true;
		}
	}
	return false;
}

int journal_new(struct journal **ret, struct error *err)
{
	struct journal *j = calloc(1, sizeof(*j));

	if (!j)
		return error_nomem(err);
	j->socket_lock = -1;
	j->phase = JOURNAL_PREPARING;
	j->kind = GUEST_QMP;
	*ret = j;
	return 0;
}

void journal_free(struct journal *j)
{
	if (!j)
		return;
	for (size_t i = 0; i < j->ndisks; i++) {
		struct journal_disk *d = &j->disks[i];

		base_unlock(d);
		free(d->name);
		free(d->qdev);
		free(d->drive);
		free(d->base);
		free(d->format);
		free(d->overlay);
		free(d->overlay_node);
		free(d->old_bitmap);
		free(d->new_bitmap);
	}
	if (j->socket_lock >= 0)
		(void)close(j->socket_lock);
	free(j->disks);
	free(j->guest);
	free(j->qmp_socket);
	free(j->agent_socket);
	free(j->repo_url);
	free(j->state);
	free(j->socket_dir);
	free(j->path);
	buf_done(&j->told);
	free(j);
}

int journal_add_disk(struct journal *j, struct journal_disk **ret, struct error *err)
{
	struct journal_disk *v = reallocarray(j->disks, j->ndisks + 1, sizeof(*v));

	if (!v)
		return error_nomem(err);
	j->disks = v;
	v[j->ndisks] = (struct journal_disk){.lock = -1};
	*ret = &v[j->ndisks++];
	return 0;
}

void journal_debug_point(const char *name)
{
	const char *kill_at = getenv("TIDEMARK_DEBUG_KILL_AT");
	const char *stop_at = getenv("TIDEMARK_DEBUG_STOP_AT");
	static bool stopped; /* once is enough: other disks come to the same point */

	if (kill_at && strcmp(kill_at, name) == 0)
		(void)raise(SIGKILL);
	if (stop_at && !stopped && strcmp(stop_at, name) == 0) {
		stopped = true;
		(void)raise(SIGSTOP);
	}
}

int journal_list_files(const struct journal *j, struct text_list *ret, struct error *err)
{
	int r = j->path ? text_list_add(ret, err, "%s", j->path) : 0;

	for (size_t i = 0; !r && i < j->ndisks; i++) {
		/* Beside the base, where everybody looks who has to start the guest. */
		if (j->disks[i].overlay)
			r = text_list_add(ret, err, "%s" JOURNAL_SUFFIX, j->disks[i].base);
	}
	return r;
}

static bool says(const char *path, const struct buf *text)
{
	auto_buf struct buf found = {0};

	return io_read_file(path, JOURNAL_MAX, &found, NULL) == 0 && found.len == text->len &&
	       memcmp(found.data, text->data, text->len) == 0;
}

/*
 * A file that has its name but whose directory could not be synced says what the caller is told not
 * to rely on.  Recovery would.
 */
static void take_back(const struct journal *j, const struct text_list *files,
		      const struct buf *text)
{
	for (size_t i = 0; i < files->n; i++) {
		struct error e = {0};

		if (!says(files->v[i], text))
			continue;
		if (j->told.len && io_publish(files->v[i], j->told.data, j->told.len, 0600, &e))
			log_debug("%s", e.text); /* most likely synced no more than before */
		if (says(files->v[i], text))
			(void)unlink(files->v[i]);
	}
}

/*
 * All files, or at least one: a full file system of a base or of the state must not keep the guest
 * from going back onto its own files.  A file that could not be replaced is removed, and where even
 * that fails its lower sequence tells that it is old.
 */
static int publish(const struct journal *j, const struct buf *text, bool all, struct error *err)
{
	auto_text_list struct text_list files = {0};
	auto_free bool *done = NULL;
	struct error first = {0};
	size_t written = 0;
	int r = journal_list_files(j, &files, err);

	if (r)
		return r;
	done = calloc(files.n + 1, sizeof(*done));
	if (!done)
		return error_nomem(err);
	r = io_publish_all((const char *const *)files.v, files.n, text->data, text->len, 0600, done,
			   &first);
	for (size_t i = 0; i < files.n; i++)
		written += done[i];
	if (r && (all || !written)) {
		take_back(j, &files, text);
		return error_pass(err, r, &first);
	}
	if (r)
		log_debug("%s", first.text);
	for (size_t i = 0; i < files.n; i++) {
		if (!done[i])
			(void)unlink(files.v[i]);
	}
	return 0;
}

int journal_write(struct journal *j, enum journal_phase phase, struct error *err)
{
	enum journal_phase before = j->phase;
	auto_buf struct buf text = {0};
	int r;

	j->phase = phase;
	j->sequence++;
	r = journal_encode(j, &text, err);
	if (!r)
		r = publish(j, &text, phase == JOURNAL_PREPARING, err);
	if (r) {
		j->phase = before;
		error_prefix(err, "cannot write the journal");
		return r;
	}
	buf_done(&j->told);
	j->told = text;
	text = (struct buf){0};
	log_debug("journal: %s", phase_names[phase]);
	journal_debug_point(phase_names[phase]);
	return 0;
}

static int read_one(const char *path, struct journal **ret, struct error *err)
{
	auto_buf struct buf text = {0};
	struct error e = {0};
	int r = io_read_file(path, JOURNAL_MAX, &text, &e);

	if (!r)
		r = journal_decode(text.data, text.len, path, ret, &e);
	if (r)
		return error_pass(err, r, &e);
	(*ret)->told = text;
	text = (struct buf){0};
	return 0;
}

int journal_read(const char *path, struct journal **ret, struct error *err)
{
	auto_clean(journal_free) struct journal *j = NULL;
	auto_text_list struct text_list copies = {0};
	int r = read_one(path, &j, err);

	if (!r)
		r = journal_list_files(j, &copies, err);
	for (size_t i = 0; !r && i < copies.n; i++) {
		auto_clean(journal_free) struct journal *copy = NULL;

		if (read_one(copies.v[i], &copy, NULL) == 0 && id_equal(&copy->point, &j->point) &&
		    copy->sequence > j->sequence) {
			journal_free(j);
			j = tm_steal(copy);
		}
	}
	if (!r)
		r = text_copy(path, &j->path, err);
	if (r)
		return r;
	*ret = tm_steal(j);
	return 0;
}

/* With what a process left that died while it wrote it. */
static int remove_one(const char *path, struct error *err)
{
	auto_free char *tmp = NULL;
	int r = text_format(&tmp, err, "%s" IO_PUBLISH_TMP, path);

	if (!r)
		r = io_remove(tmp, err);
	return r ? r : io_remove(path, err);
}

bool journal_exists(const struct journal *j)
{
	auto_text_list struct text_list files = {0};
	bool found = journal_list_files(j, &files, NULL) != 0; /* not known: rather yes */

	for (size_t i = 0; !found && i < files.n; i++)
		found = access(files.v[i], F_OK) == 0;
	return found;
}

int journal_remove(const struct journal *j, struct error *err)
{
	auto_text_list struct text_list files = {0};
	int r = journal_list_files(j, &files, err);

	/* The copies first: without the other one, nobody would look for them. */
	for (size_t i = files.n; !r && i > 0; i--)
		r = remove_one(files.v[i - 1], err);
	return r;
}

#define GUARD_TOLD_MS 10000 /* until the person hears of it */

#define FNV_OFFSET UINT64_C(0xcbf29ce484222325)
#define FNV_PRIME  UINT64_C(0x100000001b3)
#define KEY_NAME   48 /* readable characters of a key */

int journal_key_of(const char *path, char **ret, struct error *err)
{
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
	const char *dot = strrchr(name, '.');

	return text_format(ret, err, "%.*s", dot ? (int)(dot - name) : (int)strlen(name), name);
}

int journal_key(const char *path, char **ret, struct error *err)
{
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
	uint64_t hash = FNV_OFFSET;
	char readable[KEY_NAME + 1];
	size_t n = 0;

	for (const char *p = path; *p; p++)
		hash = (hash ^ (unsigned char)*p) * FNV_PRIME;
	for (; n < KEY_NAME && name[n]; n++)
		readable[n] = isalnum((unsigned char)name[n]) ? name[n] : '_';
	readable[n] = '\0';
	return text_format(ret, err, "%s-%016llx", readable, (unsigned long long)hash);
}

int journal_path(const char *state_dir, const char *key, char **ret, struct error *err)
{
	return text_format(ret, err, "%s/journal/%s.json", state_dir, key);
}

static pid_t lock_holder(int fd)
{
	char pid[32];
	ssize_t n = pread(fd, pid, sizeof(pid) - 1, 0);

	pid[n > 0 ? n : 0] = '\0';
	return (pid_t)strtol(pid, NULL, 10);
}

/* Between two looks at a lock that a guard has. */
static int wait_for_guard(pid_t guard, bool tell, const struct snapshot_hooks *hooks,
			  struct error *err)
{
	char text[128];
	const struct snapshot_progress p = {.phase = "wait", .remark = tell ? text : NULL};

	(void)snprintf(text, sizeof(text),
		       "process %d puts in order what an interrupted run left; waiting for it",
		       (int)guard);
	clock_sleep_ms(&clock_system, 50);
	return hooks->tick ? hooks->tick(hooks->data, &p, err) : 0;
}

/* The guard of a run that died puts the guest in order, which is worth waiting for. */
static int take_lock(int fd, const char *path, const char *key, const struct snapshot_hooks *hooks,
		     struct error *err)
{
	uint64_t began = clock_monotonic_ms(&clock_system);
	bool told = false;

	for (;;) {
		uint64_t waited = clock_monotonic_ms(&clock_system) - began;
		bool tell = !told && waited >= GUARD_TOLD_MS;
		pid_t holder;
		int r;

		if (flock(fd, LOCK_EX | LOCK_NB) == 0)
			return 0;
		if (errno != EWOULDBLOCK)
			return error_errno(err, errno, "cannot lock %s", path);
		holder = lock_holder(fd);
		if (!hooks || !proc_is_guard(holder) || holder == getpid() ||
		    waited >= GUARD_TRIES_MS)
			return error_set(err, TM_E_BUSY,
					 "another tidemark, process %d, is at work on this guest "
					 "(lock %s)",
					 (int)holder, key);
		r = wait_for_guard(holder, tell, hooks, err);
		if (r)
			return r;
		told = told || tell;
	}
}

int journal_lock(const char *state_dir, const char *key, const struct snapshot_hooks *hooks,
		 int *ret, struct error *err)
{
	auto_free char *dir = NULL, *path = NULL;
	auto_close int fd = -1;
	char pid[32];
	int n, r;

	r = io_join(state_dir, "journal", &dir, err);
	if (!r)
		r = io_mkdirs(dir, err);
	if (!r)
		r = text_format(&path, err, "%s/%s.lock", dir, key);
	if (r)
		return r;
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return error_errno(err, errno, "cannot open the lock %s", path);
	r = take_lock(fd, path, key, hooks, err);
	if (r)
		return r;
	n = snprintf(pid, sizeof(pid), "%d\n", (int)getpid());
	if (n < 0 || ftruncate(fd, 0) < 0)
		return error_errno(err, errno, "cannot write the lock %s", path);
	r = io_pwrite(fd, path, pid, (size_t)n, 0, err);
	if (r)
		return r;
	*ret = tm_steal_fd(&fd);
	return 0;
}
