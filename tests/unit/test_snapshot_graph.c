/* SPDX-License-Identifier: Apache-2.0 */
/* Devices, nodes and disks out of replies recorded from QEMU 7.2. */
#include "test.h"

#include "../../snapshot/guest.h"

static json_t *load(const char *name)
{
	char path[512];
	json_error_t e;
	json_t *v;

	(void)snprintf(path, sizeof(path), "%s/snapshot/qemu-7.2-%s.json", TEST_DATA, name);
	v = json_load_file(path, 0, &e);
	if (!v)
		fail_msg("%s: %s", path, e.text);
	return v;
}

static void load_graph(struct block_graph *g)
{
	json_t *block = load("query-block"), *named = load("query-named-block-nodes"),
	       *edges = load("x-debug-query-block-graph");

	assert_int_equal(block_graph_parse(block, named, edges, g, NULL), 0);
	json_decref(block);
	json_decref(named);
	json_decref(edges);
}

static void filters_are_seen_through(void **state)
{
	struct block_graph g = {0};
	const struct block_node *top, *node;

	(void)state;
	load_graph(&g);
	top = block_graph_node(&g, "thr1");
	assert_non_null(top);
	node = block_node_format(top);
	assert_string_equal(node->name, "disk1");
	assert_string_equal(block_node_storage(node)->name, "f1");
	assert_string_equal(block_node_format_name(node), "qcow2");
	assert_true(block_node_can_persist(node));
	assert_null(block_graph_node(&g, "nothing"));
	block_graph_done(&g);
}

static const struct guest_disk *by_name(const struct guest_disk *v, size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++) {
		if (strcmp(v[i].name, name) == 0)
			return &v[i];
	}
	fail_msg("there is no disk %s", name);
	return NULL;
}

static void disks_have_names_sizes_and_reasons(void **state)
{
	struct block_graph g = {0};
	struct guest_disk *v = NULL;
	const struct guest_disk *d;
	size_t n = 0;

	(void)state;
	load_graph(&g);
	assert_int_equal(disks_from_graph(&g, &v, &n, NULL), 0);
	assert_int_equal(n, 7);
	d = by_name(v, n, "vd0");
	assert_string_equal(d->node, "disk0");
	assert_int_equal(d->size, 64 << 20);
	assert_true(d->can_persist);
	assert_int_equal(d->nchain, 1);
	assert_string_equal(d->chain[0].file, "/var/lib/images/base.qcow2");
	assert_int_equal(d->nbitmaps, 1);
	assert_false(d->bitmaps[0].ours);
	assert_true(d->bitmaps[0].recording && d->bitmaps[0].persistent && !d->bitmaps[0].busy);
	d = by_name(v, n, "vd1");
	assert_string_equal(d->top_node, "thr1");
	assert_string_equal(d->node, "disk1");
	assert_string_equal(d->file, "/var/lib/images/thr.qcow2");
	d = by_name(v, n, "dr3");
	assert_string_equal(d->format, "raw");
	assert_int_equal(d->size, 20971008);
	assert_false(d->can_persist);
	d = by_name(v, n, "ide0-hd0");
	assert_false(d->can_persist); /* qcow2 of the old kind */
	assert_true(by_name(v, n, "ide0-cd1")->empty);
	assert_non_null(strstr(by_name(v, n, "ide0-cd1")->left_out, "empty"));
	assert_true(by_name(v, n, "vd5")->read_only);
	assert_non_null(strstr(by_name(v, n, "vd5")->left_out, "read-only"));
	guest_disks_free(v, n);
	block_graph_done(&g);
}

static void bitmaps_hold_only_over_what_is_covered(void **state)
{
	static const struct {
		const char *file, *format, *data_file;
		bool hidden;
	} cases[] = {
		{"/i/a.qcow2", "qcow2", NULL, false},
		{"/i/a.qcow2", "qcow2", "/i/a.data", false},
		{"/i/a.qcow2", "qcow2", "a.data", true},
		{"/i/a.raw", "raw", NULL, false},
		{"json:{\"driver\":\"raw\"}", "raw", NULL, true},
		{"/i/a.vmdk", "vmdk", NULL, true},
		{"/i/a", "?", NULL, true},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct disk_layer l = {.file = (char *)(uintptr_t)cases[i].file,
				       .format = (char *)(uintptr_t)cases[i].format,
				       .data_file = (char *)(uintptr_t)cases[i].data_file};
		struct guest_disk d = {.chain = &l, .nchain = 1};
		const struct guest g = {.ndisks = 0};

		disk_identify_chain(&d);
		assert_int_equal(d.chain_hidden, cases[i].hidden);
		assert_int_equal(disk_check_chain(&g, &d, NULL), 0);
		l.format = (char *)(uintptr_t) "other";
		assert_int_equal(disk_check_chain(&g, &d, NULL), TM_E_STALE);
	}
}

static void devices_are_found_again(void **state)
{
	struct block_graph g = {0};

	(void)state;
	load_graph(&g);
	assert_non_null(graph_find_device(&g, "/machine/peripheral/vd0/virtio-backend", NULL));
	assert_non_null(graph_find_device(&g, NULL, "virtio0"));
	assert_null(graph_find_device(&g, NULL, "virtio9"));
	assert_null(graph_find_device(&g, NULL, NULL));
	block_graph_done(&g);
}

static void equal_names_are_told_apart(void **state)
{
	struct guest_disk *v = calloc(3, sizeof(*v));

	(void)state;
	for (unsigned i = 0; i < 3; i++)
		v[i].name = strdup("disk");
	assert_int_equal(disks_unique_names(v, 3, NULL), 0);
	assert_string_equal(v[0].name, "disk");
	assert_string_equal(v[1].name, "disk#2");
	assert_string_equal(v[2].name, "disk#3");
	guest_disks_free(v, 3);
}

/* Takes each member away in turn, at every depth: an error or an answer, never a crash. */
static void strip(json_t *block, json_t *named, json_t *edges, json_t *v)
{
	const char *key;
	json_t *child;
	size_t i;
	void *tmp;

	if (json_is_array(v)) {
		json_array_foreach(v, i, child) strip(block, named, edges, child);
		return;
	}
	json_object_foreach_safe(v, tmp, key, child)
	{
		struct block_graph g = {0};
		struct guest_disk *disks = NULL;
		char *name = strdup(key);
		json_t *kept = json_incref(child);
		size_t n = 0;

		assert_int_equal(json_object_set_new(v, name, json_integer(-1)), 0);
		if (block_graph_parse(block, named, edges, &g, NULL) == 0 &&
		    disks_from_graph(&g, &disks, &n, NULL) == 0)
			guest_disks_free(disks, n);
		block_graph_done(&g);
		assert_int_equal(json_object_set_new(v, name, kept), 0);
		strip(block, named, edges, kept);
		free(name);
	}
}

static void missing_members_do_not_crash(void **state)
{
	json_t *block = load("query-block"), *named = load("query-named-block-nodes"),
	       *edges = load("x-debug-query-block-graph");

	(void)state;
	strip(block, named, edges, block);
	strip(block, named, edges, named);
	strip(block, named, edges, edges);
	json_decref(block);
	json_decref(named);
	json_decref(edges);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(filters_are_seen_through),
		cmocka_unit_test(disks_have_names_sizes_and_reasons),
		cmocka_unit_test(bitmaps_hold_only_over_what_is_covered),
		cmocka_unit_test(devices_are_found_again),
		cmocka_unit_test(equal_names_are_told_apart),
		cmocka_unit_test(missing_members_do_not_crash),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
