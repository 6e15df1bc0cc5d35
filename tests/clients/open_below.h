/* SPDX-License-Identifier: Apache-2.0 */
/* Opens a file of a lab, in clients that are given its folder. */
#ifndef OPEN_BELOW_H
#define OPEN_BELOW_H

#include "check.h"
#include <fcntl.h>

static int open_below(const char *folder, const char *name)
{
	char path[512];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	int fd = open(path, O_RDWR | O_CLOEXEC);
	CHECK(fd >= 0);
	return fd;
}

#endif
