/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each stage of a backup costs by itself, on one thread, over the data that goes through it:
 *
 *	stages IMAGE DIR [back]      zero test, content id, zstd, seal, CRC and durable writes into
 *	                             DIR; with `back` also what a restore does with them
 *	stages write FILE BYTES      what a restore writes: the first touch of its memory is a
 *	                             part of it, and it has to be measured in as little time
 *
 * Prints JSON: per stage the bytes that went in and the CPU seconds they took.  The data goes from
 * stage to stage in batches that are larger than the caches.
 */
#include "repo/session.h"

#include "bench.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#define CLUSTER 65536U
#define GROUP   (FRAME_TARGET_BYTES / CLUSTER)
#define BATCH   1024U /* clusters */
#define LEVEL   1     /* the default of `backup` */

enum stage_name {
	STAGE_ZERO,
	STAGE_ID,
	STAGE_COMPRESS,
	STAGE_SEAL,
	STAGE_CRC,
	STAGE_WRITE,
	STAGE_LOAD,
	STAGE_OPEN,
	STAGE_DECOMPRESS,
	STAGE_PROVE,
	STAGE_WRITE_DATA,
	STAGES
};

static const char *const stage_names[STAGES] = {
	"zero", "id",         "compress", "seal",     "crc",        "write",
	"load", "open_frame", "unpack",   "prove_id", "write_data",
};

struct stage {
	uint64_t bytes, ns;
};

/* Neighbours of one group without a zero cluster between them. */
struct frame {
	const uint8_t *data;
	uint32_t clusters;
	uint32_t len; /* of what was stored */
	uint8_t *stored;
};

struct stages {
	struct worker *w;
	struct stage stage[STAGES];
	const uint8_t *cluster[BATCH];
	bool zero[BATCH];
	uint32_t nclusters;
	struct frame frame[BATCH];
	uint32_t nframes;
	uint8_t *stored; /* room for the frames of a batch */
	uint8_t *plain;  /* room for its data */
	uint64_t batches;
	int dir;
	bool back; /* a restore's, too */
};

static uint64_t cpu_ns(void)
{
	struct timespec t;

	must(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) == 0, "clock_gettime");
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static void count(struct stages *s, enum stage_name which, uint64_t since, uint64_t bytes)
{
	s->stage[which].ns += cpu_ns() - since;
	s->stage[which].bytes += bytes;
}

static void zero_test(struct stages *s)
{
	uint64_t since = cpu_ns();

	for (uint32_t i = 0; i < s->nclusters; i++) {
		const uint8_t *p = s->cluster[i];

		s->zero[i] = p[0] == 0 && memcmp(p, p + 1, CLUSTER - 1) == 0;
	}
	count(s, STAGE_ZERO, since, (uint64_t)s->nclusters * CLUSTER);
}

static void identify(struct stages *s, enum stage_name which)
{
	uint64_t since = cpu_ns(), bytes = 0;
	uint8_t id[PIECE_CLUSTERS][CONTENT_BYTES], *ret[PIECE_CLUSTERS];
	const uint8_t *data[PIECE_CLUSTERS];
	unsigned n = 0;

	for (uint32_t i = 0; i < s->nclusters; i++) {
		if (!s->zero[i]) {
			ret[n] = id[n];
			data[n++] = s->cluster[i];
			bytes += CLUSTER;
		}
		if (n == PIECE_CLUSTERS || i + 1 == s->nclusters) {
			must(content_ids(s->w, n, data, CLUSTER, ret, NULL) == 0, "content_ids");
			n = 0;
		}
	}
	count(s, which, since, bytes);
}

static void make_frames(struct stages *s)
{
	s->nframes = 0;
	for (uint32_t i = 0; i < s->nclusters; i++) {
		struct frame *last = s->nframes ? &s->frame[s->nframes - 1] : NULL;

		if (s->zero[i])
			continue;
		if (last && last->clusters < GROUP &&
		    last->data + (size_t)last->clusters * CLUSTER == s->cluster[i] &&
		    i % GROUP != 0)
			last->clusters++;
		else
			s->frame[s->nframes++] =
				(struct frame){.data = s->cluster[i], .clusters = 1};
	}
}

