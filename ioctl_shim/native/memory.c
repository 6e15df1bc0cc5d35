/* SPDX-License-Identifier: Apache-2.0 */
/* A client's memory over the life of a container: its mappings, transfers, windows on shared files.
 *
 * Memory is reached by descriptors of /proc/<pid>/mem and maps. They stay with the memory that the process had
 * when they were opened: an exec, or another process with the same number, is not taken for it. All calls may
 * wait for the client, which can make its memory as slow as it likes, so no thread that others need makes them.
 * Source: proc_pid_mem(5), proc_pid_maps(5), <linux/fs.h> (PROCMAP_QUERY). */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
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
#define SMALL 64 /* bytes: up to here a write happens once, see docs/architecture.md */
#define PIECES (SMALL / 8 + 6) /* the most aligned pieces of a small write: up to 3 before and behind those of 8 bytes */
#define SCAN 20480 /* bytes of /proc/<pid>/maps at a time: more than its longest line, with a path of escapes */
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

/* A hexadecimal number at *text, which is moved behind it and the character that ends it. */
static uint64_t hexadecimal(const char **text)
{
	char *end;
	uint64_t value = strtoull(*text, &end, 16);

	*text = end + 1;
	return value;
}

/* A line of /proc/<pid>/maps from its permissions on: "rw-s 00000000 00:01 1234   /memfd:x (deleted)". */
static void parse_line(const char *text, struct shim_vma *vma)
{
	vma->flags = (text[0] == 'r' ? SHIM_VMA_READ : 0) | (text[1] == 'w' ? SHIM_VMA_WRITE : 0) |
		     (text[3] == 's' ? SHIM_VMA_SHARED : 0);
	text += 5;
	vma->offset = hexadecimal(&text);
	vma->major = (uint32_t)hexadecimal(&text);
	vma->minor = (uint32_t)hexadecimal(&text);
	vma->inode = strtoull(text, NULL, 10);
}

/* As shim_query_vma, by the text of `maps_fd`, for a kernel before Linux 6.11. One thread at a time: it reads
 * the file from its start, and the kernel goes on where the last read ended. */
int shim_scan_vma(int maps_fd, uint64_t vaddr, struct shim_vma *vma)
{
	char text[SCAN];
	size_t kept = 0; /* bytes of a line whose end has not been read */
	off_t at = 0;

	for (;;) {
		ssize_t got = pread(maps_fd, text + kept, sizeof(text) - 1 - kept, at);
		if (got <= 0)
			return got < 0 ? -errno : at ? -ENOENT : -ESRCH;
		at += got;
		text[kept += (size_t)got] = '\0';
		char *line = text;
		for (char *end; (end = strchr(line, '\n')); line = end + 1) {
			const char *field = line;
			vma->start = hexadecimal(&field);
			vma->end = hexadecimal(&field);
			if (vaddr < vma->start)
				return -ENOENT;
			if (vaddr >= vma->end)
				continue;
			parse_line(field, vma);
			return 0;
		}
		kept -= (size_t)(line - text);
		memmove(text, line, kept);
	}
}

/* The number of bytes, 8, 4, 2 or 1, of the aligned piece at `at`, of which `left` bytes are wanted. */
static unsigned piece_at(uint64_t at, uint64_t left)
{
	unsigned size = 8;

	while (size > left || at & (size - 1))
		size /= 2;
	return size;
}

/* The reason of a failed access to /proc/<pid>/mem. It says EIO for a page that it does not get, and EINVAL for
 * addresses above 2^63, where a process has none. */
static int reason(void)
{
	return errno == EIO ? SHIM_MOVE_ABSENT : errno == EINVAL ? -EFAULT : -errno;
}

/* Store a small write in a client's memory, each aligned piece by a copy of its own, in rising order. */
static int store_pieces(int mem, uint64_t vaddr, char *buf, uint64_t size)
{
	struct iovec pieces[PIECES];
	int count = 0;

	for (uint64_t done = 0; done < size; done += pieces[count++].iov_len)
		pieces[count] = (struct iovec){buf + done, piece_at(vaddr + done, size - done)};
	ssize_t moved = pwritev(mem, pieces, count, (off_t)vaddr);
	if (moved <= 0)
		return moved < 0 ? reason() : SHIM_MOVE_ENDED;
	return (uint64_t)moved == size ? 0 : SHIM_MOVE_ABSENT;
}

