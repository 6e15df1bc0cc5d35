/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The floor: the least that a FUSE server in C does for what the benchmark asks of vfsfuse.  libfuse's low-level
 * API, one thread, nothing computed and nothing locked.
 *
 *   floor MOUNTPOINT     serves until it is unmounted; has printed "ready" once it is mounted
 *
 * reg    4 bytes, direct_io: read, write, and two of VFIO's ioctls, which FUSE hands on as a number and an address
 * attr   a line of text, direct_io; also below d, d/d and so on, for a path as long as the one it is compared with
 * many/  10,000 entries
 * cold/  as many, not listed: lookups of what a listing has not told the kernel
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 312
#include <errno.h>
#include <fuse3/fuse_lowlevel.h>
#include <linux/vfio.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define DEPTH 8
enum { ROOT = 1, REG, ATTR, MANY, COLD, DEEP, FIRST = DEEP + DEPTH };
#define ENTRIES 10000
#define CACHE 60.0
#define SIZE 4096

static char reg[SIZE];
static char text[SIZE] = "0x1234\n";

static int fill(fuse_ino_t ino, struct stat *st)
{
	memset(st, 0, sizeof(*st));
	st->st_ino = ino;
	st->st_mode = ino == ROOT || (ino >= MANY && ino < FIRST) ? S_IFDIR | 0755 : S_IFREG | 0644;
	st->st_nlink = 1;
	st->st_size = SIZE;
	return ino >= ROOT && ino < FIRST + 2 * ENTRIES ? 0 : ENOENT;
}

static fuse_ino_t find(fuse_ino_t parent, const char *name)
{
	static const char *const names[] = {[REG] = "reg", [ATTR] = "attr", [MANY] = "many", [COLD] = "cold"};

	if (parent == MANY || parent == COLD)
		return FIRST + (parent == COLD) * ENTRIES + strtoul(name + 1, NULL, 10);
	if (!strcmp(name, "d") && parent != FIRST - 1)
		return parent == ROOT ? DEEP : parent + 1;
	for (fuse_ino_t ino = REG; ino < DEEP; ino++)
		if (!strcmp(name, names[ino]))
			return ino;
	return 0;
}

static void do_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param e = {.ino = find(parent, name), .attr_timeout = CACHE, .entry_timeout = CACHE};

	if (fill(e.ino, &e.attr))
		fuse_reply_err(req, ENOENT);
	else
		fuse_reply_entry(req, &e);
}

static void do_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;
	int error = fill(ino, &st);

	(void)fi;
	if (error)
		fuse_reply_err(req, error);
	else
		fuse_reply_attr(req, &st, CACHE);
}

static void do_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *st, int what, struct fuse_file_info *fi)
{
	(void)st, (void)what;
	do_getattr(req, ino, fi); /* O_TRUNC of a shell's > */
}

static void do_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	fi->direct_io = 1;
	fuse_reply_open(req, fi);
}

static void do_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino, (void)fi;
	fuse_reply_err(req, 0);
}

static void do_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	size_t end = ino == REG ? SIZE : strlen(text);
	size_t from = (size_t)off & (SIZE - 1);

	(void)fi;
	if (from > end)
		from = end;
	fuse_reply_buf(req, (ino == REG ? reg : text) + from, size < end - from ? size : end - from);
}

static void do_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off,
		     struct fuse_file_info *fi)
{
	(void)ino, (void)off, (void)fi;
	memcpy(reg, buf, size < SIZE ? size : SIZE);
	fuse_reply_write(req, size);
}

static void region_info(fuse_req_t req, void *arg)
{
	struct vfio_region_info info;
	struct iovec local = {&info, sizeof(info)}, remote = {arg, sizeof(info)};
	pid_t pid = fuse_req_ctx(req)->pid;

	if (process_vm_readv(pid, &local, 1, &remote, 1, 0) != sizeof(info))
		return (void)fuse_reply_err(req, EFAULT);
	info.size = SIZE;
	info.offset = (__u64)info.index << 40;
	if (process_vm_writev(pid, &local, 1, &remote, 1, 0) != sizeof(info))
		return (void)fuse_reply_err(req, EFAULT);
	fuse_reply_ioctl(req, 0, NULL, 0);
}

static void do_ioctl(fuse_req_t req, fuse_ino_t ino, unsigned int cmd, void *arg, struct fuse_file_info *fi,
		     unsigned flags, const void *in, size_t in_size, size_t out_size)
{
	(void)ino, (void)fi, (void)flags, (void)in, (void)in_size, (void)out_size;
	if (cmd == VFIO_DEVICE_GET_REGION_INFO)
		region_info(req, arg);
	else
		fuse_reply_ioctl(req, cmd == VFIO_CHECK_EXTENSION, NULL, 0);
}

static void list(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, int plus)
{
	char *buf = malloc(size), name[16];
	size_t used = 0;
	struct fuse_entry_param e = {.attr_timeout = CACHE, .entry_timeout = CACHE};

	for (off_t i = off; ino == MANY && i < ENTRIES; i++) {
		snprintf(name, sizeof(name), "e%05d", (int)i);
		fill(e.ino = FIRST + (fuse_ino_t)i, &e.attr);
		size_t room = size - used;
		size_t need = plus ? fuse_add_direntry_plus(req, buf + used, room, name, &e, i + 1) :
				     fuse_add_direntry(req, buf + used, room, name, &e.attr, i + 1);
		if (need > room)
			break;
		used += need;
	}
	fuse_reply_buf(req, buf, used);
	free(buf);
}

static void do_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	(void)fi;
	list(req, ino, size, off, 0);
}

static void do_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	(void)fi;
	list(req, ino, size, off, 1);
}

static const struct fuse_lowlevel_ops ops = {
	.lookup = do_lookup,
	.getattr = do_getattr,
	.setattr = do_setattr,
	.open = do_open,
	.read = do_read,
	.write = do_write,
	.ioctl = do_ioctl,
	.release = do_release,
	.readdir = do_readdir,
	.readdirplus = do_readdirplus,
};

int main(int argc, char **argv)
{
	char *options[] = {argv[0], "-o", "fsname=floor"};
	struct fuse_args args = FUSE_ARGS_INIT(3, options);
	struct fuse_session *se = argc == 2 ? fuse_session_new(&args, &ops, sizeof(ops), NULL) : NULL;

	if (!se || fuse_session_mount(se, argv[1])) {
		fprintf(stderr, "usage: floor MOUNTPOINT\n");
		return 1;
	}
	puts("ready"), fflush(stdout);
	fuse_session_loop(se);
	fuse_session_unmount(se);
	return 0;
}
