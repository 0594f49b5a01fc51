/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The session and janitor protocols (docs/format.md, sections 10 and 11.3) as a model
 * that is searched exhaustively: every request is one step, any process may stop for
 * ever between two.  In every state that can be reached
 *
 *	I12  all data of every valid point is there
 *	I11  a point that was reported as committed and never got a tombstone is valid
 *
 * Negative controls leave out one rule each; the search must find what goes wrong then.
 * MODEL=large also searches two writers with two janitors.
 */
#include "../unit/test.h"

#include <stdbool.h>
#include <stdlib.h>

/* Points 0 and 1 are old, 2 + w is that of writer w.  Blocks: a, b, c, and one of each writer. */
#define OLD      2
#define MAX_W    2
#define MAX_J    2
#define MAX_P    (OLD + MAX_W)
#define BIT(i)   ((uint8_t)(1u << (i)))
#define OLD_MASK 3u

enum rule { /* left out by a negative control */
	    FULL,
	    NO_MARKER,
	    NO_RECHECK,
	    NO_CHECK_AFTER_COMMIT,
	    LOOK_BEFORE_FENCE,
	    DEAD_LISTED_LAST,
	    PINS_ARE_NO_ROOTS,
	    VANISHED_ROOT_IGNORED,
	    VERDICT_REMOVED,
	    TOMBSTONE_REMOVED_FIRST,
	    OPEN_SESSIONS_SWEPT,
	    NRULES,
};

static const char *const rule_names[NRULES] = {
	"the protocol",
	"without marker and pin",
	"without looking at the parent again",
	"without looking after the commit",
	"manifest looked up before the fence",
	"tombstones listed after markers",
	"pins are no roots",
	"a root that vanished is ignored",
	"verdicts are removed",
	"tombstone removed before the manifest",
	"sessions swept while they are open",
};

enum writer_pc {
	W_START,
	W_MARK,
	W_LOOK_T,
	W_LOOK_F,
	W_LOOK_V,
	W_LOOK_M,
	W_DATA,
	W_COMMIT,
	W_AFTER_F,
	W_AFTER_V,
	W_DONE,
	W_STOP,
};

enum janitor_pc {
	J_BURY,
	J_FENCE,
	J_LOOK,
	J_VERDICT,
	J_FORGET,
	J_LIST_T,
	J_LIST_V,
	J_LIST_K,
	J_LIST_P,
	J_MARK,
	J_SWEEP,
	J_MANIFEST,
	J_CLOSE_K,
	J_CLOSE_F,
	J_CLOSE_T,
	J_END,
};

struct writer {
	uint8_t pc, parent;
};

struct janitor {
	uint8_t pc, arg; /* the writer being buried, the root being marked */
	uint8_t tombs, verdicts, markers, points, live;
	uint8_t again; /* restarts */
};

/* Sets of points, but `blocks`. */
struct state {
	uint8_t m, t, f, v, k, blocks;
	uint8_t ever; /* had a tombstone once */
	struct writer w[MAX_W];
	struct janitor j[MAX_J];
};

struct node {
	struct state s;
	uint32_t from;
	uint8_t actor, used;
};

static struct {
	enum rule rule;
	unsigned nw, nj;
	struct node *v; /* in order of discovery */
	uint32_t n, cap;
	uint32_t *table;
	uint32_t slots;
	uint32_t at; /* being expanded */
	uint8_t actor;
} x;

/* ---- the world ---- */

static uint8_t own_blocks(unsigned p)
{
	return (uint8_t)(p == 0 ? 1 | 2 : p == 1 ? 4 : BIT(3 + p - OLD));
}

/* A new point has the lowest block of its parent, and its own. */
static uint8_t content(const struct state *s, unsigned p)
{
	uint8_t c;

	if (p == 0)
		return 1 | 2;
	if (p == 1)
		return 2 | 4;
	c = content(s, s->w[p - OLD].parent);
	return (uint8_t)(c & -c) | own_blocks(p);
}

static bool is_valid(const struct state *s, unsigned p)
{
	return (s->m & BIT(p)) && !((s->t | s->v) & BIT(p));
}

static const char *violation(const struct state *s)
{
	for (unsigned p = 0; p < OLD + x.nw; p++) {
		if (is_valid(s, p) && (content(s, p) & ~s->blocks))
			return "data of a valid point is gone";
		if (p >= OLD && s->w[p - OLD].pc == W_DONE && !(s->ever & BIT(p)) &&
		    !is_valid(s, p))
			return "a point that was reported is not valid";
	}
	return NULL;
}

/* ---- search ---- */

