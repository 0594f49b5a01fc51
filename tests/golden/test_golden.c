/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Repositories that were written once and are never written again: every later version reads them.
 * tests/golden/v1/<kind>/ holds the objects, MANIFEST beside it what every disk restores to.
 *
 * On them, damage is complete: every byte is flipped, every object cut at many lengths, made longer
 * and removed.  Each time opening fails, or scrub or the structure check names the object; a point
 * that the report does not name restores right, one that it names restores right or
 * fails as damage.  GOLDEN_STRIDE=1 takes every byte (default: every 17th, from a place that the
 * seed chooses).
 *
 *	test_golden --make DIR MANIFEST	writes a new one; only for a new format version
 */
#include "../unit/test_repo.h"

#include "repo/cache.h"

#include <ftw.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <sys/stat.h>

#define BS         4096
#define MAX_POINTS 8
#define MAX_OBJECT (1u << 20)
#define SHA_HEX    65

static uint64_t seed;

/* ---- digests ---- */

static void sha256_text(const void *bytes, size_t len, char ret[SHA_HEX])
{
	uint8_t md[32];
	unsigned n = 0;

	assert_int_equal(EVP_Digest(bytes, len, md, &n, EVP_sha256(), NULL), 1);
	hex_encode(md, sizeof(md), ret);
}

struct whole {
	struct piece_sink sink;
	uint8_t *got;
	uint64_t size;
};

static int whole_put(struct piece_sink *sink, struct piece *p, struct error *err)
{
	struct whole *w = container_of(sink, struct whole, sink);

	(void)err;
	for (uint32_t i = 0; i < p->nruns; i++) {
		const struct piece_run *run = &p->run[i];
		uint64_t at = run->block * BS, len = run->count * BS;

		assert_true(at < w->size);
		if (!run->zero)
			memcpy(w->got + at, p->data + (size_t)run->first * BS,
			       len < w->size - at ? len : w->size - at);
	}
	piece_release(p);
	return 0;
}

/* Restores a disk and gives its digest. */
static int restore(struct rig *rig, const struct point *p, const struct point_disk *d,
		   char ret[SHA_HEX], struct error *err)
{
	struct repo_read_options opt = {.pool = rig->pool, .pieces = 4};
	struct whole w = {.sink.put = whole_put, .size = d->size};
	int r;

	w.got = calloc(1, d->size + 1);
	assert_non_null(w.got);
	r = repo_read_disk(rig->repo, p, d, &w.sink, &opt, err);
	if (r == 0)
		sha256_text(w.got, d->size, ret);
	free(w.got);
	return r;
}

/* ---- the frozen repository, in memory ---- */

struct frozen {
	struct rig rig;
	struct store *st; /* below rig's */
	size_t n;
	struct {
		char key[KEY_MAX];
		struct buf bytes;
	} object[64];
	size_t points;
	struct {
		char point[TM_ID_HEX + 1], sha[SHA_HEX];
	} want[MAX_POINTS];
};

static struct frozen *loading; /* nftw() has no argument for it */
static size_t loading_root;

static int load_file(const char *path, const struct stat *sb, int type, struct FTW *ftw)
{
	struct frozen *f = loading;

	(void)sb;
	(void)ftw;
	if (type != FTW_F)
		return 0;
	assert_true(f->n < ARRAY_SIZE(f->object));
	(void)snprintf(f->object[f->n].key, KEY_MAX, "%s", path + loading_root + 1);
	assert_int_equal(io_read_file(path, MAX_OBJECT, &f->object[f->n].bytes, NULL), 0);
	assert_int_equal(store_put_wait(f->st, f->object[f->n].key, f->object[f->n].bytes.data,
					f->object[f->n].bytes.len, NULL),
			 0);
	f->n++;
	return 0;
}

static void load_manifest(struct frozen *f, const char *path)
{
	FILE *file = fopen(path, "re");

	assert_non_null(file);
	while (fscanf(file, "%64s %32s %*s\n", f->want[f->points].sha, f->want[f->points].point) ==
	       2)
		f->points++;
	(void)fclose(file);
	assert_true(f->points > 1);
}

/* A repository object with empty caches. */
static int reopen(struct frozen *f, struct error *err)
{
	struct failing *top;

	if (f->rig.repo) {
		f->rig.store->below = NULL;
		repo_free(f->rig.repo);
		f->rig.repo = NULL;
	}
	top = calloc(1, sizeof(*top));
	assert_non_null(top);
	*top = (struct failing){.st = {.ops = &failing_ops, .loop = f->rig.loop}, .below = f->st};
	f->rig.store = top;
	return repo_open(&top->st, &f->rig.repo, err);
}

