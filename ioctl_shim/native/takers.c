/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads that take the caught calls of a filter, one at a time.
 *
 * One thread has the turn.  It receives a call, answers a stat here and leaves any other call to Python; before
 * that it gives its turn to another thread.  Only one waits for a call, because the kernel wakes all that wait
 * for one.
 *
 * A caller can hold up a stat by its memory, and a file system by never saying what a file is.  So a watchdog
 * looks every TICK_MS: who has had the same call at hand for that long loses the turn to a spare thread, or to one
 * that Python starts.  It sleeps while no call comes.
 *
 * When this process dies, its listener must not die too: the kernel would fail all caught calls with ENOSYS, and
 * no program could start.  A keeper, another process, has the listener too and then lets the kernel carry out all
 * calls, also those that were at hand here: their numbers are in memory that both share.
 *
 * Everything below is under `lock` except atomics.  Nobody holds it while a call is received or answered.
 * Source: seccomp_unotify(2).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "takers.h"

#define TICK_MS 10
#define IDLE_TICKS 50 /* without a call, after which the watchdog sleeps */
#define SPARES 2      /* threads that wait for a turn; others end */
#define AT_HAND 4096  /* calls that the keeper can see */
#define LOST 1024     /* ids that may follow the last one noted: a call that a signal interrupts uses one up */

/* Shared with the keeper. */
struct notes {
	_Atomic uint64_t last;             /* the id of the call that was received last */
	_Atomic uint64_t at_hand[AT_HAND]; /* ids of calls that are not answered, 0 for none */
};

struct shim_takers {
	int listener;
	struct shim_stats *stats;
	struct notes *notes;
	pthread_mutex_t lock;
	pthread_cond_t free_turn, news; /* `news` is for the watchdog */
	int is_free;                    /* nobody has the turn */
	int spares;
	int ended;
	int dying; /* in the keeper: a pidfd of the supervisor, whose main thread is dead */
	char in_use[AT_HAND];        /* places of notes->at_hand that a thread has */
	_Atomic uint64_t received;   /* calls */
	_Atomic uint64_t busy;       /* the number of the call that who has the turn has at hand; 0: it waits */
	_Atomic int watchdog_sleeps;
};

/* The place in notes->at_hand of this thread; none when there are more threads than places. */
static _Thread_local _Atomic uint64_t *at_hand;

