/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing an object of a directory store, step by step; each has to succeed before the next
 * begins:
 *	1 open   tmp/<random>, new
 *	2 write  the bytes
 *	3 sync   fdatasync of the file
 *	4 dirs   make the folders of the key, syncing each one's parent (once per process
 *	         and folder: another process may have made it and not yet synced it)
 *	5 rename to its name, never over another object
 *	6 publish  fsync of the folder; the same where the name was taken, since its
 *	         writer may have been killed before that
 * A crash before 5 leaves a file in tmp/, which is no object.  Where there is no room for any of
 * it, and the reserve may be used, all of it is done once more with a part of that.
 */
#include "store_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define WRITE_CHUNK  (1u << 20)
#define TMP_NAME     40
#define FOLDER_TRIES 4

/* A folder whose way from the root is durable. */
struct folder {
	char path[KEY_MAX]; /* without the last slash; "" is the root */
	int fd;
	unsigned refs; /* puts that use it */
	uint64_t used; /* clock of the cache */
};

enum put_step {
	PUT_OPEN,
	PUT_WRITE,
	PUT_SYNC,
	PUT_MKDIR,
	PUT_OPEN_PARENT,
	PUT_SYNC_PARENT,
	PUT_OPEN_FOLDER,
	PUT_RENAME,
	PUT_TAKEN, /* the name was: what has it is made durable */
	PUT_PUBLISH,
	PUT_UNLINK,
};

struct put {
	struct loop_op op;
	struct dir_store *d;
	struct store_req *req;
	const uint8_t *bytes;
	size_t len, pos;
	int fd;
	int parent;  /* step 4 */
	size_t made; /* step 4: length of the part of folder_path that is made */
	struct folder *folder;
	enum put_step step;
	unsigned tries; /* of step 4 */
	int code;
	char key[KEY_MAX];
	char folder_path[KEY_MAX];
	char part[KEY_MAX]; /* of folder_path: being made, then its parent */
	char tmp[TMP_NAME];
};

/* ---- folders ---- */

static struct folder *folder_find(struct dir_store *d, const char *path)
{
	for (size_t i = 0; i < DIR_FOLDERS; i++) {
		if (d->folders[i] && strcmp(d->folders[i]->path, path) == 0) {
			d->folders[i]->used = ++d->clock;
			return d->folders[i];
		}
	}
	return NULL;
}

static void folder_free(struct folder *f)
{
	(void)close(f->fd);
	free(f);
}

static void folder_unref(struct dir_store *d, struct folder *f)
{
	f->refs--;
	for (size_t i = 0; i < DIR_FOLDERS; i++)
		if (d->folders[i] == f)
			return;
	if (f->refs == 0)
		folder_free(f);
}

/* Takes fd over, also on failure. The caller gets one reference. */
static struct folder *folder_add(struct dir_store *d, const char *path, int fd)
{
	struct folder *f = calloc(1, sizeof(*f));
	size_t victim = 0;

	if (!f) {
		(void)close(fd);
		return NULL;
	}
	memcpy(f->path, path, strlen(path) + 1);
	f->fd = fd;
	f->refs = 1;
	f->used = ++d->clock;
	for (size_t i = 0; i < DIR_FOLDERS; i++) {
		if (!d->folders[i]) {
			d->folders[i] = f;
			return f;
		}
		if (d->folders[i]->used < d->folders[victim]->used)
			victim = i;
	}
	if (d->folders[victim]->refs == 0)
		folder_free(d->folders[victim]);
	d->folders[victim] = f; /* one that is in use is freed by its last user */
	return f;
}

void dir_folders_free(struct dir_store *d)
{
	for (size_t i = 0; i < DIR_FOLDERS; i++)
		if (d->folders[i])
			folder_free(d->folders[i]);
}

/* ---- put ---- */

static void put_start_step(struct put *p, enum put_step step);

static void put_close(struct put *p)
{
	if (p->fd >= 0)
		(void)close(p->fd);
	if (p->parent >= 0)
		(void)close(p->parent);
	if (p->folder)
		folder_unref(p->d, p->folder);
	p->fd = p->parent = -1;
	p->folder = NULL;
}

/* There was no room and now there is some; nothing is left of the first attempt. */
static bool put_again(struct put *p)
{
	if (p->code != TM_E_NOSPACE || p->step == PUT_PUBLISH || !dir_reserve_cut(p->d, p->len))
		return false;
	error_clear(&p->req->err);
	p->code = 0;
	p->pos = p->made = 0;
	put_start_step(p, PUT_OPEN);
	return true;
}

