/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The worker pool.  Two queues under one lock: tasks to run, and tasks that ran
 * and wait for the loop thread.  The loop is woken once for a full out-queue.
 *
 * Workers wait at a semaphore, which is raised once for each task: glibc before 2.41 may lose
 * a signal of a condition variable for ever (its bug 25847).
 */
#include "pool.h"

#include "container.h"
#include "log.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <string.h>

struct task_queue {
	struct pool_task *first, **end;
};

struct worker {
	struct pool *pool;
	unsigned number;
	pthread_t thread;
};

struct pool {
	struct loop *loop;
	struct loop_waker waker;
	pthread_mutex_t lock;
	sem_t work;             /* tasks in `todo`; when stopping, one more for each worker */
	struct task_queue todo; /* with lock */
	struct task_queue ran;  /* with lock */
	bool stopping;          /* with lock */
	unsigned outstanding;   /* loop thread only: submitted, not handed back */
	unsigned nworkers;
	struct worker workers[];
};

static void queue_init(struct task_queue *q)
{
	q->first = NULL;
	q->end = &q->first;
}

static void queue_push(struct task_queue *q, struct pool_task *t)
{
	t->next = NULL;
	*q->end = t;
	q->end = &t->next;
}

static void *worker_main(void *data)
{
	struct worker *w = data;
	struct pool *pool = w->pool;
	bool wake;

	for (;;) {
		struct pool_task *t;

		while (sem_wait(&pool->work) < 0)
			continue; /* a signal */
		(void)pthread_mutex_lock(&pool->lock);
		t = pool->stopping ? NULL : pool->todo.first;
		if (!t)
			break;
		pool->todo.first = t->next;
		if (!t->next)
			pool->todo.end = &pool->todo.first;
		(void)pthread_mutex_unlock(&pool->lock);
		t->run(t, w->number);
		(void)pthread_mutex_lock(&pool->lock);
		wake = !pool->ran.first;
		queue_push(&pool->ran, t);
		if (wake)
			loop_wake(pool->loop);
		(void)pthread_mutex_unlock(&pool->lock);
	}
	(void)pthread_mutex_unlock(&pool->lock);
	return NULL;
}

static void woken(struct loop_waker *waker)
{
	struct pool *pool = container_of(waker, struct pool, waker);
	struct pool_task *t, *next;

	(void)pthread_mutex_lock(&pool->lock);
	t = pool->ran.first;
	queue_init(&pool->ran);
	(void)pthread_mutex_unlock(&pool->lock);
	for (; t; t = next) {
		next = t->next;
		pool->outstanding--;
		t->done(t);
	}
}

static void stop_workers(struct pool *pool)
{
	(void)pthread_mutex_lock(&pool->lock);
	pool->stopping = true;
	(void)pthread_mutex_unlock(&pool->lock);
	for (unsigned i = 0; i < pool->nworkers; i++)
		(void)sem_post(&pool->work);
	for (unsigned i = 0; i < pool->nworkers; i++)
		(void)pthread_join(pool->workers[i].thread, NULL);
}

int pool_new(struct loop *loop, unsigned workers, struct pool **ret, struct error *err)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	struct pool *pool;
	int r;

	if (!workers)
		workers = cpus > 0 ? (unsigned)cpus : 1;
	pool = calloc(1, sizeof(*pool) + workers * sizeof(pool->workers[0]));
	if (!pool)
		return error_nomem(err);
	pool->loop = loop;
	pool->waker.woken = woken;
	queue_init(&pool->todo);
	queue_init(&pool->ran);
	(void)pthread_mutex_init(&pool->lock, NULL);
	(void)sem_init(&pool->work, 0, 0); /* fails for no such arguments */
	loop_add_waker(loop, &pool->waker);
	for (unsigned i = 0; i < workers; i++) {
		pool->workers[i] = (struct worker){.pool = pool, .number = i};
		r = pthread_create(&pool->workers[i].thread, NULL, worker_main, &pool->workers[i]);
		if (r) {
			r = error_errno(err, r, "cannot start worker thread %u", i);
			pool_free(pool);
			return r;
		}
		pool->nworkers++;
	}
	*ret = pool;
	return 0;
}

void pool_free(struct pool *pool)
{
	if (!pool)
		return;
	assert(!pool->outstanding);
	stop_workers(pool);
	loop_del_waker(pool->loop, &pool->waker);
	(void)sem_destroy(&pool->work);
	(void)pthread_mutex_destroy(&pool->lock);
	free(pool);
}

unsigned pool_workers(const struct pool *pool)
{
	return pool->nworkers;
}

void pool_submit(struct pool *pool, struct pool_task *task)
{
	pool->outstanding++;
	(void)pthread_mutex_lock(&pool->lock);
	queue_push(&pool->todo, task);
	(void)pthread_mutex_unlock(&pool->lock);
	(void)sem_post(&pool->work); /* fails only at INT_MAX tasks */
}