static uint64_t hash_state(const struct state *s)
{
	const uint8_t *p = (const uint8_t *)s;
	uint64_t h = 1469598103934665603u;

	for (size_t i = 0; i < sizeof(*s); i++)
		h = (h ^ p[i]) * 1099511628211u;
	return h ^ h >> 32;
}

static void grow(void)
{
	x.cap *= 2;
	x.slots *= 2;
	x.v = realloc(x.v, x.cap * sizeof(*x.v));
	free(x.table);
	x.table = calloc(x.slots, sizeof(*x.table));
	assert_non_null(x.v);
	assert_non_null(x.table);
	for (uint32_t i = 0; i < x.n; i++) {
		uint32_t at = (uint32_t)hash_state(&x.v[i].s) & (x.slots - 1);

		while (x.table[at])
			at = (at + 1) & (x.slots - 1);
		x.table[at] = i + 1;
	}
}

/* A state that the present one leads to. */
static void reach(const struct state *s)
{
	uint32_t at = (uint32_t)hash_state(s) & (x.slots - 1);

	for (; x.table[at]; at = (at + 1) & (x.slots - 1))
		if (memcmp(&x.v[x.table[at] - 1].s, s, sizeof(*s)) == 0)
			return;
	x.v[x.n] = (struct node){.s = *s, .from = x.at, .actor = x.actor};
	x.table[at] = ++x.n;
	if (x.n == x.cap)
		grow();
}

/* ---- writers ---- */

static void writer_goes(struct state s, unsigned i, uint8_t pc)
{
	s.w[i].pc = pc;
	reach(&s);
}

/* Looks for a flag of the parent. */
static void writer_looks(const struct state *s, unsigned i, uint8_t flags, uint8_t next)
{
	bool bad = flags & BIT(s->w[i].parent);

	writer_goes(*s, i, bad && x.rule != NO_RECHECK ? W_STOP : next);
}

static void writer_step(const struct state *s, unsigned i)
{
	struct state n = *s;
	uint8_t me = BIT(OLD + i);

	switch ((enum writer_pc)s->w[i].pc) {
	case W_START:
		for (unsigned p = 0; p < OLD + x.nw; p++) {
			n.w[i].parent = (uint8_t)p;
			if (p != OLD + i && is_valid(s, p))
				writer_goes(n, i, W_MARK);
		}
		break;
	case W_MARK:
		if (x.rule != NO_MARKER)
			n.k |= me;
		writer_goes(n, i, W_LOOK_T);
		break;
	case W_LOOK_T:
		writer_looks(s, i, s->t, W_LOOK_F);
		break;
	case W_LOOK_F:
		writer_looks(s, i, s->f, W_LOOK_V);
		break;
	case W_LOOK_V:
		writer_looks(s, i, s->v, W_LOOK_M);
		break;
	case W_LOOK_M:
		writer_looks(s, i, (uint8_t)~s->m, W_DATA);
		break;
	case W_DATA:
		n.blocks |= own_blocks(OLD + i);
		writer_goes(n, i, W_COMMIT);
		break;
	case W_COMMIT:
		n.m |= me;
		writer_goes(n, i, x.rule == NO_CHECK_AFTER_COMMIT ? W_DONE : W_AFTER_F);
		break;
	case W_AFTER_F:
		writer_goes(n, i, s->f & me ? W_STOP : W_AFTER_V);
		break;
	case W_AFTER_V:
		writer_goes(n, i, s->v & me ? W_STOP : W_DONE);
		break;
	case W_DONE:
	case W_STOP:
		break;
	}
}

/* ---- janitors ---- */

static void janitor_goes(struct state s, unsigned i, uint8_t pc)
{
	s.j[i].pc = pc;
	s.j[i].arg = 0;
	if (pc == J_END) /* what it knew no longer matters */
		s.j[i] = (struct janitor){.pc = J_END};
	reach(&s);
}

static void janitor_buries(const struct state *s, unsigned i)
{
	struct state n = *s;
	struct janitor *j = &n.j[i];
	uint8_t him = BIT(j->arg);

	switch (s->j[i].pc) {
	case J_BURY:
		janitor_goes(*s, i, J_FORGET);
		for (unsigned p = OLD; p < OLD + x.nw; p++) {
			if (!(s->k & BIT(p)) || ((s->m | s->v | s->t) & BIT(p)))
				continue;
			j->arg = (uint8_t)p;
			j->pc = x.rule == LOOK_BEFORE_FENCE ? J_LOOK : J_FENCE;
			reach(&n);
		}
		return;
	case J_FENCE:
		n.f |= him;
		j->pc = x.rule == LOOK_BEFORE_FENCE ? J_VERDICT : J_LOOK;
		break;
	case J_LOOK:
		if (s->m & him) {
			janitor_goes(n, i, J_FORGET);
			return;
		}
		j->pc = x.rule == LOOK_BEFORE_FENCE ? J_FENCE : J_VERDICT;
		break;
	default:
		n.v |= him;
		janitor_goes(n, i, J_FORGET);
		return;
	}
	reach(&n);
}

