/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Signals that a process notes in a pipe, instead of by Python's handlers.  Python runs a handler again while it
 * still runs, so a burst of signals nests handlers until one fails, and trio with it.
 *
 * Any thread may get the signal.  Source: signal-safety(7), sigaction(2), pipe(7).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include "pump.h"

static int notes;
static pid_t owner;

static void on_signal(int number)
{
	const int error = errno;
	const unsigned char note = (unsigned char)number;

	if (getpid() != owner) { /* a fork: the signal is its own affair */
		signal(number, SIG_DFL);
		raise(number); /* comes when this returns */
	} else if (write(notes, &note, sizeof(note)) < 0) {
		/* full: enough have come */
	}
	errno = error;
}

/* For Python: from now on each of the signals `numbers` puts its number, one byte, into the pipe whose end to
 * write to is `pipe`.  It must not block, and must not be closed.  0, or a negative errno. */
int shim_note_signals(int pipe, const int *numbers, uint64_t count)
{
	struct sigaction note = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

	owner = getpid();
	notes = pipe;
	for (uint64_t i = 0; i < count; i++)
		if (sigaction(numbers[i], &note, NULL))
			return -errno;
	return 0;
}
