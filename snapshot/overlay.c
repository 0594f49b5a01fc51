/* SPDX-License-Identifier: Apache-2.0 */
#include "overlay.h"

#include "exports.h"
#include "qcow2_head.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define POINT_DIGITS ((size_t)12) /* of the point's id in the name of an overlay */

/*
 * Where the stem of an image's name ends.  One that an earlier pull made, "disk.ID-N.qcow2", has
 * the stem "disk", or names would grow with each pull.
 */
static size_t stem_length(const char *name)
{
	const char *dot = strrchr(name, '.'), *id;
	size_t len = dot && dot != name ? (size_t)(dot - name) : strlen(name);
	size_t n = len;

	while (n > 0 && name[n - 1] >= '0' && name[n - 1] <= '9')
		n--;
	if (n == len || n < POINT_DIGITS + 3 || name[n - 1] != '-')
		return len;
	id = name + n - 1 - POINT_DIGITS;
	return strspn(id, "0123456789abcdef") == POINT_DIGITS && id[-1] == '.'
		       ? (size_t)(id - 1 - name)
		       : len;
}

static int overlay_name(const char *base_name, const struct tm_id *point, size_t index,
			enum collapse_how how, char **ret, struct error *err)
{
	const struct tm_id_text text = id_text(point);
	const char *id = text.s + TM_ID_HEX - POINT_DIGITS;

	if (how == COLLAPSE_PULL)
		return text_format(ret, err, "%.*s.%s-%zu.qcow2",
				   (int)min_u64(stem_length(base_name), OVERLAY_STEM), base_name,
				   id, index);
	return text_format(ret, err, "%.*s.%s-%zu%s", OVERLAY_STEM, base_name, id, index,
			   how == COLLAPSE_PULL_KEEP ? NAME_SUFFIX : OVERLAY_SUFFIX);
}

int overlay_path(const char *base, const char *dir, const struct tm_id *point, size_t index,
		 enum collapse_how how, char **ret, struct error *err)
{
	const char *slash = strrchr(base, '/'), *name = slash ? slash + 1 : base;
	auto_free char *own = NULL, *full = NULL, *own_name = NULL;
	struct stat st;
	int r;

	if (dir) {
		full = realpath(dir, NULL); /* QEMU has a directory of its own */
		if (!full)
			return error_errno(err, errno, "overlay directory %s", dir);
	} else if (stat(base, &st) == 0 && !S_ISREG(st.st_mode)) {
		return error_set(err, TM_E_USAGE,
				 "%s is a device: say where its overlay shall be (--overlay-dir)",
				 base);
	}
	r = full ? 0 : io_dirname(base, &own, err);
	if (r)
		return r;
	if (access(full ? full : own, W_OK | X_OK) < 0)
		return error_errno(err, errno, "no overlay can be made in %s%s", full ? full : own,
				   full ? "" : " (--overlay-dir names another directory)");
	r = overlay_name(name, point, index, how, &own_name, err);
	return r ? r : io_join(full ? full : own, own_name, ret, err);
}

/* The base's owner and mode, so that QEMU's user can open it. */
static int make_file(const char *path, const char *base, struct error *err)
{
	auto_close int fd = -1;
	struct stat st;

	if (stat(base, &st) < 0)
		return error_errno(err, errno, "cannot look at %s", base);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return error_errno(err, errno, "cannot create the overlay %s", path);
	if (fchown(fd, st.st_uid, st.st_gid) < 0 && errno != EPERM)
		return error_errno(err, errno,
				   "cannot give the overlay %s to the owner of its base", path);
	if (fchmod(fd, st.st_mode & 0666) < 0)
		return error_errno(err, errno, "cannot set the mode of the overlay %s", path);
	return 0;
}

int overlay_data_path(const char *path, char **ret, struct error *err)
{
	return text_format(ret, err, "%s" OVERLAY_DATA_SUFFIX, path);
}

/* A comma ends an option of qemu-img, unless it is doubled. */
static int data_option(const char *path, char **ret, struct error *err)
{
	auto_free char *data = NULL, *option = NULL;
	int r = overlay_data_path(path, &data, err);
	char *to;

	if (r)
		return r;
	option = malloc(strlen("data_file=") + 2 * strlen(data) + 1);
	if (!option)
		return error_nomem(err);
	to = stpcpy(option, "data_file=");
	for (const char *from = data; *from; from++) {
		if (*from == ',')
			*to++ = ',';
		*to++ = *from;
	}
	*to = '\0';
	*ret = tm_steal(option);
	return 0;
}

static int fill_file(const char *path, const char *base, const char *format, uint64_t size,
		     bool apart, struct error *err)
{
	auto_free char *option = NULL;
	char bytes[24];
	const char *argv[] = {"qemu-img", "create", "-q", "-f",  "qcow2", "-u", "-b", base,
			      "-F",       format,   path, bytes, NULL,    NULL, NULL};
	int r = apart ? data_option(path, &option, err) : 0;

	if (r)
		return r;
	if (snprintf(bytes, sizeof(bytes), "%llu", (unsigned long long)size) < 0)
		return error_set(err, TM_E_RANGE, "size");
	if (apart) {
		argv[12] = "-o";
		argv[13] = option;
	}
	r = spawn_run(argv, IMG_TIMEOUT_MS, NULL, err);
	if (r) {
		error_prefix(err, "cannot create the overlay %s", path);
		return r;
	}
	r = io_sync_file(path, err);
	return r ? r : io_sync_parent(path, err);
}

