/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The NBD source and sink against a server that answers as no common one does: reads in parts of
 * any order, twice or left out; connections that offer different things; no flush.
 */
#include "test.h"

#include "transport/transport.h"

#include <endian.h>
#include <limits.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>

#define SIZE        ((uint64_t)1 << 20)
#define BLOCK       65536U
#define CONNECTIONS 4
#define PARTS       4096
#define START_MS    10000

/* Of the protocol. */
enum { OPT_EXPORT_GO = 7, OPT_INFO = 6, OPT_STRUCTURED = 8, OPT_LIST_META = 9, OPT_SET_META = 10 };
enum { REP_ACK = 1, REP_INFO = 3 };
#define REP_UNKNOWN 0x80000001U
enum { HAS_FLAGS = 1, READ_ONLY = 2, FLUSH = 4, WRITE_ZEROES = 64, MULTI_CONN = 256 };
#define ABLE (HAS_FLAGS | FLUSH | WRITE_ZEROES | MULTI_CONN)
enum { CMD_READ, CMD_WRITE, CMD_DISC, CMD_FLUSH, CMD_WRITE_ZEROES = 6 };

struct part {
	uint32_t offset, length; /* in what is asked */
	bool hole;
};

/* What the n-th connection is told. */
struct offer {
	uint64_t size;
	uint32_t min_block, max_payload;
	uint16_t flags;
};

struct did {
	unsigned writes, zeroings, flushes;
};

/* Shared with the server's processes. */
struct peer {
	struct offer offer[CONNECTIONS];
	struct part part[PARTS]; /* the answer to every read */
	unsigned nparts;
	unsigned nconns;
	struct did did[CONNECTIONS];
	uint8_t disk[SIZE];
};

static struct loop *loop;
static struct peer *peer;
static char dir[64], sock[100];

/* ---- the server: one process listens, one for each connection ---- */

static void put(int fd, const void *bytes, size_t len)
{
	const uint8_t *at = bytes;

	while (len) {
		ssize_t n = send(fd, at, len, MSG_NOSIGNAL);

		if (n <= 0)
			_exit(0);
		at += n;
		len -= (size_t)n;
	}
}

static void get(int fd, void *bytes, size_t len)
{
	uint8_t *at = bytes;

	while (len) {
		ssize_t n = read(fd, at, len);

		if (n <= 0)
			_exit(0);
		at += n;
		len -= (size_t)n;
	}
}

static void put16(int fd, unsigned v)
{
	uint16_t be = htobe16((uint16_t)v);

	put(fd, &be, sizeof(be));
}

static void put32(int fd, uint32_t v)
{
	uint32_t be = htobe32(v);

	put(fd, &be, sizeof(be));
}

static void put64(int fd, uint64_t v)
{
	uint64_t be = htobe64(v);

	put(fd, &be, sizeof(be));
}

static uint64_t get_be(int fd, size_t len)
{
	uint8_t bytes[8];
	uint64_t v = 0;

	get(fd, bytes, len);
	for (size_t i = 0; i < len; i++)
		v = v << 8 | bytes[i];
	return v;
}

static void reply_option(int fd, uint32_t option, uint32_t type, uint32_t len)
{
	put64(fd, UINT64_C(0x3e889045565a9));
	put32(fd, option);
	put32(fd, type);
	put32(fd, len);
}

static void describe(int fd, uint32_t option, const struct offer *offer)
{
	reply_option(fd, option, REP_INFO, 12);
	put16(fd, 0);
	put64(fd, offer->size);
	put16(fd, offer->flags);
	reply_option(fd, option, REP_INFO, 14);
	put16(fd, 3);
	put32(fd, offer->min_block);
	put32(fd, BLOCK);
	put32(fd, offer->max_payload);
}

