/* SPDX-License-Identifier: Apache-2.0 */
/*
 * With Intel's multi-buffer library.  It documents messages of up to 65534 bytes; a cluster has two
 * more.  What limits it are 16 bits for a message's blocks of 64 bytes, 4 MiB: the look at the
 * lengths is left out, and each process proves first that what comes out is what OpenSSL computes.
 */
#include "lanes.h"

#include <assert.h>
#include <openssl/crypto.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define NO_COMPAT_IMB_API_053 /* names of old versions, which clash with OpenSSL's */
#include <intel-ipsec-mb.h>

#define BLOCK_BYTES 64 /* of SHA-256 */

struct lanes {
	void *memory; /* the manager's, which keeps what is derived from the key */
	IMB_MGR *mgr;
	IMB_JOB job[LANES_MAX];
	uint8_t inner[KEY_BYTES]; /* SHA-256 after the key block: RFC 2104 */
	uint8_t outer[KEY_BYTES];
};

static pthread_once_t lanes_once = PTHREAD_ONCE_INIT;
static bool lanes_proved;

static void hash_key(struct lanes *l, const struct secret *key, uint8_t pad, uint8_t *ret)
{
	uint8_t block[BLOCK_BYTES];

	for (size_t i = 0; i < sizeof(block); i++)
		block[i] = pad ^ (i < KEY_BYTES ? key->b[i] : 0);
	IMB_SHA256_ONE_BLOCK(l->mgr, block, ret);
	OPENSSL_cleanse(block, sizeof(block));
}

/*
 * False: this processor has nothing that is quicker than hashing one after the other.  That is so
 * with SHA-NI, of which OpenSSL makes use, and lanes of fewer bits than AVX-512's.
 */
static bool manager_init(struct lanes *l)
{
	IMB_ARCH arch = IMB_ARCH_NONE;

	l->mgr = imb_set_pointers_mb_mgr(l->memory, 0, 1);
	if (!l->mgr)
		return false;
	init_mb_mgr_auto(l->mgr, &arch);
	return imb_get_errno(l->mgr) == 0 &&
	       (arch == IMB_ARCH_AVX512 ||
		(arch >= IMB_ARCH_SSE && !(l->mgr->features & IMB_FEATURE_SHANI)));
}

static void jobs_init(struct lanes *l)
{
	for (unsigned i = 0; i < LANES_MAX; i++) {
		IMB_JOB *job = &l->job[i];

		job->hash_alg = IMB_AUTH_HMAC_SHA_256;
		job->cipher_mode = IMB_CIPHER_NULL;
		job->cipher_direction = IMB_DIR_ENCRYPT;
		job->chain_order = IMB_ORDER_HASH_CIPHER;
		job->auth_tag_output_len_in_bytes = KEY_BYTES;
		job->u.HMAC._hashed_auth_key_xor_ipad = l->inner;
		job->u.HMAC._hashed_auth_key_xor_opad = l->outer;
	}
}

static struct lanes *lanes_alloc(const struct secret *key)
{
	auto_clean(lanes_free) struct lanes *l = calloc(1, sizeof(*l));

	if (!l || posix_memalign(&l->memory, BLOCK_BYTES, imb_get_mb_mgr_size()) != 0 ||
	    !manager_init(l))
		return NULL;
	hash_key(l, key, 0x36, l->inner);
	hash_key(l, key, 0x5c, l->outer);
	jobs_init(l);
	return tm_steal(l);
}

void lanes_free(struct lanes *l)
{
	if (!l)
		return;
	if (l->memory)
		OPENSSL_cleanse(l->memory, imb_get_mb_mgr_size());
	free(l->memory);
	OPENSSL_cleanse(l, sizeof(*l));
	free(l);
}

bool lanes_do(struct lanes *l, unsigned n, const uint8_t *const message[], size_t len,
	      uint8_t ret[][KEY_BYTES])
{
	assert(n <= LANES_MAX && len <= LANES_MESSAGE_BYTES);
	for (unsigned i = 0; i < n; i++) {
		l->job[i].src = message[i];
		l->job[i].msg_len_to_hash_in_bytes = len;
		l->job[i].auth_tag_output = ret[i];
	}
	return IMB_SUBMIT_HASH_BURST_NOCHECK(l->mgr, l->job, n, IMB_AUTH_HMAC_SHA_256) == n;
}

/* n messages of len bytes, all different; room has n bytes more. */
static bool agree(struct lanes *l, struct mac *mac, const uint8_t *room, unsigned n, size_t len)
{
	const uint8_t *message[LANES_MAX];
	uint8_t got[LANES_MAX][KEY_BYTES], want[KEY_BYTES];

	for (unsigned i = 0; i < n; i++)
		message[i] = room + i;
	if (!lanes_do(l, n, message, len, got))
		return false;
	for (unsigned i = 0; i < n; i++)
		if (mac_do(mac, message[i], len, want, NULL) < 0 ||
		    memcmp(want, got[i], KEY_BYTES) != 0)
			return false;
	return true;
}

static void prove(void)
{
	static const struct secret key = {"a key that proves and keeps none"};
	auto_clean(lanes_free) struct lanes *l = lanes_alloc(&key);
	auto_clean(mac_free) struct mac *mac = NULL;
	uint8_t *room = malloc(LANES_MESSAGE_BYTES + LANES_MAX);

	if (room && l && mac_new(&key, &mac, NULL) == 0) {
		for (uint32_t i = 0, x = 1; i < LANES_MESSAGE_BYTES + LANES_MAX; i++) {
			x = x * 1664525 + 1013904223;
			room[i] = (uint8_t)(x >> 24);
		}
		lanes_proved = agree(l, mac, room, LANES_MAX, LANES_MESSAGE_BYTES) &&
			       agree(l, mac, room, LANES_MIN + 1, LANES_MESSAGE_BYTES) &&
			       agree(l, mac, room, LANES_MAX - 1, 4096) &&
			       agree(l, mac, room, LANES_MIN, 4096);
	}
	free(room);
}

struct lanes *lanes_new(const struct secret *key)
{
	pthread_once(&lanes_once, prove);
	return lanes_proved ? lanes_alloc(key) : NULL;
}
