/* SPDX-License-Identifier: Apache-2.0 */
#include "jsonx.h"

const char *jsonx_text(const json_t *obj, const char *key)
{
	return json_string_value(json_object_get(obj, key));
}

bool jsonx_flag(const json_t *obj, const char *key)
{
	return json_is_true(json_object_get(obj, key));
}

bool jsonx_u64(const json_t *obj, const char *key, uint64_t *ret)
{
	const json_t *v = json_object_get(obj, key);

	if (!json_is_integer(v) || json_integer_value(v) < 0)
		return false;
	*ret = (uint64_t)json_integer_value(v);
	return true;
}

int jsonx_copy(const json_t *obj, const char *key, char **ret, struct error *err)
{
	const char *text = jsonx_text(obj, key);

	if (!text) {
		*ret = NULL;
		return 0;
	}
	return text_copy(text, ret, err);
}

int jsonx_make(json_t **ret, struct error *err, const char *fmt, ...)
{
	json_error_t je;
	va_list ap;
	json_t *v;

	va_start(ap, fmt);
	v = json_vpack_ex(&je, 0, fmt, ap);
	va_end(ap);
	if (!v)
		return error_set(err, TM_E_NOMEM, "cannot build a JSON value: %s", je.text);
	*ret = v;
	return 0;
}

int jsonx_append(json_t *array, json_t *item, struct error *err)
{
	if (!item || json_array_append_new(array, item))
		return error_nomem(err);
	return 0;
}

int jsonx_set(json_t *obj, const char *key, json_t *value, struct error *err)
{
	if (!value || json_object_set_new(obj, key, value))
		return error_nomem(err);
	return 0;
}
