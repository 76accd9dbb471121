// SPDX-License-Identifier: GPL-2.0
/*
 * For tests in shell: a session over a connection that the kernel encrypts, with a server that has
 * a file.
 *
 * Usage:
 *	helper_tls DEVICE FILE BLKSIZE: connects the device, of the file's size, by ioctls, and ends
 *		with the session, with status 0 if NBD_DO_IT has returned 0 and the server was told
 *		to disconnect
 */
#define _GNU_SOURCE
#include <err.h>

#include "nbd_peer.h"

static int file;

/* All of the file's data moves in one piece, of at most this much. */
static unsigned char payload[32 << 20];

/* Do one request; what a hole of the file reads as is zero. */
static uint32_t serve_one(struct nbd_request *h, uint32_t type, uint32_t len)
{
	off_t from = be64toh(h->from);
	ssize_t n = 0;

	switch (type) {
	case NBD_CMD_READ:
		n = pread(file, payload, len, from);
		break;
	case NBD_CMD_WRITE:
		n = pwrite(file, payload, len, from);
		break;
	case NBD_CMD_FLUSH:
		return 0;
	case NBD_CMD_TRIM:
		return fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, len) ?
		       EIO : 0;
	default:
		/* What the protocol calls EINVAL. */
		return 22;
	}
	return n == (ssize_t)len ? 0 : EIO;
}

static int serve(int fd)
{
	struct nbd_reply reply = { .magic = htobe32(NBD_REPLY_MAGIC) };
	uint32_t type, len, error;
	struct nbd_request h;

	while (read_full(fd, &h, sizeof(h)) && be32toh(h.magic) == NBD_REQUEST_MAGIC) {
		type = be32toh(h.type) & 0xffff;
		len = be32toh(h.len);
		if (type == NBD_CMD_DISC)
			return 0;
		if (type <= NBD_CMD_WRITE && len > sizeof(payload))
			return 1;
		if (type == NBD_CMD_WRITE && !read_full(fd, payload, len))
			return 1;
		error = serve_one(&h, type, len);
		reply.error = htobe32(error);
		reply.cookie = h.cookie;
		if (!write_full(fd, &reply, sizeof(reply)) ||
		    (type == NBD_CMD_READ && !error && !write_full(fd, payload, len)))
			return 1;
	}
	return 1;
}

int main(int argc, char **argv)
{
	unsigned long flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_TRIM;
	struct peer_session s = { .tcp = true, .tls = true };
	int pair[2], dev, status;
	struct stat st;
	pid_t pid;

	if (argc != 4) {
		fprintf(stderr, "usage: %s DEVICE FILE BLKSIZE\n", argv[0]);
		return 2;
	}
	file = open(argv[2], O_RDWR | O_CLOEXEC);
	if (file < 0 || fstat(file, &st))
		err(1, "%s", argv[2]);
	if (peer_pair(&s, pair))
		err(1, "TLS");
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (!pid) {
		close(pair[0]);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(serve(pair[1]));
	}
	close(pair[1]);
	dev = open(argv[1], O_RDWR | O_CLOEXEC);
	if (dev < 0)
		err(1, "%s", argv[1]);
	if (ioctl(dev, NBD_SET_SOCK, pair[0]) ||
	    ioctl(dev, NBD_SET_BLKSIZE, strtoul(argv[3], NULL, 0)) ||
	    ioctl(dev, NBD_SET_SIZE, (unsigned long)st.st_size) ||
	    ioctl(dev, NBD_SET_FLAGS, flags))
		err(1, "setup");
	close(pair[0]);
	if (ioctl(dev, NBD_DO_IT))
		err(1, "DO_IT");
	if (waitpid(pid, &status, 0) != pid || status)
		errx(1, "the server was not told to disconnect");
	return 0;
}
