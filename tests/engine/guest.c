/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A guest without an operating system: boots in a fraction of a second (multiboot), and writes to
 * virtio-blk disks (legacy interface) what it is told over the first serial port.
 *
 * A command is 16 bytes, an answer 8; both little endian, see struct command and struct answer.
 * Up to REQUESTS commands may be open, they end in any order; but chained writes begin one after
 * the other has ended, without a word from the host between.  Every sector that is written holds
 * its own tag 16 times: magic, disk, lba, generation, crc32 of these, and three words made of the
 * generation.  "h" is said once at the start, with the number of disks as its generation.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DISKS       8
#define REQUESTS    32
#define SECTOR      512u
#define SECTORS_MAX 256u /* of one write */
#define QUEUE_MAX   256
#define PAGE        4096u
#define TAG_MAGIC   0x4b4d4454u /* TDMK */

struct command {
	/* w(rite), c(hained write: after the one before has ended), z(ero, may unmap), Z(ero),
	 * d(iscard), f(lush), r(ead of one sector: an answer "R" before its own has the generation
	 * found there, see recognize()); others are refused */
	uint8_t op;
	uint8_t slot; /* of the disk on the PCI bus: 0, 1, … */
	uint16_t count;
	uint32_t disk; /* what the tags say */
	uint32_t lba;
	uint32_t generation;
};

struct answer {
	uint8_t status; /* of virtio-blk: 0 is fine; 255: no such disk or command */
	uint8_t op;
	uint16_t zero;
	uint32_t generation;
};

__asm__(".section .text.unlikely.first\n"
	".long 0x1badb002, 0, -0x1badb002\n"
	".globl _start\n"
	"_start: mov $stack_end, %esp\n"
	"call start\n"
	"1: hlt\n"
	"jmp 1b\n"
	".section .bss\n"
	".align 16\n"
	".skip 16384\n"
	"stack_end:\n"
	".text\n");

/* ---- the machine ---- */

static void out8(uint16_t port, uint8_t v)
{
	__asm__ volatile("outb %0, %1" ::"a"(v), "Nd"(port));
}
static void out16(uint16_t port, uint16_t v)
{
	__asm__ volatile("outw %0, %1" ::"a"(v), "Nd"(port));
}
static void out32(uint16_t port, uint32_t v)
{
	__asm__ volatile("outl %0, %1" ::"a"(v), "Nd"(port));
}
static uint8_t in8(uint16_t port)
{
	uint8_t v;

	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}
static uint16_t in16(uint16_t port)
{
	uint16_t v;

	__asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}
static uint32_t in32(uint16_t port)
{
	uint32_t v;

	__asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}

void *memcpy(void *to, const void *from, size_t n)
{
	void *ret = to;

	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n)::"memory");
	return ret;
}

void *memset(void *to, int value, size_t n)
{
	void *ret = to;

	__asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(value) : "memory");
	return ret;
}

/* ---- virtio-blk, legacy ---- */

enum {
	REG_FEATURES = 0x00,
	REG_WANTED = 0x04,
	REG_QUEUE_PFN = 0x08,
	REG_QUEUE_SIZE = 0x0c,
	REG_QUEUE_SELECT = 0x0e,
	REG_NOTIFY = 0x10,
	REG_STATUS = 0x12,
	REG_ISR = 0x13,
};
#define FEATURE_FLUSH   (1u << 9)
#define FEATURE_DISCARD (1u << 13)
#define FEATURE_ZEROES  (1u << 14)

enum { TYPE_IN = 0, TYPE_OUT = 1, TYPE_FLUSH = 4, TYPE_DISCARD = 11, TYPE_ZEROES = 13 };
enum { DESC_NEXT = 1, DESC_WRITE = 2 };

