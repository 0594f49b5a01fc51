/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Repositories of years, made of a simulated disk in minutes: the reader and the repository are
 * the real ones, only the disk is not.
 *
 *	sim fill DIR [KEY=VALUE…]   makes a repository, one guest, one disk, many points; rtt=MS: so
 *	                            much longer does every request of the last point's backup take
 *	sim find DIR GUEST MS       opens a repository and finds the guest's newest point, every
 *	                            request taking so much longer
 *	sim read DIR POINT          reads a point to nowhere
 *	sim nbd SOCKET [BITMAP]     reads a disk of an NBD server, or what its bitmap names
 *
 * Prints JSON: what was asked of the store, bytes by kind, seconds and CPU seconds.
 */
#include "bench.h"
#include "counting.h"
#include "sim_disk.h"

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#define PIECES          24 /* as `backup` has */
#define NBD_CONNECTIONS 4
#define CONNECT_MS      10000

static double now(void)
{
	struct timespec t;

	must(clock_gettime(CLOCK_MONOTONIC, &t) == 0, "clock_gettime");
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static double cpu(void)
{
	struct timespec t;

	must(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) == 0, "clock_gettime");
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* ---- fill ---- */

struct fill {
	uint64_t size, block, points, dirty, first, run, seed, rtt;
	const char *content;
	const char *guest;
	struct loop *loop;
	struct pool *pool;
	struct counting *store;
	struct repo *repo;
	struct sim_disk disk;
};

static bool take(const char *arg, const char *key, uint64_t *ret)
{
	size_t n = strlen(key);
	char *end;

	if (strncmp(arg, key, n) != 0 || arg[n] != '=')
		return false;
	*ret = strtoull(arg + n + 1, &end, 10);
	must(*end == 0, arg);
	return true;
}

static void parse(struct fill *f, int n, char **args)
{
	*f = (struct fill){.size = UINT64_C(1) << 40,
			   .block = 65536,
			   .points = 10,
			   .dirty = 1024,
			   .run = 1,
			   .seed = 1,
			   .guest = "guest"};
	for (int i = 0; i < n; i++) {
		if (take(args[i], "size", &f->size) || take(args[i], "block", &f->block) ||
		    take(args[i], "points", &f->points) || take(args[i], "dirty", &f->dirty) ||
		    take(args[i], "first", &f->first) || take(args[i], "run", &f->run) ||
		    take(args[i], "seed", &f->seed) || take(args[i], "rtt", &f->rtt))
			continue;
		if (strncmp(args[i], "content=", 8) == 0)
			f->content = args[i] + 8;
		else if (strncmp(args[i], "guest=", 6) == 0)
			f->guest = args[i] + 6;
		else
			must(false, args[i]);
	}
	f->first = f->first ? f->first : f->dirty;
}

static void map_content(struct fill *f)
{
	struct stat st;
	void *p;
	int fd;

	if (!f->content)
		return;
	fd = open(f->content, O_RDONLY | O_CLOEXEC);
	must(fd >= 0 && fstat(fd, &st) == 0, f->content);
	p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	must(p != MAP_FAILED, f->content);
	must(close(fd) == 0, f->content);
	f->disk.content = p;
	f->disk.ncontent = (uint64_t)st.st_size / f->block;
	must(f->disk.ncontent > 0, f->content);
}

static void describe(struct fill *f, const struct point *parent, uint64_t at_ms, struct point *p,
		     struct point_disk *pd)
{
	static char name[] = "vda", made[] = "simulated", state[] = "shutoff";

	*pd = (struct point_disk){.name = name, .rung = parent ? RUNG_BITMAP : RUNG_FULL};
	*p = (struct point){.guest = (char *)(uintptr_t)f->guest,
			    .name = made,
			    .state = state,
			    .disks = pd,
			    .ndisks = 1,
			    .kind = POINT_OFFLINE,
			    .created_ms = at_ms};
	if (parent)
		p->parent = pd->parent = parent->id;
}

/* Frees *last. */
static void make_point(struct fill *f, struct point **last, uint64_t at_ms, struct tm_id *ret)
{
	struct repo_session_options opt = {.guest = f->guest, .pool = f->pool};
	const struct reader_options read = {
		.map = SOURCE_MAP_DIRTY, .block_size = (uint32_t)f->block, .pieces = PIECES};
	struct repo_disk_counts stored = {0};
	struct reader_counts counts;
	struct repo_session *s = NULL;
	struct piece_sink *sink = NULL;
	struct error err = {0};
	struct point_disk pd;
	struct point meta;

	describe(f, *last, at_ms, &meta, &pd);
	must_do(id_new_timed(at_ms, &opt.id, &err), &err);
	must_do(repo_session_begin(f->repo, &opt, &s, &err), &err);
	must_do(repo_session_disk_begin(s, pd.name, f->size, *last, *last ? (*last)->disks : NULL,
					&sink, &err),
		&err);
	must_do(reader_run(f->loop, &f->disk.src, sink, &read, &counts, &err), &err);
	must_do(repo_session_disk_end(s, &stored, &err), &err);
	pd.dirty_bytes = counts.dirty_bytes;
	pd.read_bytes = counts.read_bytes;
	pd.new_bytes = stored.new_bytes;
	pd.stored_bytes = stored.stored_bytes;
	must_do(repo_session_commit(s, &meta, &err), &err);
	repo_session_free(s);
	point_free(*last);
	*last = NULL;
	*ret = opt.id;
}

/* As a backup does: in a process of its own, which remembers nothing. */
static void open_again(struct fill *f, const char *dir)
{
	struct error err = {0};

	repo_free(f->repo);
	f->store = counting_open(f->loop, dir, false);
	must_do(repo_open(&f->store->st, &f->repo, &err), &err);
	f->store->repo = f->repo;
}

/* One point a day, until today. */
static int fill(const char *dir, int n, char **args)
{
	const uint64_t day = UINT64_C(86400) * 1000;
	struct repo_init_options init = {0};
	struct point *last = NULL;
	struct error err = {0};
	double began, cpu_began;
	struct tm_id id = {{0}};
	struct fill f;

	parse(&f, n, args);
	init.block_size = (uint32_t)f.block;
	must_do(loop_new(128, &f.loop, &err), &err);
	must_do(pool_new(f.loop, 0, &f.pool, &err), &err);
	f.store = counting_open(f.loop, dir, true);
	must_do(repo_init(&f.store->st, &init, &f.repo, &err), &err);
	f.store->repo = f.repo;
	sim_disk_init(&f.disk, f.loop, f.size, f.block);
	map_content(&f);
	for (uint64_t i = 0; i < f.points; i++) {
		bool is_last = i + 1 == f.points;

		sim_disk_choose(&f.disk, i ? f.dirty : f.first, f.run, sim_mix(f.seed) + i);
		f.disk.epoch = i;
		if (is_last) {
			(void)printf("{\"before\": {");
			counting_print(f.store);
			(void)printf("}, ");
			open_again(&f, dir);
			counting_reset(f.store);
			f.disk.read_bytes = 0;
			f.store->rtt_ms = (unsigned)f.rtt;
		}
		began = now();
		cpu_began = cpu();
		make_point(&f, &last, clock_unix_ms(&clock_system) - (f.points - i) * day, &id);
		if (!is_last)
			must_do(repo_point_get(f.repo, f.guest, &id, &last, &err), &err);
		else
			(void)printf("\"seconds\": %.6f, \"cpu\": %.6f, ", now() - began,
				     cpu() - cpu_began);
	}
	counting_print(f.store);
	(void)printf(", \"dirty_bytes\": %" PRIu64 ", \"read_bytes\": %" PRIu64
		     ", \"point\": \"%s\"}\n",
		     f.disk.ndirty * f.block, f.disk.read_bytes, id_text(&id).s);
	sim_disk_done(&f.disk);
	repo_free(f.repo);
	pool_free(f.pool);
	loop_free(f.loop);
	return 0;
}

/* ---- read ---- */

struct nowhere {
	struct piece_sink sink;
	uint64_t bytes;
	uint32_t block;
	double first; /* seconds on now() when the first piece came */
};

static int nowhere_put(struct piece_sink *sink, struct piece *p, struct error *err)
{
	struct nowhere *nw = container_of(sink, struct nowhere, sink);

	(void)err;
	if (nw->first == 0)
		nw->first = now();
	nw->bytes += (uint64_t)p->nclusters * nw->block;
	piece_release(p);
	return 0;
}

/* As a backup of the guest does.  What has to be waited for one after the other shows in the time.
 */
static int find_newest(const char *dir, const char *guest, unsigned rtt_ms)
{
	struct error err = {0};
	struct point *p = NULL;
	struct repo *repo = NULL;
	struct counting *c;
	struct loop *loop;
	double began;

	must_do(loop_new(128, &loop, &err), &err);
	c = counting_open(loop, dir, false);
	c->rtt_ms = rtt_ms;
	began = now();
	must_do(repo_open(&c->st, &repo, &err), &err);
	must_do(repo_point_newest(repo, guest, NULL, NULL, NULL, &p, &err), &err);
	(void)printf("{\"seconds\": %.6f, ", now() - began);
	counting_print(c);
	(void)printf("}\n");
	point_free(p);
	repo_free(repo);
	loop_free(loop);
	return 0;
}

static int read_point(const char *dir, const char *name)
{
	struct nowhere to = {.sink.put = nowhere_put};
	struct repo_read_options opt = {.pieces = PIECES};
	struct counting *c;
	struct point *p = NULL;
	struct repo *repo = NULL;
	struct error err = {0};
	struct loop *loop;
	struct pool *pool;
	double began;

	must_do(loop_new(128, &loop, &err), &err);
	must_do(pool_new(loop, 0, &pool, &err), &err);
	opt.pool = pool;
	c = counting_open(loop, dir, false);
	must_do(repo_open(&c->st, &repo, &err), &err);
	must_do(repo_point_find(repo, name, &p, &err), &err);
	counting_reset(c);
	to.block = repo_block_size(repo);
	began = now();
	must_do(repo_read_disk(repo, p, p->disks, &to.sink, &opt, &err), &err);
	(void)printf("{\"seconds\": %.6f, \"cpu\": %.6f, ", now() - began, cpu());
	counting_print(c);
	(void)printf(", \"bytes\": %" PRIu64 "}\n", to.bytes);
	point_free(p);
	repo_free(repo);
	pool_free(pool);
	loop_free(loop);
	return 0;
}

/* ---- nbd ---- */

/* The reader by itself: from a real server to nowhere. */
static int read_nbd(const char *socket, const char *bitmap)
{
	const struct nbd_address addr = {.socket = socket, .bitmap = bitmap};
	struct nowhere to = {.sink.put = nowhere_put, .block = 65536};
	const struct reader_options opt = {.map = bitmap ? SOURCE_MAP_DIRTY : SOURCE_MAP_DATA,
					   .block_size = to.block,
					   .pieces = PIECES};
	struct block_source *src = NULL;
	struct reader_counts counts;
	struct error err = {0};
	struct loop *loop;
	double began;

	must_do(loop_new(128, &loop, &err), &err);
	began = now();
	must_do(nbd_source_open(loop, &addr, NBD_CONNECTIONS, CONNECT_MS, &src, &err), &err);
	must_do(reader_run(loop, src, &to.sink, &opt, &counts, &err), &err);
	(void)printf("{\"first\": %.6f, \"seconds\": %.6f, \"cpu\": %.6f, \"dirty_bytes\": %" PRIu64
		     ", \"read_bytes\": %" PRIu64 "}\n",
		     to.first > 0 ? to.first - began : 0, now() - began, cpu(), counts.dirty_bytes,
		     counts.read_bytes);
	block_source_free(src);
	loop_free(loop);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc >= 3 && strcmp(argv[1], "fill") == 0)
		return fill(argv[2], argc - 3, argv + 3);
	if (argc == 5 && strcmp(argv[1], "find") == 0)
		return find_newest(argv[2], argv[3], (unsigned)strtoul(argv[4], NULL, 10));
	if (argc == 4 && strcmp(argv[1], "read") == 0)
		return read_point(argv[2], argv[3]);
	if (argc >= 3 && argc <= 4 && strcmp(argv[1], "nbd") == 0)
		return read_nbd(argv[2], argv[3]);
	(void)fprintf(stderr, "usage: sim fill DIR [KEY=VALUE...] | find DIR GUEST MS | "
			      "read DIR POINT | nbd SOCKET [BITMAP]\n");
	return 2;
}
