// SPDX-License-Identifier: GPL-2.0
/*
 * Toy servers, which have only zeros.
 */
#include "nbd_test.h"

static bool toy_read(int fd, void *buf, size_t len)
{
	return len == 0 || recv(fd, buf, len, MSG_WAITALL) == (ssize_t)len;
}

static void toy_main(enum toy_mode mode, int *requests)
{
	static char zeros[65536], junk[65536];
	struct nbd_reply reply = { .magic = htobe32(NBD_REPLY_MAGIC) };
	struct nbd_request h;

	while (toy_read(AGENT_CTL, &h, sizeof(h))) {
		uint32_t type = be32toh(h.type) & 0xffff, len = be32toh(h.len), left, n;

		for (left = type == NBD_CMD_WRITE ? len : 0; left; left -= n) {
			n = left < sizeof(junk) ? left : sizeof(junk);
			if (!toy_read(AGENT_CTL, junk, n))
				_exit(0);
		}
		__atomic_add_fetch(requests, 1, __ATOMIC_SEQ_CST);
		if (mode == TOY_MUTE)
			continue;
		if (type == NBD_CMD_DISC)
			break;
		reply.cookie = h.cookie;
		send(AGENT_CTL, &reply, sizeof(reply), MSG_NOSIGNAL);
		for (left = type == NBD_CMD_READ ? len : 0; left; left -= n) {
			n = left < sizeof(zeros) ? left : sizeof(zeros);
			if (send(AGENT_CTL, zeros, n, MSG_NOSIGNAL) != (ssize_t)n)
				_exit(0);
		}
	}
	/* Only this direction: whether the driver closes its own is what tests look at. */
	shutdown(AGENT_CTL, SHUT_WR);
	_exit(0);
}

int toy_start(struct toy *t, int fd, enum toy_mode mode)
{
	t->fd = fd;
	t->requests = shared_memory(4096);
	if (!t->requests)
		return -ENOMEM;
	fflush(NULL);
	t->pid = fork();
	if (t->pid < 0)
		return -errno;
	if (!t->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (fd != AGENT_CTL)
			dup2(fd, AGENT_CTL);
		close_range(AGENT_CTL + 1, ~0U, 0);
		toy_main(mode, t->requests);
	}
	nbd_child(t->pid);
	return 0;
}

int toy_requests(struct toy *t)
{
	return __atomic_load_n(t->requests, __ATOMIC_SEQ_CST);
}

/* The server ends its side; the test can still see whether the driver does. */
void toy_hang_up(struct toy *t)
{
	shutdown(t->fd, SHUT_WR);
}

/* The server dies. */
void toy_kill(struct toy *t)
{
	close(t->fd);
	t->fd = -1;
	kill(t->pid, SIGKILL);
	reap(t->pid, BOUNDED);
}