struct desc {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct queue {
	struct desc desc[QUEUE_MAX];
	uint16_t avail_flags;
	volatile uint16_t avail_index;
	uint16_t avail[QUEUE_MAX];
	uint16_t avail_event;
	_Alignas(PAGE) uint16_t used_flags;
	volatile uint16_t used_index;
	volatile struct {
		uint32_t id, len;
	} used[QUEUE_MAX];
} __attribute__((aligned(4096)));

struct request {
	struct {
		uint32_t type, priority;
		uint64_t sector;
	} head;
	struct {
		uint64_t sector;
		uint32_t count, flags;
	} range;
	volatile uint8_t status;
	bool busy;
	struct command command;
};

static struct queue queues[DISKS];
static uint16_t ports[DISKS], sizes[DISKS], seen[DISKS];
static unsigned ndisks;
static struct request requests[REQUESTS];
static struct command chain[REQUESTS];
static unsigned chain_heard, chain_begun;
static bool chain_runs;
static uint32_t data[REQUESTS][SECTORS_MAX * SECTOR / 4];

static uint32_t pci_read(unsigned device, unsigned reg)
{
	out32(0xcf8, 0x80000000u | device << 11 | reg);
	return in32(0xcfc);
}

static void find_disks(void)
{
	for (unsigned dev = 0; dev < 32 && ndisks < DISKS; dev++) {
		uint16_t port;

		if (pci_read(dev, 0) != 0x10011af4)
			continue;
		out32(0xcf8, 0x80000000u | dev << 11 | 4);
		out16(0xcfc, 0x0005); /* I/O ports, bus master */
		port = (uint16_t)(pci_read(dev, 0x10) & ~3u);
		ports[ndisks] = port;
		out8(port + REG_STATUS, 0);
		out8(port + REG_STATUS, 3);
		out32(port + REG_WANTED,
		      in32(port + REG_FEATURES) &
			      (FEATURE_FLUSH | FEATURE_DISCARD | FEATURE_ZEROES));
		out16(port + REG_QUEUE_SELECT, 0);
		sizes[ndisks] = in16(port + REG_QUEUE_SIZE);
		if (sizes[ndisks] != QUEUE_MAX) /* struct queue is for this one */
			continue;
		out32(port + REG_QUEUE_PFN, (uint32_t)&queues[ndisks] / PAGE);
		out8(port + REG_STATUS, 7);
		ndisks++;
	}
}

/* ---- tags ---- */

static uint32_t crc32(const uint32_t *words, unsigned n)
{
	uint32_t crc = 0xffffffff;

	for (unsigned i = 0; i < n; i++) {
		crc ^= words[i];
		for (unsigned bit = 0; bit < 32; bit++)
			crc = crc >> 1 ^ (0xedb88320 & -(crc & 1));
	}
	return ~crc;
}

static void fill(uint32_t *to, const struct command *c)
{
	for (uint32_t i = 0; i < c->count; i++, to += SECTOR / 4) {
		uint32_t gen = c->generation;
		uint32_t tag[8] = {TAG_MAGIC, c->disk, c->lba + i, gen};

		tag[4] = crc32(tag, 4);
		tag[5] = ~gen;
		tag[6] = gen * 0x9e3779b1u;
		tag[7] = gen * 0x85ebca6bu + c->lba + i;
		for (unsigned k = 0; k < SECTOR / sizeof(tag); k++)
			memcpy(to + k * 8, tag, sizeof(tag));
	}
}

/* The generation of a sector's tag; 0xfffffffe: zeroes, 0xffffffff: neither. */
static uint32_t recognize(const uint32_t *sector, const struct command *c)
{
	static uint32_t expected[SECTOR / 4];
	struct command tagged = *c;
	uint32_t any = 0, wrong = 0;

	tagged.count = 1;
	tagged.generation = sector[3];
	fill(expected, &tagged);
	for (unsigned i = 0; i < SECTOR / 4; i++) {
		any |= sector[i];
		wrong |= sector[i] ^ expected[i];
	}
	return !any ? 0xfffffffe : wrong ? 0xffffffff : sector[3];
}

/* ---- requests ---- */

static void say(uint8_t status, uint8_t op, uint32_t generation)
{
	struct answer a = {status, op, 0, generation};
	const uint8_t *p = (const uint8_t *)&a;

	for (unsigned i = 0; i < sizeof(a); i++) {
		while (!(in8(0x3fd) & 0x20))
			;
		out8(0x3f8, p[i]);
	}
}

static void describe(struct desc *d, uint16_t at, const volatile void *p, uint32_t len,
		     uint16_t flags)
{
	d[at] = (struct desc){(uint32_t)p, len, flags, (uint16_t)(at + 1)};
}

static uint32_t type_of(uint8_t op)
{
	switch (op) {
	case 'w':
	case 'c':
		return TYPE_OUT;
	case 'd':
		return TYPE_DISCARD;
	case 'f':
		return TYPE_FLUSH;
	case 'r':
		return TYPE_IN;
	default:
		return TYPE_ZEROES;
	}
}

static void submit(unsigned n)
{
	struct request *r = &requests[n];
	const struct command *c = &r->command;
	struct queue *q = &queues[c->slot];
	uint16_t at = (uint16_t)(n * 3), next = at;
	bool reads, writes;

	r->head.type = type_of(c->op);
	reads = r->head.type == TYPE_IN;
	writes = r->head.type == TYPE_OUT;
	r->head.priority = 0;
	r->head.sector = reads || writes ? c->lba : 0;
	r->status = 0xff;
	describe(q->desc, next++, &r->head, sizeof(r->head), DESC_NEXT);
	if (writes) {
		fill(data[n], c);
		describe(q->desc, next++, data[n], c->count * SECTOR, DESC_NEXT);
	} else if (reads) {
		describe(q->desc, next++, data[n], SECTOR, DESC_NEXT | DESC_WRITE);
	} else if (c->op != 'f') {
		r->range.sector = c->lba;
		r->range.count = c->count;
		r->range.flags = c->op == 'z';
		describe(q->desc, next++, &r->range, sizeof(r->range), DESC_NEXT);
	}
	describe(q->desc, next, &r->status, 1, DESC_WRITE);
	q->avail[q->avail_index % QUEUE_MAX] = at;
	__asm__ volatile("" ::: "memory");
	q->avail_index++;
	__asm__ volatile("" ::: "memory");
	out16(ports[c->slot] + REG_NOTIFY, 0);
}

static bool reap(void)
{
	bool any = false;

	for (unsigned slot = 0; slot < ndisks; slot++) {
		struct queue *q = &queues[slot];

		for (; seen[slot] != q->used_index; seen[slot]++, any = true) {
			uint32_t n = q->used[seen[slot] % QUEUE_MAX].id / 3;
			struct request *r = &requests[n];

			if (r->command.op == 'r')
				say(r->status, 'R', recognize(data[n], &r->command));
			say(r->status, r->command.op, r->command.generation);
			r->busy = false;
			chain_runs = chain_runs && r->command.op != 'c';
		}
	}
	return any;
}

static void begin(const struct command *c)
{
	unsigned n = 0;

	while (requests[n].busy) { /* the host keeps to REQUESTS, so this ends at once */
		if (++n == REQUESTS) {
			n = 0;
			(void)reap();
		}
	}
	requests[n].busy = true;
	requests[n].command = *c;
	submit(n);
}

static bool go_on_with_chain(void)
{
	if (chain_runs || chain_begun == chain_heard)
		return false;
	chain_runs = true;
	begin(&chain[chain_begun++ % REQUESTS]);
	return true;
}

static void take(const struct command *c)
{
	bool known = c->op == 'w' || c->op == 'c' || c->op == 'z' || c->op == 'Z' || c->op == 'd' ||
		     c->op == 'f' || c->op == 'r';

	if (!known || c->slot >= ndisks || c->count > SECTORS_MAX) {
		say(0xff, c->op, c->generation);
		return;
	}
	if (c->op == 'c')
		chain[chain_heard++ % REQUESTS] = *c;
	else
		begin(c);
}

static bool listen(void)
{
	static struct command c;
	static unsigned have;

	if (!(in8(0x3fd) & 1))
		return false;
	((uint8_t *)&c)[have++] = in8(0x3f8);
	if (have == sizeof(c)) {
		have = 0;
		take(&c);
	}
	return true;
}

/* ---- interrupts: only to end a hlt ---- */

struct gate {
	uint16_t low, segment, flags, high;
} __attribute__((packed));

static struct gate gates[48];

struct frame;
__attribute__((interrupt)) static void wake(struct frame *f)
{
	(void)f;
	for (unsigned i = 0; i < ndisks; i++)
		(void)in8(ports[i] + REG_ISR);
	out8(0xa0, 0x20);
	out8(0x20, 0x20);
}

static void set_up_interrupts(void)
{
	static const uint8_t init[][2] = {{0x20, 0x11}, {0xa0, 0x11}, {0x21, 0x20}, {0xa1, 0x28},
					  {0x21, 4},    {0xa1, 2},    {0x21, 1},    {0xa1, 1},
					  {0x21, 0xcb}, {0xa1, 0xf1}}; /* 2, 4, 5; 9, 10, 11 */
	struct {
		uint16_t limit;
		uint32_t base;
	} __attribute__((packed)) idtr = {sizeof(gates) - 1, (uint32_t)gates};
	uint16_t cs;

	__asm__ volatile("mov %%cs, %0" : "=r"(cs));
	for (unsigned i = 0x20; i < 48; i++)
		gates[i] = (struct gate){(uint16_t)(uint32_t)wake, cs, 0x8e00,
					 (uint16_t)((uint32_t)wake >> 16)};
	for (unsigned i = 0; i < sizeof(init) / sizeof(init[0]); i++)
		out8(init[i][0], init[i][1]);
	__asm__ volatile("lidt %0" ::"m"(idtr));
	out8(0x3f9, 1); /* an interrupt for each byte received */
	out8(0x3fa, 1); /* the FIFO */
	out8(0x3fc, 0x0b);
}

/* Multiboot gives flat segments but no descriptor table that lasts; an interrupt needs one. */
static void set_up_segments(void)
{
	static const uint64_t gdt[] = {0, 0x00cf9a000000ffff, 0x00cf92000000ffff};
	struct {
		uint16_t limit;
		uint32_t base;
	} __attribute__((packed)) gdtr = {sizeof(gdt) - 1, (uint32_t)gdt};

	__asm__ volatile("lgdt %0\n"
			 "ljmp $8, $1f\n"
			 "1: mov %1, %%ds\n"
			 "mov %1, %%es\n"
			 "mov %1, %%ss\n" ::"m"(gdtr),
			 "r"(16)
			 : "memory");
}

__attribute__((used)) void start(void)
{
	set_up_segments();
	find_disks();
	set_up_interrupts();
	say(0, 'h', ndisks);
	for (;;) {
		bool heard = listen(), reaped = reap(), went = go_on_with_chain();

		if (heard || reaped || went)
			continue;
		__asm__ volatile("cli");
		if (!(in8(0x3fd) & 1)) {
			bool idle = true;

			for (unsigned i = 0; i < ndisks; i++)
				idle = idle && seen[i] == queues[i].used_index;
			if (idle)
				__asm__ volatile("sti; hlt; cli");
		}
		__asm__ volatile("sti");
	}
}
