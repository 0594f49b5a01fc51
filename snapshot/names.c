/* SPDX-License-Identifier: Apache-2.0 */
#include "names.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

TM_CLEANUP(DIR, closedir)

#define NOTE_MAX 4096

static bool same_inode(const char *a, const char *b)
{
	struct stat sa, sb;

	return stat(a, &sa) == 0 && stat(b, &sb) == 0 && sa.st_dev == sb.st_dev &&
	       sa.st_ino == sb.st_ino;
}

/* "/d/disk.qcow2.ID-N.tidemark-name" → "/d/disk.qcow2" */
int names_true(const char *file, char **ret, struct error *err)
{
	auto_free char *name = NULL;
	char *dot;
	int r = text_copy(file, &name, err);

	if (r)
		return r;
	if (text_ends_with(file, NAME_SUFFIX)) {
		name[strlen(name) - strlen(NAME_SUFFIX)] = '\0';
		dot = strrchr(name, '.');
		if (dot)
			*dot = '\0';
		if (dot && same_inode(name, file)) {
			*ret = tm_steal(name);
			return 0;
		}
	}
	return text_copy(file, ret, err);
}

bool names_is_second(const char *name, const char *file)
{
	size_t len = strlen(file);

	return strncmp(name, file, len) == 0 && name[len] == '.' &&
	       text_ends_with(name, NAME_SUFFIX);
}

void names_tidy(const char *file, const char *except)
{
	auto_free char *dir_path = NULL;
	auto_clean(closedir) DIR *dir = NULL;
	const char *slash = strrchr(file, '/'), *name = slash ? slash + 1 : file;
	const struct dirent *e;

	if (io_dirname(file, &dir_path, NULL))
		return;
	dir = opendir(dir_path);
	while (dir && (e = readdir(dir))) {
		auto_free char *path = NULL;

		if (!names_is_second(e->d_name, name) || io_join(dir_path, e->d_name, &path, NULL))
			continue;
		if ((except && strcmp(path, except) == 0) || !same_inode(path, file))
			continue;
		if (unlink(path) < 0)
			log_debug("cannot remove %s: %s", path, strerror(errno));
	}
}

int names_take_over(const char *overlay, const char *base, struct error *err)
{
	auto_free char *link_path = NULL;
	int r;

	if (same_inode(overlay, base))
		return io_sync_parent(base, err);
	names_tidy(base, NULL); /* of the base that goes now */
	r = text_format(&link_path, err, "%s.tidemark-link", base);
	if (!r)
		r = io_remove(link_path, err); /* of somebody who died here */
	if (r)
		return r;
	if (link(overlay, link_path) < 0)
		return error_errno(err, errno, "cannot give %s a second name", overlay);
	if (rename(link_path, base) < 0)
		return error_errno(err, errno, "cannot replace %s by %s", base, overlay);
	return io_sync_parent(base, err);
}

static int note_path(const char *base, char **ret, struct error *err)
{
	return text_format(ret, err, "%s" MOVED_SUFFIX, base);
}

int names_note_moved(const char *base, const char *overlay, struct error *err)
{
	auto_free char *path = NULL, *text = NULL;
	int r = note_path(base, &path, err);

	if (!r)
		r = text_format(&text, err, "%s\n", overlay);
	return r ? r : io_publish(path, text, strlen(text), 0644, err);
}

int names_forget_moved(const char *base, struct error *err)
{
	auto_free char *path = NULL;
	int r = note_path(base, &path, err);

	return r ? r : io_remove(path, err);
}

int names_check_moved(const char *file, struct error *err)
{
	auto_free char *path = NULL;
	auto_buf struct buf text = {0};
	struct error e = {0};
	int r = note_path(file, &path, err);

	if (!r)
		r = io_read_file(path, NOTE_MAX, &text, &e);
	if (!r)
		r = buf_add(&text, "", 1, &e);
	if (r)
		return r == TM_E_NOTFOUND ? 0 : error_pass(err, r, &e);
	return error_set(
		err, TM_E_STALE,
		"a backup with --collapse pull moved the guest's disk from %s to %.*s: start it "
		"from there.  If %s as it was at that backup is wanted, remove %s",
		file, (int)strcspn((const char *)text.data, "\n"), (const char *)text.data, file,
		path);
}
