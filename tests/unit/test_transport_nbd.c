/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NBD source and sink against real servers: qemu-nbd over a qcow2 image with a
 * persistent bitmap, nbdkit with its filters.  Skipped where a program is missing.
 */
#include "transport/transport.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cmocka.h>

#define SIZE     ((uint64_t)48 * 1024 * 1024 + 1536)
#define BLOCK    65536U
#define START_MS 10000
#define TOOL_MS  60000

static struct loop *loop;
static char dir[64];
static char image[100], sock[100], raw[100];

/* ---- servers ---- */

static bool have(const char *program)
{
	const char *const argv[] = {program, "--version", NULL};

	return spawn_run(argv, TOOL_MS, NULL, NULL) == 0;
}

static void run(const char *const argv[])
{
	struct error err = {0};

	if (spawn_run(argv, TOOL_MS, NULL, &err))
		fail_msg("%s: %s", argv[0], err.text);
}

static pid_t serve(const char *const argv[])
{
	uint64_t until = clock_monotonic_ms(&clock_system) + START_MS;
	struct error err = {0};
	struct channel *ch;
	pid_t pid;

	(void)unlink(sock);
	if (spawn_start(argv, -1, -1, &pid, &err))
		fail_msg("%s: %s", argv[0], err.text);
	while (channel_connect(sock, until, &ch, NULL)) {
		if (clock_monotonic_ms(&clock_system) > until)
			fail_msg("%s does not start", argv[0]);
		clock_sleep_ms(&clock_system, 10);
	}
	channel_free(ch);
	return pid;
}

static pid_t serve_image(void)
{
	const char *const argv[] = {"qemu-nbd", "-r", "-t", "-e", "0",  "-f",  "qcow2", "-B",
				    "b0",       "-x", "x",  "-k", sock, image, NULL};

	return serve(argv);
}

static unsigned seed_of_run(void)
{
	const char *env = getenv("SEED");
	unsigned seed =
		env ? (unsigned)strtoul(env, NULL, 0) : (unsigned)clock_unix_ms(&clock_system);

	print_message("SEED=%u\n", seed);
	return seed;
}

/* An image with a bitmap that saw all its writes, and its content as a raw file. */
static void make_image(void)
{
	char commands[80][64], size[32];
	const char *argv[170] = {"qemu-io", "-f", "qcow2"};
	unsigned state = seed_of_run(), n = 3;
	const char *const create[] = {"qemu-img", "create", "-q", "-f", "qcow2", image, size, NULL};
	const char *const add[] = {"qemu-img", "bitmap", "--add", image, "b0", NULL};
	const char *const convert[] = {"qemu-img", "convert", "-O", "raw", image, raw, NULL};

	(void)snprintf(size, sizeof(size), "%llu", (unsigned long long)SIZE);
	run(create);
	run(add);
	for (unsigned i = 0; i < 80; i++) {
		uint64_t len = (1 + (uint64_t)rand_r(&state) % (i % 8 ? 100 : 6000)) * 512;
		uint64_t at = (uint64_t)rand_r(&state) % ((SIZE - len) / 512 + 1) * 512;

		if (i == 0)
			at = SIZE - len; /* the ragged end */
		if (i % 5 == 4)
			(void)snprintf(commands[i], sizeof(commands[i]), "write -z %llu %llu",
				       (unsigned long long)at, (unsigned long long)len);
		else
			(void)snprintf(commands[i], sizeof(commands[i]), "write -P %u %llu %llu",
				       i % 250 + 1, (unsigned long long)at,
				       (unsigned long long)len);
		argv[n++] = "-c";
		argv[n++] = commands[i];
	}
	argv[n++] = image;
	argv[n] = NULL;
	run(argv);
	run(convert);
}

/* ---- a sink that copies ---- */

struct copy {
	struct piece_sink sink;
	uint8_t *bytes;
	uint64_t size;
	uint64_t block; /* 0: BLOCK */
	unsigned puts;
	pid_t kill_at_second; /* SIGKILLed after the second piece */
};

