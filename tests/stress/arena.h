/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory and descriptors of every kind, as arguments of fuzzed calls.
 *
 * The arena lies alone at a fixed address: whatever the server or a device stores there hurts nothing of the program.
 */
#pragma once
#include "stress.h"
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

/* 17 TiB up: code and heap lie far below, the stack and what mmap(2) chooses far above. */
#define ARENA ((unsigned char *)0x110000000000)
enum { ARENA_PAGES = 64, READ_ONLY_PAGE = 40, NO_ACCESS_PAGE = 44, HOLE_PAGE = 48, BEYOND_PAGE = 52, LENT_PAGE = 56 };

static unsigned char *alias; /* the read-only pages, writable */

/* Pages 0 to 39 can be written; the other kinds have four pages each; LENT_PAGE is for a mapping of a device. */
static inline void make_arena(void)
{
	int fd = memfd_create("arena", MFD_CLOEXEC), small = memfd_create("small", MFD_CLOEXEC);

	CHECK(fd >= 0 && small >= 0 && !ftruncate(fd, 4 * PAGE) && !ftruncate(small, PAGE));
	CHECK(mmap(ARENA, ARENA_PAGES * PAGE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == ARENA);
	CHECK(mmap(ARENA + 20 * PAGE, 20 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) !=
	      MAP_FAILED);
	CHECK(mmap(ARENA + READ_ONLY_PAGE * PAGE, 4 * PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED);
	alias = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	CHECK(alias != MAP_FAILED);
	CHECK(!mprotect(ARENA + NO_ACCESS_PAGE * PAGE, 4 * PAGE, PROT_NONE));
	CHECK(!munmap(ARENA + HOLE_PAGE * PAGE, 4 * PAGE));
	/* the file has one page: the others raise SIGBUS */
	CHECK(mmap(ARENA + BEYOND_PAGE * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, small, 0) !=
	      MAP_FAILED);
	close(fd);
	close(small);
}

/* Copy as much of `content` to `at` as is memory there, whatever its protection. */
static inline void plant(unsigned char *at, const void *content, size_t size)
{
	for (size_t i = 0; i < size; i++) {
		size_t offset = (size_t)(at - ARENA) + i, page = offset / PAGE;

		if (page < READ_ONLY_PAGE || page == BEYOND_PAGE)
			ARENA[offset] = ((const unsigned char *)content)[i];
		else if (page < NO_ACCESS_PAGE)
			alias[offset - READ_ONLY_PAGE * PAGE] = ((const unsigned char *)content)[i];
	}
}

/* An address for `size` bytes, most of the time a good one, with `content` (or NULL) behind it. */
static inline void *pointer(const void *content, size_t size)
{
	static const unsigned edges[] = {READ_ONLY_PAGE, NO_ACCESS_PAGE, HOLE_PAGE, BEYOND_PAGE, BEYOND_PAGE + 1, LENT_PAGE,
		ARENA_PAGES};
	unsigned char *at = ARENA + below(30) * PAGE + below(PAGE);

	if (chance(80))
		;
	else if (chance(50)) /* across or beside an edge */
		at = ARENA + edges[below(LENGTH(edges))] * PAGE - below(size + 2);
	else if (chance(80)) /* inside one of the other kinds */
		at = ARENA + (READ_ONLY_PAGE + below(ARENA_PAGES - READ_ONLY_PAGE)) * PAGE + below(PAGE);
	else
		return (void *)edge64();
	if (content)
		plant(at, content, size);
	return at;
}

/* A vaddr to map for DMA. No range that begins in the arena is so long that it reaches other memory of this program. */
static inline uint64_t mappable(void)
{
	uint64_t page = below(ARENA_PAGES + 2);

	return (uintptr_t)ARENA + page * PAGE + (chance(5) ? edge64() % PAGE : 0);
}

/* Memory of a size to map: pages, most of the time few. */
static inline uint64_t map_size(void)
{
	uint64_t size = chance(80) ? (1 + below(16)) * PAGE : edge64();

	return size >> 44 && !(size >> 50) ? PAGE : size;
}

/* ---- descriptors that are no files of the lab ---- */

static int strangers[16];

static inline void make_strangers(void)
{
	int pipes[2], sockets[2], full = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	uint64_t most = UINT64_MAX - 1;

	CHECK(!pipe2(pipes, O_CLOEXEC | O_NONBLOCK) && !socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sockets));
	CHECK(write(full, &most, sizeof(most)) == sizeof(most));
	int made[LENGTH(strangers)] = {-1, 12345, INT32_MIN, full, eventfd(0, EFD_CLOEXEC), eventfd(3, EFD_SEMAPHORE),
		eventfd(0, EFD_NONBLOCK), pipes[0], pipes[1], sockets[0], memfd_create("stranger", MFD_CLOEXEC),
		open("/dev/null", O_RDWR), open("/", O_PATH), open("/proc/self/status", O_RDONLY), epoll_create1(0),
		timerfd_create(CLOCK_MONOTONIC, 0)};
	memcpy(strangers, made, sizeof(made));
}

/* eventfds are what most calls expect */
static inline int stranger(void)
{
	return chance(60) ? strangers[3 + below(4)] : strangers[below(LENGTH(strangers))];
}
