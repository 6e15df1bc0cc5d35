/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client that looks at a record in its memory while a device writes it, as drivers look at fences and completions.
 *
 *	dma_watcher shared|private CONTROL
 *
 * CONTROL is a descriptor of a page that is `struct control`.  The address of two pages of memory is printed.  In each
 * round the writer sets offset and size, and ASKED; the watcher clears the record, and says ARMED; the writer has the
 * record filled with 0xff; the watcher counts what it saw, and says SEEN.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>

enum { ASKED = 1, ARMED, SEEN, SIZE = 8192, LATER = 400 };

static volatile struct control {
	uint32_t turn, offset, size;
	uint32_t late;  /* bytes that were stored again after they had been cleared */
	uint32_t order; /* bytes that were stored before a byte in front of them */
	uint32_t torn;  /* aligned pieces that were stored in parts */
} *control;

/* From the last byte to the first: behind a new byte there is no old one. Returns whether all are new. */
static int look_at_order(const volatile uint8_t *record, int size)
{
	int seen = 0, old = 0;

	for (int i = size - 1; i >= 0; i--)
		if (record[i])
			seen = 1;
		else if (old++, seen)
			return control->order++, 0;
	return !old;
}

static int torn(uint64_t value, int size)
{
	uint64_t whole = size == 8 ? UINT64_MAX : (1ull << 8 * size) - 1;

	return value && value != whole;
}

static int look_at_pieces(const volatile uint8_t *record, int size)
{
	int old = 0;

	for (int i = 0, piece; i < size; i += piece) {
		uintptr_t at = (uintptr_t)(record + i);
		for (piece = 8; piece > size - i || at & (piece - 1); piece /= 2)
			;
		uint64_t value = piece == 8 ? *(volatile uint64_t *)at : piece == 4 ? *(volatile uint32_t *)at :
			piece == 2 ? *(volatile uint16_t *)at : *(volatile uint8_t *)at;
		old += !value;
		control->torn += torn(value, piece);
	}
	return !old;
}

/* Clear byte `k` as soon as it is new. It stays clear. */
static void clear_early(volatile uint8_t *record, int size, int k)
{
	while (!record[k])
		;
	record[k] = 0;
	while (k != size - 1 && !record[size - 1])
		;
	for (int i = 0; i < LATER; i++)
		if (record[k])
			record[k] = 0, control->late++;
}

static void watch(volatile uint8_t *record, int size, unsigned round)
{
	if (round % 3 == 0)
		while (!look_at_order(record, size))
			;
	else if (round % 3 == 1)
		while (!look_at_pieces(record, size))
			;
	else
		clear_early(record, size, (int)(round / 3) % size);
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	int shared = !strcmp(argv[1], "shared");
	uint8_t *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
			       (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);

	control = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, atoi(argv[2]), 0);
	if (memory == MAP_FAILED || control == MAP_FAILED)
		return 1;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	printf("%lu\n", (unsigned long)memory);
	fflush(stdout);
	for (unsigned round = 0;; round++) {
		while (control->turn != ASKED)
			sched_yield();
		memset(memory + control->offset, 0, control->size);
		control->turn = ARMED;
		watch(memory + control->offset, (int)control->size, round);
		control->turn = SEEN;
	}
}
