/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The qcow2 sink against qemu-img: what is put is there, nothing else is allotted, every
 * refcount is right, and what fails is told with its place.
 */
#include "test.h"

#include "transport/transport.h"

#include <fcntl.h>
#include <sys/stat.h>

#define PIECES  3
#define TOOL_MS 120000
#define CLUSTER UINT64_C(65536)
#define SPAN    (CLUSTER / 8 * CLUSTER) /* of the disk behind one L2 table */
#define TABLES  64                      /* that the sink has in memory */

static struct loop *loop;
static char dir[64], path[100], raw[100];
static struct piece piece[PIECES];
static unsigned busy;

/* What is put, and what is to be there. */
struct disk {
	uint64_t size;
	uint32_t block_size;
	struct disk_sink *sink;
	int raw; /* the reference */
	uint64_t seq, put_bytes;
	struct piece *p; /* being filled */
};

static bool have(const char *program)
{
	const char *const argv[] = {program, "--version", NULL};

	return spawn_run(argv, TOOL_MS, NULL, NULL) == 0;
}

static void released(struct piece *p)
{
	assert_int_not_equal(p->nruns, 0);
	p->nruns = 0;
	busy--;
}

static struct piece *free_piece(void)
{
	for (;;) {
		for (unsigned i = 0; i < PIECES; i++) {
			if (!piece[i].nruns)
				return &piece[i];
		}
		assert_int_equal(loop_run_once(loop, 1000, NULL), 0);
	}
}

/* ---- a disk that is put ---- */

static void begin(struct disk *d, uint64_t size, uint32_t block_size)
{
	struct error err = {0};

	*d = (struct disk){.size = size, .block_size = block_size};
	(void)unlink(path);
	(void)unlink(raw);
	d->raw = open(raw, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	assert_true(d->raw >= 0);
	assert_int_equal(ftruncate(d->raw, (off_t)((size + 511) / 512 * 512)), 0);
	for (unsigned i = 0; i < PIECES; i++) {
		piece[i].data = realloc(piece[i].data, (size_t)PIECE_CLUSTERS * block_size);
		assert_non_null(piece[i].data);
	}
	if (qcow2_sink_open(loop, path, size, block_size, &d->sink, &err))
		fail_msg("%s", err.text);
}

static int hand_over(struct disk *d, struct error *err)
{
	struct piece *p = d->p;
	int r;

	d->p = NULL;
	if (!p)
		return 0;
	p->seq = d->seq++;
	busy++;
	r = piece_sink_put(disk_sink_pieces(d->sink), p, err);
	if (r)
		released(p);
	return r;
}

static void hand_over_well(struct disk *d)
{
	struct error err = {0};

	if (hand_over(d, &err))
		fail_msg("%s", err.text);
}

static struct piece_run *new_run(struct disk *d, uint64_t block, uint64_t count, bool zero)
{
	struct piece_run *run;

	if (d->p && d->p->nruns == PIECE_RUNS)
		hand_over_well(d);
	if (!d->p) {
		d->p = free_piece();
		d->p->nclusters = 0;
	}
	run = &d->p->run[d->p->nruns++];
	*run = (struct piece_run){
		.block = block, .count = count, .first = d->p->nclusters, .zero = zero};
	return run;
}

/* Every part of 512 bytes has its place in it, and none is zero. */
static void put_block(struct disk *d, uint64_t block)
{
	uint64_t offset = block * d->block_size, n;
	struct piece_run *run;
	uint8_t *data;

	if (d->p && d->p->nclusters == PIECE_CLUSTERS)
		hand_over_well(d);
	run = d->p && d->p->nruns ? &d->p->run[d->p->nruns - 1] : NULL;
	if (!run || run->zero || run->block + run->count != block)
		run = new_run(d, block, 0, false);
	run->count++;
	data = d->p->data + (size_t)d->p->nclusters++ * d->block_size;
	n = min_u64(d->size - offset, d->block_size);
	(void)memset(data, 0, d->block_size);
	(void)memset(data, 1 + (int)(block % 255), n);
	for (uint64_t at = 0; at + 512 <= n; at += 512) {
		uint64_t place = offset + at;

		(void)memcpy(data + at, &place, sizeof(place));
	}
	assert_int_equal(io_pwrite(d->raw, raw, data, n, offset, NULL), 0);
	d->put_bytes += n;
}

/* ---- what has become of it ---- */

static uint64_t number_behind(const struct buf *json, const char *name)
{
	const char *at = strstr((const char *)json->data, name);

	if (!at)
		fail_msg("no %s in %s", name, (const char *)json->data);
	return strtoull(at + strlen(name), NULL, 10);
}

/* No error, no leak, nothing behind the last cluster, and touched ones for data. */
static void assert_sound(uint64_t touched)
{
	const char *const argv[] = {"qemu-img", "check", "-f", "qcow2",
				    "--output", "json",  path, NULL};
	auto_buf struct buf out = {0};
	struct error err = {0};
	struct stat st;
	int r = spawn_run(argv, TOOL_MS, &out, &err);

	assert_int_equal(buf_printf(&out, NULL, "\n"), 0);
	if (r)
		fail_msg("%s %s", err.text, (const char *)out.data);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0600);
	assert_int_equal(number_behind(&out, "\"image-end-offset\": "), st.st_size);
	if (touched) /* else there is no such number */
		assert_int_equal(number_behind(&out, "\"allocated-clusters\": "), touched);
	else
		assert_null(strstr((const char *)out.data, "\"allocated-clusters\""));
}

