/* SPDX-License-Identifier: Apache-2.0 */
/* All key slots of a repository, for those who open it and who change keys. */
#pragma once

#include "copies.h"
#include "slot.h"

struct key_slot {
	struct tm_id kid;
	struct slot slot; /* when usable */
	bool usable;
	struct copies copies;
	bool bad[COPIES]; /* was read, and is damaged or gone */
	int code;         /* when not usable: why */
	struct error err;
};

struct keyring {
	struct repo *repo;
	bool every_copy; /* both were read, and what the store could not read was an error */
	int code;        /* of the listing */
	struct error err;
	struct key_slot v[MAX_KEY_SLOTS];
	size_t n;
};

/* Which slots there are, by their names alone.  A listing that fails is an error of
 * keyring_read(). */
int keyring_list(struct repo *repo, struct keyring **ret, struct error *err) TM_WUR;
/* Reads one whole copy of each, or every one.  May be called again. */
int keyring_read(struct keyring *g, bool every_copy, struct error *err) TM_WUR;
/* Both, of every copy; what it shows lasts. */
int keyring_load(struct repo *repo, struct keyring **ret, struct error *err) TM_WUR;
/* Opens the slot that cred fits: fills in master, role, kid of the repository. */
int keyring_open(struct keyring *g, const struct repo_credentials *cred, struct error *err) TM_WUR;
void keyring_free(struct keyring *g);
TM_CLEANUP(struct keyring, keyring_free)
#define auto_keyring auto_clean(keyring_free)

/* The name of a copy of a usable slot that is missing, or was read and is damaged, or "". */
void keyring_worn(const struct key_slot *s, char key[KEY_MAX]);

struct key_slot *keyring_find(struct keyring *g, const struct tm_id *kid);

/* "keys/<kid>a" or b */
void name_key(const struct tm_id *kid, unsigned copy, char key[KEY_MAX]);
struct copy_names name_keys(const struct tm_id *kid);
bool name_parse_key(const char *key, struct tm_id *ret, unsigned *ret_copy);

/* A new slot; nothing of it stays when it cannot be written whole. */
int keyring_put(const struct repo *repo, enum repo_role role, const char *label,
		const struct repo_secret *secret, const struct master_keys *master,
		struct tm_id *ret, struct error *err) TM_WUR;
int keyring_remove(const struct repo *repo, const struct tm_id *kid, struct error *err) TM_WUR;

/* TM_E_DENIED: there are slots with a newer data key than ours. */
int keyring_check_newest(struct repo *repo, struct error *err) TM_WUR;
/* TM_E_DENIED, TM_E_UNSUPPORTED: not with this key, not in this repository. */
int keyring_check_change(struct repo *repo, struct error *err) TM_WUR;
