/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pump: the only reader of /dev/fuse, on a thread of its own.  It answers a request, then reads the next
 * one.  A pump that a client holds up in the middle of a request (watch.c tells) is retired: another thread
 * becomes the pump, and the retired one answers its one request whenever it can, and ends.
 *
 * `pump.state` says whether a pump reads or serves.  The pump and the watchdog change it by compare-and-swap,
 * so a retired pump never reads again, and there is one reader at any time.  The list of pumps and their
 * slots are under `lock`.
 *
 * Requests that follow a RELEASE begin after it, as calls that follow a close(2) do.  A pump may be retired in the
 * middle of one, if only because the machine is busy: then opens, ioctls and stores wait for it, on other threads and
 * for LATE_MS at most.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pump.h"

/* cffi defines it (callbacks.cdef). */
void lane_on_interrupt(uint64_t unique, uint32_t client);

#define BUFFER_SIZE (MAX_DATA + 4096u)
#define STOP_MS 2000
#define LATE_MS 250

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct pump *pumps;	/* all that live */
static uint32_t slots_taken;	/* a bit for each lane_argument in use */
static struct pump *spare;	/* waits to become it; the watchdog's */
static struct pump *current;	/* the one that reads; never freed while it is that */
static int retired;		/* how many retired pumps have not ended */
static int late;		/* how many of them release a file */
static int64_t late_until;	/* milliseconds: so long others wait for those */
static int stopping;		/* the pump has to end */
static int ended;		/* it has: no more requests are read */
static __thread struct pump *own; /* NULL on a thread that is no pump */

/* FLUSH: nothing is buffered, so there is nothing to do.  After ENOSYS the kernel does not send it again as
 * long as the tree is mounted, which makes close(2) faster. */
static void on_flush(const struct request *r)
{
	send_error(r->header->unique, -ENOSYS);
}

static void on_attr_fsync(const struct request *r)
{
	send_error(r->header->unique, 0);
}

/* Not ENOSYS: after that the kernel would give this answer for device files too. */
static void on_attr_fallocate(const struct request *r)
{
	send_error(r->header->unique, -EOPNOTSUPP);
}

struct action {
	void (*run)(const struct request *);
	size_t body; /* least size of the request's body */
};

static const struct action device_actions[] = {
	[FUSE_OPEN] = {on_open, sizeof(struct fuse_open_in)},
	[FUSE_RELEASE] = {on_release, sizeof(struct fuse_release_in)},
	[FUSE_READ] = {on_read, sizeof(struct fuse_read_in)},
	[FUSE_WRITE] = {on_write, sizeof(struct fuse_write_in)},
	[FUSE_IOCTL] = {on_ioctl, sizeof(struct fuse_ioctl_in)},
	[FUSE_POLL] = {on_poll, sizeof(struct fuse_poll_in)},
	[FUSE_FLUSH] = {on_flush, 0},
	[FUSE_FSYNC] = {on_fsync, sizeof(struct fuse_fsync_in)},
	[FUSE_FALLOCATE] = {on_fallocate, sizeof(struct fuse_fallocate_in)},
};

static const struct action all_actions[] = {
	[FUSE_LOOKUP] = {on_lookup, 2},
	[FUSE_GETATTR] = {on_getattr, sizeof(struct fuse_getattr_in)},
	[FUSE_READLINK] = {on_readlink, 0},
};

static const struct action attr_actions[] = {
	[FUSE_OPEN] = {on_attr_open, sizeof(struct fuse_open_in)},
	[FUSE_READ] = {on_attr_read, sizeof(struct fuse_read_in)},
	[FUSE_POLL] = {on_attr_poll, sizeof(struct fuse_poll_in)},
	[FUSE_WRITE] = {on_attr_write, sizeof(struct fuse_write_in)},
	[FUSE_RELEASE] = {on_attr_release, sizeof(struct fuse_release_in)},
	[FUSE_FLUSH] = {on_flush, 0},
	[FUSE_FSYNC] = {on_attr_fsync, 0},
	[FUSE_FALLOCATE] = {on_attr_fallocate, 0},
};