static void assert_same(const struct disk *d)
{
	const char *const argv[] = {"qemu-img", "compare", "-q", "-f", "raw",
				    "-F",       "qcow2",   raw,  path, NULL};
	struct error err = {0};

	if (spawn_run(argv, TOOL_MS, NULL, &err))
		fail_msg("%s (disk of %llu bytes, blocks of %u)", err.text,
			 (unsigned long long)d->size, d->block_size);
}

static void end(struct disk *d, uint64_t touched)
{
	struct disk_sink_counts counts;
	struct error err = {0};

	hand_over_well(d);
	if (disk_sink_finish(d->sink, &counts, &err))
		fail_msg("%s", err.text);
	assert_int_equal(counts.written_bytes, d->put_bytes);
	disk_sink_free(d->sink);
	assert_int_equal(busy, 0);
	assert_int_equal(close(d->raw), 0);
	assert_sound(touched);
}

/* ---- random disks ---- */

enum order {
	ASCENDING,
	NEARLY, /* pieces change places with near ones */
	ANY,
};

static void change_places(uint64_t *block, size_t n, enum order order, uint64_t *rng)
{
	for (size_t i = 0; order != ASCENDING && i < n; i++) {
		size_t range = order == ANY ? n - i : min_size(n - i, 40), j;
		uint64_t swapped = block[i];

		if (order == NEARLY && test_below(rng, 8))
			continue;
		j = i + (size_t)test_below(rng, range);
		block[i] = block[j];
		block[j] = swapped;
	}
}

/* n different blocks in ascending order, in runs here and there. */
static void choose_blocks(uint64_t *block, size_t n, uint64_t nblocks, uint64_t *rng)
{
	uint64_t at = 0;

	for (size_t i = 0; i < n; i++) {
		uint64_t spare = nblocks - at - (n - i);

		if (!test_below(rng, 3))
			at += test_below(rng, min_u64(spare, 3 * spare / (n - i)) + 1);
		block[i] = at++;
	}
	if (n)
		block[n - 1] = nblocks - 1; /* the ragged one */
}

static uint64_t clusters_of(const struct disk *d, const uint64_t *block, size_t n)
{
	uint64_t count = 0, behind = 0; /* of the last one counted */

	for (size_t i = 0; i < n; i++) {
		uint64_t start = block[i] * d->block_size;
		uint64_t stop = min_u64(start + d->block_size, d->size);
		uint64_t first = max_u64(start / CLUSTER, behind);

		behind = div_round_up(stop, CLUSTER);
		count += behind - first;
	}
	return count;
}

