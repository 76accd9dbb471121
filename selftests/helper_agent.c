// SPDX-License-Identifier: GPL-2.0
/*
 * A process that does to the device what a test tells it through the socket at AGENT_CTL; see
 * lib/nbd_test.h.
 *
 * Usage: helper_agent DEVICE
 */
#define _GNU_SOURCE
#define _FILE_OFFSET_BITS 64
#include <linux/aio_abi.h>
#include <pthread.h>
#include <sched.h>

#include "nbd_test.h"

#define AIO_MAX	64

static const char *path;
static int ctl = AGENT_CTL;
static int slots[AGENT_SLOTS];
static aio_context_t aio;

struct job {
	struct agent_msg m;
	int fd;			/* that came along, or -1 */
	int64_t ret, aux;
};

static void on_signal(int sig __maybe_unused)
{
}

static void reply(struct job *j)
{
	struct agent_reply r = { .seq = j->m.seq, .ret = j->ret, .aux = j->aux };

	send_msg(ctl, &r, sizeof(r), -1);
}

static int put_slot(unsigned int slot, int fd)
{
	if (fd < 0)
		return -errno;
	if (slots[slot] >= 0 && slots[slot] != fd)
		close(slots[slot]);
	slots[slot] = fd;
	return 0;
}

static long do_io(int fd, bool write, uint64_t off, uint64_t len)
{
	void *buf;
	long n;

	if (posix_memalign(&buf, 4096, len ?: 1))
		return -ENOMEM;
	memset(buf, write ? 0 : 0xff, len);
	n = write ? pwrite(fd, buf, len, off) : pread(fd, buf, len, off);
	if (n < 0)
		n = -errno;
	free(buf);
	return n;
}

static long aio_submit(int fd, unsigned int n)
{
	static struct iocb iocb[AIO_MAX], *list[AIO_MAX];
	static char buf[AIO_MAX][4096] __aligned(4096);
	unsigned int i;
	long ret;

	if (n > AIO_MAX)
		return -EINVAL;
	if (!aio && syscall(SYS_io_setup, AIO_MAX, &aio))
		return -errno;
	for (i = 0; i < n; i++) {
		iocb[i] = (struct iocb) {
			.aio_lio_opcode = IOCB_CMD_PREAD,
			.aio_fildes = fd,
			.aio_buf = (uintptr_t)buf[i],
			.aio_nbytes = 4096,
			/* Not adjacent, so that they are not merged. */
			.aio_offset = i * 8192,
		};
		list[i] = &iocb[i];
	}
	ret = syscall(SYS_io_submit, aio, (long)n, list);
	return ret < 0 ? -errno : ret;
}

static long aio_wait(long n, long ms, int64_t *eio)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000 };
	struct io_event ev[AIO_MAX];
	long i, ret;

	ret = syscall(SYS_io_getevents, aio, n, n, ev, &ts);
	if (ret < 0)
		return -errno;
	for (i = 0; i < ret; i++)
		*eio += ev[i].res == -EIO;
	return ret;
}

static long rounds(int dev, long n, enum sock_kind kind, int64_t *no_eof_rounds)
{
	int ms = SOON;
	long i;

	for (i = 0; i < n; i++) {
		int fd[2];

		if (make_pair(kind, fd))
			return -errno;
		if (ioctl(dev, NBD_SET_SOCK, fd[0]) || ioctl(dev, NBD_CLEAR_SOCK, 0))
			return -errno;
		close(fd[0]);
		/* The first time is shown in full, after that it is only counted. */
		if (!saw_eof(fd[1], ms)) {
			++*no_eof_rounds;
			ms = 0;
		}
		close(fd[1]);
	}
	return n;
}

static void __noreturn serve(void);

static void *serve_thread(void *arg __maybe_unused)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	serve();
}

static void do_exec(struct job *j)
{
	char seq[16], dev[16];

	snprintf(seq, sizeof(seq), "%u", j->m.seq);
	snprintf(dev, sizeof(dev), "%d", slots[0]);
	fcntl(ctl, F_SETFD, 0);
	fcntl(slots[0], F_SETFD, 0);
	execl("/proc/self/exe", "helper_agent", path, seq, dev, NULL);
	j->ret = -errno;
}

static void do_fork(struct job *j)
{
	pid_t pid = fork();

	if (pid) {
		j->ret = pid < 0 ? -errno : pid;
		close(j->fd);
		return;
	}
	prctl(PR_SET_PDEATHSIG, 0);
	dup2(j->fd, ctl);
	close(j->fd);
	serve();
}

