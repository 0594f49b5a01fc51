/* SPDX-License-Identifier: Apache-2.0 */
#include "keys.h"

#include <assert.h>
#include <openssl/crypto.h>
#include <string.h>

void master_wipe(struct master_keys *k)
{
	OPENSSL_cleanse(k, sizeof(*k));
}

void domain_wipe(struct domain_keys *k)
{
	OPENSSL_cleanse(k, sizeof(*k));
}

void session_keys_wipe(struct session_keys *k)
{
	OPENSSL_cleanse(k, sizeof(*k));
}

int master_new(struct master_keys *ret, struct error *err)
{
	auto_master struct master_keys k = {.has = KEY_HAS_META | KEY_HAS_ID | KEY_HAS_DATA};
	int r;

	r = random_bytes(k.meta.b, sizeof(k.meta.b), err);
	if (r == 0)
		r = random_bytes(k.id.b, sizeof(k.id.b), err);
	if (r == 0)
		r = random_bytes(k.data.b, sizeof(k.data.b), err);
	if (r == 0)
		*ret = k;
	return r;
}

int master_rotate(struct master_keys *keys, struct error *err)
{
	auto_secret struct secret data = {{0}};
	int r;

	assert(keys->has & KEY_HAS_DATA);
	if (keys->generation + 1 >= MAX_DATA_KEYS)
		return error_set(err, TM_E_RANGE,
				 "the data key was rotated %u times; more is not possible",
				 keys->generation);
	r = random_bytes(data.b, sizeof(data.b), err);
	if (r < 0)
		return r;
	keys->old[keys->generation++] = keys->data;
	keys->data = data;
	return 0;
}

static int derive_data(const struct master_keys *master, const struct tm_id *domain,
		       struct domain_keys *ret, struct error *err)
{
	static const char label[] = "tidemark domain data";
	int r = derive_id(&master->data, label, domain, &ret->data, err);

	for (uint32_t g = 0; r == 0 && g < master->generation; g++)
		r = derive_id(&master->old[g], label, domain, &ret->old[g], err);
	ret->public_generation = master->generation;
	return r ? r : data_public(&ret->data, ret->data_public, err);
}

/* From keys that are this domain's already. */
static int take_own(const struct master_keys *own, struct domain_keys *ret, struct error *err)
{
	ret->meta = own->meta;
	ret->id = own->id;
	if (!(own->has & KEY_HAS_DATA))
		return 0;
	ret->data = own->data;
	memcpy(ret->old, own->old, sizeof(ret->old));
	ret->public_generation = own->generation;
	return data_public(&ret->data, ret->data_public, err);
}

int domain_derive(const struct master_keys *master, const struct tm_id *domain,
		  struct domain_keys *ret, struct error *err)
{
	int r = 0;

	*ret = (struct domain_keys){.has = master->has, .generation = master->generation};
	if (!id_is_zero(&master->scope)) {
		assert(id_equal(&master->scope, domain));
		return take_own(master, ret, err);
	}
	if (master->has & KEY_HAS_META)
		r = derive_id(&master->meta, "tidemark domain meta", domain, &ret->meta, err);
	if (r == 0 && master->has & KEY_HAS_ID)
		r = derive_id(&master->id, "tidemark domain id", domain, &ret->id, err);
	if (r == 0 && master->has & KEY_HAS_DATA)
		r = derive_data(master, domain, ret, err);
	return r;
}

void domain_own(const struct domain_keys *keys, const struct tm_id *domain, struct master_keys *ret)
{
	uint32_t g = keys->generation < keys->public_generation ? keys->generation
								: keys->public_generation;

	*ret = (struct master_keys){.scope = *domain,
				    .meta = keys->meta,
				    .id = keys->id,
				    .data = g < keys->generation ? keys->old[g] : keys->data,
				    .has = keys->has,
				    .generation = g};
	memcpy(ret->old, keys->old, g * sizeof(keys->old[0]));
}

/* What a wrap is bound to: repository and session. */
static void wrap_info(const struct tm_id *repo, const struct tm_id *sid,
		      uint8_t info[2 * TM_ID_BYTES])
{
	memcpy(info, repo, TM_ID_BYTES);
	memcpy(info + TM_ID_BYTES, sid, TM_ID_BYTES);
}

int session_keys_new(const struct domain_keys *domain, const struct tm_id *repo,
		     const struct tm_id *sid, struct session_keys *ret, struct error *err)
{
	uint8_t info[2 * TM_ID_BYTES];
	int r;

	wrap_info(repo, sid, info);
	r = derive_id(&domain->meta, "tidemark session", sid, &ret->meta, err);
	if (r == 0)
		r = random_bytes(ret->data.b, sizeof(ret->data.b), err);
	if (r == 0)
		r = wrap_seal(domain->data_public, info, sizeof(info), &ret->data, ret->wrap, err);
	ret->has_data = r == 0;
	return r;
}

int session_keys_open(const struct domain_keys *domain, const struct tm_id *repo,
		      const struct tm_id *sid, const uint8_t wrap[WRAP_BYTES],
		      struct session_keys *ret, struct error *err)
{
	uint8_t info[2 * TM_ID_BYTES];
	int r;

	wrap_info(repo, sid, info);
	memcpy(ret->wrap, wrap, WRAP_BYTES);
	ret->has_data = false;
	r = derive_id(&domain->meta, "tidemark session", sid, &ret->meta, err);
	if (r < 0 || !(domain->has & KEY_HAS_DATA))
		return r;
	/* A wrap does not say which data key it is for; mostly it is the newest one. */
	r = wrap_open(&domain->data, info, sizeof(info), wrap, &ret->data,
		      domain->generation == 0 ? err : NULL);
	for (uint32_t g = domain->generation; r == TM_E_CORRUPT && g > 0; g--)
		r = wrap_open(&domain->old[g - 1], info, sizeof(info), wrap, &ret->data,
			      g == 1 ? err : NULL);
	/* made after a rotation: for an older key it is as for one without data keys */
	if (r == TM_E_CORRUPT && domain->generation < domain->public_generation) {
		error_clear(err);
		return 0;
	}
	if (r == TM_E_NOMEM)
		r = error_nomem(err);
	ret->has_data = r == 0;
	return r;
}

int segment_key(const struct secret *session, uint8_t type, uint32_t index,
		const struct seg_sealing *sealing, struct secret *ret, struct error *err)
{
	static const char label[] = "tidemark segment";
	struct {
		char label[sizeof(label)];
		uint8_t type;
		struct le32 index, generation, run;
	} info = {.type = type,
		  .index = le32_of(index),
		  .generation = le32_of(sealing->generation),
		  .run = le32_of(sealing->run)};

	static_assert(sizeof(info) == sizeof(label) + 13, "no padding");
	memcpy(info.label, label, sizeof(label));
	return derive(session, &info, sizeof(info), ret, err);
}

int source_id(const struct domain_keys *domain, const char *guest, struct tm_id *ret,
	      struct error *err)
{
	static const char label[] = "tidemark source names";
	auto_secret struct secret key = {{0}};
	uint8_t mac[KEY_BYTES];
	int r;

	r = derive(&domain->meta, label, sizeof(label) - 1, &key, err);
	if (r == 0)
		r = mac_once(&key, guest, strlen(guest), mac, err);
	if (r == 0)
		memcpy(ret->b, mac, sizeof(ret->b));
	return r;
}
