/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One qemu-nbd -r per disk.  A frozen base is read-only in QEMU, which is why its persistent
 * bitmaps are in its file and another process may read both.  QEMU's own NBD server is left alone:
 * QEMU 7.2 aborts when it inactivates a node (migration, save) whose bitmap is exported, and when a
 * client leaves an export in an iothread; it does not protect the base from a commit; and what it
 * reads goes through the loop that serves the guest.
 *
 * A transient bitmap (raw, qcow2 version 2) is in no file.  It is copied into an empty qcow2 image
 * that lies over the base, which qemu-nbd serves in its place.
 */
#include "exports.h"

#include "overlay.h"
#include "proc.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#define SERVE_TIMEOUT_MS 15000
#define STOP_TIMEOUT_MS  5000

void exports_free(struct export *v, size_t n)
{
	for (size_t i = 0; v && i < n; i++) {
		free(v[i].socket);
		free(v[i].image);
	}
	free(v);
}

static uint64_t now_ms(void)
{
	return clock_monotonic_ms(&clock_system);
}

/* ---- what qemu-nbd opens ---- */

/*
 * A node that was not opened just as its file says has a name that says how, "json:{…}".  The
 * host's cache is used as QEMU uses it, so that reading does not push out what others have in it.
 */
static int describe(const struct block_node *base, json_t **ret, struct error *err)
{
	static const char prefix[] = "json:";
	const struct block_node *storage = block_node_storage(base);
	int direct = jsonx_flag(json_object_get(storage->info, "cache"), "direct");
	auto_json json_t *v = NULL;
	int r;

	if (strncmp(base->file, prefix, strlen(prefix)) == 0)
		v = json_loads(base->file + strlen(prefix), 0, NULL);
	else
		v = json_pack("{s:s, s:{s:s, s:s}}", "driver", block_node_format_name(base), "file",
			      "driver", storage->drv, "filename", storage->file);
	if (!json_is_object(v))
		return error_set(err, TM_E_PEER, "QEMU does not say how it opened %s", base->name);
	r = jsonx_set(v, "cache", json_pack("{s:b}", "direct", direct), err);
	if (!r)
		*ret = tm_steal(v);
	return r;
}

int export_text(const json_t *description, char **ret, struct error *err)
{
	char *text = json_dumps(description, JSON_COMPACT);
	int r = text ? text_format(ret, err, "json:%s", text) : error_nomem(err);

	free(text);
	return r;
}

int export_describe(struct export *e, const struct block_node *base, struct error *err)
{
	auto_json json_t *description = NULL;
	int r = describe(base, &description, err);

	free(e->image);
	e->image = NULL;
	return r ? r : export_text(description, &e->image, err);
}

int export_alone(const char *file, const char *format, bool unlocked, char **ret, struct error *err)
{
	auto_json json_t *v = NULL;
	int r = jsonx_make(&v, err, "{s:s, s:n, s:b, s:{s:s, s:s}}", "driver", format, "backing",
			   "force-share", (int)unlocked, "file", "driver", "file", "filename",
			   file);

	return r ? r : export_text(v, ret, err);
}

/* ---- transient bitmaps ---- */

static int copy_node(const struct journal *j, size_t i, char **ret, struct error *err)
{
	return text_format(ret, err, "tm-%.12s-%zu-bm", id_text(&j->point).s + TM_ID_HEX - 12, i);
}

static int add_copy(struct guest *g, const char *node, const char *file, struct error *err)
{
	json_t *args;
	int r = jsonx_make(&args, err, "{s:s, s:s, s:n, s:{s:s, s:s}}", "driver", "qcow2",
			   "node-name", node, "backing", "file", "driver", "file", "filename",
			   file);

	return r ? r : guest_do(g, "blockdev-add", args, err);
}

static int merge_copy(struct guest *g, const char *node, const struct export *e, struct error *err)
{
	json_t *args;
	int r = jsonx_make(&args, err, "{s:s, s:s, s:b, s:b, s:i}", "node", node, "name", e->bitmap,
			   "persistent", 1, "disabled", 1, "granularity",
			   (int)SNAPSHOT_GRANULARITY);

	if (!r)
		r = guest_do(g, "block-dirty-bitmap-add", args, err);
	if (!r)
		r = jsonx_make(&args, err, "{s:s, s:s, s:[{s:s, s:s}]}", "node", node, "target",
			       e->bitmap, "bitmaps", "node", e->node, "name", e->bitmap);
	return r ? r : guest_do(g, "block-dirty-bitmap-merge", args, err);
}

/* The image that has a copy of the bitmap; it is in the file once QEMU has let go of it. */
static int make_copy(struct guest *g, const struct journal *j, size_t i, const struct export *e,
		     const char *file, struct error *err)
{
	const struct journal_disk *d = &j->disks[i];
	auto_free char *node = NULL;
	bool apart = false; /* nobody writes into it */
	int r = copy_node(j, i, &node, err);

	if (!r)
		r = overlay_create(file, d->base, d->format, d->size, &apart, err);
	if (!r)
		r = add_copy(g, node, file, err);
	if (!r) {
		struct error e_del = {0};
		int rd;

		r = merge_copy(g, node, e, err);
		rd = guest_delete_node(g, node, &e_del);
		if (!r && rd)
			r = error_pass(err, rd, &e_del);
	}
	return r;
}

