/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Who acts in fuzz_model: users, which are processes that have devices open, and servers, which
 * are all in one thread of the worker. What may block does so in a user.
 */
#ifndef NBD_MODEL_H
#define NBD_MODEL_H

#include <netinet/tcp.h>
#include <pthread.h>
#include <sys/epoll.h>

#include "nbd_fuzz.h"

#define DEVS		4
#define USERS		6
#define FILES		24
#define SOCKS		256
#define PENDING		8
#define FILE_FD		100		/* file n is descriptor 100 + n of all who have it */
#define USER_CTL	3
#define BLOCK		4096UL

/* Users */

enum user_op { USER_OPEN, USER_CLOSE, USER_IOCTL, USER_SOCK, USER_READ, USER_WRITE, USER_DO_IT,
	       USER_PENDING, USER_FORK };

struct user_call {
	int op, file, slot;
	unsigned long arg;
	char path[32];
};

/* What goes on in a thread of a user. */
struct user_thread {
	atomic_int done, tid;
	atomic_long ret;
};

struct user_shared {
	unsigned char data[BLOCK];	/* what was read last; aligned for direct reads */
	struct user_thread do_it[DEVS], pending[PENDING];
};

static struct user_shared *shared;

struct user_job {
	struct user_thread *t;
	int fd;
	bool do_it;
};

static inline void *user_thread(void *arg)
{
	struct user_job *job = arg;
	void *buf = aligned_alloc(BLOCK, BLOCK);
	long ret;

	job->t->tid = syscall(SYS_gettid);
	if (job->do_it)
		ret = ioctl(job->fd, NBD_DO_IT);
	else
		ret = pread(job->fd, buf, BLOCK, 64 * BLOCK);
	job->t->ret = ret < 0 ? -errno : ret;
	job->t->done = 1;
	free(buf);
	free(job);
	return NULL;
}

static inline long user_job(struct user_thread *t, int fd, bool do_it)
{
	struct user_job *job = malloc(sizeof(*job));
	pthread_t id;

	*job = (struct user_job) { .t = t, .fd = fd, .do_it = do_it };
	if (pthread_create(&id, NULL, user_thread, job))
		return -EAGAIN;
	pthread_detach(id);
	return 0;
}

static inline void user_signal(int sig __maybe_unused)
{
}

static inline void user_main(void);

static inline long user_do(struct user_call *c, int passed)
{
	static unsigned char buf[BLOCK] __aligned(4096);
	int fd = FILE_FD + c->file, n;
	long ret = 0;
	pid_t pid;

	switch (c->op) {
	case USER_OPEN:
		n = open(c->path, (int)c->arg | O_RDWR | O_CLOEXEC);
		if (n < 0)
			return -errno;
		ret = dup2(n, fd) < 0 ? -errno : 0;
		close(n);
		return ret;
	case USER_CLOSE:
		return close(fd) ? -errno : 0;
	case USER_IOCTL:
		return ioctl(fd, c->slot, c->arg) ? -errno : 0;
	case USER_SOCK:
		/* Without a descriptor: one that is not open. */
		ret = ioctl(fd, NBD_SET_SOCK, passed < 0 ? 999 : passed);
		return ret ? -errno : 0;
	case USER_READ:
		ret = pread(fd, shared->data, BLOCK, 0);
		return ret < 0 ? -errno : ret;
	case USER_WRITE:
		memset(buf, c->arg, BLOCK);
		ret = pwrite(fd, buf, BLOCK, 0);
		if (ret > 0 && fdatasync(fd))
			ret = -1;
		return ret < 0 ? -errno : ret;
	case USER_DO_IT:
		return user_job(&shared->do_it[c->slot], fd, true);
	case USER_PENDING:
		return user_job(&shared->pending[c->slot], fd, false);
	case USER_FORK:
		pid = fork();
		if (pid)
			return pid < 0 ? -errno : pid;
		dup2(passed, USER_CTL);
		close(passed);
		user_main();
		_exit(0);
	}
	return -ENOSYS;
}

static inline int recv_call(int ctl, struct user_call *c, int *passed)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} u;
	struct iovec iov = { .iov_base = c, .iov_len = sizeof(*c) };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf,
			     .msg_controllen = sizeof(u.buf) };
	struct cmsghdr *h;

	*passed = -1;
	if (recvmsg(ctl, &mh, MSG_CMSG_CLOEXEC) != sizeof(*c))
		return -1;
	h = CMSG_FIRSTHDR(&mh);
	if (h && h->cmsg_type == SCM_RIGHTS)
		memcpy(passed, CMSG_DATA(h), sizeof(int));
	return 0;
}