static void up(struct frozen *f, const char *kind)
{
	struct error err = {0};
	char path[512];

	*f = (struct frozen){.rig = {.random = seed | 1}};
	assert_int_equal(loop_new(64, &f->rig.loop, NULL), 0);
	assert_int_equal(pool_new(f->rig.loop, 1, &f->rig.pool, NULL), 0);
	assert_int_equal(store_memory_new(f->rig.loop, &f->st, NULL), 0);
	(void)snprintf(path, sizeof(path), "%s/%s", TEST_GOLDEN, kind);
	loading = f;
	loading_root = strlen(path);
	assert_int_equal(nftw(path, load_file, 8, FTW_PHYS), 0);
	(void)snprintf(path, sizeof(path), "%s/%s.MANIFEST", TEST_GOLDEN, kind);
	load_manifest(f, path);
	if (reopen(f, &err) < 0)
		fail_msg("%s", err.text);
}

static void down(struct frozen *f)
{
	rig_down(&f->rig);
	for (size_t i = 0; i < f->n; i++)
		buf_done(&f->object[i].bytes);
}

static const char *wanted(const struct frozen *f, const struct tm_id *point)
{
	for (size_t i = 0; i < f->points; i++)
		if (strcmp(f->want[i].point, id_text(point).s) == 0)
			return f->want[i].sha;
	return NULL;
}

static void every_version_reads_it(void **state)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	struct frozen f;

	(void)state;
	up(&f, "v1/plain");
	assert_int_equal(repo_points(f.rig.repo, NULL, &l, NULL, &err), 0);
	assert_int_equal(l.n, f.points);
	for (size_t i = 0; i < l.n; i++) {
		char sha[SHA_HEX];

		if (restore(&f.rig, l.v[i], &l.v[i]->disks[0], sha, &err) < 0)
			fail_msg("%s", err.text);
		assert_non_null(wanted(&f, &l.v[i]->id));
		assert_string_equal(sha, wanted(&f, &l.v[i]->id));
	}
	down(&f);
}

/* ---- damage ---- */

static bool hits(const struct repo_verify_report *report, const struct tm_id *point)
{
	for (size_t i = 0; i < report->ndamaged; i++)
		for (size_t k = 0; k < report->damaged[i].nranges; k++)
			if (id_equal(&report->damaged[i].ranges[k].point, point))
				return true;
	return false;
}

static bool named(const struct repo_verify_report *report, const char *key)
{
	for (size_t i = 0; i < report->ndamaged; i++)
		if (strcmp(report->damaged[i].object, key) == 0)
			return true;
	return false;
}

static bool says_damage(int code, const struct error *err)
{
	return (code == TM_E_CORRUPT || code == TM_E_UNSUPPORTED) && err->text[0];
}

/* Points that can be listed restore right, or fail as the report says. */
static void check_points(struct frozen *f, const struct repo_verify_report *report, size_t lost)
{
	auto_point_list struct point_list l = {0};
	size_t damaged = 0;

	assert_int_equal(repo_points(f->rig.repo, NULL, &l, &damaged, NULL), 0);
	assert_int_equal(l.n + damaged + lost, f->points);
	for (size_t i = 0; i < l.n; i++) {
		struct error err = {0};
		char sha[SHA_HEX];
		int r = restore(&f->rig, l.v[i], &l.v[i]->disks[0], sha, &err);

		if (r == 0)
			assert_string_equal(sha, wanted(f, &l.v[i]->id));
		else if (!says_damage(r, &err) || !hits(report, &l.v[i]->id))
			fail_msg("point %s: %s", id_text(&l.v[i]->id).s, err.text);
	}
}

/* Object i is now `len` bytes (SIZE_MAX: gone). */
static void try_damage(struct frozen *f, size_t i, const uint8_t *bytes, size_t len)
{
	const struct repo_verify_options opt = {.pool = f->rig.pool, .scrub = true};
	const char *key = f->object[i].key;
	struct repo_verify_report report = {0};
	struct error err = {0};
	bool gone = len == SIZE_MAX;
	int r;

	assert_int_equal(f->st->ops->remove(f->st, key, NULL), 0);
	if (!gone)
		assert_int_equal(store_put_wait(f->st, key, bytes, len, NULL), 0);
	r = reopen(f, &err);
	if (r < 0) { /* the store went with it: all is loaded again */
		assert_true(strcmp(key, "repo") == 0 || strstr(key, "/dom"));
		assert_true(err.text[0] && ((gone && r == TM_E_NOTFOUND) || says_damage(r, &err)));
		down(f);
		up(f, "v1/plain");
		return;
	}
	assert_int_equal(repo_verify(f->rig.repo, &opt, &report, &err), 0);
	/* that an object is not there is noticed where a point needs it */
	if (!gone || strstr(key, "/s/")) {
		if (!named(&report, key))
			fail_msg("nobody saw %s with %zu bytes", key, len);
	}
	check_points(f, &report, gone && strstr(key, "/p/"));
	repo_verify_report_done(&report);
	(void)f->st->ops->remove(f->st, key, NULL);
	assert_int_equal(
		store_put_wait(f->st, key, f->object[i].bytes.data, f->object[i].bytes.len, NULL),
		0);
}

