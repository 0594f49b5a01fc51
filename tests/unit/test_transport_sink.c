/* SPDX-License-Identifier: Apache-2.0 */
/* The file sink: what is put arrives, holes stay holes, nothing is overwritten unasked. */
#include "transport/transport.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cmocka.h>

#define BLOCK  65536U
#define BLOCKS 300U
#define SIZE   ((uint64_t)BLOCKS * BLOCK - 777)
#define PIECES 3

static struct loop *loop;
static char dir[64], path[100];

struct producer {
	struct piece piece[PIECES];
	unsigned busy;
};

static struct producer *producer;

static void released(struct piece *p)
{
	assert_int_not_equal(p->nruns, 0);
	p->nruns = 0;
	producer->busy--;
}

static struct piece *free_piece(void)
{
	for (;;) {
		for (unsigned i = 0; i < PIECES; i++) {
			if (!producer->piece[i].nruns)
				return &producer->piece[i];
		}
		assert_int_equal(loop_run_once(loop, 1000, NULL), 0);
	}
}

/* Puts blocks of a pattern: two data blocks, one zero block, one left out, and so on. */
static int put_pattern(struct disk_sink *sink, uint8_t *want, struct error *err)
{
	uint64_t block = 0;
	int r = 0;

	for (uint64_t seq = 0; block + 6 < BLOCKS && !r; seq++) {
		struct piece *p = free_piece();

		p->seq = seq;
		p->nclusters = 6;
		p->nruns = 4;
		p->run[0] = (struct piece_run){.block = block, .count = 2, .first = 0};
		p->run[1] = (struct piece_run){.block = block + 2, .count = 1, .zero = true};
		p->run[2] = (struct piece_run){.block = block + 4, .count = 1, .first = 2};
		p->run[3] = (struct piece_run){.block = BLOCKS - 1 - seq, .count = 1, .first = 3};
		for (unsigned i = 0; i < 4; i++)
			(void)memset(p->data + i * BLOCK, (int)(1 + (seq * 4 + i) % 250), BLOCK);
		(void)memset(p->data + 3 * BLOCK, 0x5a, BLOCK);
		(void)memcpy(want + block * BLOCK, p->data, (size_t)2 * BLOCK);
		(void)memset(want + (block + 2) * BLOCK, 0, BLOCK);
		(void)memcpy(want + (block + 4) * BLOCK, p->data + 2 * BLOCK, BLOCK);
		(void)memcpy(want + (BLOCKS - 1 - seq) * BLOCK, p->data + 3 * BLOCK, BLOCK);
		producer->busy++;
		r = piece_sink_put(disk_sink_pieces(sink), p, err);
		if (r)
			released(p);
		block += 6;
		if (block + 6 >= BLOCKS - seq - 8)
			break;
	}
	return r;
}

static void what_is_put_arrives(void **state)
{
	auto_free uint8_t *want = calloc(BLOCKS, BLOCK);
	auto_buf struct buf got = {0};
	struct disk_sink_counts counts;
	struct disk_sink *sink;
	struct error err = {0};
	struct stat st;

	(void)state;
	assert_int_equal(file_sink_open(loop, path, SIZE, BLOCK, false, &sink, &err), 0);
	assert_int_equal(put_pattern(sink, want, &err), 0);
	assert_int_equal(disk_sink_finish(sink, &counts, &err), 0);
	assert_int_equal(producer->busy, 0);
	disk_sink_free(sink);
	assert_int_equal(io_read_file(path, SIZE, &got, &err), 0);
	assert_int_equal(got.len, SIZE);
	assert_memory_equal(got.data, want, SIZE);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_true((uint64_t)st.st_blocks * 512 <= counts.written_bytes + 2 * BLOCK);
}

static void an_existing_file_is_kept_unless_forced(void **state)
{
	auto_buf struct buf got = {0}, after = {0};
	struct disk_sink_counts counts;
	struct disk_sink *sink;
	struct error err = {0};

	(void)state;
	assert_int_equal(io_publish(path, "precious", 8, 0600, NULL), 0);
	assert_int_equal(file_sink_open(loop, path, SIZE, BLOCK, false, &sink, &err), TM_E_EXISTS);
	assert_int_equal(io_read_file(path, 100, &got, NULL), 0);
	assert_memory_equal(got.data, "precious", 8);
	error_clear(&err);
	assert_int_equal(file_sink_open(loop, path, 100, BLOCK, true, &sink, &err), 0);
	assert_int_equal(disk_sink_finish(sink, &counts, &err), 0);
	disk_sink_free(sink);
	assert_int_equal(io_read_file(path, 100, &after, NULL), 0);
	assert_int_equal(after.len, 100);
	assert_int_equal(after.data[0], 0);
}