static inline void user_main(void)
{
	struct sigaction sa = { .sa_handler = user_signal };
	struct user_call c;
	int passed;
	long ret;

	sigaction(SIGUSR1, &sa, NULL);
	signal(SIGCHLD, SIG_IGN);
	while (!recv_call(USER_CTL, &c, &passed)) {
		ret = user_do(&c, passed);
		if (passed >= 0)
			close(passed);
		if (send(USER_CTL, &ret, sizeof(ret), MSG_NOSIGNAL) != sizeof(ret))
			break;
	}
	_exit(0);
}

struct user {
	pid_t pid;			/* 0: there is none */
	int ctl, pidfd;
};

static struct user users[USERS];

/* What a user's call returns, or -ETIME. */
static inline long user_answer(struct user *u, int ms)
{
	struct pollfd p = { .fd = u->ctl, .events = POLLIN };
	long ret;

	if (poll_for(&p, 1, ms) != 1) {
		fuzz_fail("a call does not return");
		fuzz_stacks(u->pid);
		return -ETIME;
	}
	if (recv(u->ctl, &ret, sizeof(ret), MSG_DONTWAIT) != sizeof(ret)) {
		fuzz_fail("a user is gone");
		return -EPIPE;
	}
	return ret;
}

static inline long user_ask(struct user *u, struct user_call *c, int fd)
{
	int ret = send_msg(u->ctl, c, sizeof(*c), fd);

	if (ret) {
		fuzz_fail("cannot ask a user: %s", strerror(-ret));
		return ret;
	}
	return user_answer(u, 2500);
}

static inline bool user_start(struct user *u, struct user *parent)
{
	struct user_call c = { .op = USER_FORK };
	int ctl[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ctl))
		return false;
	if (parent) {
		u->pid = user_ask(parent, &c, ctl[1]);
	} else {
		u->pid = fork();
		if (!u->pid) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (dup2(ctl[1], USER_CTL) < 0)
				_exit(1);
			close_range(USER_CTL + 1, ~0U, 0);
			user_main();
		}
	}
	close(ctl[1]);
	u->ctl = ctl[0];
	u->pidfd = u->pid > 0 ? syscall(SYS_pidfd_open, u->pid, 0) : -1;
	return u->pidfd >= 0;
}

static inline bool user_kill(struct user *u)
{
	struct pollfd p = { .fd = u->pidfd, .events = POLLIN };
	bool ok;

	kill(u->pid, SIGKILL);
	ok = poll_for(&p, 1, 2500) == 1;
	if (!ok) {
		fuzz_fail("a user does not die");
		fuzz_stacks(u->pid);
	}
	waitpid(u->pid, NULL, WNOHANG);
	close(u->pidfd);
	close(u->ctl);
	u->pid = 0;
	return ok;
}

/* Servers */

enum sock_state {
	SOCK_FREE,
	SOCK_NEW,		/* on its way to the driver */
	SOCK_KEPT,		/* the driver must keep it */
	SOCK_DROPPED,		/* the driver must have closed it a second after that */
};

struct sock {
	int fd;
	enum sock_state state;
	int dev;
	bool mute;		/* requests are not read */
	unsigned char stamp;	/* what all data of the session are */
};

static struct sock socks[SOCKS];
static pthread_mutex_t socks_lock = PTHREAD_MUTEX_INITIALIZER;
static int socks_epoll;

static inline bool sock_recv(int fd, void *buf, size_t len)
{
	return recv(fd, buf, len, MSG_WAITALL) == (ssize_t)len;
}

/* Serve one request; false if nothing more will come. */
static inline bool sock_serve(struct sock *s)
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

/* Since when the step goes on, until it was said where it is stuck. */
static atomic_llong step_since;
/* How long it may take, in milliseconds. */
static int step_limit;

static inline void *socks_serve(void *arg __maybe_unused)
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

static inline bool socks_init(void)
{
	pthread_t id;

	socks_epoll = epoll_create1(EPOLL_CLOEXEC);
	return socks_epoll >= 0 && !pthread_create(&id, NULL, socks_serve, NULL);
}

/* Not for ever, whatever the driver does. */
static inline void sock_patience(int fd)
{
	struct timeval patience = { .tv_sec = scaled(3) };

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
}

/* A new server for a device; *fd is the driver's end. NULL if there is no room. */
static inline struct sock *sock_new(int dev, enum sock_kind kind, unsigned char stamp, int *fd)
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
static inline void sock_close(struct sock *s)
{
	pthread_mutex_lock(&socks_lock);
	epoll_ctl(socks_epoll, EPOLL_CTL_DEL, s->fd, NULL);
	close(s->fd);
	s->state = SOCK_FREE;
	pthread_mutex_unlock(&socks_lock);
}

/* Have the server stop reading, or go on. */
static inline void sock_mute(struct sock *s, bool mute)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u32 = s - socks };

	pthread_mutex_lock(&socks_lock);
	s->mute = mute;
	epoll_ctl(socks_epoll, mute ? EPOLL_CTL_DEL : EPOLL_CTL_ADD, s->fd, &ev);
	pthread_mutex_unlock(&socks_lock);
}

#endif /* NBD_MODEL_H */