#define ACTION(table, opcode) ((opcode) < sizeof(table) / sizeof(*(table)) ? &(table)[opcode] : NULL)

static const struct action *find_action(const struct fuse_in_header *header)
{
	const struct action *action = ACTION(all_actions, header->opcode);

	if (action && action->run)
		return action;
	if (header->nodeid >> LANE_DEVICE_BIT & 1)
		action = ACTION(device_actions, header->opcode);
	else if (header->nodeid >> LANE_ATTR_BIT & 1)
		action = ACTION(attr_actions, header->opcode);
	return action && action->run ? action : NULL;
}

/* An INTERRUPT of a request that a retired pump is still serving: it may not have become a pending request
 * yet, so the retired pump passes the INTERRUPT on when it has done its part.  Returns the client's thread if
 * the request is an ioctl of a retired pump, else 0. */
static uint32_t mark_interrupted(uint64_t unique)
{
	uint32_t client = 0;

	if (!lane_pumps_retired())
		return 0;
	pthread_mutex_lock(&lock);
	for (struct pump *each = pumps; each; each = each->next)
		if (__atomic_load_n(&each->unique, __ATOMIC_RELAXED) == unique) {
			each->interrupted = 1;
			if (__atomic_load_n(&each->state, __ATOMIC_ACQUIRE) == PUMP_RETIRED)
				client = __atomic_load_n(&each->client, __ATOMIC_RELAXED);
		}
	pthread_mutex_unlock(&lock);
	return client;
}

static void serve(const char *data, size_t size, char *out)
{
	const struct fuse_in_header *header = (const void *)data;
	struct request r = {.header = header, .body = header + 1, .size = size - sizeof(*header), .out = out};
	const struct action *action = find_action(header);

	if (header->opcode == FUSE_FORGET || header->opcode == FUSE_BATCH_FORGET)
		return; /* inode numbers are never used again, so nothing is counted */
	if (header->opcode == FUSE_INTERRUPT) {
		/* the kernel sends it only after we have read the request; it has no answer itself */
		if (r.size >= sizeof(struct fuse_interrupt_in)) {
			uint64_t unique = ((const struct fuse_interrupt_in *)r.body)->unique;

			lane_on_interrupt(unique, mark_interrupted(unique));
		}
		return;
	}
	if (answer_watchers(&r))
		return;
	if (action)
		r.size < action->body ? send_error(header->unique, -EIO) : action->run(&r);
	else if (header->opcode == FUSE_IOCTL)
		send_error(header->unique, -ENOTTY);
	else
		hand_on(&r);
}

/* ---- pumps ---- */

static void free_pump(struct pump *pump)
{
	sem_destroy(&pump->go);
	free(pump->in);
	free(pump->out);
	free(pump);
}

static struct pump *make_pump(void)
{
	struct pump *pump = calloc(1, sizeof(*pump));

	if (!pump)
		return NULL;
	pump->in = malloc(BUFFER_SIZE);
	pump->out = malloc(MAX_DATA);
	sem_init(&pump->go, 0, 0);
	if (!pump->in || !pump->out) {
		free_pump(pump);
		return NULL;
	}
	pthread_mutex_lock(&lock);
	for (uint32_t slot = 1; slot <= LANE_SLOTS && !pump->slot; slot++)
		if (!(slots_taken >> slot & 1))
			pump->slot = slot;
	slots_taken |= pump->slot ? 1u << pump->slot : 0;
	pump->next = pumps;
	pumps = pump;
	pthread_mutex_unlock(&lock);
	return pump;
}

/* Ends a pump: takes it off the list.  Returns whether an INTERRUPT came for its last request. */
static int drop_pump(struct pump *pump)
{
	pthread_mutex_lock(&lock);
	for (struct pump **each = &pumps; *each; each = &(*each)->next)
		if (*each == pump) {
			*each = pump->next;
			break;
		}
	slots_taken &= pump->slot ? ~(1u << pump->slot) : ~0u;
	pthread_mutex_unlock(&lock);
	return pump->interrupted;
}

