/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's own NBD server where it is free, else one qemu-nbd per disk.  An export of QEMU's own
 * does not protect the frozen data from a commit, and keeps its bitmap busy until it is deleted:
 * so every export is gone, as query-block-exports shows, before anything else happens.
 */
#include "exports.h"

#include "overlay.h"
#include "proc.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define CONNECTIONS      16
#define END_TIMEOUT_MS   20000
#define END_HARD_MS      3000 /* readers have this long to close */
#define SERVE_TIMEOUT_MS 15000
#define STOP_TIMEOUT_MS  5000

void exports_free(struct export *v, size_t n)
{
	for (size_t i = 0; v && i < n; i++) {
		free(v[i].socket);
		free(v[i].name);
	}
	free(v);
}

static uint64_t now_ms(void)
{
	return clock_monotonic_ms(&clock_system);
}

static int export_id(const struct journal *j, size_t i, char **ret, struct error *err)
{
	return text_format(ret, err, "tm-%.12s-%zu", id_text(&j->point).s + TM_ID_HEX - 12, i);
}

/* ---- QEMU's server ---- */

static int start_server(struct guest *g, const char *socket, struct error *err)
{
	json_t *args;
	int r = jsonx_make(&args, err, "{s:{s:s, s:{s:s}}, s:i}", "addr", "type", "unix", "data",
			   "path", socket, "max-connections", CONNECTIONS);

	return r ? r : guest_do(g, "nbd-server-start", args, err);
}

static int add_export(struct guest *g, const struct export *e, struct error *err)
{
	json_t *args, *bitmaps = json_array();
	int r = bitmaps ? 0 : error_nomem(err);

	if (!r && e->bitmap)
		r = jsonx_append(bitmaps, json_string(e->bitmap), err);
	if (!r)
		r = jsonx_make(&args, err, "{s:s, s:s, s:s, s:s, s:b, s:O}", "type", "nbd", "id",
			       e->name, "node-name", e->node, "name", e->name, "writable", 0,
			       "bitmaps", bitmaps);
	json_decref(bitmaps);
	return r ? r : guest_do(g, "block-export-add", args, err);
}

static int export_in_qemu(struct guest *g, struct journal *j, struct export *v, struct error *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < j->ndisks; i++) {
		r = add_export(g, &v[i], err);
		if (r)
			error_prefix(err, "disk %s cannot be exported", j->disks[i].name);
	}
	return r;
}

/* ---- qemu-nbd ---- */

static int wait_for_socket(const char *socket, pid_t pid, struct error *err)
{
	uint64_t deadline = now_ms() + SERVE_TIMEOUT_MS;
	for (;;) {
		if (proc_listener(socket, NULL))
			return 0;
		if (spawn_ended(pid))
			return error_set(err, TM_E_PEER, "qemu-nbd ended before it listened");
		if (now_ms() >= deadline)
			return error_set(err, TM_E_TIMEOUT, "qemu-nbd does not start to listen");
		clock_sleep_ms(&clock_system, 10);
	}
}

int export_serve_file(const char *file, const char *format, const char *bitmap, const char *socket,
		      pid_t *ret, struct error *err)
{
	const char *argv[] = {"qemu-nbd", "-r",
			      "-t",       "-e",
			      "8",        "-f",
			      format,     "-k",
			      socket,     bitmap ? "-B" : file,
			      bitmap,     bitmap ? file : NULL,
			      NULL};
	pid_t pid;
	int r = spawn_start(argv, &pid, err);

	if (r)
		return r;
	r = wait_for_socket(socket, pid, err);
	if (r) {
		char holder[PROC_NAME_MAX + 32];

		spawn_stop(pid, STOP_TIMEOUT_MS);
		proc_holder_text(file, holder);
		error_prefix(err, "%s%s", file, holder);
		return r;
	}
	*ret = pid;
	return 0;
}

static int export_by_nbd(const struct journal *j, struct export *v, struct error *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < j->ndisks; i++) {
		v[i].bitmap_lost = v[i].bitmap && !v[i].persistent;
		free(v[i].socket);
		v[i].socket = NULL;
		r = text_format(&v[i].socket, err, "%s/nbd%zu.sock", j->socket_dir, i);
		if (!r)
			r = export_serve_file(j->disks[i].base, j->disks[i].format,
					      v[i].persistent ? v[i].bitmap : NULL, v[i].socket,
					      &v[i].pid, err);
		free(v[i].name);
		v[i].name = NULL;
	}
	return r;
}

/*
 * When a client of QEMU's own NBD server leaves and the disk is served by an iothread, QEMU 7.2
 * aborts (nbd_blockdev_client_closed: Assertion `qemu_in_main_thread() && nbd_server' failed),
 * however the export is ended.  A guest with iothreads is read by a qemu-nbd of our own.
 */
static int has_iothreads(struct guest *g, bool *ret, struct error *err)
{
	auto_json json_t *threads = NULL;
	int r = qmp_call(g->qmp, "query-iothreads", NULL, QMP_TIMEOUT_MS, &threads, err);

	*ret = json_array_size(threads) > 0;
	return r;
}

static int export_outside(struct journal *j, struct export *v, struct error *err)
{
	int r;

	j->server = SERVER_NBD;
	r = journal_write(j, JOURNAL_FROZEN, err);
	return r ? r : export_by_nbd(j, v, err);
}

