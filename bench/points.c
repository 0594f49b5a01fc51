/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A repository with many points, and what it costs to look at them.
 *
 *	points make DIR POINTS [DISKS [GUESTS]]   sparse disks of 1 TiB; each point changes one
 *	                                          cluster of each disk
 *	points ask DIR                            times what commands ask a repository
 *
 * Memory is the process's peak, so each line of `ask` is a process of its own.
 */
#include "repo/repo.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#define DISK_SIZE (UINT64_C(1) << 40)
#define MAX_DISKS 64

static struct loop *loop;
static struct pool *pool;

static _Noreturn void fail(const struct error *err)
{
	(void)fprintf(stderr, "points: %s\n", err->text);
	exit(1);
}

static double now(void)
{
	struct timespec ts;

	(void)clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static unsigned number(const char *text, unsigned max)
{
	unsigned long n = strtoul(text, NULL, 10);

	if (n == 0 || n > max) {
		(void)fprintf(stderr, "points: %s is not from 1 to %u\n", text, max);
		exit(2);
	}
	return (unsigned)n;
}

static struct repo *repo_at(const char *dir, bool create)
{
	struct error err = {0};
	struct store *st;
	struct repo *repo;

	if (store_dir_open(loop, dir, create, &st, &err) < 0 ||
	    (create ? repo_init(st, NULL, &repo, &err) : repo_open(st, &repo, &err)) < 0)
		fail(&err);
	return repo;
}

/* ---- make ---- */

/* The one piece of a disk is not used again before the disk has ended. */
static void release(struct piece *p)
{
	(void)p;
}

static int write_disk(struct repo_session *s, const char *name, const struct point *parent,
		      const struct point_disk *disk, uint64_t n, struct error *err)
{
	static uint8_t bytes[64 << 10];
	struct repo_disk_counts counts;
	struct piece_sink *sink;
	struct piece piece = {.data = bytes, .release = release};
	int r = repo_session_disk_begin(s, name, DISK_SIZE, parent, disk, &sink, err);

	memset(bytes, (int)n, sizeof(bytes));
	memcpy(bytes, &n, sizeof(n));
	piece.run[0] = (struct piece_run){.block = n * 4099 % (DISK_SIZE >> 16), .count = 1};
	piece.nruns = piece.nclusters = 1;
	r = r ? r : piece_sink_put(sink, &piece, err);
	return r ? r : repo_session_disk_end(s, &counts, err);
}

static int make_point(struct repo *repo, char *guest, unsigned n, unsigned ndisks,
		      struct point **parent, struct error *err)
{
	auto_clean(repo_session_free) struct repo_session *s = NULL;
	struct repo_session_options opt = {.guest = guest, .pool = pool};
	struct point_disk disks[MAX_DISKS] = {{0}};
	char names[MAX_DISKS][16], name[16], state[] = "running";
	struct point meta = {.guest = guest,
			     .name = name,
			     .state = state,
			     .disks = disks,
			     .ndisks = ndisks,
			     .kind = POINT_OFFLINE,
			     .created_ms = 1700000000000 + n * UINT64_C(3600000)};
	int r = id_new_timed(meta.created_ms, &opt.id, err);

	(void)snprintf(name, sizeof(name), "n%u", n);
	r = r ? r : repo_session_begin(repo, &opt, &s, err);
	for (unsigned i = 0; r == 0 && i < ndisks; i++) {
		(void)snprintf(names[i], sizeof(names[i]), "vd%u", i);
		disks[i] = (struct point_disk){.name = names[i],
					       .rung = *parent ? RUNG_BITMAP : RUNG_FULL};
		r = write_disk(s, names[i], *parent, *parent ? &(*parent)->disks[i] : NULL,
			       (uint64_t)n * MAX_DISKS + i, err);
	}
	r = r ? r : repo_session_commit(s, &meta, err);
	point_free(*parent);
	*parent = NULL;
	return r ? r : repo_point_get(repo, guest, &opt.id, parent, err);
}

static void make(const char *dir, unsigned points, unsigned disks, unsigned guests)
{
	struct repo *repo = repo_at(dir, true);
	struct error err = {0};

	for (unsigned g = 0; g < guests; g++) {
		auto_clean(point_free) struct point *parent = NULL;
		char guest[32];

		(void)snprintf(guest, sizeof(guest), "guest%u", g);
		for (unsigned i = 0; i < points / guests; i++)
			if (make_point(repo, guest, i, disks, &parent, &err) < 0)
				fail(&err);
	}
	repo_free(repo);
}

/* ---- ask ---- */

static void ask_open(struct repo *repo, struct error *err)
{
	(void)repo;
	(void)err;
}

static void ask_list(struct repo *repo, struct error *err)
{
	auto_point_list struct point_list l = {0};

	if (repo_points_brief(repo, NULL, &l, NULL, err) == 0)
		(void)printf("(%zu points) ", l.n);
}

static void find(struct repo *repo, const char *spec, struct error *err)
{
	auto_clean(point_free) struct point *p = NULL;

	if (repo_point_find(repo, spec, &p, err) == 0)
		(void)printf("(%s) ", p->name);
}

static void ask_latest(struct repo *repo, struct error *err)
{
	find(repo, "latest", err);
}

static void ask_guest(struct repo *repo, struct error *err)
{
	find(repo, "guest0@latest", err);
}

static void ask_time(struct repo *repo, struct error *err)
{
	find(repo, "guest0@2023-11-15", err);
}

static void ask_name(struct repo *repo, struct error *err)
{
	find(repo, "guest0@n7", err);
}

static const struct {
	const char *name;
	void (*run)(struct repo *, struct error *);
} asks[] = {
	{"open", ask_open},          {"list", ask_list},       {"latest", ask_latest},
	{"GUEST@latest", ask_guest}, {"GUEST@TIME", ask_time}, {"GUEST@NAME", ask_name},
};

static void ask_one(const char *dir, unsigned i)
{
	double start = now();
	struct error err = {0};
	struct repo *repo = repo_at(dir, false);
	struct rusage u;

	(void)printf("%-14s ", asks[i].name);
	asks[i].run(repo, &err);
	if (err.code)
		fail(&err);
	(void)getrusage(RUSAGE_SELF, &u);
	(void)printf("%.1f ms, %.1f ms of CPU, %ld MiB\n", (now() - start) * 1e3,
		     (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e3 +
			     (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e3,
		     u.ru_maxrss / 1024);
	repo_free(repo);
}

static void runtime_up(void)
{
	struct error err = {0};

	if (loop_new(64, &loop, &err) < 0 || pool_new(loop, 2, &pool, &err) < 0)
		fail(&err);
}

static void runtime_down(void)
{
	pool_free(pool);
	loop_free(loop);
}

static void ask(const char *dir)
{
	for (unsigned i = 0; i < ARRAY_SIZE(asks); i++) {
		pid_t pid = fork();
		int status = 1;

		if (pid == 0) {
			runtime_up();
			ask_one(dir, i);
			runtime_down();
			exit(0);
		}
		if (pid < 0 || waitpid(pid, &status, 0) < 0 || status != 0)
			exit(1);
	}
}

int main(int argc, char **argv)
{
	if (argc >= 4 && argc <= 6 && strcmp(argv[1], "make") == 0) {
		runtime_up();
		make(argv[2], number(argv[3], 1000000), argc > 4 ? number(argv[4], MAX_DISKS) : 1,
		     argc > 5 ? number(argv[5], 1000) : 1);
		runtime_down();
	} else if (argc == 3 && strcmp(argv[1], "ask") == 0) {
		ask(argv[2]);
	} else {
		(void)fprintf(stderr, "usage: points make DIR POINTS [DISKS [GUESTS]]\n"
				      "       points ask DIR\n");
		return 2;
	}
	return 0;
}