static unsigned damage_object(struct frozen *f, size_t i, size_t stride)
{
	size_t len = f->object[i].bytes.len, start = test_below(&f->rig.random, stride);
	auto_free uint8_t *bytes = malloc(len + 1);
	const size_t lengths[] = {0, 1, 55, 56, 143, 255, 256, len / 3, len / 2, len - 1};
	unsigned n = 0;

	assert_non_null(bytes);
	for (size_t at = start; at < len; at += stride, n++) {
		memcpy(bytes, f->object[i].bytes.data, len);
		bytes[at] ^= (uint8_t)(1U << test_below(&f->rig.random, 8));
		try_damage(f, i, bytes, len);
	}
	memcpy(bytes, f->object[i].bytes.data, len);
	bytes[len] = 0;
	for (size_t k = 0; k < ARRAY_SIZE(lengths); k++)
		if (lengths[k] < len)
			try_damage(f, i, bytes, lengths[k]);
	try_damage(f, i, bytes, len + 1);
	try_damage(f, i, NULL, SIZE_MAX);
	return n + (unsigned)ARRAY_SIZE(lengths) + 2;
}

static void all_damage_is_found_and_costs_only_what_it_hits(void **state)
{
	const char *text = getenv("GOLDEN_STRIDE");
	size_t stride = text ? strtoul(text, NULL, 10) : 17;
	unsigned n = 0;
	struct frozen f;

	(void)state;
	up(&f, "v1/plain");
	for (size_t i = 0; i < f.n; i++)
		n += damage_object(&f, i, stride ? stride : 1);
	printf("%zu objects, %u damages, all found\n", f.n, n);
	down(&f);
}

/* ---- making ---- */

static int make(const char *dir, const char *manifest)
{
	const struct repo_init_options opt = {.block_size = BS};
	FILE *out = fopen(manifest, "we");
	struct rig rig = {.random = 4711, .now = 1700000000000};
	struct store *st;
	struct image im;

	assert_non_null(out);
	assert_int_equal(loop_new(64, &rig.loop, NULL), 0);
	assert_int_equal(pool_new(rig.loop, 1, &rig.pool, NULL), 0);
	assert_int_equal(store_dir_open(rig.loop, dir, true, &st, NULL), 0);
	assert_int_equal(repo_init(st, &opt, &rig.repo, NULL), 0);
	image_init(&im, 700 * 1024 + 100, BS);
	for (int i = 0; i < 3; i++) {
		auto_point_list struct point_list l = {0};
		struct tm_id id;
		char sha[SHA_HEX];

		assert_int_equal(repo_points(rig.repo, NULL, &l, NULL, NULL), 0);
		for (uint64_t b = 0; b < im.blocks; b += i ? 40 - 10 * (uint64_t)i : 1) {
			size_t len = b + 1 < im.blocks ? BS : (size_t)(im.size % BS);

			if (test_below(&rig.random, 5) == 0)
				continue;
			for (size_t k = 0; k < len; k++)
				im.data[b * BS + k] = (uint8_t)(k % 97 == 0 && b % 9 == 0
									? test_random(&rig.random)
									: b + (unsigned)i);
			im.dirty[b] = true;
		}
		assert_int_equal(rig_backup(&rig, &im, l.n ? l.v[l.n - 1] : NULL, &id, NULL), 0);
		sha256_text(im.data, im.size, sha);
		(void)fprintf(out, "%s %s vda\n", sha, id_text(&id).s);
	}
	image_done(&im);
	rig_down(&rig);
	return fclose(out);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_version_reads_it),
		cmocka_unit_test(all_damage_is_found_and_costs_only_what_it_hits),
	};

	if (argc == 4 && strcmp(argv[1], "--make") == 0)
		return make(argv[2], argv[3]);
	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