struct pump *own_pump(void)
{
	return own;
}

struct pump *current_pump(void)
{
	return __atomic_load_n(&current, __ATOMIC_ACQUIRE);
}

int lane_pumps_retired(void)
{
	return __atomic_load_n(&retired, __ATOMIC_ACQUIRE);
}

static int64_t milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Whether a call has to wait, because a file that was closed before is not released yet.  Any thread. */
int lane_release_is_late(void)
{
	return __atomic_load_n(&late, __ATOMIC_ACQUIRE) &&
	       milliseconds() < __atomic_load_n(&late_until, __ATOMIC_ACQUIRE);
}

/* Waits for that.  Any thread except a pump. */
void lane_wait_for_releases(void)
{
	while (lane_release_is_late())
		usleep(1000);
}

/* Waits until no pump copies from or to a region that was hidden before.  A copy waits for no client, but it may
 * wait for a page of the host.  Any thread except a pump. */
void lane_memory_settle(const struct lane_memory *m)
{
	pthread_mutex_lock(&lock); /* a pump is not freed meanwhile */
	for (struct pump *each = pumps; each; each = each->next) {
		uint64_t state = __atomic_load_n(&each->state, __ATOMIC_SEQ_CST);

		while (__atomic_load_n(&each->memory, __ATOMIC_SEQ_CST) == m &&
		       __atomic_load_n(&each->state, __ATOMIC_SEQ_CST) == state)
			usleep(20);
	}
	pthread_mutex_unlock(&lock);
}

/* Whether the lane is at its end: no pump is to be replaced any more. */
int lane_pump_ended(void)
{
	return __atomic_load_n(&ended, __ATOMIC_ACQUIRE);
}