static void janitor_lists(const struct state *s, unsigned i)
{
	struct state n = *s;
	struct janitor *j = &n.j[i];
	bool late = x.rule == DEAD_LISTED_LAST;

	switch (s->j[i].pc) {
	case J_LIST_T:
		j->tombs = s->t;
		janitor_goes(n, i, J_LIST_V);
		break;
	case J_LIST_V:
		j->verdicts = s->v;
		janitor_goes(n, i, late ? J_LIST_P : J_LIST_K);
		break;
	case J_LIST_K:
		j->markers = s->k;
		janitor_goes(n, i, late ? J_LIST_T : J_LIST_P);
		break;
	default:
		j->points = s->m;
		j->live = 0;
		janitor_goes(n, i, J_MARK);
	}
}

static uint8_t dead_set(const struct janitor *j)
{
	return j->tombs | j->verdicts;
}

static uint8_t pinned_set(const struct state *s, const struct janitor *j)
{
	uint8_t open = (uint8_t)(j->markers & ~j->points & ~dead_set(j)), set = 0;

	for (unsigned p = OLD; p < OLD + x.nw; p++)
		if (open & BIT(p))
			set |= BIT(s->w[p - OLD].parent);
	return x.rule == PINS_ARE_NO_ROOTS ? 0 : set;
}

/* One root a step. */
static void janitor_marks(const struct state *s, unsigned i)
{
	struct state n = *s;
	struct janitor *j = &n.j[i];
	unsigned p = j->arg;
	uint8_t roots = (uint8_t)((j->points & ~dead_set(j)) | (j->points & pinned_set(s, j)));

	if (p == OLD + x.nw) {
		janitor_goes(n, i, J_SWEEP);
		return;
	}
	if ((roots & BIT(p)) && (!(s->m & BIT(p)) || (content(s, p) & ~s->blocks))) {
		if (x.rule != VANISHED_ROOT_IGNORED) {
			/* The model ends restarts after one: stopping is always safe. */
			if (j->again)
				janitor_goes(n, i, J_END);
			j->again = 1;
			janitor_goes(n, i, x.rule == DEAD_LISTED_LAST ? J_LIST_K : J_LIST_T);
			return;
		}
	} else if (roots & BIT(p)) {
		j->live |= content(s, p);
	}
	j->arg++;
	reach(&n);
}

static void janitor_sweeps(const struct state *s, unsigned i)
{
	const struct janitor *j = &s->j[i];
	uint8_t over = j->points | dead_set(j) | OLD_MASK, mine = 0, go;
	struct state n = *s;

	if (x.rule == OPEN_SESSIONS_SWEPT)
		over = 0xff;
	for (unsigned p = 0; p < OLD + x.nw; p++)
		if (over & BIT(p))
			mine |= own_blocks(p);
	go = (uint8_t)(s->blocks & mine & ~j->live);
	if (go) {
		n.blocks &= (uint8_t) ~(go & -go);
		reach(&n);
	} else {
		janitor_goes(n, i, x.rule == TOMBSTONE_REMOVED_FIRST ? J_CLOSE_K : J_MANIFEST);
	}
}

/* Sessions in DEAD, not pinned, without data. */
static uint8_t closing(const struct state *s, const struct janitor *j)
{
	uint8_t set = (uint8_t)(dead_set(j) & ~pinned_set(s, j));

	for (unsigned p = 0; p < OLD + x.nw; p++)
		if (s->blocks & own_blocks(p))
			set &= (uint8_t)~BIT(p);
	return set;
}

