/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Secrets as text: key files (64 hex digits), and paper keys, which hold the master keys themselves
 * and so need no slot in the repository (docs/format.md, "Paper key").
 */
#include "internal.h"
#include "slot.h"

#include <ctype.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>

#define LINE_BYTES  16
#define PAPER_MAX   (sizeof(struct format_paper) + RECORDS_MAX)
#define PAPER_WORD  "tidemark paper key"
#define PAPER_LINES (PAPER_MAX / LINE_BYTES + 1)
/* number, 32 digits, checksum, spaces */
#define PAPER_LINE_TEXT 56

int repo_key_file_new(char ret[REPO_KEY_FILE_TEXT], struct error *err)
{
	auto_secret struct secret key = {{0}};
	int r = random_bytes(key.b, sizeof(key.b), err);

	if (r < 0)
		return r;
	hex_encode(key.b, sizeof(key.b), ret);
	ret[REPO_KEY_FILE_TEXT - 2] = '\n';
	ret[REPO_KEY_FILE_TEXT - 1] = 0;
	return 0;
}

int key_file_decode(const struct repo_secret *secret, struct secret *ret, struct error *err)
{
	char text[2 * KEY_BYTES + 1] = "";
	const char *p = secret->bytes;
	size_t len = secret->len;
	bool ok;

	while (len > 0 && (p[len - 1] == '\n' || p[len - 1] == '\r' || p[len - 1] == ' '))
		len--;
	if (len != (size_t)2 * KEY_BYTES)
		return error_set(err, TM_E_DENIED, "the key file has %zu characters instead of %d",
				 len, 2 * KEY_BYTES);
	for (size_t i = 0; i < len; i++)
		text[i] = (char)tolower((unsigned char)p[i]);
	ok = hex_decode(text, ret->b, sizeof(ret->b));
	OPENSSL_cleanse(text, sizeof(text));
	return ok ? 0
		  : error_set(err, TM_E_DENIED,
			      "the key file holds something else than hex digits");
}

bool repo_key_file_ok(const struct repo_secret *secret)
{
	auto_secret struct secret key = {{0}};

	return key_file_decode(secret, &key, NULL) == 0;
}

bool is_paper(const struct repo_secret *secret)
{
	return secret->kind == REPO_SECRET_KEY_FILE &&
	       memmem(secret->bytes, secret->len, PAPER_WORD, sizeof(PAPER_WORD) - 1) != NULL;
}

/* Of a line: its number and its bytes. */
static uint16_t line_sum(unsigned number, const uint8_t *bytes, size_t len)
{
	struct le16 n = le16_of((uint16_t)number);
	uint32_t crc = crc32c(crc32c(0, &n, sizeof(n)), bytes, len);

	return (uint16_t)(crc ^ crc >> 16);
}

/* ---- writing ---- */

static void write_line(unsigned number, const uint8_t *bytes, size_t len, char *text, size_t size)
{
	int at = snprintf(text, size, "%03u ", number);

	for (size_t i = 0; i < len; i++)
		at += snprintf(text + at, size - (size_t)at, "%s%02x", i % 4 ? "" : " ", bytes[i]);
	(void)snprintf(text + at, size - (size_t)at, "  %04x\n", line_sum(number, bytes, len));
}

static int write_text(const struct tm_id *repo, const uint8_t *bytes, size_t len, char **ret,
		      struct error *err)
{
	static const char head[] =
		"# " PAPER_WORD " of repository %s\n"
		"# Whoever has these lines can read everything in it.  Keep them in a safe.\n"
		"# They open it as a key file does (--key-file), even when its keys are lost.\n";
	size_t size = sizeof(head) + TM_ID_HEX + PAPER_LINES * PAPER_LINE_TEXT, at;
	char *text = malloc(size);

	if (!text)
		return error_nomem(err);
	at = (size_t)snprintf(text, size, head, id_text(repo).s);
	for (size_t i = 0; i * LINE_BYTES < len; i++) {
		size_t n = min_size(len - i * LINE_BYTES, LINE_BYTES);

		assert(at + PAPER_LINE_TEXT < size);
		write_line((unsigned)i + 1, bytes + i * LINE_BYTES, n, text + at, size - at);
		at += strlen(text + at);
	}
	*ret = text;
	return 0;
}

int paper_encode(const struct tm_id *repo, const struct master_keys *keys, char **ret,
		 struct error *err)
{
	uint8_t bytes[PAPER_MAX];
	struct format_paper h = {.version = FORMAT_VERSION, .role = ROLE_FULL, .repo = *repo};
	size_t n = records_encode(keys, REPO_ROLE_FULL, bytes + sizeof(h));
	int r;

