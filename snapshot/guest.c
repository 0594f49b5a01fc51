/* SPDX-License-Identifier: Apache-2.0 */
/* A guest that was opened: who it is, how to reach it, what disks it has. */
#include "guest.h"

#include "guard.h"
#include "identity.h"
#include "rival.h"

#include <errno.h>
#include <string.h>

#define DEL_TIMEOUT_MS 10000

static int canonical(const char *path, char **ret, struct error *err)
{
	*ret = realpath(path, NULL);
	if (*ret)
		return 0;
	if (errno == ENOMEM)
		return error_nomem(err);
	return text_copy(path, ret, err); /* whoever opens it will say what is wrong */
}

/* "/a/b/disk.qcow2" → "disk" */
static int base_name(const char *path, char **ret, struct error *err)
{
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
	size_t len = strlen(name);
	const char *dot = strrchr(name, '.');

	if (dot && dot != name)
		len = (size_t)(dot - name);
	return text_format(ret, err, "%.*s", (int)len, name);
}

static int set_target(struct guest *g, const struct guest_target *target, struct error *err)
{
	int r = 0;

	if (target->kind == GUEST_QMP) {
		if (!target->qmp_socket)
			return error_set(err, TM_E_USAGE, "no QMP socket was named");
		r = canonical(target->qmp_socket, &g->qmp_socket, err);
		if (!r && target->agent_socket)
			r = canonical(target->agent_socket, &g->agent_socket, err);
		return r;
	}
	if (!target->nimages)
		return error_set(err, TM_E_USAGE, "no image was named");
	g->images = calloc(target->nimages, sizeof(*g->images));
	if (!g->images)
		return error_nomem(err);
	for (; !r && g->nimages < target->nimages; g->nimages++)
		r = canonical(target->images[g->nimages], &g->images[g->nimages], err);
	if (!r && target->image_format)
		r = text_copy(target->image_format, &g->image_format, err);
	return r;
}

/* A wait is bounded, and no silence of ours. */
static int wait_tick(void *data, const struct snapshot_progress *p, struct error *err)
{
	const struct guest *g = data;

	guard_beat(g->guard);
	return g->quiet || !g->hooks.tick ? 0 : g->hooks.tick(g->hooks.data, p, err);
}

int guest_new(const struct guest_target *target, const struct guest_options *opt,
	      struct guest **ret, struct error *err)
{
	auto_clean(guest_free) struct guest *g = calloc(1, sizeof(*g));
	int r;

	if (!g)
		return error_nomem(err);
	g->lock = g->lock_disk = g->lock_journal = -1;
	g->kind = target->kind;
	g->hooks = opt->hooks;
	g->qmp_hooks = (struct snapshot_hooks){wait_tick, g};
	r = set_target(g, target, err);
	if (!r)
		r = text_copy(opt->state_dir, &g->state_dir, err);
	if (!r)
		r = journal_key(g->kind == GUEST_QMP ? g->qmp_socket : g->images[0], &g->key, err);
	if (!r && target->name)
		r = text_copy(target->name, &g->name, err);
	if (!r && opt->exclusive)
		r = journal_lock(g->state_dir, g->key, &g->qmp_hooks, &g->lock, err);
	if (r)
		return r;
	*ret = tm_steal(g);
	return 0;
}

void guest_free(struct guest *g)
{
	if (!g)
		return;
	guard_end(g->guard);
	qmp_free(g->qmp);
	guest_disks_free(g->disks, g->ndisks);
	for (size_t i = 0; i < g->nimages; i++)
		free(g->images[i]);
	free(g->images);
	free(g->image_format);
	if (g->lock >= 0)
		(void)close(g->lock);
	if (g->lock_disk >= 0)
		(void)close(g->lock_disk);
	if (g->lock_journal >= 0)
		(void)close(g->lock_journal);
	free(g->name);
	free(g->uuid);
	free(g->state);
	free(g->qmp_socket);
	free(g->agent_socket);
	free(g->state_dir);
	free(g->key);
	free(g);
}