static int copy_put(struct piece_sink *sink, struct piece *p, struct error *err)
{
	struct copy *c = (struct copy *)(void *)sink;
	uint64_t bs = c->block ? c->block : BLOCK;

	(void)err;
	for (uint32_t i = 0; i < p->nruns; i++) {
		const struct piece_run *run = &p->run[i];

		for (uint64_t b = 0; b < run->count; b++) {
			uint64_t at = (run->block + b) * bs;
			size_t len = (size_t)min_u64(bs, c->size - at);

			if (run->zero)
				(void)memset(c->bytes + at, 0, len);
			else
				(void)memcpy(c->bytes + at, p->data + (run->first + b) * bs, len);
		}
	}
	piece_release(p);
	if (++c->puts == 2 && c->kill_at_second)
		(void)kill(c->kill_at_second, SIGKILL);
	return 0;
}

static struct nbd_address address(const char *bitmap)
{
	return (struct nbd_address){.socket = sock, .export_name = "x", .bitmap = bitmap};
}

static void compare_with_raw(const struct copy *c)
{
	auto_buf struct buf b = {0};

	assert_int_equal(io_read_file(raw, SIZE + 4096, &b, NULL), 0);
	assert_true(b.len >= c->size);
	assert_memory_equal(b.data, c->bytes, c->size);
}

/* ---- tests ---- */

static void copies_are_right_by_bitmap_and_in_full(void **state)
{
	(void)state;
	if (!have("qemu-nbd") || !have("qemu-io"))
		skip();
	make_image();
	pid_t pid = serve_image();

	for (unsigned i = 0; i < 6; i++) {
		struct nbd_address addr = address(i % 2 ? "b0" : NULL);
		struct reader_options opt = {.map = i % 2 ? SOURCE_MAP_DIRTY : SOURCE_MAP_DATA,
					     .block_size = BLOCK,
					     .pieces = 8};
		struct copy c = {.sink.put = copy_put};
		struct block_source *src;
		struct reader_counts counts;
		struct error err = {0};

		if (nbd_source_open(loop, &addr, i + 1, START_MS, &src, &err))
			fail_msg("%s", err.text);
		assert_true(src->size >= SIZE && src->has_data);
		c.size = src->size;
		c.bytes = calloc(1, c.size);
		if (reader_run(loop, src, &c.sink, &opt, &counts, &err))
			fail_msg("%s", err.text);
		compare_with_raw(&c);
		assert_true(counts.done_bytes == counts.dirty_bytes);
		assert_true(counts.read_bytes < SIZE);
		block_source_free(src);
		free(c.bytes);
	}
	spawn_stop(pid, 5000);
}

static void a_server_killed_in_the_middle_is_an_error(void **state)
{
	(void)state;
	if (!have("nbdkit"))
		skip();
	const char *const argv[] = {"nbdkit", "-f", "-U", sock, "pattern", "1G", NULL};
	struct nbd_address addr = address(NULL);
	struct reader_options opt = {.map = SOURCE_MAP_DATA, .block_size = BLOCK, .pieces = 8};
	struct copy c = {.sink.put = copy_put, .size = 1 << 30, .kill_at_second = serve(argv)};
	struct block_source *src;
	struct reader_counts counts;
	struct error err = {0};

	c.bytes = malloc(c.size);
	assert_int_equal(nbd_source_open(loop, &addr, 4, START_MS, &src, &err), 0);
	assert_int_equal(reader_run(loop, src, &c.sink, &opt, &counts, &err), TM_E_PEER);
	assert_non_null(strstr(err.text, "at offset"));
	print_message("%s\n", err.text);
	block_source_free(src);
	free(c.bytes);
	spawn_stop(c.kill_at_second, 1000);
}

static int cancel(void *data, const struct reader_counts *counts, struct error *err)
{
	(void)data;
	(void)counts;
	return error_set(err, TM_E_CANCELED, "interrupted");
}