static void put_random_disk(uint64_t size, uint32_t block_size, size_t n, enum order order,
			    uint64_t *rng)
{
	uint64_t nblocks = div_round_up(size, block_size), touched;
	auto_free uint64_t *block = calloc(n + 1, sizeof(*block));
	struct disk d;

	begin(&d, size, block_size);
	choose_blocks(block, n, nblocks, rng);
	touched = clusters_of(&d, block, n);
	change_places(block, n, order, rng);
	for (size_t i = 0; i < n; i++) {
		put_block(&d, block[i]);
		if (!test_below(rng, 5) && block[i] + 1 < nblocks && i + 1 < n &&
		    block[i + 1] > block[i] + 1)
			(void)new_run(&d, block[i] + 1, block[i + 1] - block[i] - 1, true);
		if (!test_below(rng, 20))
			hand_over_well(&d);
	}
	end(&d, touched);
	assert_same(&d);
}

static void random_disks_are_right(void **state)
{
	static const struct {
		uint64_t size;
		uint32_t block_size;
		size_t blocks;
		enum order order;
	} cases[] = {
		{0, 65536, 0, ASCENDING},
		{1, 65536, 1, ASCENDING},
		{77000, 4096, 19, ANY},
		{(100 << 20) - 777, 4096, 3000, NEARLY},
		{(100 << 20) - 777, 4096, 300, ANY},
		{(60 << 20) + 1536, 65536, 500, NEARLY},
		{(60 << 20) + 1536, 65536, 961, ANY}, /* all of it */
		{(50 << 20) + 12345, 1 << 20, 20, NEARLY},
		{(50 << 20) + 12345, 1 << 20, 51, ASCENDING},
		{SPAN, 65536, 100, ANY},
		{3 * SPAN - 100, 1 << 20, 30, ANY},
		/* More tables than there is room for, once each and again and again. */
		{90 * SPAN - 1, 65536, 600, NEARLY},
		{90 * SPAN + 1, 4096, 600, ANY},
		{(uint64_t)1 << 40, 65536, 150, ANY},
	};
	const char *rounds = getenv("QCOW2_ROUNDS");
	uint64_t rng = test_seed() | 1, n = rounds ? strtoull(rounds, NULL, 10) : 1;

	(void)state;
	if (!have("qemu-img"))
		skip();
	for (uint64_t i = 0; i < n * ARRAY_SIZE(cases); i++) {
		size_t c = i % ARRAY_SIZE(cases);

		put_random_disk(cases[c].size, cases[c].block_size, cases[c].blocks, cases[c].order,
				&rng);
	}
}

/* Data that lie side by side in the disk, and not in the file. */
static void a_run_goes_on_behind_its_table(void **state)
{
	(void)state;
	if (!have("qemu-img"))
		skip();
	for (uint32_t bits = 12; bits <= 20; bits += 4) {
		uint32_t block_size = UINT32_C(1) << bits;
		struct disk d;

		begin(&d, 3 * SPAN, block_size);
		for (uint64_t i = 0; i < 10; i++)
			put_block(&d, 2 * SPAN / block_size - 5 + i);
		hand_over_well(&d);
		for (uint64_t i = 0; i < 10; i++)
			put_block(&d, SPAN / block_size - 5 + i);
		end(&d, 2 * (div_round_up(5 * (uint64_t)block_size, CLUSTER) * 2));
		assert_same(&d);
	}
}

/*
 * A block of refcounts is for 32768 clusters: header, L1 table, five L2 tables, the refcounts' two
 * and the data, which are holes but for their first bytes.
 */
static void refcounts_have_refcounts(void **state)
{
	enum { BLOCK = 512, FULL = 32768 - 9 };

	(void)state;
	if (!have("qemu-img"))
		skip();
	for (uint64_t n = FULL; n <= FULL + 1; n++) {
		struct disk d;
		struct stat st;

		begin(&d, 4 * SPAN + CLUSTER, BLOCK);
		for (uint64_t i = 1; i < n; i++)
			put_block(&d, i * (CLUSTER / BLOCK));
		put_block(&d, 4 * SPAN / BLOCK);
		end(&d, n);
		assert_int_equal(stat(path, &st), 0);
		/* One more has a second block. */
		assert_int_equal((uint64_t)st.st_size / CLUSTER, n == FULL ? 32768 : 32768 + 2);
	}
}

