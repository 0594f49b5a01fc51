/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target over the files of a folder, without a fuzzer; each file also cut short. */
#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>

#define LONGEST (1u << 20)

/* A copy of exactly that size, so that a sanitizer sees the first byte behind it. */
static void run(const uint8_t *data, size_t size)
{
	uint8_t *copy = malloc(size ? size : 1);

	if (!copy)
		abort();
	if (size)
		memcpy(copy, data, size);
	(void)LLVMFuzzerTestOneInput(copy, size);
	free(copy);
}

static int run_file(const char *path)
{
	auto_buf struct buf b = {0};
	struct error err = {0};

	if (io_read_file(path, LONGEST, &b, &err) < 0) {
		(void)fprintf(stderr, "%s\n", err.text);
		return 1;
	}
	run(b.data, b.len);
	for (size_t len = 0; len < b.len; len += b.len / 64 + 1)
		run(b.data, len);
	return 0;
}

int main(int argc, char **argv)
{
	DIR *dir = argc == 2 ? opendir(argv[1]) : NULL;
	const struct dirent *e;
	unsigned n = 0;
	int failed = 0;

	if (!dir) {
		(void)fprintf(stderr, "usage: %s CORPUS\n", argv[0]);
		return 2;
	}
	while ((e = readdir(dir))) {
		char path[4096];

		if (e->d_name[0] == '.')
			continue;
		(void)snprintf(path, sizeof(path), "%s/%s", argv[1], e->d_name);
		failed |= run_file(path);
		n++;
	}
	(void)closedir(dir);
	printf("%u inputs\n", n);
	return failed || n == 0;
}
