// SPDX-License-Identifier: GPL-2.0
/*
 * I/O of a kind that other programs do not offer, for tests in shell.
 *
 * Usage:
 *	helper_io read|write DEVICE PAGES SWITCH: one direct request of so many pages, no two of
 *		which are beside each other in memory
 *	helper_io batch DEVICE WRITES SWITCH: so many direct writes of a page each, no two of which
 *		are beside each other on the device, given to the kernel in one call
 *
 *	helper_io hold DEVICE STARTED ENDED: read and write again and again, until that fails, and
 *		keep the device open until it is killed; makes the file STARTED when the first
 *		round is over, and ENDED when no more follow
 *
 * SWITCH is a file in which 1 is written before the I/O, when the device is open, and 0 after it.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE	4096
#define MAX	256

static void set(const char *file, const char *value)
{
	int fd = open(file, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, value, 1) != 1)
		err(1, "%s", file);
	close(fd);
}

/* Every second page of a piece of memory, the last one first. */
static char *page(char *memory, int n, int i)
{
	return memory + (n - 1 - i) * 2 * PAGE;
}

static ssize_t one(int fd, bool is_write, char *memory, int n)
{
	struct iovec iov[MAX];
	int i;

	for (i = 0; i < n; i++)
		iov[i] = (struct iovec) { .iov_base = page(memory, n, i), .iov_len = PAGE };
	return is_write ? pwritev(fd, iov, n, 0) : preadv(fd, iov, n, 0);
}

static ssize_t batch(int fd, char *memory, int n, aio_context_t ctx)
{
	struct iocb cb[MAX] = {}, *list[MAX];
	struct io_event event[MAX];
	ssize_t done = 0;
	int i;

	for (i = 0; i < n; i++) {
		cb[i].aio_lio_opcode = IOCB_CMD_PWRITE;
		cb[i].aio_fildes = fd;
		cb[i].aio_buf = (uintptr_t)page(memory, n, i);
		cb[i].aio_nbytes = PAGE;
		cb[i].aio_offset = i * 2 * PAGE;
		list[i] = &cb[i];
	}
	if (syscall(SYS_io_submit, ctx, n, list) != n)
		err(1, "io_submit");
	if (syscall(SYS_io_getevents, ctx, n, n, event, NULL) != n)
		err(1, "io_getevents");
	for (i = 0; i < n; i++)
		done += event[i].res;
	return done;
}

static void make(const char *file)
{
	int fd = open(file, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

	if (fd < 0)
		err(1, "%s", file);
	close(fd);
}

static void hold(const char *device, const char *started, const char *ended)
{
	static char buf[16 * PAGE] __attribute__((__aligned__(PAGE)));
	int fd = open(device, O_RDWR | O_DIRECT | O_CLOEXEC), i;
	bool ok = true;

	if (fd < 0)
		err(1, "%s", device);
	while (ok) {
		for (i = 0; ok && i < 16; i++)
			ok = pread(fd, buf, sizeof(buf), i * sizeof(buf)) == sizeof(buf);
		for (i = 0; ok && i < 16; i++)
			ok = pwrite(fd, buf, sizeof(buf), i * sizeof(buf)) == sizeof(buf);
		if (ok)
			make(started);
	}
	make(ended);
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	aio_context_t ctx = 0;
	const char *what;
	char *memory;
	ssize_t done;
	int fd, n;

	if (argc != 5)
		errx(1, "usage: see the source");
	what = argv[1];
	if (!strcmp(what, "hold"))
		hold(argv[2], argv[3], argv[4]);
	n = atoi(argv[3]);
	if (n < 1 || n > MAX)
		errx(1, "%s pages", argv[3]);
	memory = mmap(NULL, n * 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		      -1, 0);
	if (memory == MAP_FAILED)
		err(1, "mmap");
	/* All pages must be there, and small, for the ones between to keep them apart. */
	madvise(memory, n * 2 * PAGE, MADV_NOHUGEPAGE);
	memset(memory, 'x', n * 2 * PAGE);
	fd = open(argv[2], O_RDWR | O_DIRECT | O_CLOEXEC);
	if (fd < 0)
		err(1, "%s", argv[2]);
	if (syscall(SYS_io_setup, n, &ctx))
		err(1, "io_setup");
	set(argv[4], "1");
	if (!strcmp(what, "batch"))
		done = batch(fd, memory, n, ctx);
	else
		done = one(fd, !strcmp(what, "write"), memory, n);
	set(argv[4], "0");
	if (done != n * PAGE)
		err(1, "%zd of %d bytes", done, n * PAGE);
	return 0;
}
