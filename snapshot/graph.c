/* SPDX-License-Identifier: Apache-2.0 */
/*
 * query-block knows the devices, query-named-block-nodes the nodes, and only
 * x-debug-query-block-graph which node stands on which.  Names of nodes may change with each
 * start of QEMU: nothing of this is kept beyond one step.
 */
#include "graph.h"

#include "proc.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define NODES_MAX 65536 /* more is no guest but nonsense */

void block_graph_done(struct block_graph *g)
{
	free(g->nodes);
	free(g->devices);
	json_decref(g->query_block);
	json_decref(g->named);
	json_decref(g->edges);
	*g = (struct block_graph){0};
}

static struct block_node *find_node(const struct block_graph *g, const char *name)
{
	for (size_t i = 0; name && i < g->nnodes; i++) {
		if (strcmp(g->nodes[i].name, name) == 0)
			return &g->nodes[i];
	}
	return NULL;
}

const struct block_node *block_graph_node(const struct block_graph *g, const char *name)
{
	return find_node(g, name);
}

static int parse_node(const json_t *info, struct block_node *n, struct error *err)
{
	const json_t *image = json_object_get(info, "image");

	n->info = info;
	n->name = jsonx_text(info, "node-name");
	n->drv = jsonx_text(info, "drv");
	n->file = jsonx_text(info, "file");
	n->ro = jsonx_flag(info, "ro");
	n->encrypted = jsonx_flag(info, "encrypted") || jsonx_flag(image, "encrypted");
	if (!n->name || !n->drv || !n->file || !jsonx_u64(image, "virtual-size", &n->size))
		return error_set(err, TM_E_PEER,
				 "QEMU described a block node without its name, driver, "
				 "file or size");
	return 0;
}

static int parse_nodes(struct block_graph *g, struct error *err)
{
	size_t n = json_array_size(g->named);

	if (!json_is_array(g->named) || n > NODES_MAX)
		return error_set(err, TM_E_PEER, "QEMU did not list its block nodes");
	g->nodes = calloc(n + 1, sizeof(*g->nodes));
	if (!g->nodes)
		return error_nomem(err);
	for (; g->nnodes < n; g->nnodes++) {
		int r = parse_node(json_array_get(g->named, g->nnodes), &g->nodes[g->nnodes], err);

		if (r)
			return r;
	}
	return 0;
}

static int parse_devices(struct block_graph *g, struct error *err)
{
	size_t n = json_array_size(g->query_block);

	if (!json_is_array(g->query_block) || n > NODES_MAX)
		return error_set(err, TM_E_PEER, "QEMU did not list its block devices");
	g->devices = calloc(n + 1, sizeof(*g->devices));
	if (!g->devices)
		return error_nomem(err);
	for (; g->ndevices < n; g->ndevices++) {
		const json_t *info = json_array_get(g->query_block, g->ndevices);
		const char *top = jsonx_text(json_object_get(info, "inserted"), "node-name");
		struct block_device *d = &g->devices[g->ndevices];

		d->qdev = jsonx_text(info, "qdev");
		d->drive = jsonx_text(info, "device");
		if (d->drive && !*d->drive)
			d->drive = NULL;
		d->removable = jsonx_flag(info, "removable");
		d->top = find_node(g, top);
		if (top && !d->top)
			return error_set(err, TM_E_STALE,
					 "block node '%s' vanished while it was looked at", top);
	}
	return 0;
}

static struct block_node *node_by_id(const struct block_graph *g, uint64_t id)
{
	const json_t *list = json_object_get(g->edges, "nodes"), *v;
	size_t i;

	json_array_foreach((json_t *)(uintptr_t)list, i, v)
	{
		uint64_t vid;

		if (jsonx_u64(v, "id", &vid) && vid == id)
			return find_node(g, jsonx_text(v, "name"));
	}
	return NULL;
}

static void parse_edges(struct block_graph *g)
{
	const json_t *list = json_object_get(g->edges, "edges"), *v;
	size_t i;

	json_array_foreach((json_t *)(uintptr_t)list, i, v)
	{
		const char *name = jsonx_text(v, "name");
		struct block_node *parent, *child;
		uint64_t from, to;

		if (!name || !jsonx_u64(v, "parent", &from) || !jsonx_u64(v, "child", &to))
			continue;
		if (strcmp(name, "file") != 0 && strcmp(name, "backing") != 0)
			continue;
		parent = node_by_id(g, from);
		child = node_by_id(g, to);
		if (!parent || !child)
			continue;
		if (strcmp(name, "file") == 0)
			parent->file_child = child;
		else
			parent->backing_child = child;
	}
}