static void negotiate(int fd, const struct offer *offer)
{
	uint8_t rest[4096];

	put(fd, "NBDMAGICIHAVEOPT", 16);
	put16(fd, 1);
	(void)get_be(fd, 4);
	for (;;) {
		uint64_t magic = get_be(fd, 8);
		uint32_t option = (uint32_t)get_be(fd, 4);
		uint64_t len = get_be(fd, 4);

		if (magic != UINT64_C(0x49484156454f5054) || len > sizeof(rest))
			_exit(1);
		get(fd, rest, len);
		if (option == OPT_EXPORT_GO || option == OPT_INFO)
			describe(fd, option, offer);
		else if (option < OPT_STRUCTURED || option > OPT_SET_META) {
			reply_option(fd, option, REP_UNKNOWN, 0);
			continue;
		}
		reply_option(fd, option, REP_ACK, 0);
		if (option == OPT_EXPORT_GO)
			return;
	}
}

static void reply_chunk(int fd, unsigned flags, unsigned type, uint64_t cookie, uint32_t len)
{
	put32(fd, 0x668e33ef);
	put16(fd, flags);
	put16(fd, type);
	put64(fd, cookie);
	put32(fd, len);
}

static void reply_read(int fd, uint64_t cookie, uint64_t offset)
{
	for (unsigned i = 0; i < peer->nparts; i++) {
		const struct part *part = &peer->part[i];

		reply_chunk(fd, 0, part->hole ? 2 : 1, cookie, part->hole ? 12 : 8 + part->length);
		put64(fd, offset + part->offset);
		if (part->hole)
			put32(fd, part->length);
		else
			put(fd, peer->disk + offset + part->offset, part->length);
	}
	reply_chunk(fd, 1, 0, cookie, 0);
}

static void reply_simply(int fd, uint64_t cookie)
{
	put32(fd, 0x67446698);
	put32(fd, 0);
	put64(fd, cookie);
}

static void serve_connection(int fd, const struct offer *offer, struct did *did)
{
	negotiate(fd, offer);
	for (;;) {
		unsigned type = get_be(fd, 8) & 0xffff; /* behind magic and flags */
		uint64_t cookie = get_be(fd, 8), offset = get_be(fd, 8), len = get_be(fd, 4);

		if (!range_inside(offset, len, offer->size))
			_exit(1);
		if (type == CMD_READ) {
			reply_read(fd, cookie, offset);
			continue;
		}
		if (type == CMD_WRITE)
			get(fd, peer->disk + offset, len);
		else if (type == CMD_WRITE_ZEROES)
			(void)memset(peer->disk + offset, 0, len);
		else if (type != CMD_FLUSH)
			_exit(0);
		did->writes += type == CMD_WRITE;
		did->zeroings += type == CMD_WRITE_ZEROES;
		did->flushes += type == CMD_FLUSH;
		reply_simply(fd, cookie);
	}
}

_Noreturn static void serve(int listener)
{
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		unsigned n = peer->nconns;

		if (fd < 0 || n == CONNECTIONS)
			_exit(1);
		peer->nconns++;
		if (fork() == 0) {
			(void)close(listener);
			(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
			serve_connection(fd, &peer->offer[n], &peer->did[n]);
		}
		(void)close(fd);
	}
}

static pid_t start(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	pid_t pid;

	(void)unlink(sock);
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", sock);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(listen(fd, CONNECTIONS), 0);
	peer->nconns = 0;
	(void)memset(peer->did, 0, sizeof(peer->did));
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		(void)signal(SIGCHLD, SIG_IGN);
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* when a test fails */
		/* A ring that is left open keeps the sockets open that it polls. */
		if (dup2(fd, 3) < 0 || close_range(4, UINT_MAX, 0) < 0)
			_exit(1);
		serve(3);
	}
	(void)close(fd);
	return pid;
}

/* The processes of connections end with it. */
static void stop(pid_t pid)
{
	spawn_stop(pid, 0);
}

static struct nbd_address address(void)
{
	return (struct nbd_address){.socket = sock};
}

static void offer_to_all(struct offer offer)
{
	for (unsigned i = 0; i < CONNECTIONS; i++)
		peer->offer[i] = offer;
}

