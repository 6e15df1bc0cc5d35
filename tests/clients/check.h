/* SPDX-License-Identifier: Apache-2.0 */
/* What C clients find, or else they say on stderr what they have not found, and exit with 1. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(what) \
	do { \
		if (!(what)) { \
			fprintf(stderr, "line %d: %s (errno %d, %s)\n", __LINE__, #what, errno, strerror(errno)); \
			exit(1); \
		} \
	} while (0)

/* A system call fails with this errno. */
#define FAILS(call, error) CHECK((errno = 0, (call) == -1) && errno == (error))

#endif