static void compress_frames(struct stages *s)
{
	uint64_t since = cpu_ns(), bytes = 0;
	uint8_t *to = s->stored;

	for (uint32_t i = 0; i < s->nframes; i++) {
		struct frame *f = &s->frame[i];
		size_t len = (size_t)f->clusters * CLUSTER;
		size_t n = ZSTD_compress2(s->w->cctx, to, len, f->data, len);

		f->stored = to;
		f->len = ZSTD_isError(n) ? 0 : (uint32_t)n; /* 0: does not shrink */
		to += f->len ? f->len : len;
		to += TAG_BYTES;
		bytes += len;
	}
	count(s, STAGE_COMPRESS, since, bytes);
	for (uint32_t i = 0; i < s->nframes; i++) {
		struct frame *f = &s->frame[i];

		if (f->len)
			continue;
		f->len = f->clusters * CLUSTER;
		memcpy(f->stored, f->data, f->len);
	}
}

static void seal_frames(struct stages *s)
{
	uint64_t since = cpu_ns(), bytes = 0;

	for (uint32_t i = 0; i < s->nframes; i++) {
		struct frame *f = &s->frame[i];

		must(aead_seal(s->w->aead, i, "", 0, f->stored, f->len, f->stored, NULL) == 0,
		     "aead_seal");
		bytes += f->len;
	}
	count(s, STAGE_SEAL, since, bytes);
}

static void sum_frames(struct stages *s)
{
	uint64_t since = cpu_ns(), bytes = 0;
	uint32_t sum = 0;

	for (uint32_t i = 0; i < s->nframes; i++) {
		sum ^= crc32c(0, s->frame[i].stored, s->frame[i].len + TAG_BYTES);
		bytes += s->frame[i].len + TAG_BYTES;
	}
	count(s, STAGE_CRC, since, bytes);
	__asm__ volatile("" : : "r"(sum)); /* it has to be computed */
}

static size_t object_bytes(const struct stages *s)
{
	const struct frame *last = s->nframes ? &s->frame[s->nframes - 1] : NULL;

	return last ? (size_t)(last->stored + last->len + TAG_BYTES - s->stored) : 0;
}

static void object_name(uint64_t batch, char ret[32])
{
	(void)snprintf(ret, 32, "segment-%" PRIu64, batch);
}