/* ---- reads ---- */

struct wait {
	struct source_req req;
	bool ended;
	int code;
};

static void ended(struct source_req *req, int code)
{
	struct wait *w = container_of(req, struct wait, req);

	w->ended = true;
	w->code = code;
}

/* One read of a block; what the server sends are peer's parts. */
static int read_block(struct block_source *src, uint8_t *buf, uint64_t offset, struct error *err)
{
	struct wait w = {.req.done = ended};

	src->ops->read(src, buf, BLOCK, offset, &w.req);
	while (!w.ended)
		assert_int_equal(loop_run_once(loop, 1000, NULL), 0);
	*err = w.req.err;
	return w.code;
}

static struct part data_part(uint32_t offset, uint32_t length)
{
	return (struct part){.offset = offset, .length = length};
}

static void add_part(struct part part)
{
	assert_true(peer->nparts < PARTS);
	peer->part[peer->nparts++] = part;
}

/* Cuts the block into parts, some of them holes, and shuffles those. */
static void cut_block(uint64_t *state, uint64_t offset, uint32_t longest)
{
	peer->nparts = 0;
	for (uint32_t at = 0; at < BLOCK;) {
		uint32_t len = 1 + (uint32_t)test_below(state, longest);
		struct part part = data_part(at, at + len > BLOCK ? BLOCK - at : len);

		part.hole = test_below(state, 4) == 0;
		if (part.hole)
			(void)memset(peer->disk + offset + at, 0, part.length);
		add_part(part);
		at += part.length;
	}
	for (unsigned i = peer->nparts; i > 1; i--) {
		unsigned k = (unsigned)test_below(state, i);
		struct part other = peer->part[k];

		peer->part[k] = peer->part[i - 1];
		peer->part[i - 1] = other;
	}
}

static void fill_disk(uint64_t *state)
{
	for (size_t i = 0; i < SIZE; i++)
		peer->disk[i] = (uint8_t)(1 + test_below(state, 255));
}

/* A server of random bytes, and who reads from it. */
static pid_t start_with_disk(uint64_t *state, struct block_source **ret)
{
	const struct nbd_address addr = address();
	struct error err = {0};
	pid_t pid;

	offer_to_all((struct offer){SIZE, 1, 1 << 20, ABLE});
	fill_disk(state);
	pid = start();
	if (nbd_source_open(loop, &addr, 1, START_MS, ret, &err))
		fail_msg("%s", err.text);
	return pid;
}

static void parts_come_in_any_order(void **unused)
{
	uint64_t state = test_seed() * 2 + 1;
	auto_free uint8_t *buf = malloc(BLOCK);
	struct block_source *src;
	struct error err = {0};
	pid_t pid;

	(void)unused;
	pid = start_with_disk(&state, &src);
	for (unsigned i = 0; i < 200; i++) {
		uint64_t offset = test_below(&state, SIZE / BLOCK) * BLOCK;

		cut_block(&state, offset, i % 10 ? 64U << i % 11 : 4 * BLOCK);
		(void)memset(buf, 0, BLOCK);
		if (read_block(src, buf, offset, &err))
			fail_msg("%s", err.text);
		assert_memory_equal(buf, peer->disk + offset, BLOCK);
	}
	block_source_free(src);
	stop(pid);
}

/* Spoils the parts of a good answer. */
static const char *spoil(uint64_t *state, unsigned how)
{
	unsigned k = (unsigned)test_below(state, peer->nparts), l;
	struct part *part = &peer->part[k];

	switch (how) {
	case 0: /* left out */
		*part = peer->part[--peer->nparts];
		return "lacks the part from offset";
	case 1: /* twice */
		add_part(*part);
		return "has parts that overlap, at offset";
	case 2: /* twice, and as many bytes are left out */
		l = (unsigned)test_below(state, peer->nparts - 1);
		*part = data_part(peer->part[l += l >= k].offset, part->length);
		if (part->offset + part->length > BLOCK)
			part->offset = BLOCK - part->length;
		return "has parts that overlap, at offset";
	default: /* reaches into the next one, or the one before */
		part->offset -= part->offset + part->length == BLOCK;
		part->length++;
		return "has parts that overlap, at offset";
	}
}

