// SPDX-License-Identifier: GPL-2.0
/*
 * The servers of fuzz_model, which are all in one thread of the worker.
 */
#include <netinet/tcp.h>
#include <sys/epoll.h>

#include "model.h"

struct sock socks[SOCKS];
pthread_mutex_t socks_lock = PTHREAD_MUTEX_INITIALIZER;
atomic_llong step_since;
int step_limit;

static int socks_epoll;

static bool sock_recv(int fd, void *buf, size_t len)
{
	return recv(fd, buf, len, MSG_WAITALL) == (ssize_t)len;
}

/* Serve one request; false if nothing more will come. */
static bool sock_serve(struct sock *s)
{
	static unsigned char buf[64 << 10];
	struct nbd_reply reply = { .magic = htobe32(NBD_REPLY_MAGIC) };
	struct nbd_request h;
	uint32_t type, left, n;

	if (!sock_recv(s->fd, &h, sizeof(h)))
		return false;
	if (be32toh(h.magic) != NBD_REQUEST_MAGIC) {
		fuzz_fail("no request");
		return false;
	}
	type = be32toh(h.type) & 0xffff;
	if (type == NBD_CMD_DISC) {
		shutdown(s->fd, SHUT_WR);
		return false;
	}
	for (left = type == NBD_CMD_WRITE ? be32toh(h.len) : 0; left; left -= n) {
		n = left < sizeof(buf) ? left : sizeof(buf);
		if (!sock_recv(s->fd, buf, n))
			return false;
		if (buf[0] != s->stamp)
			fuzz_fail("data of session %d were written to session %d", buf[0],
				  s->stamp);
	}
	reply.cookie = h.cookie;
	if (send(s->fd, &reply, sizeof(reply), MSG_NOSIGNAL) != sizeof(reply))
		return false;
	memset(buf, s->stamp, sizeof(buf));
	for (left = type == NBD_CMD_READ ? be32toh(h.len) : 0; left; left -= n) {
		n = left < sizeof(buf) ? left : sizeof(buf);
		if (send(s->fd, buf, n, MSG_NOSIGNAL) != (ssize_t)n)
			return false;
	}
	return true;
}

static void *socks_serve(void *arg __maybe_unused)
{
	struct pollfd p = { .events = POLLIN };
	struct epoll_event ev;
	long long since;

	for (;;) {
		struct sock *s;

		if (epoll_wait(socks_epoll, &ev, 1, 200) != 1) {
			since = step_since;
			if (since && now_ms() - since > scaled(2200)) {
				step_since = 0;
				fuzz_say("for more than two seconds: %s", fuzz->doing);
				fuzz_stacks(getpid());
			}
			continue;
		}
		pthread_mutex_lock(&socks_lock);
		s = &socks[ev.data.u32];
		/* By now it may be another one. */
		p.fd = s->fd;
		if (poll(&p, 1, 0) == 1 && s->state != SOCK_FREE && !s->mute && !sock_serve(s))
			epoll_ctl(socks_epoll, EPOLL_CTL_DEL, s->fd, NULL);
		pthread_mutex_unlock(&socks_lock);
	}
	return NULL;
}

bool socks_init(void)
{
	pthread_t id;

	socks_epoll = epoll_create1(EPOLL_CLOEXEC);
	return socks_epoll >= 0 && !pthread_create(&id, NULL, socks_serve, NULL);
}

/* Not for ever, whatever the driver does. */
static void sock_patience(int fd)
{
	struct timeval patience = { .tv_sec = scaled(3) };

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
}

/* A new server for a device; *fd is the driver's end. NULL if there is no room. */
struct sock *sock_new(int dev, enum sock_kind kind, unsigned char stamp, int *fd)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int pair[2], one = 1, i;

	for (i = 0; i < SOCKS && socks[i].state != SOCK_FREE; i++)
		;
	if (i == SOCKS || make_pair(kind, pair))
		return NULL;
	sock_patience(pair[1]);
	/* A reply is sent in parts: no part waits until the one before it was acknowledged. */
	if (kind == KIND_TCP)
		setsockopt(pair[1], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	pthread_mutex_lock(&socks_lock);
	socks[i] = (struct sock) { .fd = pair[1], .state = SOCK_NEW, .dev = dev, .stamp = stamp };
	ev.data.u32 = i;
	epoll_ctl(socks_epoll, EPOLL_CTL_ADD, pair[1], &ev);
	pthread_mutex_unlock(&socks_lock);
	*fd = pair[0];
	return &socks[i];
}

/* The server is gone, or its socket is not needed any more. */
void sock_close(struct sock *s)
{
	pthread_mutex_lock(&socks_lock);
	epoll_ctl(socks_epoll, EPOLL_CTL_DEL, s->fd, NULL);
	close(s->fd);
	s->state = SOCK_FREE;
	pthread_mutex_unlock(&socks_lock);
}

/* Have the server stop reading, or go on. */
void sock_mute(struct sock *s, bool mute)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u32 = s - socks };

	pthread_mutex_lock(&socks_lock);
	s->mute = mute;
	epoll_ctl(socks_epoll, mute ? EPOLL_CTL_DEL : EPOLL_CTL_ADD, s->fd, &ev);
	pthread_mutex_unlock(&socks_lock);
}
