/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that take caught system calls, and the answers to those that ask what a descriptor is. */
#ifndef VFSFUSE_TAKERS_H
#define VFSFUSE_TAKERS_H

#include "seccomp.h"

#include "takers.cdef"

int shim_stats_catches(int32_t nr);

/* The path of a call that asks for the state of a file: at `vaddr` of the caller, from its descriptor `fd`. */
struct stat_path {
	int fd;
	uint64_t vaddr;
	int nofollow;
	int may_be_empty;
};

int stat_path_open(uint32_t tid, const struct stat_path *asked, uint32_t major, uint32_t minor, int *descriptor);

#endif
