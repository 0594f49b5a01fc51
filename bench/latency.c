/* SPDX-License-Identifier: Apache-2.0 */
/*
 * latency DISK LOG SECONDS SEED: in the guest, writes 4 KiB at random places of DISK, one after the
 * other and past the page cache, and notes of each when it began and how long it took.
 *
 * LOG, a disk too, gets pairs of little-endian 32-bit numbers in microseconds, the first pair being
 * their count and 0.  Until the end the first pair is 0xffffffff and SEED, from when it begins.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BLOCK     4096
#define NOTES_MAX (1u << 20)

static struct note {
	uint32_t at_us, took_us;
} notes[NOTES_MAX];

static uint64_t now_us(void)
{
	struct timespec t;

	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void die(const char *what)
{
	(void)fprintf(stderr, "latency: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

int main(int argc, char **argv)
{
	static _Alignas(BLOCK) unsigned char block[BLOCK];
	uint64_t seed, blocks, began, end;
	uint32_t n = 1;
	int disk, log;
	off_t size;

	if (argc != 5)
		return 2;
	disk = open(argv[1], O_WRONLY | O_DIRECT | O_CLOEXEC);
	log = open(argv[2], O_WRONLY | O_CLOEXEC);
	size = disk < 0 ? -1 : lseek(disk, 0, SEEK_END);
	if (log < 0 || size < BLOCK)
		die("open");
	blocks = (uint64_t)size / BLOCK;
	seed = strtoull(argv[4], NULL, 10) * 2 + 1;
	notes[0] = (struct note){UINT32_MAX, (uint32_t)strtoul(argv[4], NULL, 10)};
	if (pwrite(log, notes, sizeof(notes[0]), 0) < 0 || fsync(log) < 0)
		die("log");
	began = now_us();
	end = began + strtoull(argv[3], NULL, 10) * 1000000;
	for (uint64_t t = began; t < end && n < NOTES_MAX; n++) {
		uint64_t done;

		memcpy(block, &(uint64_t){next(&seed)}, 8);
		if (pwrite(disk, block, BLOCK, (off_t)(next(&seed) % blocks * BLOCK)) != BLOCK)
			die("write");
		done = now_us();
		notes[n] = (struct note){(uint32_t)(t - began), (uint32_t)(done - t)};
		t = done;
	}
	notes[0] = (struct note){n - 1, 0};
	for (size_t put = 0; put < n * sizeof(notes[0]);) {
		ssize_t r = write(log, (const char *)notes + put, n * sizeof(notes[0]) - put);

		if (r < 0)
			die("log");
		put += (size_t)r;
	}
	return fsync(log) < 0;
}
