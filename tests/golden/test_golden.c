/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Repositories that were written once and are never written again: every later version reads them.
 * tests/golden/v1/<kind>/ holds the objects, <kind>.MANIFEST what every disk restores to.  The
 * plain one has one domain; the encrypted one has two, keys of all kinds (<kind>.<key> beside it)
 * and a rotation between its points.
 *
 * On them, damage is complete: every byte is flipped, every object cut at many lengths, made longer
 * and removed.  Each time opening fails, or scrub or the structure check names the object; a point
 * that the report does not name restores right, one that it names restores right or
 * fails as damage.  After a repair, maps are whole whatever happened to them, and the same holds of
 * the rest.  GOLDEN_STRIDE=1 takes every byte (default: every 17th, from a place that the seed
 * chooses).
 *
 *	test_golden --make DIR	writes new ones into DIR; only for a new format version
 */
#include "../unit/test_repo.h"

#include "repo/cache.h"

#include <ftw.h>
#include <inttypes.h>
#include <openssl/evp.h>
#include <sys/stat.h>

#define BS         4096
#define MAX_POINTS 8
#define PASSWORD   "of gold"
#define TENANT     "the tenant"
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
		char point[TM_ID_HEX + 1], sha[SHA_HEX], domain[16];
	} want[MAX_POINTS];
	const char *kind;
	struct buf key;     /* of the encrypted one */
	const char *domain; /* NULL: the one that opening gives */
};

static void read_secret(const char *kind, const char *name, struct buf *ret)
{
	char path[512];

	(void)snprintf(path, sizeof(path), "%s/%s.%s", TEST_GOLDEN, kind, name);
	assert_int_equal(io_read_file(path, 1u << 16, ret, NULL), 0);
}

static int give(void *data, struct repo_secret *ret, struct error *err)
{
	(void)err;
	*ret = *(const struct repo_secret *)data;
	return 0;
}

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
	while (fscanf(file, "%64s %32s vda %15[^\n]\n", f->want[f->points].sha,
		      f->want[f->points].point, f->want[f->points].domain) == 3)
		f->points++;
	(void)fclose(file);
	assert_true(f->points > 1);
}

/* A repository object with empty caches.  secret NULL: it is plain. */
static int open_with(struct frozen *f, struct repo_secret *secret, struct error *err)
{
	const struct repo_credentials cred = {.get = give, .data = secret, .given = secret};
	struct failing *top;
	int r;

	if (f->rig.repo) {
		f->rig.store->below = NULL;
		repo_free(f->rig.repo);
		f->rig.repo = NULL;
	}
	top = calloc(1, sizeof(*top));
	assert_non_null(top);
	*top = (struct failing){.st = {.ops = &failing_ops, .loop = f->rig.loop}, .below = f->st};
	f->rig.store = top;
	r = repo_open_with(&top->st, &cred, &f->rig.repo, err);
	return r == 0 && f->domain ? repo_domain_use(f->rig.repo, f->domain, err) : r;
}

static int reopen(struct frozen *f, struct error *err)
{
	struct repo_secret key = {REPO_SECRET_KEY_FILE, f->key.data, f->key.len};

	return open_with(f, f->key.len ? &key : NULL, err);
}

static void up(struct frozen *f, const char *kind)
{
	struct error err = {0};
	char path[512];

	*f = (struct frozen){.rig = {.random = seed | 1}, .kind = kind};
	assert_int_equal(loop_new(64, &f->rig.loop, NULL), 0);
	assert_int_equal(pool_new(f->rig.loop, 1, &f->rig.pool, NULL), 0);
	assert_int_equal(store_memory_new(f->rig.loop, &f->st, NULL), 0);
	(void)snprintf(path, sizeof(path), "%s/%s", TEST_GOLDEN, kind);
	loading = f;
	loading_root = strlen(path);
	assert_int_equal(nftw(path, load_file, 8, FTW_PHYS), 0);
	(void)snprintf(path, sizeof(path), "%s/%s.MANIFEST", TEST_GOLDEN, kind);
	load_manifest(f, path);
	if (strcmp(kind, "v1/encrypted") == 0)
		read_secret(kind, "key", &f->key);
	if (reopen(f, &err) < 0)
		fail_msg("%s", err.text);
}

static void down(struct frozen *f)
{
	rig_down(&f->rig);
	for (size_t i = 0; i < f->n; i++)
		buf_done(&f->object[i].bytes);
	buf_done(&f->key);
}

/* Of the domain in use. */
static size_t points_wanted(const struct frozen *f)
{
	size_t n = 0;

	for (size_t i = 0; i < f->points; i++)
		n += strcmp(f->want[i].domain, repo_domain_name(f->rig.repo)) == 0;
	return n;
}