static void a_server_that_stands_still_can_be_left(void **state)
{
	(void)state;
	if (!have("nbdkit"))
		skip();
	const char *const argv[] = {"nbdkit", "-f", "-U", sock, "pattern", "1G", NULL};
	struct nbd_address addr = address(NULL);
	struct reader_options opt = {
		.map = SOURCE_MAP_DATA, .block_size = BLOCK, .pieces = 8, .tick = cancel};
	struct copy c = {.sink.put = copy_put, .size = 1 << 30};
	pid_t pid = serve(argv);
	struct block_source *src;
	struct reader_counts counts;
	struct error err = {0};

	c.bytes = malloc(c.size);
	assert_int_equal(nbd_source_open(loop, &addr, 2, START_MS, &src, &err), 0);
	(void)kill(pid, SIGSTOP);
	/* It would wait for ever. */
	assert_int_equal(reader_run(loop, src, &c.sink, &opt, &counts, &err), TM_E_CANCELED);
	block_source_free(src);
	error_clear(&err);
	assert_int_equal(nbd_source_open(loop, &addr, 2, 300, &src, &err), TM_E_TIMEOUT);
	free(c.bytes);
	(void)kill(pid, SIGCONT);
	spawn_stop(pid, 1000);
}

static void a_failing_read_names_its_place(void **state)
{
	(void)state;
	if (!have("nbdkit"))
		skip();
	const char *const argv[] = {"nbdkit",
				    "-f",
				    "-U",
				    sock,
				    "--filter=error",
				    "pattern",
				    "64M",
				    "error-pread=EIO",
				    "error-pread-rate=30%",
				    NULL};
	struct nbd_address addr = address(NULL);
	struct reader_options opt = {.map = SOURCE_MAP_DATA, .block_size = BLOCK, .pieces = 8};
	struct copy c = {.sink.put = copy_put, .size = 64 << 20};
	pid_t pid = serve(argv);
	struct block_source *src;
	struct reader_counts counts;
	struct error err = {0};

	c.bytes = malloc(c.size);
	assert_int_equal(nbd_source_open(loop, &addr, 2, START_MS, &src, &err), 0);
	assert_int_equal(reader_run(loop, src, &c.sink, &opt, &counts, &err), TM_E_PEER);
	print_message("%s\n", err.text);
	assert_non_null(strstr(err.text, "at offset"));
	assert_non_null(strstr(err.text, "Input/output error"));
	block_source_free(src);
	free(c.bytes);
	spawn_stop(pid, 1000);
}

static void pattern_is_right(const uint8_t *bytes, uint64_t size)
{
	for (uint64_t i = 0; i < size; i++)
		assert_int_equal(bytes[i], (uint8_t)((i & ~(uint64_t)7) >> (8 * (7 - i % 8))));
}

static void poor_servers_are_read_all_the_same(void **state)
{
	const char *const plain[] = {"nbdkit",  "-f",      "-U",      sock,
				     "--no-sr", "pattern", "3000001", NULL};
	const char *const blocks[] = {"nbdkit",
				      "-f",
				      "-U",
				      sock,
				      "--filter=blocksize-policy",
				      "pattern",
				      "3047424",
				      "blocksize-minimum=32768",
				      "blocksize-preferred=32768",
				      "blocksize-maximum=65536",
				      "blocksize-error-policy=error",
				      NULL};

	(void)state;
	if (!have("nbdkit"))
		skip();
	for (unsigned i = 0; i < 2; i++) {
		struct nbd_address addr = address(NULL);
		struct reader_options opt = {
			.map = SOURCE_MAP_DATA, .block_size = i ? 4096 : BLOCK, .pieces = 8};
		struct copy c = {.sink.put = copy_put, .block = i ? 4096 : BLOCK};
		pid_t pid = serve(i ? blocks : plain);
		struct block_source *src;
		struct reader_counts counts;
		struct error err = {0};

		if (nbd_source_open(loop, &addr, 2, START_MS, &src, &err))
			fail_msg("%s", err.text);
		c.size = src->size;
		c.bytes = calloc(1, c.size);
		if (reader_run(loop, src, &c.sink, &opt, &counts, &err))
			fail_msg("%s", err.text);
		pattern_is_right(c.bytes, c.size);
		free(c.bytes);
		block_source_free(src);
		spawn_stop(pid, 1000);
	}
}