static void put_finish(struct put *p)
{
	struct store_req *req = p->req;
	int code = p->code;

	put_close(p);
	if (put_again(p))
		return;
	if (code == TM_E_NOSPACE)
		error_append(&req->err, ": no room in the repository; forget points, then prune");
	free(p);
	req->done(req, code);
}

/* Ends the put with the error that is in req->err; the temporary file goes first. */
static void put_fail(struct put *p, int code)
{
	p->code = code;
	if (p->step == PUT_OPEN || p->step == PUT_PUBLISH) {
		put_finish(p);
		return;
	}
	put_start_step(p, PUT_UNLINK);
}

static void put_next_part(struct put *p)
{
	const char *slash = strchr(p->folder_path + p->made + (p->made > 0), '/');
	size_t len = slash ? (size_t)(slash - p->folder_path) : strlen(p->folder_path);

	memcpy(p->part, p->folder_path, len);
	p->part[len] = 0;
}

/* After the file is synced, and after each part of the way. */
static void put_dirs(struct put *p)
{
	p->folder = folder_find(p->d, p->folder_path);
	if (p->folder) {
		p->folder->refs++;
		put_start_step(p, PUT_RENAME);
	} else if (p->folder_path[p->made] == 0) {
		put_start_step(p, PUT_OPEN_FOLDER);
	} else {
		put_next_part(p);
		put_start_step(p, PUT_MKDIR);
	}
}

/* An empty folder may be tidied away until there is something in it: once more from step 4. */
static bool put_lost_folder(struct put *p, int res)
{
	if (res != -ENOENT || p->step < PUT_MKDIR || p->step > PUT_RENAME ||
	    p->tries++ == FOLDER_TRIES)
		return false;
	if (p->parent >= 0)
		(void)close(p->parent);
	p->parent = -1;
	for (size_t i = 0; p->folder && i < DIR_FOLDERS; i++)
		if (p->d->folders[i] == p->folder)
			p->d->folders[i] = NULL;
	if (p->folder)
		folder_unref(p->d, p->folder);
	p->folder = NULL;
	p->made = 0;
	put_dirs(p);
	return true;
}

static void put_made_part(struct put *p)
{
	char *slash = strrchr(p->part, '/');

	p->made = strlen(p->part);
	*(slash ? slash : p->part) = 0; /* now the parent */
	put_start_step(p, PUT_OPEN_PARENT);
}

/* The name of the object in its folder. */
static const char *put_name(const struct put *p)
{
	const char *slash = strrchr(p->key, '/');

	return slash ? slash + 1 : p->key;
}