/* Not where the file system has no file that long: a sparse image needs none, its data would. */
static int make_data(const char *path, const char *base, uint64_t size, bool *apart,
		     struct error *err)
{
	int r = make_file(path, base, err);

	if (r || truncate(path, (off_t)size) == 0)
		return r;
	r = errno;
	(void)unlink(path);
	*apart = false;
	return r == EFBIG ? 0 : error_errno(err, r, "cannot make %s as long as the disk", path);
}

int overlay_create(const char *path, const char *base, const char *format, uint64_t size,
		   bool *apart, struct error *err)
{
	auto_free char *data = NULL;
	int r = overlay_data_path(path, &data, err);

	if (!r)
		r = make_file(path, base, err);
	if (r)
		return r; /* when there is one it is not ours */
	if (*apart)
		r = make_data(data, base, size, apart, err);
	if (!r)
		r = fill_file(path, base, format, size, *apart, err);
	if (r) {
		(void)unlink(path);
		if (*apart && r != TM_E_EXISTS)
			(void)unlink(data);
	}
	return r;
}

int overlay_stat(const char *path, struct stat *ret, struct error *err)
{
	auto_free char *data = NULL;
	struct stat st;
	int r = overlay_data_path(path, &data, err);

	if (r)
		return r;
	if (stat(path, ret) < 0)
		return error_errno(err, errno, "cannot look at the overlay %s", path);
	if (stat(data, &st) < 0)
		return errno == ENOENT ? 0 : error_errno(err, errno, "cannot look at %s", data);
	ret->st_blocks += st.st_blocks;
	if (st.st_mtim.tv_sec > ret->st_mtim.tv_sec ||
	    (st.st_mtim.tv_sec == ret->st_mtim.tv_sec && st.st_mtim.tv_nsec > ret->st_mtim.tv_nsec))
		ret->st_mtim = st.st_mtim;
	return 0;
}

int overlay_remove(const char *path, struct error *err)
{
	auto_free char *data = NULL;
	int r = overlay_data_path(path, &data, err);

	/* In this order: without its data an image could not even be looked at. */
	if (!r)
		r = io_remove(path, err);
	return r ? r : io_remove(data, err);
}

/* A torn header is for qemu-img to complain about. */
static bool says_data_apart(const char *path)
{
	struct qcow2_head head;

	return qcow2_head_read(path, &head) && head.data_apart;
}

int overlay_missing(const char *path, char **ret, struct error *err)
{
	auto_free char *data = NULL;
	int r = overlay_data_path(path, &data, err);

	*ret = NULL;
	if (r)
		return r;
	if (access(path, F_OK) < 0)
		return text_copy(path, ret, err);
	if (access(data, F_OK) < 0 && says_data_apart(path))
		*ret = tm_steal(data);
	return 0;
}

int overlay_empty(const char *path, bool *ret, struct error *err)
{
	auto_free char *missing = NULL;
	const char *const argv[] = {"qemu-img", "map",           "-U", "-f",
				    "qcow2",    "--output=json", path, NULL};
	auto_buf struct buf out = {0};
	auto_json json_t *map = NULL;
	const json_t *v;
	json_error_t je;
	size_t i;
	int r;

	*ret = true;
	if (access(path, F_OK) < 0 && errno == ENOENT)
		return 0;
	r = overlay_missing(path, &missing, err);
	*ret = !r && !missing;
	if (r || missing)
		return r;
	r = spawn_run(argv, IMG_TIMEOUT_MS, &out, err);
	if (r)
		return r;
	map = json_loadb((const char *)out.data, out.len, 0, &je);
	if (!json_is_array(map))
		return error_set(err, TM_E_PEER, "qemu-img map of %s printed no list", path);
	json_array_foreach(map, i, v)
	{
		uint64_t depth;

		if (!jsonx_u64(v, "depth", &depth))
			return error_set(err, TM_E_PEER, "qemu-img map of %s: no depth", path);
		if (depth == 0 && (jsonx_flag(v, "data") || jsonx_flag(v, "zero")) &&
		    jsonx_flag(v, "present"))
			*ret = false;
	}
	return 0;
}

int overlay_check(const char *path, struct error *err)
{
	auto_free char *alone = NULL;
	const char *argv[] = {"qemu-img", "check", "--output=json", NULL, NULL};
	auto_buf struct buf out = {0};
	auto_json json_t *found = NULL;
	struct error e = {0};
	uint64_t bad = 0, unchecked = 0;
	json_error_t je;
	int r = export_alone(path, "qcow2", false, &alone, err);

	if (r)
		return r;
	argv[3] = alone;
	r = spawn_run(argv, CHECK_TIMEOUT_MS, &out, &e);
	if (!r)
		return 0;
	if (r == TM_E_PEER)
		found = json_loadb((const char *)out.data, out.len, 0, &je);
	if (!found || !jsonx_u64(found, "check-errors", &unchecked) || unchecked)
		return error_pass(err, r, &e);
	(void)jsonx_u64(found, "corruptions", &bad);
	if (!bad)
		return 0;
	return error_set(
		err, TM_E_CORRUPT,
		"the overlay %s is damaged: %llu of its clusters have two owners, or none "
		"that is counted; no overlay of the guest is merged.  'qemu-img check -r all' may "
		"mend it, on a copy first; then run recovery again",
		path, (unsigned long long)bad);
}