static const char *wanted(const struct frozen *f, const struct tm_id *point)
{
	for (size_t i = 0; i < f->points; i++)
		if (strcmp(f->want[i].point, id_text(point).s) == 0)
			return f->want[i].sha;
	return NULL;
}

/* All points of the domain in use. */
static void check_all(struct frozen *f)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};

	assert_int_equal(repo_points(f->rig.repo, NULL, &l, NULL, &err), 0);
	assert_int_equal(l.n, points_wanted(f));
	assert_true(l.n > 1);
	for (size_t i = 0; i < l.n; i++) {
		char sha[SHA_HEX];

		if (restore(&f->rig, l.v[i], &l.v[i]->disks[0], sha, &err) < 0)
			fail_msg("%s", err.text);
		assert_non_null(wanted(f, &l.v[i]->id));
		assert_string_equal(sha, wanted(f, &l.v[i]->id));
	}
}

static void every_version_reads_it(void **state)
{
	struct frozen f;

	(void)state;
	up(&f, "v1/plain");
	check_all(&f);
	down(&f);
}

static void every_version_opens_it_with_every_key(void **state)
{
	static const char *const files[] = {"key", "paper", "tenant", "tenant-paper"};
	struct repo_secret password = {REPO_SECRET_PASSWORD, PASSWORD, sizeof(PASSWORD) - 1};
	struct error err = {0};
	struct frozen f;

	(void)state;
	up(&f, "v1/encrypted");
	assert_int_equal(open_with(&f, &password, &err), 0);
	check_all(&f);
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		bool tenant = strncmp(files[i], "tenant", 6) == 0;
		auto_buf struct buf b = {0};
		struct repo_secret s = {.kind = REPO_SECRET_KEY_FILE};

		read_secret(f.kind, files[i], &b);
		s.bytes = b.data;
		s.len = b.len;
		f.domain = NULL;
		if (open_with(&f, &s, &err) < 0)
			fail_msg("%s: %s", files[i], err.text);
		assert_string_equal(repo_domain_name(f.rig.repo), tenant ? TENANT : "default");
		check_all(&f);
		f.domain = tenant ? "default" : TENANT;
		assert_int_equal(open_with(&f, &s, &err), tenant ? TM_E_NOTFOUND : 0);
		error_clear(&err);
		if (!tenant)
			check_all(&f);
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
	assert_int_equal(l.n + damaged + lost, points_wanted(f));
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

/* ---- repair ---- */

struct names {
	const char *part;
	char v[8][KEY_MAX];
	size_t n;
};

static int add_name(void *data, const char *key, uint64_t size, struct error *err)
{
	struct names *l = data;

	(void)size;
	(void)err;
	if (strstr(key, l->part)) {
		assert_true(l->n < ARRAY_SIZE(l->v));
		memcpy(l->v[l->n++], key, strlen(key) + 1);
	}
	return 0;
}

static void remove_all(struct frozen *f, const char *prefix, const char *part)
{
	struct names l = {.part = part};

	assert_int_equal(f->st->ops->list(f->st, prefix, add_name, &l, NULL), 0);
	for (size_t i = 0; i < l.n; i++)
		assert_int_equal(f->st->ops->remove(f->st, l.v[i], NULL), 0);
}

/* Maps are whole again after a repair; data is, or is still named.  What repair made goes. */
static void try_repair(struct frozen *f, const char *key)
{
	const struct repo_repair_options opt = {.pool = f->rig.pool};
	const struct repo_verify_options verify = {.pool = f->rig.pool, .scrub = true};
	struct repo_verify_report report = {0};
	struct error err = {0};
	char prefix[KEY_MAX];

	if (repo_repair(f->rig.repo, &opt, &report, &err) < 0)
		fail_msg("%s: %s", key, err.text);
	for (size_t i = 0; i < report.ndamaged; i++)
		if (strstr(key, "/000/m") && !report.damaged[i].repaired)
			fail_msg("%s: %s", key, report.damaged[i].remedy);
	repo_verify_report_done(&report);
	assert_int_equal(repo_verify(f->rig.repo, &verify, &report, &err), 0);
	assert_true(!strstr(key, "/000/m") || report.ndamaged == 0);
	check_points(f, &report, 0);
	repo_verify_report_done(&report);
	(void)snprintf(prefix, sizeof(prefix), "%s", key);
	strrchr(prefix, '.')[1] = 0;
	remove_all(f, prefix, "/");
	remove_all(f, "d/", "/x/");
}

/* A copy of a domain that no later generation has taken the place of. */
static bool is_domain(const struct frozen *f, const char *key)
{
	size_t id = strlen("domains/") + TM_ID_HEX + 1, all = id + strlen("0000");

	if (strncmp(key, "domains/", 8) != 0)
		return false;
	for (size_t i = 0; i < f->n; i++)
		if (strncmp(f->object[i].key, key, id) == 0 &&
		    strncmp(f->object[i].key, key, all) > 0)
			return false;
	return true;
}

/* Object i is now `len` bytes (SIZE_MAX: gone). */
static void try_damage(struct frozen *f, size_t i, const uint8_t *bytes, size_t len)
{
	const struct repo_verify_options opt = {.pool = f->rig.pool, .scrub = true};
	const char *key = f->object[i].key, *kind;
	struct repo_verify_report report = {0};
	struct error err = {0};
	bool gone = len == SIZE_MAX;
	int r;

	assert_int_equal(f->st->ops->remove(f->st, key, NULL), 0);
	if (!gone)
		assert_int_equal(store_put_wait(f->st, key, bytes, len, NULL), 0);
	r = reopen(f, &err);
	if (r < 0) { /* the store went with it: all is loaded again */
		assert_string_equal(key, "repo");
		assert_true(err.text[0] && ((gone && r == TM_E_NOTFOUND) || says_damage(r, &err)));
		kind = f->kind;
		down(f);
		up(f, kind);
		return;
	}
	assert_int_equal(repo_verify(f->rig.repo, &opt, &report, &err), 0);
	assert_int_equal(repo_verify_domains(f->rig.repo, &report, &err), 0);
	/* that an object is not there is noticed where a point needs it, and of domains always */
	if (!gone || strstr(key, "/s/") || is_domain(f, key)) {
		if (!named(&report, key))
			fail_msg("nobody saw %s with %zu bytes", key, len);
	}
	check_points(f, &report, gone && strstr(key, "/p/"));
	repo_verify_report_done(&report);
	if (strstr(key, "/s/"))
		try_repair(f, key);
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

/* Whose points an object's damage can hit. */
static const char *domain_of(struct frozen *f, const char *key)
{
	char folder[2 + TM_ID_HEX + 2];

	f->domain = NULL;
	assert_int_equal(reopen(f, NULL), 0);
	(void)snprintf(folder, sizeof(folder), "d/%s/", id_text(repo_domain(f->rig.repo)).s);
	return strncmp(key, "d/", 2) == 0 && strncmp(key, folder, strlen(folder)) != 0 ? TENANT
										       : NULL;
}

static void damage_all(const char *kind, size_t stride)
{
	const char *text = getenv("GOLDEN_STRIDE");
	unsigned n = 0;
	struct frozen f;

	if (text)
		stride = strtoul(text, NULL, 10);
	up(&f, kind);
	for (size_t i = 0; i < f.n; i++) {
		f.domain = domain_of(&f, f.object[i].key);
		n += damage_object(&f, i, stride ? stride : 1);
	}
	printf("%s: %zu objects, %u damages, all found\n", kind, f.n, n);
	down(&f);
}

static void all_damage_is_found_and_costs_only_what_it_hits(void **state)
{
	(void)state;
	damage_all("v1/plain", 17);
}

static void and_so_it_is_in_an_encrypted_one(void **state)
{
	(void)state;
	damage_all("v1/encrypted", 47);
}

/* ---- making ---- */

/* Points number first to end - 1 of the image. */
static void add_points(struct rig *rig, struct image *im, int first, int end, FILE *out)
{
	for (int i = first; i < end; i++) {
		auto_point_list struct point_list l = {0};
		struct tm_id id;
		char sha[SHA_HEX];

		assert_int_equal(repo_points(rig->repo, NULL, &l, NULL, NULL), 0);
		for (uint64_t b = 0; b < im->blocks; b += i ? im->blocks / 8 + 1 : 1) {
			size_t len = b + 1 < im->blocks ? BS : (size_t)(im->size % BS);

			if (b && test_below(&rig->random, 5) == 0)
				continue;
			for (size_t k = 0; k < len; k++)
				im->data[b * BS + k] = (uint8_t)(k % 97 == 0 && b % 9 == 0
									 ? test_random(&rig->random)
									 : b + (unsigned)i);
			im->dirty[b] = true;
		}
		assert_int_equal(rig_backup(rig, im, l.n ? l.v[l.n - 1] : NULL, &id, NULL), 0);
		sha256_text(im->data, im->size, sha);
		(void)fprintf(out, "%s %s vda %s\n", sha, id_text(&id).s,
			      repo_domain_name(rig->repo));
	}
}

static void init(struct rig *rig, const char *dir, const struct repo_init_options *opt)
{
	struct store *st;

	*rig = (struct rig){.random = 4711, .now = 1700000000000};
	assert_int_equal(loop_new(64, &rig->loop, NULL), 0);
	assert_int_equal(pool_new(rig->loop, 1, &rig->pool, NULL), 0);
	assert_int_equal(store_dir_open(rig->loop, dir, true, &st, NULL), 0);
	assert_int_equal(repo_init(st, opt, &rig->repo, NULL), 0);
}

static FILE *beside(const char *dir, const char *name)
{
	auto_free char *path = NULL;
	FILE *f;

	assert_int_equal(text_format(&path, NULL, "%s/%s", dir, name), 0);
	f = fopen(path, "we");
	assert_non_null(f);
	return f;
}

static void write_text(const char *dir, const char *name, const char *text)
{
	FILE *f = beside(dir, name);

	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
}

static void make_plain(const char *dir)
{
	const struct repo_init_options opt = {.block_size = BS};
	auto_free char *path = NULL;
	FILE *out = beside(dir, "plain.MANIFEST");
	struct image im;
	struct rig rig;

	assert_int_equal(text_format(&path, NULL, "%s/plain", dir), 0);
	init(&rig, path, &opt);
	image_init(&im, 700 * 1024 + 100, BS);
	add_points(&rig, &im, 0, 3, out);
	image_done(&im);
	rig_down(&rig);
	assert_int_equal(fclose(out), 0);
}

static void add_paper(struct rig *rig, bool one_domain, const char *dir, const char *name)
{
	char *text = NULL;

	assert_int_equal(repo_key_paper(rig->repo, one_domain, &text, NULL), 0);
	write_text(dir, name, text);
	free(text);
}

static void make_encrypted(const char *dir)
{
	char text[REPO_KEY_FILE_TEXT], tenant_text[REPO_KEY_FILE_TEXT];
	struct repo_secret key = {REPO_SECRET_KEY_FILE, text, REPO_KEY_FILE_TEXT - 1},
			   tenant = {REPO_SECRET_KEY_FILE, tenant_text, REPO_KEY_FILE_TEXT - 1},
			   password = {REPO_SECRET_PASSWORD, PASSWORD, sizeof(PASSWORD) - 1};
	const struct repo_init_options opt = {
		.block_size = BS, .secret = &key, .label = "gold", .scrypt_log2_n = 10};
	const struct repo_key_options full = {.role = REPO_ROLE_FULL, .label = "a password"},
				      own = {.role = REPO_ROLE_FULL, .one_domain = true};
	auto_free char *path = NULL;
	FILE *out = beside(dir, "encrypted.MANIFEST");
	struct image im;
	struct rig rig;
	struct tm_id id;

	assert_int_equal(text_format(&path, NULL, "%s/encrypted", dir), 0);
	assert_int_equal(repo_key_file_new(text, NULL), 0);
	assert_int_equal(repo_key_file_new(tenant_text, NULL), 0);
	init(&rig, path, &opt);
	image_init(&im, 90 * 1024 + 100, BS);
	add_points(&rig, &im, 0, 1, out);
	assert_int_equal(repo_domain_add(rig.repo, TENANT, &id, NULL), 0);
	assert_int_equal(repo_key_rotate(rig.repo, false, &key, &id, NULL), 0);
	assert_int_equal(repo_key_add(rig.repo, &full, &password, &id, NULL), 0);
	add_paper(&rig, false, dir, "encrypted.paper");
	add_points(&rig, &im, 1, 2, out);
	image_done(&im);
	assert_int_equal(repo_domain_use(rig.repo, TENANT, NULL), 0);
	assert_int_equal(repo_key_add(rig.repo, &own, &tenant, &id, NULL), 0);
	add_paper(&rig, true, dir, "encrypted.tenant-paper");
	image_init(&im, 60 * 1024 + 100, BS);
	add_points(&rig, &im, 0, 2, out);
	image_done(&im);
	write_text(dir, "encrypted.key", text);
	write_text(dir, "encrypted.tenant", tenant_text);
	rig_down(&rig);
	assert_int_equal(fclose(out), 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_version_reads_it),
		cmocka_unit_test(every_version_opens_it_with_every_key),
		cmocka_unit_test(all_damage_is_found_and_costs_only_what_it_hits),
		cmocka_unit_test(and_so_it_is_in_an_encrypted_one),
	};

	if (argc == 3 && strcmp(argv[1], "--make") == 0) {
		make_plain(argv[2]);
		make_encrypted(argv[2]);
		return 0;
	}
	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