static void odd_targets_are_refused(void **state)
{
	struct disk_sink *sink;
	struct error err = {0};

	(void)state;
	assert_int_equal(file_sink_open(loop, "/dev/null", 10, BLOCK, true, &sink, &err),
			 TM_E_USAGE);
	error_clear(&err);
	assert_int_equal(file_sink_open(loop, "/nowhere/x", 10, BLOCK, true, &sink, &err),
			 TM_E_NOTFOUND);
	error_clear(&err);
	assert_int_equal(file_sink_open(loop, path, UINT64_MAX, BLOCK, true, &sink, &err),
			 TM_E_RANGE);
}

static void blocks_behind_the_end_are_refused(void **state)
{
	struct piece *p = &producer->piece[0];
	struct disk_sink *sink;
	struct error err = {0};

	(void)state;
	assert_int_equal(file_sink_open(loop, path, SIZE, BLOCK, false, &sink, &err), 0);
	p->nruns = 1;
	p->nclusters = 1;
	p->run[0] = (struct piece_run){.block = BLOCKS - 1, .count = 2};
	assert_int_equal(piece_sink_put(disk_sink_pieces(sink), p, &err), TM_E_RANGE);
	p->nruns = 0;
	disk_sink_free(sink);
}

static void what_is_given_up_gives_its_pieces_back(void **state)
{
	auto_free uint8_t *want = calloc(BLOCKS, BLOCK);
	struct disk_sink_counts counts;
	struct disk_sink *sink;
	struct error err = {0};
	int r;

	(void)state;
	assert_int_equal(file_sink_open(loop, path, SIZE, BLOCK, false, &sink, &err), 0);
	assert_int_equal(put_pattern(sink, want, &err), 0);
	assert_int_not_equal(producer->busy, 0);
	disk_sink_abort(sink, "enough");
	disk_sink_abort(sink, "twice");
	r = piece_sink_put(disk_sink_pieces(sink), free_piece(), &err);
	assert_int_equal(r, TM_E_CANCELED);
	assert_non_null(strstr(err.text, "enough"));
	error_clear(&err);
	assert_int_equal(disk_sink_finish(sink, &counts, &err), TM_E_CANCELED);
	assert_int_equal(producer->busy, 0);
	disk_sink_free(sink);
}

/* A limit on the file's size fails the writes behind it, as a full disk would. */
static void the_first_failed_write_stays(void **state)
{
	auto_free uint8_t *want = calloc(BLOCKS, BLOCK);
	struct rlimit old, low;
	struct disk_sink_counts counts;
	struct disk_sink *sink;
	struct error err = {0};
	int r;

	(void)state;
	assert_int_equal(file_sink_open(loop, path, SIZE, BLOCK, false, &sink, &err), 0);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	low = old;
	low.rlim_cur = BLOCKS / 2 * BLOCK;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
	(void)signal(SIGXFSZ, SIG_IGN);
	r = put_pattern(sink, want, &err);
	if (!r)
		r = disk_sink_finish(sink, &counts, &err);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	if (r == 0) {
		/* io_uring's workers do not all look at the limit. */
		disk_sink_free(sink);
		skip();
	}
	assert_int_equal(r, TM_E_IO);
	assert_non_null(strstr(err.text, path));
	error_clear(&err);
	assert_int_equal(disk_sink_finish(sink, &counts, &err), TM_E_IO);
	disk_sink_free(sink);
	assert_int_equal(producer->busy, 0);
}

static int set_up(void **state)
{
	(void)state;
	(void)strcpy(dir, "/tmp/tidemark-test-XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	(void)snprintf(path, sizeof(path), "%s/disk", dir);
	producer = calloc(1, sizeof(*producer));
	for (unsigned i = 0; i < PIECES; i++) {
		producer->piece[i].data = malloc((size_t)PIECE_CLUSTERS * BLOCK);
		producer->piece[i].release = released;
	}
	return loop_new(64, &loop, NULL);
}

static int tear_down(void **state)
{
	(void)state;
	loop_free(loop);
	for (unsigned i = 0; i < PIECES; i++)
		free(producer->piece[i].data);
	free(producer);
	(void)unlink(path);
	return rmdir(dir);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(what_is_put_arrives),          TEST(an_existing_file_is_kept_unless_forced),
		TEST(odd_targets_are_refused),      TEST(blocks_behind_the_end_are_refused),
		TEST(the_first_failed_write_stays), TEST(what_is_given_up_gives_its_pieces_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