/* One object a batch, which is what a segment of such data is. */
static void write_object(struct stages *s)
{
	size_t len = object_bytes(s);
	uint64_t since;
	char name[32];
	int fd;

	object_name(s->batches, name);
	since = cpu_ns();
	fd = openat(s->dir, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	must(fd >= 0, name);
	must(io_pwrite(fd, name, s->stored, len, 0, NULL) == 0, name);
	must(fdatasync(fd) == 0, name);
	must(close(fd) == 0, name);
	count(s, STAGE_WRITE, since, len);
}

static void load_object(struct stages *s)
{
	size_t len = object_bytes(s);
	uint64_t since = cpu_ns();
	char name[32];
	int fd;

	object_name(s->batches, name);
	fd = openat(s->dir, name, O_RDONLY | O_CLOEXEC);
	must(fd >= 0, name);
	must(io_pread(fd, name, s->stored, len, 0, NULL) == 0, name);
	must(close(fd) == 0, name);
	count(s, STAGE_LOAD, since, len);
}

static void remove_object(struct stages *s)
{
	char name[32];

	object_name(s->batches, name);
	must(unlinkat(s->dir, name, 0) == 0, name);
}

static void restore_frames(struct stages *s)
{
	uint64_t since = cpu_ns(), bytes = 0, data = 0;
	uint8_t *to = s->plain;

	for (uint32_t i = 0; i < s->nframes; i++) {
		struct frame *f = &s->frame[i];

		must(aead_open(s->w->aead, i, "", 0, f->stored, f->len + TAG_BYTES, f->stored,
			       NULL) == 0,
		     "aead_open");
		bytes += f->len;
	}
	count(s, STAGE_OPEN, since, bytes);
	since = cpu_ns();
	for (uint32_t i = 0; i < s->nframes; i++) {
		struct frame *f = &s->frame[i];
		size_t len = (size_t)f->clusters * CLUSTER;

		if (f->len == len)
			memcpy(to, f->stored, len);
		else
			must(ZSTD_decompressDCtx(s->w->dctx, to, len, f->stored, f->len) == len,
			     "ZSTD_decompressDCtx");
		to += len;
		data += len;
	}
	count(s, STAGE_DECOMPRESS, since, data);
	identify(s, STAGE_PROVE);
}

static void batch(struct stages *s)
{
	zero_test(s);
	identify(s, STAGE_ID);
	make_frames(s);
	compress_frames(s);
	seal_frames(s);
	sum_frames(s);
	write_object(s);
	if (s->back) {
		load_object(s);
		restore_frames(s);
	}
	remove_object(s);
	s->nclusters = 0;
	s->batches++;
}

/* Holes of the file are what a backup does not read. */
static void all_data(struct stages *s, int fd, const uint8_t *image, off_t size)
{
	off_t end = 0;

	while (end < size) {
		off_t start = lseek(fd, end, SEEK_DATA);

		if (start < 0)
			break;
		end = lseek(fd, start, SEEK_HOLE);
		must(end > start, "SEEK_HOLE");
		start -= start % CLUSTER;
		for (; start < end && start + CLUSTER <= size; start += CLUSTER) {
			s->cluster[s->nclusters++] = image + start;
			if (s->nclusters == BATCH)
				batch(s);
		}
		end = start > end ? start : end;
	}
	batch(s);
}

static void write_data(struct stages *s, const char *name, uint64_t bytes)
{
	static uint8_t piece[PIECE_CLUSTERS * CLUSTER];
	uint64_t since, at = 0;
	int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	must(fd >= 0, name);
	memset(piece, 1, sizeof(piece)); /* or all of it would be one page of zeroes */
	since = cpu_ns();
	for (size_t len; at < bytes; at += len) {
		len = min_u64(sizeof(piece), bytes - at);
		must(io_pwrite(fd, name, piece, len, at, NULL) == 0, name);
	}
	must(fdatasync(fd) == 0 && close(fd) == 0, name);
	count(s, STAGE_WRITE_DATA, since, bytes);
}

static void print_stages(const struct stages *s)
{
	(void)printf("{");
	for (unsigned i = 0; i < STAGES; i++)
		(void)printf("%s\"%s\": {\"bytes\": %" PRIu64 ", \"cpu\": %.6f}", i ? ", " : "",
			     stage_names[i], s->stage[i].bytes, (double)s->stage[i].ns / 1e9);
	(void)printf("}\n");
}

static void all_stages(struct stages *s, const char *name, const char *dir)
{
	const struct secret key = {{1}};
	struct workers workers;
	struct stat st;
	void *image;
	int fd = open(name, O_RDONLY | O_CLOEXEC);

	must(fd >= 0 && fstat(fd, &st) == 0, name);
	s->dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	must(s->dir >= 0, dir);
	image = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	must(image != MAP_FAILED, "mmap");
	must(workers_init(&workers, 1, &key, LEVEL, FRAME_TARGET_BYTES, NULL) == 0, "workers");
	s->w = workers.v;
	must(aead_set_key(s->w->aead, &key, NULL) == 0, "aead_set_key");
	s->stored = malloc((size_t)BATCH * (CLUSTER + TAG_BYTES));
	s->plain = malloc((size_t)BATCH * CLUSTER);
	must(s->stored && s->plain, "memory");
	all_data(s, fd, image, st.st_size);
	workers_done(&workers);
	free(s->stored);
	free(s->plain);
}

int main(int argc, char **argv)
{
	static struct stages s; /* large */

	if (argc < 3 || argc > 4) {
		(void)fprintf(stderr, "usage: stages IMAGE DIR [back] | stages write FILE BYTES\n");
		return 2;
	}
	if (argc == 4 && strcmp(argv[1], "write") == 0) {
		write_data(&s, argv[2], strtoull(argv[3], NULL, 10));
	} else {
		s.back = argc == 4;
		all_stages(&s, argv[1], argv[2]);
	}
	print_stages(&s);
	return 0;
}