static void parts_that_overlap_or_lack_are_refused(void **unused)
{
	uint64_t state = test_seed() * 2 + 1;
	auto_free uint8_t *buf = malloc(BLOCK);
	struct block_source *src;
	struct error err = {0};
	pid_t pid;

	(void)unused;
	pid = start_with_disk(&state, &src);
	for (unsigned i = 0; i < 200; i++) {
		uint64_t offset = test_below(&state, SIZE / BLOCK) * BLOCK;
		const char *what;

		do
			cut_block(&state, offset, 64U << i % 10);
		while (peer->nparts < 3);
		what = spoil(&state, i % 4);
		assert_int_equal(read_block(src, buf, offset, &err), TM_E_PEER);
		if (!strstr(err.text, what) || !strstr(err.text, "read of 65536 bytes at offset"))
			fail_msg("%u: %s", i % 4, err.text);
		/* The connection is in step. */
		cut_block(&state, offset, BLOCK);
		if (read_block(src, buf, offset, &err))
			fail_msg("%s", err.text);
		assert_memory_equal(buf, peer->disk + offset, BLOCK);
	}
	block_source_free(src);
	stop(pid);
}

static void an_answer_keeps_no_memory_without_end(void **unused)
{
	const struct nbd_address addr = address();
	auto_free uint8_t *buf = malloc(BLOCK);
	struct block_source *src;
	struct error err = {0};
	pid_t pid;

	(void)unused;
	offer_to_all((struct offer){SIZE, 1, 1 << 20, ABLE});
	pid = start();
	if (nbd_source_open(loop, &addr, 1, START_MS, &src, &err))
		fail_msg("%s", err.text);
	peer->nparts = 0;
	for (unsigned i = 0; i < 1025; i++)
		add_part(data_part(2 * i, 1));
	for (unsigned i = 0; i < 1025; i++)
		add_part(data_part(2 * i + 1, 1));
	add_part(data_part(2050, BLOCK - 2050));
	assert_int_equal(read_block(src, buf, 0, &err), TM_E_PEER);
	if (!strstr(err.text, "is in too many pieces, at offset 2048"))
		fail_msg("%s", err.text);
	block_source_free(src);
	stop(pid);
}

/* ---- writes ---- */

static void released(struct piece *p)
{
	p->next = p; /* it is back */
}

/* Writes a disk whose blocks are data and zeroes by turns, each with a request of its own. */
static int write_disk(struct disk_sink_counts *ret, struct error *err)
{
	enum { HALF = SIZE / BLOCK / 2 };
	const struct nbd_address addr = address();
	auto_free uint8_t *data = malloc((size_t)HALF * BLOCK);
	struct piece p = {.nruns = 2 * HALF, .nclusters = HALF, .data = data, .release = released};
	struct disk_sink *sink;
	int r = nbd_sink_open(loop, &addr, SIZE, BLOCK, START_MS, &sink, err);

	if (r)
		return r;
	(void)memset(peer->disk, 0xaa, SIZE);
	for (uint64_t i = 0; i < HALF; i++) {
		(void)memset(data + i * BLOCK, (int)(1 + i), BLOCK);
		p.run[2 * i] = (struct piece_run){.block = 2 * i, .count = 1, .first = (uint32_t)i};
		p.run[2 * i + 1] = (struct piece_run){.block = 2 * i + 1, .count = 1, .zero = true};
	}
	assert_int_equal(piece_sink_put(disk_sink_pieces(sink), &p, err), 0);
	r = disk_sink_finish(sink, ret, err);
	assert_ptr_equal(p.next, &p);
	disk_sink_free(sink);
	for (size_t i = 0; i < SIZE && !r; i++)
		assert_int_equal(peer->disk[i], i / BLOCK % 2 ? 0 : 1 + i / BLOCK / 2);
	return r;
}

