/* SPDX-License-Identifier: Apache-2.0 */
/* Which program a thread runs, and which file is behind a descriptor: facts that the kernel tells by itself.
 *
 * No call here touches the memory of a client or asks a file system that a client may answer for. Any thread.
 * Source: proc_pid_stat(5), statx(2). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client.cdef"

/* Fields of /proc/<tid>/stat by number: starttime, startcode, endcode, startstack, start_data, end_data, start_brk,
 * arg_start, arg_end, env_start, env_end. An exec chooses all but the first anew. */
static const int wanted[SHIM_IMAGE_WORDS] = {22, 26, 27, 28, 45, 46, 47, 48, 49, 50, 51};
#define FIRST 3 /* the number of the field behind the name of the program, which may have spaces */

/* Read `words` by `image->stat`. Returns 0, or -ESRCH when the thread has ended. */
int shim_image_read(struct shim_image *image)
{
	char text[2048];
	ssize_t got = pread(image->stat, text, sizeof(text) - 1, 0);

	if (got <= 0)
		return -ESRCH;
	text[got] = '\0';
	const char *at = strrchr(text, ')');
	int field = FIRST - 1;
	for (int i = 0; i < SHIM_IMAGE_WORDS; i++) {
		for (; at && field < wanted[i]; field++)
			at = strchr(at + 1, ' ');
		if (!at)
			return -ESRCH;
		image->words[i] = strtoull(at, NULL, 10);
	}
	return 0;
}

/* Whether the thread still runs the program that it ran when `image` was read: 1, or 0. */
int shim_image_same(const struct shim_image *image)
{
	struct shim_image now = {.stat = image->stat};

	return !shim_image_read(&now) && !memcmp(now.words, image->words, sizeof(now.words));
}

/* Whether the file at the absolute `path`, or behind `fd` (which may be of O_PATH) when `path` is empty, is the
 * regular file behind `vma`: 1, or 0. */
int shim_is_file(int fd, const char *path, const struct shim_vma *vma)
{
	struct statx found;

	if (statx(fd, path, AT_EMPTY_PATH | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &found))
		return 0;
	return S_ISREG(found.stx_mode) && found.stx_ino == vma->inode && found.stx_dev_major == vma->major &&
	       found.stx_dev_minor == vma->minor;
}