static void run(struct job *j)
{
	struct agent_msg *m = &j->m;
	unsigned int slot = m->slot % AGENT_SLOTS;
	cpu_set_t cpus;
	pthread_t t;
	long ret = 0;
	int fd;

	switch (m->op) {
	case AGENT_OPEN:
		ret = put_slot(slot, open(path, (int)m->arg | O_CLOEXEC));
		break;
	case AGENT_CLOSE:
		ret = close(slots[slot]) ? -errno : 0;
		slots[slot] = -1;
		break;
	case AGENT_TAKE:
		ret = put_slot(slot, j->fd);
		break;
	case AGENT_DUP:
		fd = slots[m->arg2 % AGENT_SLOTS];
		fd = m->arg ? dup3(fd, m->arg, O_CLOEXEC) : fcntl(fd, F_DUPFD_CLOEXEC, 0);
		ret = put_slot(slot, fd);
		break;
	case AGENT_FD:
		ret = slots[slot];
		break;
	case AGENT_IOCTL:
		ret = ioctl(slots[slot], m->arg, (unsigned long)m->arg2);
		ret = ret < 0 ? -errno : ret;
		break;
	case AGENT_IOCTL_FD:
		ret = ioctl(slots[slot], m->arg, (unsigned long)slots[m->arg2 % AGENT_SLOTS]);
		ret = ret < 0 ? -errno : ret;
		break;
	case AGENT_READ:
	case AGENT_WRITE:
		ret = do_io(slots[slot], m->op == AGENT_WRITE, m->arg, m->arg2);
		break;
	case AGENT_AIO_SUBMIT:
		ret = aio_submit(slots[slot], m->arg);
		break;
	case AGENT_AIO_WAIT:
		ret = aio_wait(m->arg, m->arg2, &j->aux);
		break;
	case AGENT_FORK:
		do_fork(j);
		ret = j->ret;
		break;
	case AGENT_EXEC:
		do_exec(j);
		ret = j->ret;
		break;
	case AGENT_LEADER_EXIT:
		if (pthread_create(&t, NULL, serve_thread, NULL))
			break;
		reply(j);
		/* Not pthread_exit(), nor return: this thread alone. */
		syscall(SYS_exit, 0);
		break;
	case AGENT_DROP_CAPS:
		ret = setresuid(65534, 65534, 65534) ? -errno : 0;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		break;
	case AGENT_CPU:
		CPU_ZERO(&cpus);
		CPU_SET(m->arg, &cpus);
		ret = sched_setaffinity(0, sizeof(cpus), &cpus) ? -errno : 0;
		break;
	case AGENT_ROUNDS:
		ret = rounds(slots[slot], m->arg, m->arg2, &j->aux);
		break;
	case AGENT_EXIT:
		_exit(0);
	default:
		ret = -EOPNOTSUPP;
	}
	j->ret = ret;
}

static void *job_thread(void *arg)
{
	struct job *j = arg;
	sigset_t set;

	/* So that a signal to the process goes to a thread that is in an ioctl. */
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	run(j);
	if (j->m.flags & AGENT_ASYNC) {
		reply(j);
		free(j);
	}
	return NULL;
}

static void serve(void)
{
	for (;;) {
		struct job *j = calloc(1, sizeof(*j));
		union {
			char buf[CMSG_SPACE(sizeof(int))];
			struct cmsghdr align;
		} u;
		struct iovec iov = { .iov_base = &j->m, .iov_len = sizeof(j->m) };
		struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1,
				     .msg_control = u.buf, .msg_controllen = sizeof(u.buf) };
		struct cmsghdr *c;
		pthread_t t;

		if (recvmsg(ctl, &mh, MSG_CMSG_CLOEXEC) != sizeof(j->m))
			_exit(0);
		j->fd = -1;
		c = CMSG_FIRSTHDR(&mh);
		if (c && c->cmsg_type == SCM_RIGHTS)
			memcpy(&j->fd, CMSG_DATA(c), sizeof(int));
		if (j->m.flags) {
			if (pthread_create(&t, NULL, job_thread, j))
				_exit(1);
			if (j->m.flags & AGENT_ASYNC) {
				pthread_detach(t);
				continue;
			}
			pthread_join(t, NULL);
		} else {
			run(j);
		}
		reply(j);
		free(j);
	}
}

int main(int argc, char **argv)
{
	struct sigaction sa = { .sa_handler = on_signal };
	sigset_t set;
	int i;

	if (argc < 2)
		return 1;
	path = argv[1];
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (i = 0; i < AGENT_SLOTS; i++)
		slots[i] = -1;
	/* No SA_RESTART: NBD_DO_IT is to return. */
	sigaction(SIGUSR1, &sa, NULL);
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fcntl(ctl, F_SETFD, FD_CLOEXEC);
	if (argc == 4) {
		struct job j = { .m.seq = atoi(argv[2]) };

		slots[0] = atoi(argv[3]);
		fcntl(slots[0], F_SETFD, FD_CLOEXEC);
		reply(&j);
	}
	serve();
}