int block_graph_parse(json_t *query_block, json_t *named, json_t *edges, struct block_graph *ret,
		      struct error *err)
{
	struct block_graph g = {
		json_incref(query_block), json_incref(named), json_incref(edges), NULL, 0, NULL, 0};
	int r = parse_nodes(&g, err);

	if (!r)
		r = parse_devices(&g, err);
	if (r) {
		block_graph_done(&g);
		return r;
	}
	parse_edges(&g);
	*ret = g;
	return 0;
}

/*
 * Names are as QEMU was given them, perhaps relative to its own directory.  Made absolute where
 * QEMU really has that file open; left as they are otherwise.
 */
static int make_absolute(struct block_node *n, pid_t qemu, struct error *err)
{
	auto_free char *path = NULL;
	char cwd[4096], link[64];
	ssize_t len;
	int r;

	if (snprintf(link, sizeof(link), "/proc/%d/cwd", (int)qemu) < 0)
		return 0;
	len = readlink(link, cwd, sizeof(cwd) - 1);
	if (len <= 0)
		return 0;
	cwd[len] = '\0';
	r = io_join(cwd, n->file, &path, err);
	if (r || !proc_has_open(qemu, path))
		return r;
	r = jsonx_set((json_t *)(uintptr_t)n->info, "file", json_string(path), err);
	if (!r)
		n->file = jsonx_text(n->info, "file");
	return r;
}

static int resolve_names(struct block_graph *g, struct qmp *q, struct error *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < g->nnodes; i++) {
		struct block_node *n = &g->nodes[i];

		if (n->file[0] == '/' || strncmp(n->file, "json:", 5) == 0 || !qmp_peer(q))
			continue;
		r = make_absolute(n, qmp_peer(q), err);
	}
	return r;
}

int block_graph_load(struct qmp *q, struct block_graph *ret, struct error *err)
{
	/* The three replies are not one instant: look again when they do not fit. */
	for (unsigned attempt = 0;; attempt++) {
		auto_json json_t *query_block = NULL, *named = NULL, *edges = NULL, *flat = NULL;
		struct error e = {0};
		int r = jsonx_make(&flat, err, "{s:b}", "flat", 1);

		if (r)
			return r;
		r = qmp_call(q, "query-block", NULL, QMP_TIMEOUT_MS, &query_block, &e);
		if (!r)
			r = qmp_call(q, "query-named-block-nodes", tm_steal(flat), QMP_TIMEOUT_MS,
				     &named, &e);
		if (!r)
			r = qmp_call(q, "x-debug-query-block-graph", NULL, QMP_TIMEOUT_MS, &edges,
				     &e);
		if (!r)
			r = block_graph_parse(query_block, named, edges, ret, &e);
		if (!r)
			r = resolve_names(ret, q, &e);
		if (!r)
			return 0;
		block_graph_done(ret);
		if (r == TM_E_STALE && !qmp_lost(q) && attempt < 5)
			continue;
		return error_pass(err, r, &e);
	}
}

static bool is_filter(const char *drv)
{
	static const char *const filters[] = {"throttle",    "copy-on-read", "compress",
					      "mirror_top",  "commit_top",   "copy-before-write",
					      "preallocate", "backup-top"};

	for (size_t i = 0; i < ARRAY_SIZE(filters); i++) {
		if (strcmp(drv, filters[i]) == 0)
			return true;
	}
	return false;
}

const struct block_node *block_node_format(const struct block_node *top)
{
	for (unsigned depth = 0; top && depth < 64; depth++) {
		if (!is_filter(top->drv))
			return top;
		top = top->file_child ? top->file_child : top->backing_child;
	}
	return NULL;
}

const struct block_node *block_node_storage(const struct block_node *format)
{
	for (unsigned depth = 0; format && format->file_child && depth < 64; depth++)
		format = format->file_child;
	return format;
}

const char *block_node_format_name(const struct block_node *format)
{
	/* A device that stands on the file itself has a raw image. */
	return format->file_child ? format->drv : "raw";
}

bool block_node_can_persist(const struct block_node *format)
{
	const json_t *image = json_object_get(format->info, "image");
	const json_t *data = json_object_get(json_object_get(image, "format-specific"), "data");
	const char *compat = jsonx_text(data, "compat");

	/* What lies in another file can be exchanged or written without the bitmap. */
	return strcmp(format->drv, "qcow2") == 0 && compat && strcmp(compat, "0.10") != 0 &&
	       !jsonx_text(data, "data-file");
}