/* It grows, is written to, has bitmaps and snapshots, as one that qemu-img has made. */
static void qemu_goes_on_with_it(void **state)
{
	static const char *const steps[][9] = {
		{"qemu-img", "resize", "-q", "-f", "raw", raw, "+2G"},
		{"qemu-img", "resize", "-q", "-f", "qcow2", path, "+2G"},
		{"qemu-io", "-f", "raw", "-c", "write -P 7 2560M 1M", raw},
		{"qemu-io", "-f", "qcow2", "-c", "write -P 7 2560M 1M", path},
		{"qemu-io", "-f", "raw", "-c", "write -P 8 1000k 200k", raw},
		{"qemu-io", "-f", "qcow2", "-c", "write -P 8 1000k 200k", path},
		{"qemu-img", "snapshot", "-q", "-c", "s", path},
		{"qemu-io", "-f", "qcow2", "-c", "write -P 9 0 30M", path},
		{"qemu-img", "snapshot", "-q", "-a", "s", path},
		{"qemu-img", "snapshot", "-q", "-d", "s", path},
		{"qemu-img", "bitmap", "--add", "-f", "qcow2", path, "b"},
		{"qemu-io", "-f", "raw", "-c", "write -P 6 40M 300k", raw},
		{"qemu-io", "-f", "qcow2", "-c", "write -P 6 40M 300k", path},
		{"qemu-img", "check", "-q", "-f", "qcow2", path},
	};
	struct disk d;

	(void)state;
	if (!have("qemu-img") || !have("qemu-io"))
		skip();
	begin(&d, 2 * SPAN, 65536);
	for (uint64_t i = 0; i < 300; i++)
		put_block(&d, i * 50);
	end(&d, 300);
	for (unsigned i = 0; i < ARRAY_SIZE(steps); i++) {
		struct error err = {0};

		if (spawn_run(steps[i], TOOL_MS, NULL, &err))
			fail_msg("%s %s: %s", steps[i][0], steps[i][1], err.text);
	}
	assert_same(&d);
}

/* ---- what fails ---- */

/* Puts another file behind the sink's descriptor. */
static void replace_file(const char *by, int flags)
{
	int other = open(by, flags | O_CLOEXEC);
	struct stat ours, st;

	assert_true(other >= 0);
	assert_int_equal(stat(path, &ours), 0);
	for (int fd = 3; fd < 100; fd++) {
		if (fstat(fd, &st) == 0 && st.st_dev == ours.st_dev && st.st_ino == ours.st_ino) {
			assert_int_equal(dup2(other, fd), fd);
			(void)close(other);
			return;
		}
	}
	fail_msg("%s is not open", path);
}

static void assert_fails(struct disk *d, int code, const char *what, uint64_t offset)
{
	struct disk_sink_counts counts;
	struct error err = {0};
	char text[200];

	hand_over_well(d);
	assert_int_equal(disk_sink_finish(d->sink, &counts, &err), code);
	(void)snprintf(text, sizeof(text), "%s: %s at offset %llu", path, what,
		       (unsigned long long)offset);
	if (!strstr(err.text, text))
		fail_msg("'%s' is not '%s'", err.text, text);
	/* It stays. */
	assert_int_equal(disk_sink_finish(d->sink, &counts, NULL), code);
	put_block(d, 0);
	assert_int_equal(hand_over(d, &err), code);
	disk_sink_free(d->sink);
	assert_int_equal(busy, 0);
	assert_int_equal(close(d->raw), 0);
}

/* One block in each of n parts that have an L2 table; two clusters each, from the third one on. */
static void put_tables(struct disk *d, uint64_t n)
{
	begin(d, (TABLES + 2) * SPAN, 65536);
	for (uint64_t i = 0; i < n; i++)
		put_block(d, i * (SPAN / CLUSTER));
	hand_over_well(d);
	while (busy)
		assert_int_equal(loop_run_once(loop, 1000, NULL), 0);
}

