/* SPDX-License-Identifier: Apache-2.0 */
#include "migration.h"

#include <string.h>

static bool is_one_of(const char *text, const char *const *v, size_t n)
{
	for (size_t i = 0; text && i < n; i++) {
		if (strcmp(text, v[i]) == 0)
			return true;
	}
	return false;
}

/* What query-migrate says of one that is over stays until the next one. */
static bool is_under_way(const char *status)
{
	static const char *const v[] = {"setup",           "active",
					"postcopy-active", "postcopy-paused",
					"device",          "postcopy-recover",
					"pre-switchover",  "cancelling",
					"wait-unplug",     "colo"};

	return is_one_of(status, v, ARRAY_SIZE(v));
}

static bool has_left(const char *state)
{
	static const char *const v[] = {"inmigrate", "finish-migrate", "postmigrate", "colo"};

	return is_one_of(state, v, ARRAY_SIZE(v));
}

int migration_check(struct guest *g, const char *state, unsigned timeout_ms, struct error *err)
{
	auto_json json_t *migration = NULL;

	if (has_left(state))
		return error_set(
			err, TM_E_BUSY,
			"the guest is being migrated or saved, or was (QEMU's state is %s): "
			"back it up where it runs",
			state);
	if (qmp_call(g->qmp, "query-migrate", NULL, timeout_ms, &migration, NULL) == 0 &&
	    is_under_way(jsonx_text(migration, "status")))
		return error_set(
			err, TM_E_BUSY,
			"the guest is being migrated or saved, and has to be on its disks' "
			"own files before that ends");
	return 0;
}

void migration_explain(struct guest *g, struct error *err)
{
	struct error why = {0};
	char *state = NULL;

	if (!g->qmp || qmp_lost(g->qmp) || guest_query_state(g, &state, NULL))
		return;
	if (migration_check(g, state, QMP_TIMEOUT_MS, &why))
		error_append(err, "; %s", why.text);
	free(state);
}
