/* SPDX-License-Identifier: Apache-2.0 */
/*
 * I6: no key seals twice under the same nonce, whatever a repository goes through.  Every sealing
 * of our code is recorded below libcrypto's functions, which the linker puts these before.
 */
#include "test_secret.h"

#include "repo/cache.h"
#include "repo/format.h"
#include "repo/points.h"

#include <openssl/evp.h>
#include <pthread.h>

#define BS SECRET_BS

static uint64_t seed;

/* ---- what was sealed ---- */

struct sealing {
	uint8_t key[KEY_BYTES], nonce[12];
};

/* A context and what it is set to; a context belongs to one thread at a time. */
struct context {
	const EVP_CIPHER_CTX *ctx;
	struct sealing now;
};

static struct {
	pthread_mutex_t lock; /* of all here */
	struct context contexts[256];
	size_t ncontexts;
	struct sealing v[16384];
	size_t n;
	size_t again; /* sealed before under the same key and nonce */
} sealed = {.lock = PTHREAD_MUTEX_INITIALIZER};

static struct context *context_of(const EVP_CIPHER_CTX *ctx)
{
	size_t i = 0;

	while (i < sealed.ncontexts && sealed.contexts[i].ctx != ctx)
		i++;
	if (i == sealed.ncontexts) {
		assert_true(i < ARRAY_SIZE(sealed.contexts));
		sealed.contexts[sealed.ncontexts++].ctx = ctx;
	}
	return &sealed.contexts[i];
}

static void record(const struct sealing *s)
{
	for (size_t i = 0; i < sealed.n; i++)
		sealed.again += memcmp(&sealed.v[i], s, sizeof(*s)) == 0;
	assert_true(sealed.n < ARRAY_SIZE(sealed.v));
	sealed.v[sealed.n++] = *s;
}

int __real_EVP_CipherInit_ex(EVP_CIPHER_CTX *ctx, const EVP_CIPHER *cipher, ENGINE *impl,
			     const unsigned char *key, const unsigned char *iv, int enc);
int __wrap_EVP_CipherInit_ex(EVP_CIPHER_CTX *ctx, const EVP_CIPHER *cipher, ENGINE *impl,
			     const unsigned char *key, const unsigned char *iv, int enc);

int __wrap_EVP_CipherInit_ex(EVP_CIPHER_CTX *ctx, const EVP_CIPHER *cipher, ENGINE *impl,
			     const unsigned char *key, const unsigned char *iv, int enc)
{
	struct context *c;

	assert_int_equal(pthread_mutex_lock(&sealed.lock), 0);
	c = context_of(ctx);
	if (key)
		memcpy(c->now.key, key, sizeof(c->now.key));
	if (iv)
		memcpy(c->now.nonce, iv, sizeof(c->now.nonce));
	if (iv && enc == 1)
		record(&c->now);
	assert_int_equal(pthread_mutex_unlock(&sealed.lock), 0);
	return __real_EVP_CipherInit_ex(ctx, cipher, impl, key, iv, enc);
}

/* ---- what a repository goes through ---- */

struct names {
	char key[16][KEY_MAX];
	size_t n;
	const char *part;
};

static int add_name(void *data, const char *key, uint64_t size, struct error *err)
{
	struct names *names = data;

	(void)size;
	(void)err;
	if (!strstr(key, names->part))
		return 0;
	assert_true(names->n < ARRAY_SIZE(names->key));
	memcpy(names->key[names->n++], key, strlen(key) + 1);
	return 0;
}

/* Flips a bit in each byte behind `from` of a segment with `part` in its name. */
static void damage(struct rig *rig, const char *part, bool newest, size_t from)
{
	struct store *st = rig->store->below;
	struct names names = {.part = part};
	auto_buf struct buf b = {0};
	const char *key;

	assert_int_equal(st->ops->list(st, "d/", add_name, &names, NULL), 0);
	assert_true(names.n > 0);
	key = names.key[newest ? names.n - 1 : 0];
	assert_int_equal(store_read(st, key, 64 << 20, &b, NULL), 0);
	assert_true(from < b.len);
	for (size_t i = from; i < b.len; i++)
		b.data[i] ^= 1;
	assert_int_equal(st->ops->remove(st, key, NULL), 0);
	assert_int_equal(store_put_wait(st, key, b.data, b.len, NULL), 0);
	cache_drop(rig->repo->cache);
}