int guest_connect(struct guest *g, struct error *err)
{
	qmp_free(tm_steal(g->qmp));
	return qmp_open(g->qmp_socket, QMP_GREETING_MS, &g->qmp_hooks, &g->qmp, err);
}

int guest_do(struct guest *g, const char *command, json_t *args, struct error *err)
{
	return qmp_call(g->qmp, command, args, QMP_TIMEOUT_MS, NULL, err);
}

int guest_delete_node(struct guest *g, const char *node, struct error *err)
{
	uint64_t deadline = clock_monotonic_ms(&clock_system) + DEL_TIMEOUT_MS;

	for (;;) {
		struct error e = {0};
		json_t *args;
		int r = jsonx_make(&args, err, "{s:s}", "node-name", node);

		if (!r)
			r = guest_do(g, "blockdev-del", args, &e);
		if (!r ||
		    (r == TM_E_PEER && strstr(qmp_fault(g->qmp)->desc, "Failed to find node")))
			return 0;
		if (r != TM_E_PEER || clock_monotonic_ms(&clock_system) >= deadline)
			return error_pass(err, r, &e);
		qmp_pause(g->qmp, 50); /* a job may just be letting go of it */
	}
}

int guest_query_state(struct guest *g, char **ret, struct error *err)
{
	auto_json json_t *status = NULL;
	const char *text;
	int r = qmp_call(g->qmp, "query-status", NULL, QMP_TIMEOUT_MS, &status, err);

	if (r)
		return r;
	text = jsonx_text(status, "status");
	return text_copy(text ? text : "unknown", ret, err);
}

void guest_set_quiet(struct guest *g, bool quiet)
{
	g->quiet = quiet;
}

int guest_tick(const struct guest *g, const char *phase, const char *disk, uint64_t done,
	       uint64_t total, struct error *err)
{
	const struct snapshot_progress p = {phase, disk, done, total, NULL};

	return g->qmp_hooks.tick(g->qmp_hooks.data, &p, err);
}

void guest_remark(const struct guest *g, const char *phase, const char *disk, const char *text)
{
	const struct snapshot_progress p = {phase, disk, 0, 0, text};

	log_debug("disk %s: %s", disk, text);
	if (g->hooks.tick)
		(void)g->hooks.tick(g->hooks.data, &p, NULL);
}

/* QEMU's -name and -uuid; both may be missing. */
static int identify(struct guest *g, struct error *err)
{
	static const char no_uuid[] = "00000000-0000-0000-0000-000000000000";
	auto_json json_t *name = NULL, *uuid = NULL;
	const char *text;
	int r = qmp_call(g->qmp, "query-name", NULL, QMP_TIMEOUT_MS, &name, err);

	if (!r)
		r = qmp_call(g->qmp, "query-uuid", NULL, QMP_TIMEOUT_MS, &uuid, err);
	if (!r && !g->name)
		r = jsonx_copy(name, "name", &g->name, err);
	text = jsonx_text(uuid, "UUID");
	if (!r && text && strcmp(text, no_uuid) != 0)
		r = text_copy(text, &g->uuid, err);
	return r;
}

static int refresh_qmp(struct guest *g, struct guest_disk **ret, size_t *ret_n, struct error *err)
{
	auto_graph struct block_graph graph = {0};
	char *state;
	int r = !g->qmp || qmp_lost(g->qmp) ? guest_connect(g, err) : 0;

	if (!r)
		r = guest_query_state(g, &state, err);
	if (r)
		return r;
	free(g->state);
	g->state = state;
	r = block_graph_load(g->qmp, &graph, err);
	return r ? r : disks_from_graph(&graph, ret, ret_n, err);
}

