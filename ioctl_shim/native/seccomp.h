/* SPDX-License-Identifier: Apache-2.0 */
/* Catching one ioctl of a program and answering it with a new descriptor: <linux/seccomp.h>,
 * seccomp_unotify(2). */
#ifndef VFSFUSE_SECCOMP_H
#define VFSFUSE_SECCOMP_H

#include <stdint.h>

#include "seccomp.cdef"

#endif
