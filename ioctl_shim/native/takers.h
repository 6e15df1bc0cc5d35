/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that take caught system calls, and the answers to those that ask what a descriptor is. */
#ifndef VFSFUSE_TAKERS_H
#define VFSFUSE_TAKERS_H

#include "seccomp.h"

#include "takers.cdef"

int shim_stats_catches(int32_t nr);

#endif