static void janitor_closes(const struct state *s, unsigned i)
{
	const struct janitor *j = &s->j[i];
	bool swapped = x.rule == TOMBSTONE_REMOVED_FIRST;
	struct state n = *s;
	uint8_t set = closing(s, j), go;

	switch (s->j[i].pc) {
	case J_MANIFEST:
		go = (uint8_t)(s->m & dead_set(j) & ~pinned_set(s, j));
		n.m &= (uint8_t) ~(go & -go);
		if (go)
			reach(&n);
		else
			janitor_goes(n, i, swapped ? J_END : J_CLOSE_K);
		break;
	case J_CLOSE_K:
		n.k &= (uint8_t)~set;
		janitor_goes(n, i, J_CLOSE_F);
		break;
	case J_CLOSE_F:
		n.f &= (uint8_t)~set;
		janitor_goes(n, i, J_CLOSE_T);
		break;
	default:
		n.t &= (uint8_t)~set;
		if (x.rule == VERDICT_REMOVED)
			n.v &= (uint8_t)~set;
		janitor_goes(n, i, swapped ? J_MANIFEST : J_END);
	}
}

static void janitor_step(const struct state *s, unsigned i)
{
	struct state n = *s;

	switch ((enum janitor_pc)s->j[i].pc) {
	case J_BURY:
	case J_FENCE:
	case J_LOOK:
	case J_VERDICT:
		janitor_buries(s, i);
		break;
	case J_FORGET:
		for (unsigned p = 0; p < OLD + x.nw; p++) {
			n = *s;
			n.t |= BIT(p);
			n.ever |= BIT(p);
			if (p != 1 && is_valid(s, p))
				janitor_goes(n, i,
					     x.rule == DEAD_LISTED_LAST ? J_LIST_K : J_LIST_T);
		}
		janitor_goes(*s, i, x.rule == DEAD_LISTED_LAST ? J_LIST_K : J_LIST_T);
		break;
	case J_LIST_T:
	case J_LIST_V:
	case J_LIST_K:
	case J_LIST_P:
		janitor_lists(s, i);
		break;
	case J_MARK:
		janitor_marks(s, i);
		break;
	case J_SWEEP:
		janitor_sweeps(s, i);
		break;
	case J_MANIFEST:
	case J_CLOSE_K:
	case J_CLOSE_F:
	case J_CLOSE_T:
		janitor_closes(s, i);
		break;
	case J_END:
		break;
	}
}

/* ---- runs ---- */

static void print_trace(uint32_t at)
{
	char line[512] = "";

	while (at) {
		char old[sizeof(line)];

		(void)snprintf(old, sizeof(old), "%s", line);
		(void)snprintf(line, sizeof(line), " %c%d%.480s", x.v[at].actor < MAX_W ? 'W' : 'J',
			       x.v[at].actor % MAX_W, old);
		at = x.v[at].from;
	}
	printf("     %s\n", line);
}

/* What is violated, or NULL after all states were seen. */
static const char *search(enum rule rule, unsigned nw, unsigned nj)
{
	struct state first = {.m = OLD_MASK, .blocks = 7};
	const char *found = NULL;

	x.rule = rule;
	x.nw = nw;
	x.nj = nj;
	x.cap = 1 << 16;
	x.slots = 1 << 18;
	x.v = malloc(x.cap * sizeof(*x.v));
	x.table = calloc(x.slots, sizeof(*x.table));
	assert_non_null(x.v);
	assert_non_null(x.table);
	x.n = x.at = 0;
	for (unsigned i = 0; i < MAX_J; i++)
		first.j[i].pc = i < nj ? J_BURY : J_END;
	reach(&first);
	for (; x.at < x.n && !found; x.at++) {
		struct state s = x.v[x.at].s;

		found = violation(&s);
		if (found)
			break;
		for (unsigned i = 0; i < nw; i++) {
			x.actor = (uint8_t)i;
			writer_step(&s, i);
		}
		for (unsigned i = 0; i < nj; i++) {
			x.actor = (uint8_t)(MAX_W + i);
			janitor_step(&s, i);
		}
	}
	printf("%-40s %u writers, %u janitors: %8u states, %s\n", rule_names[rule], nw, nj, x.n,
	       found ? found : "safe");
	if (found)
		print_trace(x.at);
	free(x.v);
	free(x.table);
	return found;
}

static void the_protocol_is_safe(void **state)
{
	const char *size = getenv("MODEL");

	(void)state;
	assert_null(search(FULL, 1, 1));
	assert_null(search(FULL, 2, 1));
	assert_null(search(FULL, 1, 2));
	if (size && strcmp(size, "large") == 0)
		assert_null(search(FULL, 2, 2));
}

static void every_rule_is_needed(void **state)
{
	(void)state;
	for (unsigned r = FULL + 1; r < NRULES; r++)
		if (!search((enum rule)r, 1, 1) && !search((enum rule)r, 1, 2) &&
		    !search((enum rule)r, 2, 1))
			fail_msg("nothing goes wrong %s", rule_names[r]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_protocol_is_safe),
		cmocka_unit_test(every_rule_is_needed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
