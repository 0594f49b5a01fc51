/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making and listing a directory store: a walk that visits names in the byte order of whole
 * keys (a folder sorts as its name with "/"), skipping what cannot be an object.
 */
#include "store_dir.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct walk {
	const char *root_path;
	const char *prefix;
	store_list_fn *fn;
	void *data;
	char key[KEY_MAX]; /* of the present folder or object */
};

/* Names of one folder; those of folders end with "/". */
struct names {
	char **v;
	size_t n, cap;
};

static void names_done(struct names *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(l->v[i]);
	free(l->v);
}
#define auto_names __attribute__((cleanup(names_done)))

static int names_add(struct names *l, const char *name, bool folder, struct error *err)
{
	char *copy;
	int r;

	if (l->n == l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 64;
		char **v = reallocarray(l->v, cap, sizeof(*v));

		if (!v)
			return error_nomem(err);
		l->v = v;
		l->cap = cap;
	}
	r = text_format(&copy, err, "%s%s", name, folder ? "/" : "");
	if (r < 0)
		return r;
	l->v[l->n++] = copy;
	return 0;
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Either may be the longer one. */
static bool prefixes_agree(const char *key, const char *prefix)
{
	return strncmp(key, prefix, min_size(strlen(key), strlen(prefix))) == 0;
}

static int classify(int fd, const struct dirent *e, bool *ret_folder, bool *ret_file,
		    struct error *err)
{
	struct stat sb;

	*ret_folder = e->d_type == DT_DIR;
	*ret_file = e->d_type == DT_REG;
	if (e->d_type != DT_UNKNOWN)
		return 0;
	if (fstatat(fd, e->d_name, &sb, AT_SYMLINK_NOFOLLOW) < 0) {
		if (errno == ENOENT)
			return 0;
		return error_errno(err, errno, "looking at %s", e->d_name);
	}
	*ret_folder = S_ISDIR(sb.st_mode);
	*ret_file = S_ISREG(sb.st_mode);
	return 0;
}

/* The names in folder w->key (its length is `at`) that can lead to a match. */
static int read_names(struct walk *w, DIR *dir, size_t at, struct names *ret, struct error *err)
{
	for (;;) {
		const struct dirent *e;
		bool folder, file;
		size_t len;
		int r;

		errno = 0;
		e = readdir(dir);
		if (!e)
			break;
		len = strlen(e->d_name);
		if (at + len + 2 > sizeof(w->key) || (at == 0 && strcmp(e->d_name, "tmp") == 0))
			continue;
		memcpy(w->key + at, e->d_name, len + 1);
		if (!store_key_ok(w->key))
			continue;
		r = classify(dirfd(dir), e, &folder, &file, err);
		if (r < 0)
			return r;
		if (folder)
			memcpy(w->key + at + len, "/", 2);
		if ((!folder && !file) || !prefixes_agree(w->key, w->prefix))
			continue;
		r = names_add(ret, e->d_name, folder, err);
		if (r < 0)
			return r;
	}
	if (errno != 0)
		return error_errno(err, errno, "listing %s/%.*s", w->root_path, (int)at, w->key);
	if (ret->n > 1)
		qsort(ret->v, ret->n, sizeof(*ret->v), compare_names);
	return 0;
}

static int visit_file(struct walk *w, int fd, const char *name, struct error *err)
{
	struct stat sb;

	if (strlen(w->key) < strlen(w->prefix))
		return 0;
	if (fstatat(fd, name, &sb, AT_SYMLINK_NOFOLLOW) < 0) {
		if (errno == ENOENT)
			return 0; /* removed in between */
		return error_errno(err, errno, "looking at %s/%s", w->root_path, w->key);
	}
	return w->fn(w->data, w->key, (uint64_t)sb.st_size, err);
}

static int walk_folder(struct walk *w, int parent, const char *name, size_t at, struct error *err);

static int walk_names(struct walk *w, int fd, const struct names *l, size_t at, struct error *err)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < l->n; i++) {
		char *name = l->v[i];
		size_t len = strlen(name);

		memcpy(w->key + at, name, len + 1);
		if (name[len - 1] == '/') {
			name[len - 1] = 0;
			r = walk_folder(w, fd, name, at + len, err);
		} else {
			r = visit_file(w, fd, name, err);
		}
	}
	return r;
}

static int walk_folder(struct walk *w, int parent, const char *name, size_t at, struct error *err)
{
	auto_names struct names l = {0};
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	DIR *dir;
	int r;

	if (fd < 0) {
		if (errno == ENOENT)
			return 0;
		return error_errno(err, errno, "opening %s/%.*s", w->root_path, (int)at, w->key);
	}
	dir = fdopendir(fd);
	if (!dir) {
		r = error_errno(err, errno, "opening %s/%.*s", w->root_path, (int)at, w->key);
		(void)close(fd);
		return r;
	}
	r = read_names(w, dir, at, &l, err);
	if (r == 0)
		r = walk_names(w, fd, &l, at, err);
	(void)closedir(dir);
	return r;
}