/* QEMU may open a disk by name again, and the servers that read it do. */
static int leave_out_exchanged(struct guest *g, struct guest_disk *disks, size_t n,
			       struct error *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < n; i++) {
		struct guest_disk *d = &disks[i];
		const char *file = NULL;

		if (d->left_out) /* perhaps it has no file */
			continue;
		if (identity_open_elsewhere(g, d->file))
			file = d->file;
		for (size_t k = 0; !file && k < d->nchain; k++) {
			if (identity_open_elsewhere(g, d->chain[k].file))
				file = d->chain[k].file;
		}
		if (file)
			r = text_format(&d->left_out, err,
					"QEMU has another file open than the one that has the name "
					"%s now: it was replaced while the guest runs",
					file);
	}
	return r;
}

int guest_refresh(struct guest *g, struct error *err)
{
	struct guest_disk *disks;
	size_t n;
	int r;

	if (g->kind == GUEST_QMP) {
		r = refresh_qmp(g, &disks, &n, err);
	} else {
		r = image_disks(g, &disks, &n, err);
		if (!r && !g->state)
			r = text_copy("shutoff", &g->state, err);
	}
	if (!r)
		r = leave_out_exchanged(g, disks, n, err);
	if (r)
		return r;
	guest_disks_free(g->disks, g->ndisks);
	g->disks = disks;
	g->ndisks = n;
	return 0;
}

int guest_open(const struct guest_target *target, const struct guest_options *opt,
	       struct guest **ret, struct error *err)
{
	auto_clean(guest_free) struct guest *g = NULL;
	int r = guest_new(target, opt, &g, err);

	if (!r && g->kind == GUEST_QMP) {
		r = guest_connect(g, err);
		if (!r)
			r = identify(g, err);
	}
	if (!r && !g->name)
		r = base_name(g->kind == GUEST_QMP ? g->qmp_socket : g->images[0], &g->name, err);
	if (!r)
		r = guest_refresh(g, err);
	if (!r && opt->exclusive)
		r = rival_lock(g, err);
	if (r)
		return r;
	*ret = tm_steal(g);
	return 0;
}

const char *guest_name(const struct guest *g)
{
	return g->name;
}

const char *guest_uuid(const struct guest *g)
{
	return g->uuid;
}

const char *guest_state(const struct guest *g)
{
	return g->state;
}

enum guest_kind guest_kind(const struct guest *g)
{
	return g->kind;
}

bool guest_has_agent(const struct guest *g)
{
	return g->agent_socket != NULL;
}

size_t guest_ndisks(const struct guest *g)
{
	return g->ndisks;
}

const struct guest_disk *guest_disk(const struct guest *g, size_t i)
{
	return &g->disks[i];
}

static bool is_named(const struct guest_disk *d, const char *text)
{
	return strcmp(d->name, text) == 0 || (d->qdev && strcmp(d->qdev, text) == 0) ||
	       (d->drive && strcmp(d->drive, text) == 0) ||
	       (d->node && strcmp(d->node, text) == 0) || (d->file && strcmp(d->file, text) == 0);
}

int guest_find_disk(const struct guest *g, const char *text, size_t *ret, struct error *err)
{
	auto_buf struct buf known = {0};
	int r = 0;

	for (size_t i = 0; i < g->ndisks; i++) {
		if (strcmp(g->disks[i].name, text) == 0) {
			*ret = i;
			return 0;
		}
	}
	for (size_t i = 0; i < g->ndisks; i++) {
		if (is_named(&g->disks[i], text)) {
			*ret = i;
			return 0;
		}
	}
	for (size_t i = 0; !r && i < g->ndisks; i++)
		r = buf_printf(&known, err, "%s%s", i ? ", " : "", g->disks[i].name);
	if (r)
		return r;
	return error_set(err, TM_E_NOTFOUND, "guest %s has no disk '%s'; it has: %s", g->name, text,
			 known.len ? (const char *)known.data : "none");
}
