/* SPDX-License-Identifier: Apache-2.0 */
/* Lines for the person, gathered while a call works. */
#include "snapshot.h"

#include <stdarg.h>
#include <stdio.h>

void text_list_done(struct text_list *list)
{
	for (size_t i = 0; i < list->n; i++)
		free(list->v[i]);
	free(list->v);
	*list = (struct text_list){0};
}

int text_list_add(struct text_list *list, struct error *err, const char *fmt, ...)
{
	char *line = NULL;
	va_list ap;
	char **v;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&line, fmt, ap);
	va_end(ap);
	if (n < 0)
		return error_nomem(err);
	v = reallocarray(list->v, list->n + 1, sizeof(*v));
	if (!v) {
		free(line);
		return error_nomem(err);
	}
	list->v = v;
	list->v[list->n++] = line;
	return 0;
}