int exports_start(struct guest *g, struct journal *j, struct export *v, struct error *err)
{
	bool iothreads = false;
	auto_free char *socket = NULL;
	struct error e = {0};
	int r = text_format(&socket, err, "%s/nbd.sock", j->socket_dir);

	for (size_t i = 0; !r && i < j->ndisks; i++) {
		r = text_copy(socket, &v[i].socket, err);
		if (!r)
			r = export_id(j, i, &v[i].name, err);
	}
	if (!r)
		r = has_iothreads(g, &iothreads, err);
	if (r)
		return r;
	if (iothreads)
		return export_outside(j, v, err);
	r = start_server(g, socket, &e);
	if (!r)
		return export_in_qemu(g, j, v, err);
	if (r != TM_E_PEER || !strstr(qmp_fault(g->qmp)->desc, "already running")) {
		if (err && !err->code)
			*err = e;
		return r;
	}
	return export_outside(j, v, err); /* somebody else's server is theirs */
}

/* ---- the end ---- */

static void stop_process(pid_t pid)
{
	uint64_t deadline = now_ms() + STOP_TIMEOUT_MS;

	(void)kill(pid, SIGTERM);
	while (kill(pid, 0) == 0 && now_ms() < deadline)
		clock_sleep_ms(&clock_system, 20);
	if (now_ms() >= deadline)
		(void)kill(pid, SIGKILL);
}

void exports_stop_servers(const struct journal *j, struct export *v)
{
	for (size_t i = 0; i < j->ndisks; i++) {
		char end[32];
		auto_free char *socket = NULL;
		pid_t pid;

		if (v && v[i].pid) {
			spawn_stop(v[i].pid, STOP_TIMEOUT_MS);
			v[i].pid = 0;
			continue;
		}
		(void)snprintf(end, sizeof(end), "/nbd%zu.sock", i);
		if (j->socket_dir && text_format(&socket, NULL, "%s%s", j->socket_dir, end) == 0 &&
		    proc_find_command("qemu-nbd", socket, &pid))
			stop_process(pid);
	}
	if (j->socket_dir)
		socket_dir_remove(j->socket_dir);
}

/* Which of QEMU's exports are of this run, and whether others have NBD exports too. */
static int look(struct guest *g, const struct journal *j, bool *ours, bool *others,
		struct error *err)
{
	auto_free char *prefix = NULL;
	auto_json json_t *list = NULL;
	const json_t *v;
	size_t i;
	int r = text_format(&prefix, err, "tm-%.12s-", id_text(&j->point).s + TM_ID_HEX - 12);

	if (!r)
		r = qmp_call(g->qmp, "query-block-exports", NULL, QMP_TIMEOUT_MS, &list, err);
	if (r)
		return r;
	*ours = *others = false;
	json_array_foreach(list, i, v)
	{
		const char *id = jsonx_text(v, "id"), *type = jsonx_text(v, "type");

		if (id && strncmp(id, prefix, strlen(prefix)) == 0)
			*ours = true;
		else if (type && strcmp(type, "nbd") == 0)
			*others = true;
	}
	return 0;
}

int exports_found(struct guest *g, const struct journal *j, bool *ret, struct error *err)
{
	bool others;

	return look(g, j, ret, &others, err);
}

static int delete_exports(struct guest *g, const struct journal *j, bool hard, struct error *err)
{
	for (size_t i = 0; i < j->ndisks; i++) {
		auto_free char *id = NULL;
		json_t *args;
		int r = export_id(j, i, &id, err);

		if (!r)
			r = jsonx_make(&args, err, "{s:s, s:s}", "id", id, "mode",
				       hard ? "hard" : "safe");
		if (r)
			return r;
		r = guest_do(g, "block-export-del", args, NULL); /* perhaps it is gone already */
		if (r && r != TM_E_PEER)
			return error_set(err, r, "block-export-del was not answered");
	}
	return 0;
}

static int end_in_qemu(struct guest *g, struct journal *j, struct error *err)
{
	uint64_t start = now_ms();
	bool ours, others = false;
	struct stat st;
	auto_free char *socket = NULL;
	int r;

	for (;;) {
		r = look(g, j, &ours, &others, err);
		if (r || !ours)
			break;
		if (now_ms() - start > END_TIMEOUT_MS)
			return error_set(err, TM_E_TIMEOUT, "QEMU does not end the NBD exports");
		r = delete_exports(g, j, now_ms() - start > END_HARD_MS, err);
		if (r)
			return r;
		qmp_pause(g->qmp, 20);
	}
	if (!r)
		r = text_format(&socket, err, "%s/nbd.sock", j->socket_dir);
	/* The socket is there when it was our nbd-server-start that succeeded. */
	if (!r && !others && stat(socket, &st) == 0) {
		r = guest_do(g, "nbd-server-stop", NULL, err);
		if (r == TM_E_PEER && strstr(qmp_fault(g->qmp)->desc, "not running")) {
			error_clear(err);
			r = 0;
		}
	}
	return r;
}

int exports_end(struct guest *g, struct journal *j, struct export *v, struct error *err)
{
	int r = 0;

	if (j->server == SERVER_QEMU)
		r = end_in_qemu(g, j, err);
	if (!r)
		exports_stop_servers(j, v);
	return r;
}
