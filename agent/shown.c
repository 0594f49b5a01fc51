/* SPDX-License-Identifier: Apache-2.0 */
/* Text that others wrote, on a terminal: what is printed of it, and how wide that is. */
#include "agent.h"

#include <locale.h>
#include <string.h>
#include <wchar.h>
#include <wctype.h>

#define COLUMN_MAX 40 /* what is longer pushes its own row aside, not all others */

/* A character as it is printed: itself, or its bytes as \xNN. */
struct shown_char {
	size_t bytes; /* in the text */
	size_t len;
	int columns;
	char s[4 * 4 + 1];
};

bool shown_init(void)
{
	return setlocale(LC_CTYPE, "C.UTF-8") != NULL;
}

/* What is no UTF-8 is printed byte by byte: a terminal of 8 bits may take some for controls. */
static struct shown_char show_next(const char *text)
{
	struct shown_char c = {.bytes = 1, .len = 1};
	mbstate_t state = {0};
	wchar_t wide;
	size_t n = mbrtowc(&wide, text, strnlen(text, 4), &state);
	bool valid = n <= 4;

	if (valid)
		c.bytes = n;
	if (valid && !iswcntrl((wint_t)wide)) {
		int columns = wcwidth(wide);

		c.len = c.bytes;
		c.columns = columns < 0 ? 1 : columns; /* newer than this libc */
		memcpy(c.s, text, c.len);
		return c;
	}
	for (size_t i = 0; i < c.bytes; i++)
		(void)snprintf(c.s + 4 * i, 5, "\\x%02x", (unsigned char)text[i]);
	c.len = 4 * c.bytes;
	c.columns = (int)c.len;
	return c;
}

struct shown shown(const char *text)
{
	struct shown ret = {.s = {0}};
	size_t used = 0;

	while (*text) {
		struct shown_char c = show_next(text);

		if (used + c.len + sizeof("...") > sizeof(ret.s)) {
			memcpy(ret.s + used, "...", sizeof("..."));
			ret.columns += (int)strlen("...");
			break;
		}
		memcpy(ret.s + used, c.s, c.len + 1);
		used += c.len;
		ret.columns += c.columns;
		text += c.bytes;
	}
	return ret;
}

void show_text(FILE *out, const char *text)
{
	while (*text) {
		struct shown_char c = show_next(text);

		(void)fputs(c.s, out);
		text += c.bytes;
	}
}

int column_with(int width, const char *text)
{
	int columns = shown(text).columns;

	return columns > width && columns <= COLUMN_MAX ? columns : width;
}

struct shown shown_column(const char *text, int width)
{
	struct shown ret = shown(text);
	size_t used = strlen(ret.s);

	while (ret.columns < width && used + 1 < sizeof(ret.s)) {
		ret.s[used++] = ' ';
		ret.columns++;
	}
	return ret;
}