static void what_is_not_there_is_notfound(void **state)
{
	struct nbd_address addr = address("nope");
	struct error err = {0};
	struct block_source *src;

	(void)state;
	if (!have("qemu-nbd") || !have("qemu-io"))
		skip();
	(void)unlink(sock);
	assert_int_equal(nbd_source_open(loop, &addr, 2, 500, &src, &err), TM_E_NOTFOUND);
	make_image();
	pid_t pid = serve_image();

	error_clear(&err);
	assert_int_equal(nbd_source_open(loop, &addr, 2, START_MS, &src, &err), TM_E_NOTFOUND);
	assert_non_null(strstr(err.text, "no bitmap 'nope'"));
	addr.bitmap = NULL;
	addr.export_name = "y";
	error_clear(&err);
	assert_int_equal(nbd_source_open(loop, &addr, 2, START_MS, &src, &err), TM_E_NOTFOUND);
	print_message("%s\n", err.text);
	spawn_stop(pid, 1000);
}

static void restoring_to_a_server_is_right(void **state)
{
	(void)state;
	if (!have("qemu-nbd") || !have("qemu-io") || !have("nbdkit"))
		skip();
	char target[100], target_sock[100], from[100];

	make_image();
	(void)snprintf(target, sizeof(target), "%s/target", dir);
	(void)snprintf(from, sizeof(from), "%s/from", dir);
	(void)snprintf(target_sock, sizeof(target_sock), "%s/target-sock", dir);
	pid_t source = serve_image();
	assert_int_equal(rename(sock, from), 0);
	for (unsigned i = 0; i < 2; i++) {
		const char *const able[] = {"qemu-nbd", "-t", "-e", "0",    "-f",
					    "raw",      "-k", sock, target, NULL};
		const char *const poor[] = {"nbdkit",          "-f",   "-U",   sock,
					    "--filter=nozero", "file", target, NULL};
		struct nbd_address a = {.socket = from, .export_name = "x"};
		struct nbd_address b = {.socket = sock};
		struct reader_options opt = {
			.map = SOURCE_MAP_DATA, .block_size = BLOCK, .pieces = 8};
		struct disk_sink_counts written;
		struct block_source *src;
		struct disk_sink *sink;
		struct reader_counts counts;
		struct error err = {0};
		auto_buf struct buf old = {0};
		auto_buf struct buf now = {0}, want = {0};

		assert_int_equal(buf_reserve(&old, SIZE + 4096, NULL), 0);
		(void)memset(old.data, 0xaa, SIZE + 512);
		assert_int_equal(io_publish(target, old.data, SIZE + 512, 0600, NULL), 0);
		pid_t pid = serve(i ? poor : able);
		assert_int_equal(nbd_source_open(loop, &a, 2, START_MS, &src, &err), 0);
		if (nbd_sink_open(loop, &b, src->size, BLOCK, START_MS, &sink, &err))
			fail_msg("%s", err.text);
		if (reader_run(loop, src, disk_sink_pieces(sink), &opt, &counts, &err))
			fail_msg("%s", err.text);
		assert_int_equal(disk_sink_finish(sink, &written, &err), 0);
		assert_int_equal(written.written_bytes, counts.read_bytes);
		disk_sink_free(sink);
		spawn_stop(pid, 5000);
		assert_int_equal(io_read_file(target, SIZE + 4096, &now, NULL), 0);
		assert_int_equal(io_read_file(raw, SIZE + 4096, &want, NULL), 0);
		assert_memory_equal(now.data, want.data, src->size);
		block_source_free(src);
	}
	spawn_stop(source, 1000);
	(void)unlink(from);
	(void)unlink(target);
}

static void released(struct piece *p)
{
	p->next = p; /* it is back */
}

/* A disk that ends within a block of the server's, in data and in zeroes. */
static void put_odd_disk(struct disk_sink *sink, uint8_t *data, bool zero_end, struct error *err)
{
	struct piece p = {.nruns = 2, .nclusters = 1, .data = data, .release = released};
	struct disk_sink_counts written;

	(void)memset(data, 0x11, BLOCK);
	(void)memset(data + 512, 0, BLOCK - 512);
	p.run[0] = (struct piece_run){.block = 0, .count = zero_end ? 1 : 3, .zero = !zero_end};
	p.run[1] = (struct piece_run){.block = 3, .count = 1, .zero = zero_end};
	assert_int_equal(piece_sink_put(disk_sink_pieces(sink), &p, err), 0);
	if (disk_sink_finish(sink, &written, err))
		fail_msg("%s", err->text);
	assert_ptr_equal(p.next, &p);
}