/* NULL: no memory.  `stats` must stay.  There is no end to it but that of the process. */
struct shim_takers *shim_takers_new(int listener, struct shim_stats *stats)
{
	struct shim_takers *takers = calloc(1, sizeof(*takers));
	void *notes = mmap(NULL, sizeof(struct notes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_condattr_t clock;

	if (!takers || notes == MAP_FAILED) {
		free(takers);
		return NULL;
	}
	takers->listener = listener;
	takers->stats = stats;
	takers->notes = notes;
	takers->is_free = 1;
	pthread_mutex_init(&takers->lock, NULL);
	pthread_condattr_init(&clock);
	pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
	pthread_cond_init(&takers->free_turn, NULL);
	pthread_cond_init(&takers->news, &clock);
	return takers;
}

/* ---- the turn ---- */

/* Under the lock. */
static void free_turn(struct shim_takers *takers)
{
	takers->is_free = 1;
	pthread_cond_signal(takers->spares ? &takers->free_turn : &takers->news);
}

/* Take the turn, at once or as a spare thread.  0 when there are threads enough.  Under the lock. */
static int wait_for_turn(struct shim_takers *takers)
{
	if (!takers->is_free && takers->spares >= SPARES)
		return 0;
	takers->spares++;
	while (!takers->is_free && !takers->ended)
		pthread_cond_wait(&takers->free_turn, &takers->lock);
	takers->spares--;
	takers->is_free = 0;
	return !takers->ended;
}

/* Under the lock. */
static void find_place(struct shim_takers *takers)
{
	int place;

	for (place = 0; !at_hand && place < AT_HAND; place++)
		if (!takers->in_use[place]) {
			takers->in_use[place] = 1;
			at_hand = &takers->notes->at_hand[place];
		}
}

/* Under the lock. */
static void leave_place(struct shim_takers *takers)
{
	if (at_hand)
		takers->in_use[at_hand - takers->notes->at_hand] = 0;
	at_hand = NULL;
}

static int begin(struct shim_takers *takers, int has_turn)
{
	pthread_mutex_lock(&takers->lock);
	find_place(takers);
	has_turn = has_turn || wait_for_turn(takers);
	if (!has_turn)
		leave_place(takers);
	pthread_mutex_unlock(&takers->lock);
	return has_turn;
}

static void pass_turn_on(struct shim_takers *takers)
{
	pthread_mutex_lock(&takers->lock);
	free_turn(takers);
	pthread_mutex_unlock(&takers->lock);
}

/* ---- a call ---- */

static void note(struct shim_takers *takers, uint64_t id)
{
	if (id)
		atomic_store_explicit(&takers->notes->last, id, memory_order_relaxed);
	if (at_hand)
		atomic_store_explicit(at_hand, id, memory_order_relaxed);
}

static void wake_watchdog(struct shim_takers *takers)
{
	pthread_mutex_lock(&takers->lock);
	pthread_cond_signal(&takers->news);
	pthread_mutex_unlock(&takers->lock);
}

/* Who has the turn has a call at hand.  Returns the call's number. */
static uint64_t start_call(struct shim_takers *takers, uint64_t id)
{
	uint64_t number = atomic_fetch_add_explicit(&takers->received, 1, memory_order_relaxed) + 1;

	note(takers, id);
	atomic_store(&takers->busy, number);
	if (atomic_load(&takers->watchdog_sleeps) && atomic_exchange(&takers->watchdog_sleeps, 0))
		wake_watchdog(takers);
	return number;
}

/* Whether this thread still has the turn. */
static int end_call(struct shim_takers *takers, uint64_t number)
{
	return atomic_compare_exchange_strong(&takers->busy, &number, 0);
}

static int has_users(int listener)
{
	struct pollfd fd = {.fd = listener};

	return poll(&fd, 1, 0) != 1;
}

/* Receive a call, and answer it if that can be done here.  1 if not, 0 or -errno. */
static int take_one(struct shim_takers *takers, struct shim_taken *taken, int *has_turn)
{
	int error = shim_seccomp_receive(takers->listener, &taken->call);
	uint64_t number;

	if (error)
		return error == -ENOENT && has_users(takers->listener) ? 0 : error; /* 0: its caller has ended */
	number = start_call(takers, taken->call.id);
	taken->inode = 0;
	if (shim_stats_catches(taken->call.nr) && !(taken->inode = shim_stats_answer(takers->stats, &taken->call))) {
		note(takers, 0);
		*has_turn = end_call(takers, number);
		return 0;
	}
	*has_turn = end_call(takers, number);
	return 1;
}

/*
 * Answer calls until there is one for Python: 1, with the call in `taken`; its thread goes on here once it is
 * answered.  0: this thread is to end.  -errno: the listener fails.  `has_turn` tells that shim_takers_watch gave
 * its turn to this thread, which was started for that.
 */
int shim_takers_take(struct shim_takers *takers, int has_turn, struct shim_taken *taken)
{
	int result = 0;

	note(takers, 0);
	while (!result && (has_turn = begin(takers, has_turn)))
		while (!result && has_turn)
			result = take_one(takers, taken, &has_turn);
	if (result == 1 && has_turn)
		pass_turn_on(takers);
	return result == -ENOENT ? 0 : result;
}

/* ---- the watchdog ---- */

static struct timespec next_tick(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	at.tv_nsec += TICK_MS * 1000000;
	if (at.tv_nsec >= 1000000000)
		at = (struct timespec){at.tv_sec + 1, at.tv_nsec - 1000000000};
	return at;
}

/* Sleep until a call comes.  Under the lock. */
static void sleep_long(struct shim_takers *takers)
{
	atomic_store(&takers->watchdog_sleeps, 1);
	if (atomic_load(&takers->busy))
		atomic_store(&takers->watchdog_sleeps, 0);
	while (atomic_load(&takers->watchdog_sleeps) && !takers->is_free && !takers->ended)
		pthread_cond_wait(&takers->news, &takers->lock);
	atomic_store(&takers->watchdog_sleeps, 0);
}

/* Sleep for a tick, or until there is news.  Under the lock. */
static void sleep_tick(struct shim_takers *takers)
{
	const struct timespec until = next_tick();

	pthread_cond_timedwait(&takers->news, &takers->lock, &until);
}

/*
 * Blocks until another thread is needed: 1, and that thread has the turn.  0: no call will come any more.  One
 * thread calls this.  If it cannot start a thread, it calls shim_takers_give_back.
 */
int shim_takers_watch(struct shim_takers *takers)
{
	uint64_t before = 0, busy, seen = 0;
	int idle = 0;

	pthread_mutex_lock(&takers->lock);
	while (!takers->ended && (!takers->is_free || takers->spares)) {
		busy = atomic_load(&takers->busy);
		if (busy && busy == before && atomic_compare_exchange_strong(&takers->busy, &busy, 0)) {
			free_turn(takers);
			continue;
		}
		before = busy;
		idle = seen == atomic_load(&takers->received) ? idle + 1 : 0;
		seen = atomic_load(&takers->received);
		if (idle < IDLE_TICKS || takers->is_free)
			sleep_tick(takers);
		else
			sleep_long(takers);
	}
	takers->is_free = 0;
	pthread_mutex_unlock(&takers->lock);
	return !takers->ended;
}

/* No thread could be started for the turn: whoever has answered its call takes it. */
void shim_takers_give_back(struct shim_takers *takers)
{
	pass_turn_on(takers);
}

/* The last thread under the filter has ended. */
void shim_takers_end(struct shim_takers *takers)
{
	pthread_mutex_lock(&takers->lock);
	takers->ended = 1;
	pthread_cond_broadcast(&takers->free_turn);
	pthread_cond_signal(&takers->news);
	pthread_mutex_unlock(&takers->lock);
}

/* ---- the keeper ---- */

/* Let the kernel carry out what the dead process had at hand.  The kernel refuses ids that are answered. */
static void proceed_with_orphans(const struct shim_takers *takers)
{
	uint64_t id, last = atomic_load(&takers->notes->last);
	int place;

	for (place = 0; place < AT_HAND; place++)
		if ((id = atomic_load(&takers->notes->at_hand[place])))
			shim_seccomp_proceed(takers->listener, id);
	for (id = last; id - last <= LOST; id++)
		shim_seccomp_proceed(takers->listener, id);
}

/*
 * A descriptor that is readable once the thread that has forked this process is dead.  Another thread of the parent
 * may outlive it, even SIGKILL, and then so does the process: a thread that waits for a file system whose server
 * has read the request and never answers.  -1: there is none.
 */
static int death_of_parent(void)
{
	sigset_t death;

	sigemptyset(&death);
	sigaddset(&death, SIGUSR1);
	if (sigprocmask(SIG_BLOCK, &death, NULL) < 0 || prctl(PR_SET_PDEATHSIG, SIGUSR1) < 0)
		return -1;
	return signalfd(-1, &death, SFD_CLOEXEC);
}

/*
 * In a child process that the supervisor's main thread has forked: wait until the supervisor is dead, and let the calls
 * that it had at hand go on.  `supervisor` is a pidfd.  1, or 0 if no thread is under the filter any more.
 */
int shim_takers_outlive(struct shim_takers *takers, int supervisor)
{
	struct pollfd fds[] = {
		{.fd = takers->listener},
		{.fd = supervisor, .events = POLLIN},
		{.fd = death_of_parent(), .events = POLLIN},
	};

	while (poll(fds, 3, -1) < 0)
		if (errno != EINTR)
			return -errno;
	if (fds[0].revents)
		return 0;
	takers->dying = supervisor;
	proceed_with_orphans(takers);
	return 1;
}

/* Let all further calls go on.  Returns when no thread is under the filter any more. */
int shim_takers_keep(struct shim_takers *takers)
{
	struct pollfd fds[] = {
		{.fd = takers->listener, .events = POLLIN},
		{.fd = takers->dying, .events = POLLIN},
	};
	struct shim_seccomp_call call;

	while (!fds[0].revents || fds[0].revents & POLLIN) {
		if (fds[1].fd >= 0)
			proceed_with_orphans(takers); /* a thread that is about to die may have received a call */
		if (fds[1].revents)
			fds[1].fd = -1;
		if (fds[0].revents && !shim_seccomp_receive(takers->listener, &call))
			shim_seccomp_proceed(takers->listener, call.id);
		if (poll(fds, 2, fds[1].fd >= 0 ? TICK_MS : -1) < 0 && errno != EINTR)
			return -errno;
	}
	return 0;
}
