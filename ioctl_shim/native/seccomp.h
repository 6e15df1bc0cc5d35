/* SPDX-License-Identifier: Apache-2.0 */
/* Catching system calls of a program and answering them: <linux/seccomp.h>, seccomp_unotify(2). */
#ifndef VFSFUSE_SECCOMP_H
#define VFSFUSE_SECCOMP_H

#include <stdint.h>

#include "seccomp.cdef"

int shim_seccomp_receive(int listener, struct shim_seccomp_call *call);

#endif