static void the_end_of_a_disk_is_written_in_the_servers_blocks(void **state)
{
	enum { END = 3 * BLOCK, ODD = END + 512, ROOM = 4 * BLOCK };
	char target[100];

	(void)state;
	if (!have("nbdkit"))
		skip();
	(void)snprintf(target, sizeof(target), "%s/target", dir);
	for (unsigned i = 0; i < 4; i++) {
		const char *const argv[] = {"nbdkit",
					    "-f",
					    "-U",
					    sock,
					    "--filter=blocksize-policy",
					    i < 2 ? "--filter=nozero" : "--filter=nofilter",
					    "file",
					    target,
					    "blocksize-minimum=4096",
					    "blocksize-preferred=4096",
					    "blocksize-maximum=32M",
					    "blocksize-error-policy=error",
					    NULL};
		struct nbd_address addr = {.socket = sock};
		auto_free uint8_t *data = malloc(BLOCK), *want = malloc(ROOM);
		auto_buf struct buf got = {0};
		struct disk_sink *sink;
		struct error err = {0};

		(void)memset(want, 0xaa, ROOM);
		assert_int_equal(io_publish(target, want, ROOM, 0600, NULL), 0);
		pid_t pid = serve(argv);

		if (nbd_sink_open(loop, &addr, ODD, BLOCK, START_MS, &sink, &err))
			fail_msg("%s", err.text);
		put_odd_disk(sink, data, i % 2, &err);
		disk_sink_free(sink);
		spawn_stop(pid, 5000);
		assert_int_equal(io_read_file(target, ROOM, &got, NULL), 0);
		if (i % 2)
			(void)memcpy(want, data, BLOCK);
		else
			(void)memset(want, 0, END);
		(void)memset(want + END, i % 2 ? 0 : 0x11, ODD - END);
		assert_memory_equal(got.data, want, ODD);
	}
	(void)unlink(target);
}

static void a_target_that_is_too_small_or_read_only_is_refused(void **state)
{
	const char *const small[] = {"nbdkit", "-f", "-U", sock, "memory", "1M", NULL};
	const char *const ro[] = {"nbdkit", "-f", "-r", "-U", sock, "memory", "8M", NULL};
	struct nbd_address addr = {.socket = sock};
	struct disk_sink *sink;
	struct error err = {0};

	(void)state;
	if (!have("nbdkit"))
		skip();
	pid_t pid = serve(small);
	assert_int_equal(nbd_sink_open(loop, &addr, 2 << 20, BLOCK, START_MS, &sink, &err),
			 TM_E_RANGE);
	spawn_stop(pid, 1000);
	error_clear(&err);
	pid = serve(ro);
	assert_int_equal(nbd_sink_open(loop, &addr, 2 << 20, BLOCK, START_MS, &sink, &err),
			 TM_E_DENIED);
	spawn_stop(pid, 1000);
}

static int set_up(void **state)
{
	(void)state;
	(void)strcpy(dir, "/tmp/tidemark-test-XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	(void)snprintf(image, sizeof(image), "%s/image.qcow2", dir);
	(void)snprintf(sock, sizeof(sock), "%s/sock", dir);
	(void)snprintf(raw, sizeof(raw), "%s/raw", dir);
	return loop_new(128, &loop, NULL);
}

static int tear_down(void **state)
{
	(void)state;
	loop_free(loop);
	(void)unlink(image);
	(void)unlink(sock);
	(void)unlink(raw);
	(void)rmdir(dir);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(copies_are_right_by_bitmap_and_in_full),
		cmocka_unit_test(a_server_killed_in_the_middle_is_an_error),
		cmocka_unit_test(a_server_that_stands_still_can_be_left),
		cmocka_unit_test(a_failing_read_names_its_place),
		cmocka_unit_test(poor_servers_are_read_all_the_same),
		cmocka_unit_test(what_is_not_there_is_notfound),
		cmocka_unit_test(restoring_to_a_server_is_right),
		cmocka_unit_test(the_end_of_a_disk_is_written_in_the_servers_blocks),
		cmocka_unit_test(a_target_that_is_too_small_or_read_only_is_refused),
	};

	if (!have("qemu-nbd") && !have("nbdkit")) {
		print_message("neither qemu-nbd nor nbdkit is installed\n");
		return 77;
	}
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
