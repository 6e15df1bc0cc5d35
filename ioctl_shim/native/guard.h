/* SPDX-License-Identifier: Apache-2.0 */
/* Loads and stores in shared file memory that may fail; see guard.c.  Any thread. */
#ifndef VFSFUSE_GUARD_H
#define VFSFUSE_GUARD_H

#include <stddef.h>
#include <stdint.h>

#include "client.cdef"

int guarded_move(void *to, const void *from, size_t size);

#endif
