/* SPDX-License-Identifier: Apache-2.0 */
/* The domains of a repository (docs/format.md, "Repository, key slot, domain"). */
#pragma once

#include "copies.h"

#define DEFAULT_DOMAIN_NAME "default"

/* By id, with the generation of the newest data key. */
struct domain_id {
	struct tm_id id;
	uint32_t generation;
	bool there[COPIES]; /* of that generation's object */
};

struct domain_ids {
	struct domain_id v[MAX_DOMAINS];
	size_t n;
};

struct domain {
	struct tm_id id;
	char name[DOMAIN_NAME_BYTES + 1];
	struct domain_keys keys;
	char worn[KEY_MAX]; /* of domain_load(): a copy that is known to be lost, or "" */
};
void domain_done(struct domain *d);
#define auto_domain __attribute__((cleanup(domain_done)))

/* Those that the key opens, by their names in the store alone. */
int domains_list(struct repo *repo, struct domain_ids *ret, struct error *err) TM_WUR;
/* Reads and proves one: one whole copy is enough, the other is read only when it is needed, or
 * every_copy. */
int domain_load(const struct repo *repo, const struct domain_id *id, bool every_copy,
		struct domain *ret, struct error *err) TM_WUR;
/* The newest generation of one by the names in the store alone.  TM_E_NOTFOUND. */
int domain_find(struct repo *repo, const struct tm_id *id, struct domain_id *ret,
		struct error *err) TM_WUR;
/* Looks for the newest generation, reads it and makes the domain the one in use.  TM_E_NOTFOUND:
 * there is no such domain. */
int domain_use(struct repo *repo, const struct tm_id *id, struct error *err) TM_WUR;
/* Both copies of the newest generation.  The caller frees copies.bytes, also on failure. */
int domain_copies_load(const struct repo *repo, const struct domain_id *id, struct copies_read *ret,
		       struct error *err) TM_WUR;
struct copy_names domain_copy_names(const struct tm_id *id, uint32_t generation);
/* Puts both copies again of a domain that has none that is whole.  Wants the master keys of the
 * newest generation: an older public key would let an old key read what comes. */
int domain_restore(struct repo *repo, const struct domain_id *id, const char *name,
		   struct error *err) TM_WUR;
/* Puts a missing or damaged copy again where the other one is whole; *count grows. */
int domain_mend(const struct repo *repo, const struct domain_id *id, size_t *count,
		struct error *err) TM_WUR;
/* Puts both copies of the object of the master keys' newest generation.  The name is at most
 * DOMAIN_NAME_BYTES long. */
int domain_put(const struct repo *repo, const struct tm_id *id, const char *name,
	       struct error *err) TM_WUR;
/* The id of the domain of that name; for who has the master keys. */
int domain_id_of(const struct repo *repo, const char *name, struct tm_id *ret,
		 struct error *err) TM_WUR;
/* Parses an object: all of it but MAC and name, which need a key. */
int domain_parse(const struct tm_id *repo, const struct domain_id *id, const char *key,
		 const void *bytes, size_t len, struct format_domain *ret,
		 struct error *err) TM_WUR;
