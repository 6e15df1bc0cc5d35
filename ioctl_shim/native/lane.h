/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The native edge: one pump thread reads /dev/fuse.  It answers accesses of memory and of stored registers,
 * calls Python once for other device-lane requests, and queues the rest for pyfuse3. Protocol: <linux/fuse.h>
 * (FUSE_KERNEL_VERSION 7).
 */
#ifndef VFSFUSE_LANE_H
#define VFSFUSE_LANE_H

#include <stddef.h>
#include <stdint.h>

#include "lane.cdef"

/* interpose.c <-> session.c */
struct lane_message {
	struct lane_message *next;
	size_t size;
	char *data;
};

int lane_attach(int fuse_fd);
int lane_event_fd(void);
struct lane_message *lane_pop(void);
int lane_ended(void);
void lane_init_reply(const void *in, void *body);
struct vfs_open_out;
int lane_forbid_mapping(struct vfs_open_out *out);

#endif