static void put_start_step(struct put *p, enum put_step step)
{
	struct loop *loop = p->d->st.loop;

	p->step = step;
	switch (step) {
	case PUT_OPEN:
		loop_openat(loop, &p->op, p->d->tmp, p->tmp,
			    O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		break;
	case PUT_WRITE:
		loop_write(loop, &p->op, p->fd, p->bytes + p->pos,
			   (uint32_t)min_size(p->len - p->pos, WRITE_CHUNK), p->pos);
		break;
	case PUT_SYNC:
		loop_fdatasync(loop, &p->op, p->fd);
		break;
	case PUT_MKDIR:
		loop_mkdirat(loop, &p->op, p->d->root, p->part, 0700);
		break;
	case PUT_OPEN_PARENT:
		loop_openat(loop, &p->op, p->d->root, p->part[0] ? p->part : ".",
			    O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
		break;
	case PUT_SYNC_PARENT:
		loop_fsync(loop, &p->op, p->parent);
		break;
	case PUT_OPEN_FOLDER:
		loop_openat(loop, &p->op, p->d->root, p->folder_path[0] ? p->folder_path : ".",
			    O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
		break;
	case PUT_RENAME:
		loop_renameat(loop, &p->op, p->d->tmp, p->tmp, p->folder->fd, put_name(p),
			      RENAME_NOREPLACE);
		break;
	case PUT_TAKEN:
	case PUT_PUBLISH:
		loop_fsync(loop, &p->op, p->folder->fd);
		break;
	case PUT_UNLINK:
		loop_unlinkat(loop, &p->op, p->d->tmp, p->tmp);
		break;
	}
}

static void put_renamed(struct put *p, int res)
{
	if (res == -EINVAL || res == -ENOSYS)
		res = io_rename_by_link(p->d->tmp, p->tmp, p->folder->fd, put_name(p));
	if (put_lost_folder(p, res))
		return;
	if (res == -EEXIST)
		put_start_step(p, PUT_TAKEN);
	else if (res < 0)
		put_fail(p,
			 error_errno(&p->req->err, -res, "renaming to %s/%s", p->d->path, p->key));
	else
		put_start_step(p, PUT_PUBLISH);
}

static void put_wrote(struct put *p, int res)
{
	if (res < 0 || (res == 0 && p->len > 0)) {
		put_fail(p, error_errno(&p->req->err, res < 0 ? -res : EIO, "writing %s/tmp/%s",
					p->d->path, p->tmp));
		return;
	}
	p->pos += (size_t)res;
	put_start_step(p, p->pos < p->len ? PUT_WRITE : PUT_SYNC);
}

static void put_opened_folder(struct put *p, int fd)
{
	p->folder = folder_add(p->d, p->folder_path, fd);
	if (p->folder)
		put_start_step(p, PUT_RENAME);
	else
		put_fail(p, error_nomem(&p->req->err));
}

static void put_step_failed(struct put *p, int errnum)
{
	static const char *const doing[] = {
		[PUT_OPEN] = "creating a file in tmp/ for",
		[PUT_WRITE] = "writing",
		[PUT_SYNC] = "syncing",
		[PUT_MKDIR] = "creating the folder of",
		[PUT_OPEN_PARENT] = "opening the folder of",
		[PUT_SYNC_PARENT] = "syncing the folder of",
		[PUT_OPEN_FOLDER] = "opening the folder of",
		[PUT_RENAME] = "renaming to",
		[PUT_TAKEN] = "syncing the folder of",
		[PUT_PUBLISH] = "syncing the folder of",
		[PUT_UNLINK] = "removing",
	};

	put_fail(p,
		 error_errno(&p->req->err, errnum, "%s %s/%s", doing[p->step], p->d->path, p->key));
}

static void put_progress(struct loop_op *op, int res)
{
	struct put *p = container_of(op, struct put, op);

	if (res == -EINTR || res == -EAGAIN) {
		put_start_step(p, p->step);
		return;
	}
	if (p->step == PUT_MKDIR && res == -EEXIST)
		res = 0;
	if (res < 0 && p->step != PUT_RENAME && p->step != PUT_UNLINK) {
		if (!put_lost_folder(p, res))
			put_step_failed(p, -res);
		return;
	}
	switch (p->step) {
	case PUT_OPEN:
		p->fd = res;
		put_start_step(p, PUT_WRITE);
		break;
	case PUT_WRITE:
		put_wrote(p, res);
		break;
	case PUT_SYNC:
		put_dirs(p);
		break;
	case PUT_MKDIR:
		put_made_part(p);
		break;
	case PUT_OPEN_PARENT:
		p->parent = res;
		put_start_step(p, PUT_SYNC_PARENT);
		break;
	case PUT_SYNC_PARENT:
		(void)close(p->parent);
		p->parent = -1;
		put_dirs(p);
		break;
	case PUT_OPEN_FOLDER:
		put_opened_folder(p, res);
		break;
	case PUT_RENAME:
		put_renamed(p, res);
		break;
	case PUT_TAKEN:
		put_fail(p,
			 error_set(&p->req->err, TM_E_EXISTS, "object %s exists already", p->key));
		break;
	case PUT_PUBLISH:
	case PUT_UNLINK:
		put_finish(p);
		break;
	}
}

static int put_new(struct dir_store *d, const char *key, struct put **ret, struct error *err)
{
	auto_free struct put *p = calloc(1, sizeof(*p));
	uint8_t random[8];
	char *slash;
	int r;

	if (!p)
		return error_nomem(err);
	if (!store_key_ok(key))
		return error_set(err, TM_E_RANGE, "bad object key '%s'", key);
	r = random_bytes(random, sizeof(random), err);
	if (r < 0)
		return r;
	hex_encode(random, sizeof(random), p->tmp);
	memcpy(p->key, key, strlen(key) + 1);
	memcpy(p->folder_path, key, strlen(key) + 1);
	slash = strrchr(p->folder_path, '/');
	*(slash ? slash : p->folder_path) = 0;
	p->d = d;
	p->fd = p->parent = -1;
	p->op.done = put_progress;
	*ret = tm_steal(p);
	return 0;
}

void dir_put_new(struct store *st, const char *key, const void *bytes, size_t len,
		 struct store_req *req)
{
	struct put *p = NULL;
	int r;

	error_clear(&req->err);
	r = put_new(dir_of(st), key, &p, &req->err);
	if (r < 0) {
		store_answer(st, req, r);
		return;
	}
	p->req = req;
	p->bytes = bytes;
	p->len = len;
	put_start_step(p, PUT_OPEN);
}