/* Move `size` bytes between `buf` and `vaddr` of a client's memory, whatever its protection. */
static int move_part(int mem, int write, uint64_t vaddr, char *buf, uint64_t size)
{
	if (write && size && size <= SMALL)
		return store_pieces(mem, vaddr, buf, size);
	while (size) {
		ssize_t moved = write ? pwrite(mem, buf, size, (off_t)vaddr) : pread(mem, buf, size, (off_t)vaddr);
		if (moved <= 0)
			return moved < 0 ? reason() : SHIM_MOVE_ENDED;
		buf += moved;
		vaddr += (uint64_t)moved;
		size -= (uint64_t)moved;
	}
	return 0;
}

/* Move bytes between `buf` and the parts, which lie in `buf` one after the other. `mem` takes no notice of
 * protections: the caller has looked at them. Returns 0, SHIM_MOVE_ENDED, _ABSENT, or minus an errno. */
int shim_move_parts(int mem, int write, void *buf, const struct shim_part *parts, uint64_t count)
{
	char *at = buf;

	for (uint64_t i = 0; i < count; at += parts[i++].size) {
		int error = move_part(mem, write, parts[i].vaddr, at, parts[i].size);
		if (error)
			return error;
	}
	return 0;
}

/* Wait until the page at `vaddr` of a client's memory is there: 0, or as shim_move_parts(). */
int shim_reach(int mem, uint64_t vaddr)
{
	char byte;

	return move_part(mem, 0, vaddr, &byte, sizeof(byte));
}

/* The most bytes of address space for all windows: half of what a process has on x86. Clients can make sparse
 * files of any size, and the server needs some for itself. */
#define MAX_WINDOW_BYTES (1ull << 46)

static uint64_t window_bytes;

/* Map the pages of a file.  Returns their address, or NULL (without a reason) when they cannot be mapped. */
void *shim_window_open(int fd, uint64_t offset, uint64_t size, int write)
{
	void *base = MAP_FAILED;

	if (__atomic_add_fetch(&window_bytes, size, __ATOMIC_RELAXED) <= MAX_WINDOW_BYTES)
		base = mmap(NULL, size, PROT_READ | (write ? PROT_WRITE : 0), MAP_SHARED | MAP_NORESERVE, fd,
			    (off_t)offset);
	if (base != MAP_FAILED)
		return base;
	__atomic_sub_fetch(&window_bytes, size, __ATOMIC_RELAXED);
	return NULL;
}

void shim_window_close(void *base, uint64_t size)
{
	munmap(base, size);
	__atomic_sub_fetch(&window_bytes, size, __ATOMIC_RELAXED);
}

/* Copy between a window and `buf`; -EFAULT where the file has become too short. */
int shim_window_move(void *at, void *buf, uint64_t size, int write)
{
	return write ? guarded_move(at, buf, size) : guarded_move(buf, at, size);
}

/* Move `size` bytes between `buf` and `vaddr`. They must lie in one mapping, which is private or that of
 * `window` (NULL: none). Returns 0, SHIM_MOVE_*, or minus an errno (then a part may have moved).
 *
 * The client may change the mapping after the look at it. It reaches nothing but its own memory by that:
 * /proc/<pid>/mem never writes to a shared mapping that is read-only. */
int shim_move(const struct shim_memory *memory, const struct shim_window *window, uint64_t vaddr, void *buf,
	      uint64_t size, int flags)
{
	int write = flags & SHIM_MOVE_WRITE;
	struct shim_vma vma;

	if (!memory->can_query || shim_query_vma(memory->maps, vaddr, &vma))
		return SHIM_MOVE_ASK; /* or the memory is gone */
	if (size > vma.end - vaddr || !(vma.flags & (write ? SHIM_VMA_WRITE : SHIM_VMA_READ)))
		return SHIM_MOVE_ASK;
	if (vma.flags & SHIM_VMA_SHARED) {
		if (flags & SHIM_MOVE_PRIVATE || !window || memcmp(&vma, &window->vma, sizeof(vma)))
			return SHIM_MOVE_ASK;
		char *at = (char *)window->base + (vaddr - vma.start);
		return shim_window_move(at, buf, size, write) ? SHIM_MOVE_SHORT : 0;
	}
	if (makedev(vma.major, vma.minor) == memory->avoid)
		return SHIM_MOVE_ASK;
	return move_part(memory->mem, write, vaddr, buf, size);
}

/* Keep freed memory for the next use on any thread.  Buffers of DMA come and go, and new pages for each of
 * them cost more than the copying.  Called before there are other threads.  Source: mallopt(3). */
void shim_keep_memory(void)
{
	mallopt(M_ARENA_MAX, 1);
	mallopt(M_MMAP_THRESHOLD, MAX_KEPT);
	mallopt(M_TRIM_THRESHOLD, 2 * MAX_KEPT);
}
