/* SPDX-License-Identifier: Apache-2.0 */
#include "crash.h"

#include <ftw.h>
#include <sys/stat.h>

static int remove_one(const char *path, const struct stat *sb, int type, struct FTW *ftw)
{
	(void)sb;
	(void)type;
	(void)ftw;
	return remove(path);
}

void remove_tree(const char *path)
{
	(void)nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static struct {
	const char *from, *to;
} copying;

static int copy_one(const char *path, const struct stat *sb, int type, struct FTW *ftw)
{
	char to[512];
	FILE *in, *out;
	char bytes[16384];
	size_t n;

	(void)sb;
	(void)ftw;
	(void)snprintf(to, sizeof(to), "%s%s", copying.to, path + strlen(copying.from));
	if (type == FTW_D)
		return mkdir(to, 0700);
	in = fopen(path, "re");
	out = fopen(to, "we");
	assert_non_null(in);
	assert_non_null(out);
	while ((n = fread(bytes, 1, sizeof(bytes), in)) > 0)
		assert_int_equal(fwrite(bytes, 1, n, out), n);
	(void)fclose(in);
	return fclose(out);
}

void copy_tree(const char *from, const char *to)
{
	remove_tree(to);
	copying.from = from;
	copying.to = to;
	assert_int_equal(nftw(from, copy_one, 16, FTW_PHYS), 0);
}

void place_up(struct place *p)
{
	const char *tmp = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";

	(void)snprintf(p->base, sizeof(p->base), "%s/tidemark-crash-XXXXXX", tmp);
	assert_non_null(mkdtemp(p->base));
	(void)snprintf(p->run, sizeof(p->run), "%s/run", p->base);
	(void)snprintf(p->repo, sizeof(p->repo), "%s/repo", p->run);
	(void)snprintf(p->left, sizeof(p->left), "%s/left", p->base);
	(void)snprintf(p->left_repo, sizeof(p->left_repo), "%s/repo", p->left);
	assert_int_equal(mkdir(p->run, 0700), 0);
	assert_int_equal(mkdir(p->left, 0700), 0);
}

void place_down(struct place *p)
{
	remove_tree(p->base);
}

void rig_start(struct rig *rig, uint64_t seed)
{
	*rig = (struct rig){.random = seed | 1, .now = 1700000000000};
	assert_int_equal(loop_new(64, &rig->loop, NULL), 0);
	assert_int_equal(pool_new(rig->loop, 2, &rig->pool, NULL), 0);
}

void rig_stop(struct rig *rig)
{
	rig_close(rig);
	pool_free(rig->pool);
	loop_free(rig->loop);
}

void rig_close(struct rig *rig)
{
	repo_free(rig->repo);
	rig->repo = NULL;
}

int rig_repo(struct rig *rig, const char *path, bool create, struct error *err)
{
	const struct repo_init_options opt = {.block_size = BS};
	struct store *st;
	int r = store_dir_open(rig->loop, path, create, &st, err);

	if (r < 0)
		return r;
	return create ? repo_init(st, &opt, &rig->repo, err) : repo_open(st, &rig->repo, err);
}

/* ---- images ---- */

void image_fill(struct image *im, uint64_t *random, unsigned times)
{
	for (unsigned i = 0; i < times; i++) {
		uint64_t at = test_below(random, im->blocks), n = 1 + test_below(random, 40);

		for (uint64_t b = at; b < at + n && b < im->blocks; b++) {
			uint64_t left = im->size - b * im->bs;
			size_t len = left < im->bs ? (size_t)left : im->bs;
			uint8_t c = (uint8_t)test_random(random);

			if (test_below(random, 40) == 0) {
				image_write(im, random, b);
				continue;
			}
			im->dirty[b] = true;
			for (size_t k = 0; k < len; k++)
				im->data[b * im->bs + k] = (uint8_t)(c + k / 64 % 5);
		}
	}
}

struct compare {
	struct piece_sink sink;
	const struct image *im;
	uint8_t *got;
	bool wrong;
};

static int compare_put(struct piece_sink *sink, struct piece *p, struct error *err)
{
	struct compare *c = container_of(sink, struct compare, sink);

	(void)err;
	for (uint32_t i = 0; i < p->nruns; i++) {
		const struct piece_run *run = &p->run[i];

		if (run->block + run->count > c->im->blocks)
			c->wrong = true;
		else if (!run->zero)
			memcpy(c->got + run->block * c->im->bs,
			       p->data + (size_t)run->first * c->im->bs, run->count * c->im->bs);
	}
	piece_release(p);
	return 0;
}

int rig_matches(struct rig *rig, const struct point *p, const struct image *im, struct error *err)
{
	struct compare c = {.sink.put = compare_put, .im = im};
	struct repo_read_options opt = {.pool = rig->pool, .pieces = 4};
	int r;

	if (p->ndisks != 1 || p->disks[0].size != im->size)
		return 0;
	c.got = calloc(im->blocks + 1, im->bs);
	assert_non_null(c.got);
	r = repo_read_disk(rig->repo, p, &p->disks[0], &c.sink, &opt, err);
	if (r == 0)
		r = !c.wrong && memcmp(c.got, im->data, im->size) == 0;
	free(c.got);
	return r;
}