int dir_walk(int root, const char *root_path, const char *prefix, store_list_fn *fn, void *data,
	     struct error *err)
{
	struct walk w = {.root_path = root_path, .prefix = prefix, .fn = fn, .data = data};
	const char *slash = strrchr(prefix, '/');

	if (!slash)
		return walk_folder(&w, root, ".", 0, err);
	if (strlen(prefix) + 2 > sizeof(w.key))
		return error_set(err, TM_E_RANGE, "prefix too long: %s", prefix);
	memcpy(w.key, prefix, (size_t)(slash - prefix));
	if (!store_key_ok(w.key))
		return error_set(err, TM_E_RANGE, "bad prefix '%s'", prefix);
	/* openat() needs the name without its end */
	{
		char start[KEY_MAX];

		memcpy(start, w.key, sizeof(start));
		w.key[slash - prefix] = '/';
		return walk_folder(&w, root, start, (size_t)(slash - prefix) + 1, err);
	}
}

/* ---- sync ---- */

static int sync_folder(struct walk *w, int parent, const char *name, size_t at, struct error *err);

static int sync_children(struct walk *w, DIR *dir, size_t at, struct error *err)
{
	auto_names struct names l = {0};
	int r = read_names(w, dir, at, &l, err);

	for (size_t i = 0; r == 0 && i < l.n; i++) {
		size_t len = strlen(l.v[i]);

		if (l.v[i][len - 1] != '/')
			continue;
		memcpy(w->key + at, l.v[i], len + 1);
		l.v[i][len - 1] = 0;
		r = sync_folder(w, dirfd(dir), l.v[i], at + len, err);
	}
	return r;
}

static int sync_folder(struct walk *w, int parent, const char *name, size_t at, struct error *err)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	int r;

	if (!dir) {
		r = errno == ENOENT ? 0
				    : error_errno(err, errno, "opening %s/%.*s", w->root_path,
						  (int)at, w->key);
		if (fd >= 0)
			(void)close(fd);
		return r;
	}
	r = sync_children(w, dir, at, err);
	if (r == 0 && fsync(fd) < 0 && errno != EROFS)
		r = error_errno(err, errno, "syncing %s/%.*s", w->root_path, (int)at, w->key);
	(void)closedir(dir);
	return r;
}

int dir_sync_below(int root, const char *root_path, const char *prefix, struct error *err)
{
	struct walk w = {.root_path = root_path, .prefix = ""};
	char start[KEY_MAX];
	size_t len = strlen(prefix);

	if (len < 2 || len + 2 > sizeof(start) || prefix[len - 1] != '/')
		return error_set(err, TM_E_RANGE, "bad prefix '%s'", prefix);
	memcpy(w.key, prefix, len + 1);
	memcpy(start, prefix, len);
	start[len - 1] = 0;
	if (!store_key_ok(start))
		return error_set(err, TM_E_RANGE, "bad prefix '%s'", prefix);
	return sync_folder(&w, root, start, len, err);
}

/* ---- making ---- */

/* The folders that an init which did not come to its end may have made. */
static bool init_made(const char *name)
{
	return strcmp(name, "tmp") == 0 || strcmp(name, "domains") == 0 ||
	       strcmp(name, "keys") == 0;
}

static bool has_file(DIR *dir, const char *name)
{
	struct stat sb;

	return fstatat(dirfd(dir), name, &sb, AT_SYMLINK_NOFOLLOW) == 0 && S_ISREG(sb.st_mode);
}

static int check_new(const char *path, struct error *err)
{
	DIR *dir = opendir(path);
	const struct dirent *e;
	int r = 0;

	if (!dir) {
		if (errno == ENOENT)
			return 0;
		if (errno == ENOTDIR)
			return error_set(err, TM_E_EXISTS, "%s is not a directory", path);
		return error_errno(err, errno, "opening %s", path);
	}
	if (has_file(dir, "repo") || has_file(dir, "repo.copy"))
		r = error_set(err, TM_E_EXISTS, "there is a repository in %s already", path);
	errno = 0;
	while (r == 0 && (e = readdir(dir)))
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
		    !init_made(e->d_name))
			r = error_set(err, TM_E_EXISTS, "%s is not empty (it holds %s)", path,
				      e->d_name);
	if (r == 0 && errno != 0)
		r = error_errno(err, errno, "listing %s", path);
	(void)closedir(dir);
	return r;
}

int dir_make(const char *path, struct error *err)
{
	auto_free char *tmp = NULL;
	int r = io_join(path, "tmp", &tmp, err);

	r = r ? r : check_new(path, err);
	r = r ? r : io_mkdirs(tmp, err);
	/* also when an earlier run made them and was killed before it synced them */
	r = r ? r : io_sync_dir(path, err);
	return r ? r : io_sync_parent(path, err);
}