static unsigned repair(struct rig *rig)
{
	const struct repo_repair_options opt = {.pool = rig->pool, .read_data = true};
	struct repo_verify_report report = {0};
	struct error err = {0};
	unsigned n = 0;

	if (repo_repair(rig->repo, &opt, &report, &err) < 0)
		fail_msg("%s", err.text);
	for (size_t i = 0; i < report.ndamaged; i++)
		n += report.damaged[i].repaired;
	repo_verify_report_done(&report);
	return n;
}

static void back_up(struct rig *rig, struct image *im)
{
	auto_point_list struct point_list l = {0};
	struct error err = {0};
	struct tm_id id;

	image_change(im, &rig->random, 6);
	assert_int_equal(repo_points(rig->repo, rig->guest, &l, NULL, NULL), 0);
	if (rig_backup(rig, im, l.n ? l.v[l.n - 1] : NULL, &id, &err) < 0)
		fail_msg("%s", err.text);
}

/* Backups that refer to their parent and to a sibling, and one that gave up. */
static void backups(struct rig *rig, struct image *im, struct image *twin)
{
	static char guest[] = "guest", twin_guest[] = "twin", clone[] = "clone";
	struct tm_id id;

	rig->guest = guest;
	back_up(rig, im);
	image_copy(im, twin);
	image_noise(twin, &rig->random, 8, 24); /* parts of frames are elsewhere, others not */
	rig->guest = twin_guest;
	back_up(rig, twin);
	image_noise(im, &rig->random, 40, 90); /* whole frames of the first point */
	rig->guest = guest;
	back_up(rig, im);
	rig->siblings = true;
	rig->guest = clone;
	back_up(rig, twin);
	back_up(rig, twin);
	rig->give_up = true;
	assert_int_equal(rig_backup(rig, twin, NULL, &id, NULL), TM_E_CANCELED);
	rig->give_up = false;
}

static void changes_of_keys(struct rig *rig)
{
	struct repo_secret first = password("first"), second = password("second"), file;
	char text[REPO_KEY_FILE_TEXT];
	struct tm_id id;

	assert_int_equal(repo_key_file_new(text, NULL), 0);
	file = key_file(text);
	assert_int_equal(key_add(rig->repo, REPO_ROLE_BACKUP, "agent", &file, &id, NULL), 0);
	assert_int_equal(repo_domain_add(rig->repo, "acme", &id, NULL), 0);
	assert_int_equal(repo_key_rotate(rig->repo, false, &first, &id, NULL), 0);
	assert_int_equal(repo_key_change(rig->repo, &second, &id, NULL), 0);
}

/* Again and again, so that what was built again is built again. */
static void repairs(struct rig *rig)
{
	unsigned data = 0, maps = 0;

	for (unsigned i = 0; i < 3; i++) {
		damage(rig, "/000/d", false, 20000);
		data += repair(rig);
		damage(rig, "/000/m", true, 400);
		maps += repair(rig);
	}
	printf("segments built again: %u data, %u map\n", data, maps);
	assert_true(data >= 3 && maps >= 3);
}

static void prune(struct rig *rig)
{
	struct repo_prune_options opt = {
		.max_unused = 0, .stale_ms = 1000, .now_ms = rig->now + 100000};
	auto_point_list struct point_list l = {0};
	struct repo_prune_report report;
	struct error err = {0};

	assert_int_equal(repo_points(rig->repo, NULL, &l, NULL, NULL), 0);
	assert_int_equal(repo_forget(rig->repo, &l.v[0]->id, 1, NULL), 0);
	if (repo_prune(rig->repo, &opt, &report, &err) < 0)
		fail_msg("%s", err.text);
	assert_true(report.compacted_bytes > 0);
}

/* I6 */
static void no_key_seals_twice_under_a_nonce(void **state)
{
	struct image im, twin;
	struct rig rig;

	(void)state;
	rig_up_encrypted(&rig, seed);
	image_init(&im, UINT64_C(300) * BS, BS);
	image_noise(&im, &rig.random, 0, 100);
	backups(&rig, &im, &twin);
	prune(&rig);
	repairs(&rig);
	changes_of_keys(&rig);
	back_up(&rig, &twin);
	printf("%zu sealings\n", sealed.n);
	assert_true(sealed.n > 100);
	assert_int_equal(sealed.again, 0);
	image_done(&im);
	image_done(&twin);
	rig_down(&rig);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_key_seals_twice_under_a_nonce),
	};

	seed = test_seed();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
