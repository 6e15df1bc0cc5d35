/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loads and stores in shared file memory.  The kernel raises SIGBUS where such memory has no page: the file
 * became shorter, or the host has no page left for a hole in it (a full tmpfs, overcommit, the limit of a memory
 * cgroup).  A function here returns -EFAULT then, and a part may have moved.  The guard is the thread's own.
 * Any thread.  Source: mmap(2) (ERRORS: SIGBUS), sigsetjmp(3).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <wchar.h>

#include "guard.h"
#include "pump.h"

#define SMALL 64 /* bytes: others see each of them change once, in rising order */

/* initial-exec: the handler must not allocate the variable */
static __thread sigjmp_buf *volatile guard __attribute__((tls_model("initial-exec")));
static struct sigaction former;
static pthread_once_t installed = PTHREAD_ONCE_INIT;

static void on_sigbus(int number, siginfo_t *info, void *context)
{
	(void)info, (void)context;
	if (guard)
		siglongjmp(*guard, 1);
	sigaction(number, &former, NULL); /* not ours: it is raised again on return */
}

static void install(void)
{
	struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER};

	sigaction(SIGBUS, &action, &former);
}

/* Stores each byte once, in rising order, and an aligned piece of 2, 4 or 8 bytes at once.  Whoever polls the
 * memory may have it for itself as soon as the last piece is there; memmove(3) would store some bytes twice. */
static void store_once(char *to, const void *from, size_t size)
{
	char copy[SMALL]; /* the ranges may overlap */
	uint64_t piece;

	memcpy(copy, from, size);
	for (size_t done = 0, width; done < size; done += width) {
		width = 8;
		while (((uintptr_t)(to + done) & (width - 1)) || width > size - done)
			width /= 2;
		memcpy(&piece, copy + done, width);
		store_register(to + done, width, piece);
	}
}

/* memmove(3); -EFAULT where there is no page. */
__attribute__((noinline)) int guarded_move(void *to, const void *from, size_t size)
{
	sigjmp_buf here;

	pthread_once(&installed, install);
	if (sigsetjmp(here, 0)) {
		guard = NULL;
		return -EFAULT;
	}
	guard = &here;
	if (size <= SMALL)
		store_once(to, from, size);
	else
		memmove(to, from, size);
	guard = NULL;
	return 0;
}

/* For Python: between addresses of this process. */
int shim_guarded_move(uint64_t to, uint64_t from, uint64_t size)
{
	return guarded_move((void *)(uintptr_t)to, (const void *)(uintptr_t)from, size);
}

/* For Python: stores the 32-bit `pattern` `count` times; -EFAULT where there is no page. */
__attribute__((noinline)) int shim_guarded_fill(uint64_t to, uint32_t pattern, uint64_t count)
{
	sigjmp_buf here;

	pthread_once(&installed, install);
	if (sigsetjmp(here, 0)) {
		guard = NULL;
		return -EFAULT;
	}
	guard = &here;
	wmemset((wchar_t *)(uintptr_t)to, (wchar_t)pattern, count);
	guard = NULL;
	return 0;
}