/* Reads and serves until this pump is retired (1), or there are no more requests (0, or -errno). */
static int64_t run(struct pump *pump)
{
	uint64_t state = pump->state;
	ssize_t got = 0;

	while (!__atomic_load_n(&stopping, __ATOMIC_ACQUIRE)) {
		got = read(session_fuse(), pump->in, BUFFER_SIZE);
		if (got < (ssize_t)sizeof(struct fuse_in_header)) {
			if (got >= 0 || (errno != EINTR && errno != EAGAIN && errno != ENOENT))
				return got >= 0 || errno == ENODEV ? 0 : -errno;
			continue;
		}
		__atomic_store_n(&pump->unique, ((const struct fuse_in_header *)pump->in)->unique, __ATOMIC_RELAXED);
		/* a full barrier: the watchdog must not fall asleep without seeing this */
		__atomic_store_n(&pump->state, ++state, __ATOMIC_SEQ_CST);
		wake_watchdog();
		serve(pump->in, (size_t)got, pump->out);
		uint64_t serving = state++;
		if (!__atomic_compare_exchange_n(&pump->state, &serving, state, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
			return 1;
	}
	return 0;
}

/* Lets `pump` serve on this thread.  What it returns as `run`. */
static int64_t be_pump(struct pump *pump)
{
	int64_t result;

	prctl(PR_SET_NAME, "device-lane");
	own = pump;
	__atomic_store_n(&pump->tid, gettid(), __ATOMIC_RELEASE);
	result = run(pump);
	own = NULL;
	if (result == 1) {
		uint64_t unique = pump->unique;

		if (pump->is_late)
			__atomic_sub_fetch(&late, 1, __ATOMIC_ACQ_REL);
		if (drop_pump(pump))
			lane_on_interrupt(unique, 0);
		free_pump(pump);
		__atomic_sub_fetch(&retired, 1, __ATOMIC_ACQ_REL);
		return 0;
	}
	session_end();
	__atomic_store_n(&ended, 1, __ATOMIC_RELEASE);
	wake_watchdog();
	return result;
}

/* Runs until lane_stop(), or the filesystem is unmounted (0), or the connection breaks (-errno), or this
 * thread has been replaced (0). */
int lane_pump(void)
{
	struct pump *pump = make_pump();

	if (!pump) {
		session_end();
		return -ENOMEM;
	}
	__atomic_store_n(&current, pump, __ATOMIC_RELEASE);
	return (int)be_pump(pump);
}

static void *run_replacement(void *argument)
{
	struct pump *pump = argument;

	while (sem_wait(&pump->go) < 0)
		;
	void *thread = call_attach();

	be_pump(pump);
	call_detach(thread);
	return NULL;
}

static int start_thread(struct pump *pump)
{
	pthread_attr_t attr;
	pthread_t thread;

	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	int error = pthread_create(&thread, &attr, run_replacement, pump);

	pthread_attr_destroy(&attr);
	return error;
}

/* Makes the thread that will take over, so that it needs none when a pump is held up: by then a client may have
 * used up all threads.  Does nothing when there can be none.  Watchdog only. */
void prepare_pump(void)
{
	if (spare)
		return;
	spare = make_pump();
	if (spare && start_thread(spare)) {
		drop_pump(spare);
		free_pump(spare);
		spare = NULL;
	}
}

/* Retires `pump`, if it is still serving the request of `state`, and has the spare one go on.  Watchdog only:
 * nobody else changes `current`.  Without a spare one nothing changes. */
void replace_pump(struct pump *pump, uint64_t state)
{
	struct pump *next = spare;

	if (!next)
		return;
	__atomic_add_fetch(&retired, 1, __ATOMIC_ACQ_REL);
	pthread_mutex_lock(&lock); /* the retired pump is not freed before `current` is another one */
	/* if it is retired, this is the request of `state`; it sees what is noted here when it has ended that */
	pump->is_late = ((const struct fuse_in_header *)pump->in)->opcode == FUSE_RELEASE;
	if (pump->is_late) {
		__atomic_store_n(&late_until, milliseconds() + LATE_MS, __ATOMIC_RELEASE);
		__atomic_add_fetch(&late, 1, __ATOMIC_ACQ_REL);
	}
	if (__atomic_compare_exchange_n(&pump->state, &state, PUMP_RETIRED, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
		__atomic_store_n(&current, next, __ATOMIC_RELEASE);
		spare = NULL;
	} else {
		__atomic_sub_fetch(&retired, 1, __ATOMIC_ACQ_REL);
		__atomic_sub_fetch(&late, pump->is_late, __ATOMIC_ACQ_REL);
		pump->is_late = 0;
	}
	pthread_mutex_unlock(&lock);
	if (!spare)
		sem_post(&next->go);
}

static void on_wake(int number)
{
	(void)number; /* the only purpose is to interrupt the pump's read(2) */
}

/* The thread of the pump that reads now; 0 when it has not begun. */
static int current_tid(void)
{
	pthread_mutex_lock(&lock); /* a pump that is replaced at this moment is not freed meanwhile */
	int tid = current ? __atomic_load_n(&current->tid, __ATOMIC_ACQUIRE) : 0;

	pthread_mutex_unlock(&lock);
	return tid;
}

/* Ends the pump; called before the interpreter ends, when libfuse has given up its descriptor.  Returns 0, or
 * -ETIMEDOUT when the pump is in a call that does not return.  Clients that have no answer yet get an error.
 * Retired pumps are not waited for: a client decides when their calls return. */
int lane_stop(void)
{
	struct sigaction wake = {.sa_handler = on_wake};
	int result = 0;

	sigaction(SIGRTMAX, &wake, NULL);
	__atomic_store_n(&stopping, 1, __ATOMIC_RELEASE);
	for (int i = 0; !result && current_pump() && !lane_pump_ended(); i++) {
		int tid = current_tid();

		if (i == STOP_MS)
			result = -ETIMEDOUT;
		else if (tid)
			syscall(SYS_tgkill, getpid(), tid, SIGRTMAX); /* again: it may come just before read(2) */
		usleep(1000);
	}
	session_close();
	return result;
}
