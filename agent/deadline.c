/* SPDX-License-Identifier: Apache-2.0 */
#include "deadline.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#define LIMIT_MS  60000
#define TYPING_MS 600000 /* a password may have to be typed, or a key be touched */

/* For tests: the limit in milliseconds. */
#define DEBUG_LIMIT "TIDEMARK_DEBUG_STALL_MS"

static uint64_t limit(void)
{
	const char *debug = getenv(DEBUG_LIMIT);

	if (debug && *debug)
		return strtoull(debug, NULL, 10);
	return isatty(STDIN_FILENO) || getenv("TIDEMARK_PASSWORD_COMMAND") ? TYPING_MS : LIMIT_MS;
}

static void init(pthread_mutex_t *lock, pthread_cond_t *changed)
{
	pthread_condattr_t attr;

	(void)pthread_condattr_init(&attr);
	(void)pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	(void)pthread_mutex_init(lock, NULL);
	(void)pthread_cond_init(changed, &attr);
	(void)pthread_condattr_destroy(&attr);
}

/* With the lock held: until *over, or the time is. */
static void wait_over(pthread_mutex_t *lock, pthread_cond_t *changed, const bool *over,
		      uint64_t limit_ms)
{
	struct timespec until;
	int r = 0;

	(void)clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (time_t)(limit_ms / 1000);
	until.tv_nsec += (long)(limit_ms % 1000) * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_nsec -= 1000000000;
		until.tv_sec++;
	}
	while (!*over && r != ETIMEDOUT)
		r = pthread_cond_timedwait(changed, lock, &until);
}

static void *watch(void *data)
{
	struct deadline *d = data;

	(void)pthread_mutex_lock(&d->lock);
	wait_over(&d->lock, &d->changed, &d->over, d->limit_ms);
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
	int r;

	d->over = false;
	d->limit_ms = limit();
	(void)snprintf(d->text, sizeof(d->text),
		       "tidemark: repository %.400s has not answered for %llu s\n", shown(repo).s,
		       (unsigned long long)d->limit_ms / 1000);
	init(&d->lock, &d->changed);
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

/* ---- a call that is left alone ---- */

struct call {
	deadline_fn *fn;
	void *data;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool over; /* by lock, with the rest */
	int r;
	struct error err;
};

static void call_free(struct call *c)
{
	(void)pthread_cond_destroy(&c->changed);
	(void)pthread_mutex_destroy(&c->lock);
	free(c);
}

static void *run_call(void *data)
{
	struct call *c = data;
	struct error e = {0};
	int r = c->fn(c->data, &e);

	(void)pthread_mutex_lock(&c->lock);
	c->r = r;
	c->err = e;
	c->over = true;
	(void)pthread_cond_signal(&c->changed);
	(void)pthread_mutex_unlock(&c->lock);
	return NULL;
}

/* False: the time is over. */
static bool wait_call(struct call *c, uint64_t limit_ms)
{
	sigset_t was;
	bool over;

	agent_block_signals(&was);
	(void)pthread_mutex_lock(&c->lock);
	wait_over(&c->lock, &c->changed, &c->over, limit_ms);
	over = c->over;
	(void)pthread_mutex_unlock(&c->lock);
	(void)pthread_sigmask(SIG_SETMASK, &was, NULL);
	return over;
}

int deadline_call(deadline_fn *fn, void *data, const char *repo, bool *ret_hung, struct error *err)
{
	struct call *c = calloc(1, sizeof(*c));
	uint64_t limit_ms = limit();
	pthread_t thread;
	int r;

	if (!c)
		return error_nomem(err);
	c->fn = fn;
	c->data = data;
	init(&c->lock, &c->changed);
	r = pthread_create(&thread, NULL, run_call, c);
	if (r) {
		call_free(c);
		return error_errno(err, r, "cannot start a thread");
	}
	if (!wait_call(c, limit_ms)) {
		(void)pthread_detach(thread);
		*ret_hung = true;
		return error_set(err, TM_E_TIMEOUT, "repository %s has not answered for %llu s",
				 repo, (unsigned long long)limit_ms / 1000);
	}
	(void)pthread_join(thread, NULL);
	r = error_pass(err, c->r, &c->err);
	call_free(c);
	return r;
}
