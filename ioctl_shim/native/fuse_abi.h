/* SPDX-License-Identifier: Apache-2.0 */
/* Declarations that older versions of <linux/fuse.h> lack; values are those of protocol 7.40 and later. */
#ifndef VFSFUSE_FUSE_ABI_H
#define VFSFUSE_FUSE_ABI_H

#include <linux/fuse.h>
#include <stddef.h>
#include <sys/ioctl.h>

#ifndef FUSE_INIT_EXT
#define FUSE_INIT_EXT (1u << 30)
#endif
#define VFS_PASSTHROUGH_FLAG2 (1u << (37 - 32)) /* FUSE_PASSTHROUGH, in flags2 */
#define VFS_FOPEN_STREAM (1u << 4)
#define VFS_FOPEN_NOFLUSH (1u << 5) /* Linux 5.16; older kernels send FLUSH, which is answered */
#define VFS_FOPEN_PARALLEL_WRITES (1u << 6) /* FOPEN_PARALLEL_DIRECT_WRITES, Linux 6.2 */
#define VFS_FOPEN_PASSTHROUGH (1u << 7)

struct vfs_backing_map { /* struct fuse_backing_map */
	int32_t fd;
	uint32_t flags;
	uint64_t padding;
};
#define VFS_BACKING_OPEN _IOW(229, 1, struct vfs_backing_map)
#define VFS_BACKING_CLOSE _IOW(229, 2, uint32_t)

struct vfs_init_in { /* struct fuse_init_in of protocol 7.36 */
	uint32_t major, minor, max_readahead, flags, flags2, unused[11];
};

struct vfs_init_out { /* struct fuse_init_out of protocol 7.40 */
	uint32_t major, minor, max_readahead, flags;
	uint16_t max_background, congestion_threshold;
	uint32_t max_write, time_gran;
	uint16_t max_pages, map_alignment;
	uint32_t flags2, max_stack_depth, unused[6];
};
_Static_assert(sizeof(struct vfs_init_out) == 64, "fuse_init_out");
_Static_assert(offsetof(struct vfs_init_out, flags2) == 32, "fuse_init_out.flags2");

struct vfs_open_out { /* struct fuse_open_out of protocol 7.40 */
	uint64_t fh;
	uint32_t open_flags;
	int32_t backing_id;
};
_Static_assert(sizeof(struct vfs_open_out) == sizeof(struct fuse_open_out), "fuse_open_out");

#endif
