/* SPDX-License-Identifier: Apache-2.0 */
#include "deadline.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define LIMIT_MS  60000
#define TYPING_MS 600000 /* a password may have to be typed, or a key be touched */

/* For tests: the limit in milliseconds. */
#define DEBUG_LIMIT "TIDEMARK_DEBUG_STALL_MS"

static void *watch(void *data)
{
	struct deadline *d = data;
	struct timespec until;
	int r = 0;

	(void)clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (time_t)(d->limit_ms / 1000);
	until.tv_nsec += (long)(d->limit_ms % 1000) * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_nsec -= 1000000000;
		until.tv_sec++;
	}
	(void)pthread_mutex_lock(&d->lock);
	while (!d->over && r != ETIMEDOUT)
		r = pthread_cond_timedwait(&d->changed, &d->lock, &until);
	if (!d->over) {
		/* stdio's locks may be held by whoever hangs */
		(void)!write(STDERR_FILENO, d->text, strlen(d->text));
		_exit(EXIT_FAILED);
	}
	(void)pthread_mutex_unlock(&d->lock);
	return NULL;
}

int deadline_begin(struct deadline *d, const char *repo, struct error *err)
{
	const char *debug = getenv(DEBUG_LIMIT);
	pthread_condattr_t attr;
	int r;

	d->over = false;
	d->limit_ms =
		isatty(STDIN_FILENO) || getenv("TIDEMARK_PASSWORD_COMMAND") ? TYPING_MS : LIMIT_MS;
	if (debug && *debug)
		d->limit_ms = strtoull(debug, NULL, 10);
	(void)snprintf(d->text, sizeof(d->text),
		       "tidemark: repository %.400s has not answered for %llu s\n", shown(repo).s,
		       (unsigned long long)d->limit_ms / 1000);
	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_mutex_init(&d->lock, NULL);
	(void)pthread_cond_init(&d->changed, &attr);
	(void)pthread_condattr_destroy(&attr);
	r = pthread_create(&d->thread, NULL, watch, d);
	return r ? error_errno(err, r, "cannot start a thread") : 0;
}

void deadline_end(struct deadline *d)
{
	(void)pthread_mutex_lock(&d->lock);
	d->over = true;
	(void)pthread_cond_signal(&d->changed);
	(void)pthread_mutex_unlock(&d->lock);
	(void)pthread_join(d->thread, NULL);
	(void)pthread_cond_destroy(&d->changed);
	(void)pthread_mutex_destroy(&d->lock);
}
