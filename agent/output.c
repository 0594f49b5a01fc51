/* SPDX-License-Identifier: Apache-2.0 */
/* How the program speaks: remarks and warnings, JSON, progress. */
#include "agent.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PROGRESS_EVERY_MS 200
#define EVENT_EVERY_MS    1000

/* Takes the bar off its line before something else is printed there. */
static void clear_bar(struct agent *a)
{
	if (a->progress.bar)
		(void)fputs("\r\033[K", stderr);
	a->progress.bar = false;
}

void say_error(const struct agent *a, const struct error *err)
{
	(void)fputs("tidemark: ", stderr);
	show_text(stderr, err->text);
	(void)fputc('\n', stderr);
	if (a->opt.verbose && err->file)
		(void)fprintf(stderr, "tidemark: (code %d, %s:%d)\n", (int)err->code, err->file,
			      err->line);
}

#define LINE_MAX_BYTES 1024

TM_PRINTF(2, 0)
static void format_line(char text[LINE_MAX_BYTES], const char *fmt, va_list ap)
{
	if (vsnprintf(text, LINE_MAX_BYTES, fmt, ap) < 0)
		text[0] = '\0';
}

void say_warning(struct agent *a, const char *fmt, ...)
{
	char text[LINE_MAX_BYTES];
	va_list ap;

	va_start(ap, fmt);
	format_line(text, fmt, ap);
	va_end(ap);
	clear_bar(a);
	(void)fputs("tidemark: warning: ", stderr);
	show_text(stderr, text);
	(void)fputc('\n', stderr);
	a->warned = true;
	if (json_array_append_new(a->warnings, json_text(text)) < 0)
		(void)fprintf(stderr,
			      "tidemark: warning: no memory to repeat that in the JSON output\n");
}

TM_PRINTF(2, 0)
static void remark(struct agent *a, const char *fmt, va_list ap)
{
	char text[LINE_MAX_BYTES];

	if (a->opt.quiet)
		return;
	clear_bar(a);
	format_line(text, fmt, ap);
	show_text(stderr, text);
	(void)fputc('\n', stderr);
}

void say(struct agent *a, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	if (!a->opt.json)
		remark(a, fmt, ap);
	va_end(ap);
}

void say_done(struct agent *a, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	remark(a, fmt, ap);
	va_end(ap);
}

json_t *json_bytes(uint64_t bytes)
{
	return bytes == UINT64_MAX ? json_null() : json_integer((json_int_t)bytes);
}

json_t *json_text(const char *text)
{
	auto_free char *clean = NULL;
	json_t *value;

	if (!text)
		return json_null();
	value = json_string(text);
	if (value || text_is_utf8(text) || !(clean = strdup(text)))
		return value;
	/* One strange name does not hide the rest. */
	for (char *p = clean; *p; p++) {
		if ((unsigned char)*p >= 0x80)
			*p = '?';
	}
	return json_string(clean);
}

int print_json(json_t *value, struct error *err)
{
	char *text;

	if (!value)
		return error_nomem(err);
	text = json_dumps(value, JSON_COMPACT | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(6));
	json_decref(value);
	if (!text)
		return error_nomem(err);
	if (puts(text) == EOF) {
		free(text);
		return error_errno(err, errno, "cannot write to standard output");
	}
	free(text);
	if (fflush(stdout) != 0)
		return error_errno(err, errno, "cannot write to standard output");
	return 0;
}

int print_json_warned(struct agent *a, json_t *object, struct error *err)
{
	if (object && json_object_set_new(object, "warnings", take_warnings(a))) {
		json_decref(object);
		object = NULL;
	}
	return print_json(object, err);
}

void drop_warnings(struct agent *a, size_t n)
{
	while (json_array_size(a->warnings) > n)
		(void)json_array_remove(a->warnings, json_array_size(a->warnings) - 1);
}

json_t *take_warnings(struct agent *a)
{
	json_t *taken = json_deep_copy(a->warnings);

	(void)json_array_clear(a->warnings);
	return taken;
}

static bool progress_wanted(const struct agent *a)
{
	if (a->opt.quiet || a->opt.progress == PROGRESS_NEVER)
		return false;
	return a->opt.progress == PROGRESS_ALWAYS || a->opt.json || isatty(STDERR_FILENO);
}

static void show_event(const char *phase, const char *disk, uint64_t done, uint64_t total)
{
	json_t *e = json_pack("{s:s, s:o, s:I, s:I, s:s}", "event", "progress", "disk",
			      json_text(disk), "done_bytes", (json_int_t)done, "total_bytes",
			      (json_int_t)total, "phase", phase);
	char *text = e ? json_dumps(e, JSON_COMPACT) : NULL;

	if (text)
		(void)fprintf(stderr, "%s\n", text);
	free(text);
	json_decref(e);
}

static void show_bar(struct agent *a, const char *phase, const char *disk, uint64_t done,
		     uint64_t total)
{
	static const char full[] = "##############################";
	int width = (int)sizeof(full) - 1, n = total ? (int)(done * 30 / total) : width;
	char d[SIZE_TEXT_MAX], t[SIZE_TEXT_MAX];

	if (n > width)
		n = width;
	size_format(done, d);
	size_format(total, t);
	(void)fprintf(stderr, "\r%-8s %s [%.*s%*s] %3d %%  %s of %s \033[K", phase,
		      shown_column(disk, 10).s, n, full, width - n, "",
		      total ? (int)(done * 100 / total) : 100, d, t);
	a->progress.bar = true;
}

void progress_show(struct agent *a, const char *phase, const char *disk, uint64_t done,
		   uint64_t total)
{
	uint64_t now = clock_monotonic_ms(&clock_system);
	uint64_t every = a->opt.json ? EVENT_EVERY_MS : PROGRESS_EVERY_MS;

	if (!progress_wanted(a))
		return;
	if (done < total && a->progress.shown_ms && now - a->progress.shown_ms < every)
		return;
	a->progress.shown_ms = now;
	if (done > UINT64_MAX / 100)
		return;
	if (a->opt.json)
		show_event(phase, disk, done, total);
	else
		show_bar(a, phase, disk, done, total);
}

void progress_end(struct agent *a)
{
	clear_bar(a);
	a->progress.shown_ms = 0;
}