static void all_connections_that_offer_the_same_are_used(void **unused)
{
	struct disk_sink_counts counts = {0};
	struct error err = {0};
	pid_t pid;

	(void)unused;
	offer_to_all((struct offer){SIZE, 512, BLOCK, ABLE});
	pid = start();
	if (write_disk(&counts, &err))
		fail_msg("%s", err.text);
	stop(pid);
	assert_int_equal(peer->nconns, CONNECTIONS);
	for (unsigned i = 0; i < CONNECTIONS; i++) {
		assert_int_not_equal(peer->did[i].writes + peer->did[i].zeroings, 0);
		assert_int_equal(peer->did[i].flushes, 1);
	}
}

static void connections_that_offer_something_else_are_left_out(void **unused)
{
	static const struct offer others[] = {
		{SIZE - BLOCK, 512, BLOCK, ABLE},
		{SIZE + BLOCK, 512, BLOCK, ABLE},
		{SIZE, 4096, BLOCK, ABLE},
		{SIZE, 512, BLOCK / 2, ABLE},
		{SIZE, 512, BLOCK, ABLE & ~WRITE_ZEROES},
		{SIZE, 512, BLOCK, ABLE & ~FLUSH},
		{SIZE, 512, BLOCK, ABLE | READ_ONLY},
	};

	(void)unused;
	for (unsigned i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		struct disk_sink_counts counts = {0};
		unsigned other = 1 + i % 2;
		struct error err = {0};
		pid_t pid;

		offer_to_all((struct offer){SIZE, 512, BLOCK, ABLE});
		peer->offer[other] = others[i];
		pid = start();
		if (write_disk(&counts, &err))
			fail_msg("%u: %s", i, err.text);
		stop(pid);
		assert_int_equal(peer->nconns, other + 1);
		for (unsigned k = 0; k < CONNECTIONS; k++)
			assert_int_equal(peer->did[k].flushes, k < other);
		assert_int_equal(peer->did[other].writes + peer->did[other].zeroings, 0);
	}
}

static void a_server_that_cannot_flush_is_not_asked_to(void **unused)
{
	(void)unused;
	for (unsigned i = 0; i < 2; i++) {
		struct disk_sink_counts counts = {0};
		struct error err = {0};
		pid_t pid;

		offer_to_all((struct offer){SIZE, 512, BLOCK, i ? ABLE : ABLE & ~FLUSH});
		pid = start();
		if (write_disk(&counts, &err))
			fail_msg("%s", err.text);
		stop(pid);
		assert_int_equal(counts.unflushed, !i);
		assert_int_equal(peer->nconns, CONNECTIONS);
		for (unsigned k = 0; k < CONNECTIONS; k++)
			assert_int_equal(peer->did[k].flushes, i);
	}
}

static int set_up(void **state)
{
	(void)state;
	(void)snprintf(dir, sizeof(dir), "/tmp/tidemark-peer-XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	(void)snprintf(sock, sizeof(sock), "%s/sock", dir);
	peer = mmap(NULL, sizeof(*peer), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return peer == MAP_FAILED ? -1 : loop_new(128, &loop, NULL);
}

static int tear_down(void **state)
{
	(void)state;
	loop_free(loop);
	(void)munmap(peer, sizeof(*peer));
	(void)unlink(sock);
	(void)rmdir(dir);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(parts_come_in_any_order),
		cmocka_unit_test(parts_that_overlap_or_lack_are_refused),
		cmocka_unit_test(an_answer_keeps_no_memory_without_end),
		cmocka_unit_test(all_connections_that_offer_the_same_are_used),
		cmocka_unit_test(connections_that_offer_something_else_are_left_out),
		cmocka_unit_test(a_server_that_cannot_flush_is_not_asked_to),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