static void what_fails_is_told(void **state)
{
	struct disk d;

	(void)state;
	/* Data. */
	put_tables(&d, 0);
	replace_file("/dev/full", O_RDWR);
	put_block(&d, 5);
	assert_fails(&d, TM_E_NOSPACE, "write", 3 * CLUSTER);
	/* The first table makes room. */
	put_tables(&d, TABLES);
	replace_file("/dev/full", O_RDWR);
	put_block(&d, TABLES * (SPAN / CLUSTER));
	assert_fails(&d, TM_E_NOSPACE, "write", 2 * CLUSTER);
	/* It is read again. */
	put_tables(&d, TABLES + 1);
	replace_file("/dev/null", O_RDWR);
	put_block(&d, 1);
	assert_fails(&d, TM_E_IO, "read", 2 * CLUSTER);
	/* A table that is left to write at the end. */
	put_tables(&d, 1);
	replace_file("/dev/full", O_RDWR);
	assert_fails(&d, TM_E_NOSPACE, "write", 2 * CLUSTER);
	/* A device that takes all, but cannot be synced. */
	put_tables(&d, 1);
	replace_file("/dev/null", O_RDWR);
	assert_fails(&d, TM_E_IO, "sync", 0);
}

static void one_that_is_given_up_gives_all_back(void **state)
{
	struct disk d;

	(void)state;
	put_tables(&d, TABLES);
	put_block(&d, TABLES * (SPAN / CLUSTER)); /* waits for room for its table */
	hand_over_well(&d);
	put_block(&d, 1);
	hand_over_well(&d);
	disk_sink_free(d.sink);
	assert_int_equal(busy, 0);
	assert_int_equal(close(d.raw), 0);
}

static void what_cannot_be_is_refused(void **state)
{
	auto_buf struct buf got = {0};
	struct disk_sink *sink;
	struct error err = {0};

	(void)state;
	assert_int_equal(io_publish(path, "precious", 8, 0600, NULL), 0);
	assert_int_equal(qcow2_sink_open(loop, path, 100, 65536, &sink, &err), TM_E_EXISTS);
	assert_int_equal(io_read_file(path, 100, &got, NULL), 0);
	assert_memory_equal(got.data, "precious", 8);
	assert_int_equal(unlink(path), 0);
	error_clear(&err);
	assert_int_equal(qcow2_sink_open(loop, path, ((uint64_t)1 << 50) + 1, 65536, &sink, &err),
			 TM_E_RANGE);
	assert_non_null(strstr(err.text, path));
	error_clear(&err);
	assert_int_equal(qcow2_sink_open(loop, path, UINT64_MAX, 65536, &sink, &err), TM_E_RANGE);
	assert_int_equal(access(path, F_OK), -1);
}

static int set_up(void **state)
{
	(void)state;
	/* In memory where that can be: a sync of thousands of holes takes seconds on a disk. */
	(void)snprintf(dir, sizeof(dir), "%s/tidemark-test-XXXXXX",
		       access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
	if (!mkdtemp(dir))
		return -1;
	(void)snprintf(path, sizeof(path), "%s/disk.qcow2", dir);
	(void)snprintf(raw, sizeof(raw), "%s/disk.raw", dir);
	for (unsigned i = 0; i < PIECES; i++)
		piece[i] = (struct piece){.release = released};
	return loop_new(64, &loop, NULL);
}

static int tear_down(void **state)
{
	(void)state;
	loop_free(loop);
	for (unsigned i = 0; i < PIECES; i++)
		free(piece[i].data);
	(void)unlink(path);
	(void)unlink(raw);
	return rmdir(dir);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(random_disks_are_right),    TEST(a_run_goes_on_behind_its_table),
		TEST(refcounts_have_refcounts),  TEST(qemu_goes_on_with_it),
		TEST(what_fails_is_told),        TEST(one_that_is_given_up_gives_all_back),
		TEST(what_cannot_be_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
