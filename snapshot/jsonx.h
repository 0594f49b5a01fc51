/* SPDX-License-Identifier: Apache-2.0 */
/* Reading JSON that came from elsewhere: missing and mistyped members are plain answers. */
#pragma once

#include "common/common.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

TM_CLEANUP(json_t, json_decref)
#define auto_json auto_clean(json_decref)

/* Borrowed from obj; NULL when it is missing or no string. */
const char *jsonx_text(const json_t *obj, const char *key);
/* False when it is missing or no boolean. */
bool jsonx_flag(const json_t *obj, const char *key);
/* False when it is missing, no integer, or negative. */
bool jsonx_u64(const json_t *obj, const char *key, uint64_t *ret);
/* A copy of the string, or NULL without one; the caller owns *ret. */
int jsonx_copy(const json_t *obj, const char *key, char **ret, struct error *err) TM_WUR;

/* json_pack() that reports errors our way.  *ret is a new reference. */
int jsonx_make(json_t **ret, struct error *err, const char *fmt, ...) TM_WUR;
/* Appends item (stolen, also on failure; NULL is TM_E_NOMEM). */
int jsonx_append(json_t *array, json_t *item, struct error *err) TM_WUR;
/* Sets a member (value is stolen, also on failure; NULL is TM_E_NOMEM). */
int jsonx_set(json_t *obj, const char *key, json_t *value, struct error *err) TM_WUR;
