/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals to eventfds of clients, from any thread, without a wait.  write(2) to an eventfd whose counter is
 * full waits, and only the client can say O_NONBLOCK.  The kernel itself never waits: the end of an
 * asynchronous read signals an eventfd (IOCB_FLAG_RESFD), and a full counter stays full.  So a signal is an
 * asynchronous read of nothing.  Any thread uses the context, which belongs to this process.
 * Source: io_submit(2), <linux/aio_abi.h>, eventfd(2), timer_create(2).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "client.cdef"

#define EVENTS 512	/* ends of reads that the context has room for */
#define REAPED 64	/* of those, how many are thrown away at a time */
#define TRIES 8		/* a reaped context has room, unless the kernel has no memory */
#define LONGEST 100000L /* nanoseconds that a write may wait where the kernel has no asynchronous reads */

static pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;
static aio_context_t context; /* 0: not made yet, or it cannot be made now */
static int nothing = -1;      /* /dev/null: a read of it ends at once */

/* A context belongs to one process: a child has to make its own. */
static void forget_context(void)
{
	pthread_mutex_init(&making, NULL);
	context = 0;
}

/* The context, or 0 when there is none: the kernel has none, a seccomp filter forbids it, or other programs
 * have all of fs.aio-max-nr now. */
static aio_context_t find_context(void)
{
	aio_context_t made = __atomic_load_n(&context, __ATOMIC_ACQUIRE);
	static int watched;

	if (made)
		return made;
	pthread_mutex_lock(&making);
	if (!watched)
		watched = !pthread_atfork(NULL, NULL, forget_context);
	if (nothing < 0)
		nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
	made = context;
	if (!made && watched && nothing >= 0 && !syscall(SYS_io_setup, EVENTS, &made))
		__atomic_store_n(&context, made, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&making);
	return made;
}

/* Nobody wants to know how the reads ended.  Does not wait. */
static void reap(aio_context_t from)
{
	struct io_event ended[REAPED];
	struct timespec now = {0};

	syscall(SYS_io_getevents, from, 0L, (long)REAPED, ended, &now);
}

static void on_time(int number)
{
	(void)number; /* the only purpose is to interrupt write(2) */
}

/* The way without asynchronous reads: a write that this thread's timer interrupts again and again, so that it
 * waits for a moment only. */
static int write_timed(int eventfd)
{
	struct pollfd room = {.fd = eventfd, .events = POLLOUT};
	struct sigevent to_me = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMAX - 1};
	const struct sigaction interrupt = {.sa_handler = on_time}; /* without SA_RESTART */
	const struct itimerspec soon = {{0, LONGEST}, {0, LONGEST}};
	const uint64_t one = 1;
	timer_t timer;
	int error = 0;

	if (poll(&room, 1, 0) != 1 || !(room.revents & POLLOUT))
		return 0;
	to_me._sigev_un._tid = gettid();
	if (sigaction(SIGRTMAX - 1, &interrupt, NULL) || timer_create(CLOCK_MONOTONIC, &to_me, &timer))
		return -errno;
	timer_settime(timer, 0, &soon, NULL);
	if (write(eventfd, &one, sizeof(one)) < 0 && errno != EINTR && errno != EAGAIN)
		error = -errno;
	timer_delete(timer);
	return error;
}

/* Adds 1 to an eventfd's counter; a full one stays full.  0, or a negative errno: EINVAL when the descriptor is
 * no eventfd. */
int shim_signal(int eventfd)
{
	aio_context_t through = find_context();
	struct iocb read = {.aio_lio_opcode = IOCB_CMD_PREAD, .aio_fildes = (uint32_t)nothing,
		.aio_flags = IOCB_FLAG_RESFD, .aio_resfd = (uint32_t)eventfd}, *one = &read;

	for (int i = 0; through && i < TRIES; i++) {
		if (syscall(SYS_io_submit, through, 1L, &one) == 1)
			return 0;
		if (errno != EAGAIN)
			return -errno;
		reap(through); /* there is no room for another end */
	}
	return write_timed(eventfd);
}
