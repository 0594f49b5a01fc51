/* SPDX-License-Identifier: Apache-2.0 */
#include "id.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

int random_bytes(void *buf, size_t len, struct error *err)
{
	uint8_t *p = buf;

	while (len) {
		ssize_t n = getrandom(p, len, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_errno(err, errno, "getrandom");
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int id_new(struct tm_id *ret, struct error *err)
{
	return random_bytes(ret->b, sizeof(ret->b), err);
}

int id_new_timed(uint64_t now_ms, struct tm_id *ret, struct error *err)
{
	for (unsigned i = 0; i < 6; i++)
		ret->b[i] = (uint8_t)(now_ms >> (40 - 8 * i) & 0xff);
	return random_bytes(ret->b + 6, sizeof(ret->b) - 6, err);
}

uint64_t id_time_ms(const struct tm_id *id)
{
	uint64_t ms = 0;

	for (unsigned i = 0; i < 6; i++)
		ms = ms << 8 | id->b[i];
	return ms;
}

void hex_encode(const void *bytes, size_t len, char *text)
{
	static const char digits[] = "0123456789abcdef";
	const uint8_t *p = bytes;

	for (size_t i = 0; i < len; i++) {
		text[2 * i] = digits[p[i] >> 4];
		text[2 * i + 1] = digits[p[i] & 15];
	}
	text[2 * len] = '\0';
}

static int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

bool hex_decode(const char *text, void *bytes, size_t len)
{
	uint8_t *p = bytes;

	for (size_t i = 0; i < len; i++) {
		int hi = digit(text[2 * i]), lo = hi < 0 ? -1 : digit(text[2 * i + 1]);

		if (lo < 0)
			return false;
		p[i] = (uint8_t)(hi << 4 | lo);
	}
	return true;
}

struct tm_id_text id_text(const struct tm_id *id)
{
	struct tm_id_text t;

	hex_encode(id->b, sizeof(id->b), t.s);
	return t;
}

bool id_parse(const char *text, struct tm_id *ret)
{
	struct tm_id id;

	if (strlen(text) != TM_ID_HEX || !hex_decode(text, id.b, sizeof(id.b)))
		return false;
	*ret = id;
	return true;
}

bool id_equal(const struct tm_id *a, const struct tm_id *b)
{
	return memcmp(a->b, b->b, sizeof(a->b)) == 0;
}

bool id_is_zero(const struct tm_id *id)
{
	static const struct tm_id zero;

	return id_equal(id, &zero);
}