/* e->image becomes the copy over the base. */
static int show_bitmap(struct guest *g, const struct journal *j, size_t i, struct export *e,
		       struct error *err)
{
	auto_json json_t *description = NULL, *base = NULL;
	auto_free char *file = NULL;
	int r = text_format(&file, err, "%s/bitmap%zu.qcow2", j->socket_dir, i);

	if (!r)
		r = make_copy(g, j, i, e, file, err);
	if (r)
		return r;
	base = json_loads(strchr(e->image, ':') + 1, 0, NULL);
	if (!base)
		return error_nomem(err);
	r = jsonx_make(&description, err, "{s:s, s:{s:s, s:s}, s:O}", "driver", "qcow2", "file",
		       "driver", "file", "filename", file, "backing", base);
	if (r)
		return r;
	free(tm_steal(e->image));
	return export_text(description, &e->image, err);
}

/* Without its bitmap the disk is read on another rung; a QEMU that is gone is another matter. */
static int show_transient(struct guest *g, const struct journal *j, size_t i, struct export *e,
			  struct error *err)
{
	struct error why = {0};
	int r = show_bitmap(g, j, i, e, &why);

	if (!r)
		return 0;
	if (qmp_lost(g->qmp) || !e->image)
		return error_pass(err, r, &why);
	(void)snprintf(e->bitmap_reason, sizeof(e->bitmap_reason),
		       "its transient bitmap cannot be read: %.200s", why.text);
	return 0;
}

/* ---- qemu-nbd ---- */

int export_serve(const char *image, const char *format, const char *bitmap, const char *socket,
		 struct server *ret, struct error *err)
{
	const char *argv[14] = {"qemu-nbd", "-r", "-t", "-e", "8", "-k", socket};
	size_t n = 7;

	if (format) {
		argv[n++] = "-f";
		argv[n++] = format;
	}
	if (bitmap) {
		argv[n++] = "-B";
		argv[n++] = bitmap;
	}
	argv[n] = image;
	return server_start(argv, ret, err);
}

static int wait_for_socket(const char *socket, struct server *server, struct error *err)
{
	uint64_t deadline = now_ms() + SERVE_TIMEOUT_MS;

	for (;;) {
		if (proc_listener(socket, NULL))
			return 0;
		if (server_ended(server))
			return error_set(err, TM_E_PEER, "it cannot be read");
		if (now_ms() >= deadline)
			return error_set(err, TM_E_TIMEOUT, "qemu-nbd does not start to listen");
		clock_sleep_ms(&clock_system, 10);
	}
}

int export_wait(const char *file, const char *socket, struct server *server, struct error *err)
{
	char holder[PROC_NAME_MAX + 32];
	int r = wait_for_socket(socket, server, err);

	if (!r)
		return 0;
	server_explain(server, err);
	server_stop(server, STOP_TIMEOUT_MS);
	proc_holder_text(file, holder);
	error_prefix(err, "%s%s", file, holder);
	return r;
}

int exports_start(struct guest *g, struct journal *j, struct export *v, struct error *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < j->ndisks; i++) {
		if (v[i].bitmap && !v[i].persistent)
			r = show_transient(g, j, i, &v[i], err);
		if (!r)
			r = text_format(&v[i].socket, err, "%s/nbd%zu.sock", j->socket_dir, i);
		if (!r)
			r = export_serve(v[i].image, NULL, *v[i].bitmap_reason ? NULL : v[i].bitmap,
					 v[i].socket, &v[i].server, err);
	}
	for (size_t i = 0; !r && i < j->ndisks; i++)
		r = export_wait(j->disks[i].base, v[i].socket, &v[i].server, err);
	return r;
}

/* ---- the end ---- */

static void stop_process(pid_t pid)
{
	uint64_t deadline = now_ms() + STOP_TIMEOUT_MS;

	(void)kill(pid, SIGTERM);
	while (proc_start(pid) && now_ms() < deadline)
		clock_sleep_ms(&clock_system, 20);
	if (now_ms() >= deadline)
		(void)kill(pid, SIGKILL);
}

void exports_stop_servers(const struct journal *j, struct export *v)
{
	for (size_t i = 0; i < j->ndisks; i++) {
		auto_free char *socket = NULL;
		pid_t pid;

		if (v) {
			server_stop(&v[i].server, STOP_TIMEOUT_MS);
		} else if (j->socket_dir &&
			   text_format(&socket, NULL, "%s/nbd%zu.sock", j->socket_dir, i) == 0 &&
			   proc_find_command("qemu-nbd", socket, &pid)) {
			stop_process(pid);
		}
	}
	if (j->socket_dir)
		rundir_remove(j->socket_dir);
}

int exports_end(struct guest *g, struct journal *j, struct export *v, struct error *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < j->ndisks; i++) {
		auto_free char *node = NULL;

		if (v && (!v[i].bitmap || v[i].persistent))
			continue;
		r = copy_node(j, i, &node, err);
		if (!r)
			r = guest_delete_node(g, node, err);
	}
	exports_stop_servers(j, v);
	return r;
}
