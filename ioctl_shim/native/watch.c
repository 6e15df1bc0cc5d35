/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The watchdog of the pump: one thread, which has the pump replaced when it serves one request for too long.
 *
 * A client can hold up whoever touches its memory (userfaultfd, a mapping of a file whose file system never
 * answers).  Such a touch is inside enter_client() and leave_client(); then the pump is replaced after one to
 * two ticks.  Anything else, a lock or a model's hook, gets four: there a busy machine is the likelier reason.
 * After a client has held up a pump, and as long as it holds one, all ioctls go to threads that may wait, so
 * that many held calls cost the lane no more than one.
 * While no request comes the watchdog sleeps on `asleep`, a futex.
 */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <limits.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "pump.h"

#define TICK_US 10000
#define CLIENT_TICKS 1
#define OTHER_TICKS 4
#define IDLE_TICKS 100 /* without a request, until the watchdog sleeps */

#define WARY_TICKS 100 /* after the last held pump has gone on, until ioctls are trusted again */

static uint32_t asleep;
static int wary; /* ticks; only the watchdog changes it */

/* Whether a client has held up a pump a moment ago, and may do so again. */
int is_wary(void)
{
	return __atomic_load_n(&wary, __ATOMIC_RELAXED);
}

static void set_wary(int ticks)
{
	__atomic_store_n(&wary, ticks, __ATOMIC_RELAXED);
}

static long futex(int operation, uint32_t value)
{
	return syscall(SYS_futex, &asleep, operation | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

/* Called by the pump for each request, after it has changed its state. */
void wake_watchdog(void)
{
	if (!__atomic_load_n(&asleep, __ATOMIC_SEQ_CST))
		return;
	__atomic_store_n(&asleep, 0, __ATOMIC_SEQ_CST);
	futex(FUTEX_WAKE, INT_MAX);
}

static uint64_t state_of(const struct pump *pump)
{
	return pump ? __atomic_load_n(&pump->state, __ATOMIC_SEQ_CST) : 0;
}

/* Sleeps until the pump of `state` serves another request. */
static void sleep_idle(const struct pump *pump, uint64_t state)
{
	__atomic_store_n(&asleep, 1, __ATOMIC_SEQ_CST);
	if (state_of(pump) == state && !lane_pump_ended())
		futex(FUTEX_WAIT, 1);
	__atomic_store_n(&asleep, 0, __ATOMIC_SEQ_CST);
}

/* Runs until the pump ends, on a thread of its own. */
void lane_watch(void)
{
	struct pump *seen = NULL;
	uint64_t state = 0;
	int ticks = 0;

	prctl(PR_SET_NAME, "lane-watchdog");
	while (!lane_pump_ended()) {
		struct pump *pump = current_pump();
		uint64_t now = state_of(pump);

		prepare_pump();
		ticks = pump == seen && now == state ? ticks + 1 : 0;
		seen = pump;
		state = now;
		if (pump && now & PUMP_SERVES) {
			int client = __atomic_load_n(&pump->in_client, __ATOMIC_RELAXED);

			if (ticks >= (client ? CLIENT_TICKS : OTHER_TICKS)) {
				replace_pump(pump, now);
				set_wary(client ? WARY_TICKS : wary);
			}
		} else if (pump && ticks >= IDLE_TICKS && !wary) {
			sleep_idle(pump, now);
		}
		if (wary && !lane_pumps_retired())
			set_wary(wary - 1);
		usleep(TICK_US);
	}
}