	h.len = le16_of((uint16_t)(sizeof(h) + n));
	memcpy(bytes, &h, offsetof(struct format_paper, crc));
	h.crc = le32_of(
		crc32c(crc32c(0, &h, offsetof(struct format_paper, crc)), bytes + sizeof(h), n));
	memcpy(bytes, &h, sizeof(h));
	r = write_text(repo, bytes, sizeof(h) + n, ret, err);
	OPENSSL_cleanse(bytes, sizeof(bytes));
	return r;
}

/* ---- reading ---- */

struct paper {
	uint8_t bytes[PAPER_MAX];
	size_t len;
	unsigned lines;
};

static int bad_line(unsigned number, const char *what, struct error *err)
{
	return error_set(err, TM_E_DENIED, "line %u of the paper key: %s", number, what);
}

static void read_digits(const char *p, const char *end, char *digits, size_t max, size_t *ret_n)
{
	size_t n = 0;

	for (; p < end; p++) {
		if (isspace((unsigned char)*p))
			continue;
		if (n < max)
			digits[n] = (char)tolower((unsigned char)*p);
		n++;
	}
	*ret_n = n;
}

/* Three digits of the number, the bytes, four digits of the checksum; blanks where one likes. */
static int read_line(struct paper *p, const char *at, const char *end, struct error *err)
{
	char digits[3 + 2 * LINE_BYTES + 4 + 1] = "";
	uint8_t bytes[LINE_BYTES] = {0}, sum[2] = {0};
	unsigned number = p->lines + 1;
	char want[4] = "";
	size_t n, len;
	int r = 0;

	read_digits(at, end, digits, sizeof(digits) - 1, &n);
	if (n == 0 || digits[0] == '#')
		return 0;
	(void)snprintf(want, sizeof(want), "%03u", number % 1000);
	if (n < 3 + 2 + 4 || memcmp(digits, want, 3) != 0)
		return bad_line(number, "it is missing, or not where it belongs", err);
	len = (n - 7) / 2;
	if (n > sizeof(digits) - 1 || n % 2 == 0 || p->len + len > sizeof(p->bytes))
		r = bad_line(number, "it has too many or too few digits", err);
	digits[n < sizeof(digits) ? n : 0] = 0;
	if (r == 0) {
		bool hex = hex_decode(digits + 3 + 2 * len, sum, 2);

		digits[3 + 2 * len] = 0;
		if (!hex || !hex_decode(digits + 3, bytes, len))
			r = bad_line(number, "it holds something else than hex digits", err);
	}
	if (r == 0 && line_sum(number, bytes, len) != ((unsigned)sum[0] << 8 | sum[1]))
		r = bad_line(number, "its checksum is wrong", err);
	if (r == 0) {
		memcpy(p->bytes + p->len, bytes, len);
		p->len += len;
		p->lines++;
	}
	OPENSSL_cleanse(digits, sizeof(digits));
	OPENSSL_cleanse(bytes, sizeof(bytes));
	return r;
}

static int read_text(const struct repo_secret *secret, struct paper *p, struct error *err)
{
	const char *at = secret->bytes, *end = at + secret->len;
	int r = 0;

	while (r == 0 && at < end) {
		const char *eol = memchr(at, '\n', (size_t)(end - at));

		if (!eol)
			eol = end;
		r = read_line(p, at, eol, err);
		at = eol < end ? eol + 1 : end;
	}
	return r;
}

static int check_paper(const struct paper *p, const struct tm_id *repo, struct error *err)
{
	struct format_paper h;
	uint32_t crc;

	if (p->len < sizeof(h))
		return error_set(err, TM_E_DENIED, "the paper key ends after line %u", p->lines);
	memcpy(&h, p->bytes, sizeof(h));
	if (h.version != FORMAT_VERSION || h.role != ROLE_FULL)
		return error_set(err, TM_E_UNSUPPORTED, "the paper key is of version %u",
				 (unsigned)h.version);
	if (le16_get(h.len) != p->len)
		return error_set(err, TM_E_DENIED, "the paper key ends after line %u", p->lines);
	crc = crc32c(crc32c(0, &h, offsetof(struct format_paper, crc)), p->bytes + sizeof(h),
		     p->len - sizeof(h));
	if (crc != le32_get(h.crc))
		return error_set(err, TM_E_DENIED, "the checksum of the paper key is wrong");
	if (!id_equal(&h.repo, repo))
		return error_set(err, TM_E_DENIED, "the paper key is that of repository %s",
				 id_text(&h.repo).s);
	return 0;
}

int paper_decode(const struct repo_secret *secret, const struct tm_id *repo,
		 struct master_keys *ret, struct error *err)
{
	struct paper *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return error_nomem(err);
	r = read_text(secret, p, err);
	r = r ? r : check_paper(p, repo, err);
	r = r ? r
	      : records_decode(p->bytes + sizeof(struct format_paper),
			       p->len - sizeof(struct format_paper), REPO_ROLE_FULL, ret, err);
	OPENSSL_cleanse(p, sizeof(*p));
	free(p);
	return r;
}
