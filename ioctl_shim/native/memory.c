/* SPDX-License-Identifier: Apache-2.0 */
/* A client's memory over the life of a container: its mappings, transfers in batches, windows on shared
 * files. Source: proc_pid_maps(5) and <linux/fs.h> (PROCMAP_QUERY), process_vm_readv(2), pidfd_open(2). */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

#include "guard.h"

/* <linux/fs.h> of Debian 12 is older than this ioctl. */
struct procmap_query_v1 {
	uint64_t size;
	uint64_t query_flags;
	uint64_t query_addr;
	uint64_t vma_start;
	uint64_t vma_end;
	uint64_t vma_flags;
	uint64_t vma_page_size;
	uint64_t vma_offset;
	uint64_t inode;
	uint32_t dev_major;
	uint32_t dev_minor;
	uint32_t vma_name_size;
	uint32_t build_id_size;
	uint64_t vma_name_addr;
	uint64_t build_id_addr;
};
#define QUERY_VMA _IOWR('f', 17, struct procmap_query_v1)
#define BATCH 1024 /* IOV_MAX */
#define MAX_KEPT (32 << 20) /* bytes: the most that M_MMAP_THRESHOLD can be */

/* The mapping at `vaddr`: -ENOENT where there is none, -ESRCH when the memory is gone, -ENOTTY before Linux
 * 6.11. */
int shim_query_vma(int maps_fd, uint64_t vaddr, struct shim_vma *vma)
{
	struct procmap_query_v1 query = {.size = sizeof(query), .query_addr = vaddr};

	if (ioctl(maps_fd, QUERY_VMA, &query) < 0)
		return -errno;
	*vma = (struct shim_vma){query.vma_start, query.vma_end, query.vma_flags, query.vma_offset,
				 query.inode, query.dev_major, query.dev_minor};
	return 0;
}

static int runs(const struct shim_process *process)
{
	struct pollfd end = {.fd = process->pidfd, .events = POLLIN};

	return poll(&end, 1, 0) == 0;
}

/* Both files of /proc stay with the memory that the process had when they were opened, so a later exec, or
 * another process with the same number, is not taken for it.  After that memory is gone, a query for a
 * mapping fails and a read gives end of file; before, a read gives a byte or EIO. */
static int has_memory(const struct shim_process *process)
{
	struct shim_vma vma;
	char byte;

	if (process->can_query)
		return shim_query_vma(process->maps, 0, &vma) != -ESRCH;
	return pread(process->mem, &byte, 1, 0) != 0;
}

/* Whether the process runs, with the same memory: 1, or 0. */
int shim_alive(const struct shim_process *process)
{
	return runs(process) && has_memory(process);
}

/* Whether thread `tid`, which waits in a system call now, belongs to the process: 1, or 0. */
int shim_has_thread(const struct shim_process *process, uint32_t tid)
{
	pid_t tgid = (pid_t)process->tgid;

	if (tid != process->tgid && syscall(SYS_tgkill, tgid, (pid_t)tid, 0) < 0 && errno != EPERM)
		return 0;
	return shim_alive(process);
}

static ssize_t move_batch(uint32_t tgid, int write, struct iovec *local, struct iovec *remote, unsigned long count)
{
	return write ? process_vm_writev((pid_t)tgid, local, 1, remote, count, 0) :
		       process_vm_readv((pid_t)tgid, local, 1, remote, count, 0);
}

/* Move bytes between `buf` and the parts.  The parts lie in `buf` one after the other. */
int shim_move_parts(uint32_t tgid, int write, void *buf, const struct shim_part *parts, uint64_t count)
{
	struct iovec remote[BATCH];
	uint64_t next = 0, skip = 0; /* the next batch begins `skip` bytes after the start of part `next` */
	char *at = buf;

	while (next < count) {
		unsigned long n = 0;
		size_t size = 0;

		for (uint64_t i = next; i < count && n < BATCH; i++, n++) {
			uint64_t behind = n ? 0 : skip;

			remote[n].iov_base = (void *)(uintptr_t)(parts[i].vaddr + behind);
			remote[n].iov_len = parts[i].size - behind;
			size += remote[n].iov_len;
		}
		struct iovec local = {at, size};
		ssize_t moved = move_batch(tgid, write, &local, remote, n);

		if (moved <= 0)
			return moved < 0 ? -errno : -EFAULT;
		at += moved;
		skip += (uint64_t)moved;
		while (next < count && skip >= parts[next].size)
			skip -= parts[next++].size;
	}
	return 0;
}

/* Map the pages of a file.  Returns their address, or NULL (without a reason) when they cannot be mapped. */
void *shim_window_open(int fd, uint64_t offset, uint64_t size, int write)
{
	void *base = mmap(NULL, size, PROT_READ | (write ? PROT_WRITE : 0), MAP_SHARED | MAP_NORESERVE, fd,
			  (off_t)offset);

	return base == MAP_FAILED ? NULL : base;
}

void shim_window_close(void *base, uint64_t size)
{
	munmap(base, size);
}

/* Copy between a window and `buf`; -EFAULT where the file has become too short. */
int shim_window_move(void *at, void *buf, uint64_t size, int write)
{
	return write ? guarded_move(at, buf, size) : guarded_move(buf, at, size);
}

/* Move `size` bytes between `buf` and `vaddr`.  They must lie in one mapping, which is private or that of
 * `window` (NULL: none).  `tid` is a live thread of the process.  Returns 0, SHIM_MOVE_*, or minus an errno
 * (then a part may have moved).  The process is checked before a move, so that no other process is written
 * to, and after it. */
int shim_move(const struct shim_process *process, uint32_t tid, const struct shim_window *window, uint64_t vaddr,
	      void *buf, uint64_t size, int flags)
{
	int write = flags & SHIM_MOVE_WRITE, error;
	struct shim_part part = {vaddr, size};
	struct shim_vma vma;

	if (!process->can_query || shim_query_vma(process->maps, vaddr, &vma))
		return SHIM_MOVE_ASK; /* or its memory is gone */
	if (size > vma.end - vaddr || !(vma.flags & (write ? SHIM_VMA_WRITE : SHIM_VMA_READ)))
		return SHIM_MOVE_ASK;
	if (vma.flags & SHIM_VMA_SHARED) {
		if (flags & SHIM_MOVE_PRIVATE || !window || memcmp(&vma, &window->vma, sizeof(vma)))
			return SHIM_MOVE_ASK;
		char *at = (char *)window->base + (vaddr - vma.start);
		return shim_window_move(at, buf, size, write) ? SHIM_MOVE_SHORT : 0;
	}
	if (makedev(vma.major, vma.minor) == process->avoid || !runs(process))
		return SHIM_MOVE_ASK;
	error = shim_move_parts(tid, write, buf, &part, 1);
	if (error == -ESRCH) /* that thread has ended: there may be others */
		return SHIM_MOVE_ASK;
	return error ? error : shim_alive(process) ? 0 : SHIM_MOVE_ENDED;
}

/* Keep freed memory for the next use on any thread.  Buffers of DMA come and go, and new pages for each of
 * them cost more than the copying.  Called before there are other threads.  Source: mallopt(3). */
void shim_keep_memory(void)
{
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_THRESHOLD, MAX_KEPT);
	mallopt(M_TRIM_THRESHOLD, 2 * MAX_KEPT);
}
