// SPDX-License-Identifier: GPL-2.0
/*
 * The users of fuzz_model: processes that have devices open. What may block does so in a user.
 */
#include "model.h"

struct user_shared *shared;
struct user users[USERS];

struct user_job {
	struct user_thread *t;
	int fd;
	bool do_it;
};

static void user_main(void);

static void *user_thread(void *arg)
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

static long user_job(struct user_thread *t, int fd, bool do_it)
{
	struct user_job *job = malloc(sizeof(*job));
	pthread_t id;

	*job = (struct user_job) { .t = t, .fd = fd, .do_it = do_it };
	if (pthread_create(&id, NULL, user_thread, job))
		return -EAGAIN;
	pthread_detach(id);
	return 0;
}

static void user_signal(int sig __maybe_unused)
{
}

static long user_do(struct user_call *c, int passed)
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

static int recv_call(int ctl, struct user_call *c, int *passed)
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

static void user_main(void)
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

/* What a user's call returns, or -ETIME. */
static long user_answer(struct user *u, int ms)
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

long user_ask(struct user *u, struct user_call *c, int fd)
{
	int ret = send_msg(u->ctl, c, sizeof(*c), fd);

	if (ret) {
		fuzz_fail("cannot ask a user: %s", strerror(-ret));
		return ret;
	}
	return user_answer(u, 2500);
}

bool user_start(struct user *u, struct user *parent)
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

bool user_kill(struct user *u)
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
