/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the state tests share. The test itself never touches the device: it tells agents
 * (helper_agent, a process each) what to do and waits for their answer with a deadline, so that
 * a driver that hangs fails one test and leaves one stuck agent and one device that nobody uses
 * again.
 */
#ifndef NBD_TEST_H
#define NBD_TEST_H

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <linux/nbd.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/*
 * The harness has 30 s for a test, too little for some on a debug kernel. What hangs is found by
 * the deadlines in the tests, which are scaled.
 */
#undef TEST_TIMEOUT_DEFAULT
#define TEST_TIMEOUT_DEFAULT	150

#ifndef __maybe_unused
#define __maybe_unused __attribute__((__unused__))
#endif
#ifndef __noreturn
#define __noreturn __attribute__((__noreturn__))
#endif
#ifndef __aligned
#define __aligned(x) __attribute__((__aligned__(x)))
#endif
#ifndef ARRAY_SIZE
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))
#endif

#define NBD_DEVICES	64
#define NBD_MARKS	"/run/nbd-selftest"
#define AGENT_CTL	3
#define AGENT_SLOTS	16
/* Where agent_take() puts a descriptor that only passes through. */
#define AGENT_TMP	(AGENT_SLOTS - 1)

/* Deadlines in milliseconds: for what must be at once, and for what must not hang. */
#define SOON		1000
#define BOUNDED		4000

enum agent_op {
	AGENT_OPEN,		/* arg: open flags */
	AGENT_CLOSE,
	AGENT_TAKE,		/* put the descriptor that comes along into the slot */
	AGENT_DUP,		/* from slot arg2 into the slot; arg: its number, or 0 */
	AGENT_FD,		/* the number of the slot's descriptor */
	AGENT_IOCTL,		/* arg: request, arg2: argument */
	AGENT_IOCTL_FD,		/* arg: request, arg2: slot whose descriptor is the argument */
	AGENT_READ,		/* arg: offset, arg2: length */
	AGENT_WRITE,
	AGENT_AIO_SUBMIT,	/* arg: number of reads of 4 KiB */
	AGENT_AIO_WAIT,		/* arg: number, arg2: ms; aux: how many of them ended with EIO */
	AGENT_FORK,		/* the child serves the descriptor that comes along; ret: pid */
	AGENT_EXEC,		/* keeps slot 0 */
	AGENT_LEADER_EXIT,	/* the first thread ends, another one serves on */
	AGENT_DROP_CAPS,
	AGENT_CPU,		/* arg: run on this CPU only */
	AGENT_ROUNDS,		/* case B, arg times; arg2: kind; aux: rounds without EOF */
	AGENT_EXIT,
};

#define AGENT_THREAD	1	/* in another thread */
#define AGENT_ASYNC	2	/* in another thread, while others are served */

/* The same layout for 32 and 64 bits. */
struct agent_msg {
	uint32_t op, seq, slot, flags;
	uint64_t arg, arg2;
};

struct agent_reply {
	uint32_t seq, pad;
	int64_t ret, aux;
};

/* All ioctls of the driver, and one that it does not have. */
static const struct {
	unsigned long cmd;
	const char *name;
} nbd_ioctls[] __attribute__((unused)) = {
	{ NBD_SET_SOCK, "SET_SOCK" },
	{ NBD_SET_BLKSIZE, "SET_BLKSIZE" },
	{ NBD_SET_SIZE, "SET_SIZE" },
	{ NBD_DO_IT, "DO_IT" },
	{ NBD_CLEAR_SOCK, "CLEAR_SOCK" },
	{ NBD_CLEAR_QUE, "CLEAR_QUE" },
	{ NBD_PRINT_DEBUG, "PRINT_DEBUG" },
	{ NBD_SET_SIZE_BLOCKS, "SET_SIZE_BLOCKS" },
	{ NBD_DISCONNECT, "DISCONNECT" },
	{ NBD_SET_TIMEOUT, "SET_TIMEOUT" },
	{ NBD_SET_FLAGS, "SET_FLAGS" },
	{ _IO(0xab, 11), "an unknown one" },
};

enum sock_kind { KIND_UNIX, KIND_TCP, KIND_TCP6 };

static inline long long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

/* How much slower than a stock kernel this one is: all deadlines are multiplied by it. */
static inline int scaled(int ms)
{
	const char *s = getenv("NBD_TIME_SCALE");

	return s && atoi(s) > 0 ? ms * atoi(s) : ms;
}

/* How much of a long piece of work such a kernel does instead. */
static inline long scaled_down(long n)
{
	const char *s = getenv("NBD_WORK_SCALE");

	return n / (s && atoi(s) > 0 ? atoi(s) : scaled(1)) ?: 1;
}

/* What is in a file, as text: its length, or -1. */
static inline ssize_t read_file(const char *path, char *text, size_t len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, len - 1);

	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	return n;
}

static inline bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
}

/* Memory that children share, or NULL. */
static inline void *shared_memory(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* For the report that the runner makes at the end. */
static inline void report_count(long n, const char *what)
{
	printf("# counted: %ld %s\n", n, what);
	fflush(stdout);
}

/*
 * A virtual machine may stand still for seconds, and the driver in it: a wait consists of naps of
 * NAP_MS, of which none counts for more than NAP_MOST_MS.
 */
#define NAP_MS		10
#define NAP_MOST_MS	100

/* Wait for descriptors for a moment, which @left gets less by. Both are in milliseconds. */
static inline int nap(struct pollfd *p, int n, int ms, long long *left)
{
	long long start = now_ms(), took;
	int ret = poll(p, n, ms < *left ? ms : *left > 0 ? *left : 0);

	took = now_ms() - start;
	*left -= took < NAP_MOST_MS ? took : NAP_MOST_MS;
	return ret;
}

/* As poll(), until nothing is left of the time. */
static inline int poll_while(struct pollfd *p, int n, long long *left)
{
	int ret;

	do {
		ret = nap(p, n, NAP_MS, left);
	} while (!ret && *left > 0);
	return ret;
}

static inline int poll_for(struct pollfd *p, int n, int ms)
{
	long long left = scaled(ms);

	return poll_while(p, n, &left);
}

#define WAIT_UNTIL(cond, ms) ({						\
	long long __left = scaled(ms), __start;				\
	bool __ok;							\
	for (;;) {							\
		__start = now_ms();					\
		__ok = (cond);						\
		if (__ok || __left <= 0)				\
			break;						\
		__left -= now_ms() - __start;				\
		nap(NULL, 0, 2, &__left);				\
	}								\
	__ok;								\
})

/* A connected pair of stream sockets: [0] is for the driver, [1] is the peer. */
static inline int make_pair(enum sock_kind kind, int fd[2])
{
	struct sockaddr_in6 addr = {};
	struct sockaddr_in *in = (void *)&addr;
	int family = kind == KIND_TCP ? AF_INET : AF_INET6;
	socklen_t len = family == AF_INET ? sizeof(*in) : sizeof(addr);
	int l;

	if (kind == KIND_UNIX)
		return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd);
	if (kind == KIND_TCP) {
		in->sin_family = AF_INET;
		in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	} else {
		addr.sin6_family = AF_INET6;
		addr.sin6_addr = in6addr_loopback;
	}
	l = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (l < 0)
		return -1;
	fd[0] = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	fd[1] = -1;
	if (!bind(l, (struct sockaddr *)&addr, len) && !listen(l, 1) &&
	    !getsockname(l, (struct sockaddr *)&addr, &len) &&
	    !connect(fd[0], (struct sockaddr *)&addr, len))
		fd[1] = accept4(l, NULL, NULL, SOCK_CLOEXEC);
	close(l);
	return fd[1] < 0 ? -1 : 0;
}

/*
 * Does the peer see the end of the connection within this time? What it has not read does not
 * matter.
 */
static inline bool saw_eof(int fd, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLRDHUP };

	return poll_for(&p, 1, ms) == 1 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

/* Is the connection still there? */
static inline bool no_eof(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLRDHUP };

	return poll(&p, 1, 0) == 0;
}

static inline int send_msg(int ctl, const void *msg, size_t len, int fd)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} u;
	struct iovec iov = { .iov_base = (void *)msg, .iov_len = len };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		struct cmsghdr *c;

		memset(&u, 0, sizeof(u));
		mh.msg_control = u.buf;
		mh.msg_controllen = sizeof(u.buf);
		c = CMSG_FIRSTHDR(&mh);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(int));
	}
	return sendmsg(ctl, &mh, MSG_NOSIGNAL) == (ssize_t)len ? 0 : -errno;
}

#ifndef NBD_TEST_AGENT

/* Sockets in the system that are not netlink's, nor ones of TCP that only wait for their end. */
static inline int count_sockets(void)
{
	static const char *const files[] = { "/proc/net/unix", "/proc/net/tcp", "/proc/net/tcp6" };
	char line[512], state[16];
	int n = 0;
	size_t i;
	FILE *f;

	for (i = 0; i < ARRAY_SIZE(files); i++) {
		f = fopen(files[i], "re");
		while (f && fgets(line, sizeof(line), f))
			n += sscanf(line, "%*s %*s %*s %15s", state) == 1 && strcmp(state, "06");
		if (f)
			fclose(f);
	}
	return n;
}

/* The processes of this test, to be gone at its end; 0: none. */
static pid_t nbd_children[64];

static inline void nbd_child(pid_t pid)
{
	int i;

	for (i = 0; pid > 0 && i < 64; i++) {
		if (!nbd_children[i]) {
			nbd_children[i] = pid;
			break;
		}
	}
}

/* It is gone, and its number may soon be another one's. */
static inline void nbd_child_gone(pid_t pid)
{
	int i;

	for (i = 0; i < 64; i++)
		if (nbd_children[i] == pid)
			nbd_children[i] = 0;
}

/*
 * A child that keeps no descriptor of the test, so that one that is stuck does not hold a pipe
 * open.
 */
static inline pid_t fork_quiet(void)
{
	pid_t pid;
	int null;

	fflush(NULL);
	pid = fork();
	nbd_child(pid);
	if (pid)
		return pid;
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	dup2(null, 0);
	dup2(null, 1);
	dup2(null, 2);
	return 0;
}

/* Has the process exited? It stays a zombie until reap(). */
static inline bool exited(pid_t pid)
{
	siginfo_t info = {};

	return waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == pid;
}

static inline bool reap(pid_t pid, int ms)
{
	if (!WAIT_UNTIL(exited(pid), ms))
		return false;
	waitpid(pid, NULL, WNOHANG);
	nbd_child_gone(pid);
	return true;
}

/* The letter for the state of a process, or 0 if there is none. */
static inline char proc_state(pid_t pid)
{
	char path[64], text[512], *p;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	if (read_file(path, text, sizeof(text)) <= 0)
		return 0;
	p = strrchr(text, ')');
	return p && p[1] == ' ' ? p[2] : 0;
}

/* Agents */

struct agent {
	pid_t pid;
	int ctl;
	uint32_t seq;
	struct agent_reply early[4];	/* of asynchronous calls */
	int64_t aux;			/* of the last answer */
};

static inline const char *nbd_dir(void)
{
	static char path[4096], *dir;
	ssize_t n;

	if (!dir) {
		n = readlink("/proc/self/exe", path, sizeof(path) - 1);
		path[n > 0 ? n : 0] = 0;
		dir = dirname(path);
	}
	return dir;
}

static inline int agent_start_as(struct agent *a, const char *path, const char *program)
{
	int ctl[2];

	memset(a, 0, sizeof(*a));
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ctl))
		return -errno;
	fflush(NULL);
	a->pid = fork();
	if (a->pid < 0)
		return -errno;
	if (!a->pid) {
		char file[4200];

		if (ctl[1] == AGENT_CTL)
			fcntl(AGENT_CTL, F_SETFD, 0);
		else
			dup2(ctl[1], AGENT_CTL);
		close_range(AGENT_CTL + 1, ~0U, 0);
		snprintf(file, sizeof(file), "%s/%s", nbd_dir(), program);
		execl(file, program, path, NULL);
		_exit(127);
	}
	close(ctl[1]);
	a->ctl = ctl[0];
	nbd_child(a->pid);
	return 0;
}

static inline int agent_start(struct agent *a, const char *path)
{
	return agent_start_as(a, path, "helper_agent");
}

static inline uint32_t agent_send(struct agent *a, enum agent_op op, int flags, int slot,
				  uint64_t arg, uint64_t arg2, int fd)
{
	struct agent_msg m = { .op = op, .seq = ++a->seq, .slot = slot, .flags = flags,
			       .arg = arg, .arg2 = arg2 };

	send_msg(a->ctl, &m, sizeof(m), fd);
	return m.seq;
}

/*
 * The result of a call: 0 or more, or -errno; -ETIME if the agent is stuck, -EPIPE if it is gone.
 */
static inline long agent_wait(struct agent *a, uint32_t seq, int ms)
{
	struct pollfd p = { .fd = a->ctl, .events = POLLIN };
	long long left = scaled(ms);
	struct agent_reply r;
	size_t i;

	for (i = 0; i < 4; i++) {
		if (a->early[i].seq == seq) {
			a->early[i].seq = 0;
			a->aux = a->early[i].aux;
			return a->early[i].ret;
		}
	}
	for (;;) {
		if (poll_while(&p, 1, &left) != 1)
			return -ETIME;
		if (recv(a->ctl, &r, sizeof(r), MSG_DONTWAIT) != sizeof(r))
			return -EPIPE;
		if (r.seq == seq) {
			a->aux = r.aux;
			return r.ret;
		}
		for (i = 0; i < 4 && a->early[i].seq; i++)
			;
		if (i < 4)
			a->early[i] = r;
	}
}

static inline long agent_call(struct agent *a, enum agent_op op, int flags, int slot, uint64_t arg,
			      uint64_t arg2)
{
	return agent_wait(a, agent_send(a, op, flags, slot, arg, arg2, -1), BOUNDED);
}

static inline long agent_open_as(struct agent *a, int slot, int flags)
{
	return agent_call(a, AGENT_OPEN, 0, slot, flags, 0);
}

static inline long agent_open(struct agent *a)
{
	return agent_open_as(a, 0, O_RDWR);
}

/* Let udev, where it runs, finish with the devices that it has open. */
static inline void udev_settle(void)
{
	char cmd[64];

	if (access("/run/udev/control", F_OK))
		return;
	snprintf(cmd, sizeof(cmd), "exec udevadm settle -t %d", scaled(5));
	if (system(cmd))
		printf("# udev is busy with something\n");
}

/* Who counts the openers after that does not count udev. */
static inline long agent_close(struct agent *a)
{
	long ret = agent_call(a, AGENT_CLOSE, 0, 0, 0, 0);

	udev_settle();
	return ret;
}

static inline long agent_ioctl(struct agent *a, unsigned long cmd, unsigned long arg)
{
	return agent_call(a, AGENT_IOCTL, 0, 0, cmd, arg);
}

/* Give a descriptor to the agent, in a slot; the caller's own is closed. */
static inline long agent_take(struct agent *a, int slot, int *fd)
{
	long ret = agent_wait(a, agent_send(a, AGENT_TAKE, 0, slot, 0, 0, *fd), BOUNDED);

	close(*fd);
	*fd = -1;
	return ret;
}

/* SET_SOCK with this descriptor; afterwards nobody but the driver has it. */
static inline long agent_set_sock_as(struct agent *a, int *fd, int flags)
{
	long ret = agent_take(a, AGENT_TMP, fd);

	if (ret < 0)
		return ret;
	ret = agent_call(a, AGENT_IOCTL_FD, flags, 0, NBD_SET_SOCK, AGENT_TMP);
	agent_call(a, AGENT_CLOSE, 0, AGENT_TMP, 0, 0);
	return ret;
}

static inline long agent_set_sock(struct agent *a, int *fd)
{
	return agent_set_sock_as(a, fd, 0);
}

/* NBD_DO_IT in a thread of the agent; agent_wait() has the result. */
static inline uint32_t agent_do_it(struct agent *a)
{
	return agent_send(a, AGENT_IOCTL, AGENT_ASYNC, 0, NBD_DO_IT, 0, -1);
}

static inline long agent_read(struct agent *a, uint64_t off, uint64_t len)
{
	return agent_call(a, AGENT_READ, 0, 0, off, len);
}

/* Kill it and wait until it has exited, but leave it a zombie. */
static inline bool agent_kill(struct agent *a)
{
	kill(a->pid, SIGKILL);
	return WAIT_UNTIL(exited(a->pid), BOUNDED);
}

/* A child process of the agent that shares its open device. */
static inline long agent_fork(struct agent *a, struct agent *child)
{
	int ctl[2];
	long ret;

	memset(child, 0, sizeof(*child));
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ctl))
		return -errno;
	ret = agent_wait(a, agent_send(a, AGENT_FORK, 0, 0, 0, 0, ctl[1]), BOUNDED);
	close(ctl[1]);
	if (ret < 0)
		return ret;
	child->pid = ret;
	child->ctl = ctl[0];
	nbd_child(child->pid);
	return 0;
}

/* Toy servers */

enum toy_mode {
	TOY_OBEDIENT,		/* answers, and closes when it is told to disconnect */
	TOY_MUTE,		/* reads everything, answers nothing */
};

struct toy {
	pid_t pid;
	int fd;			/* the test's own descriptor of the peer, for saw_eof() */
	int *requests;		/* how many it has read */
};

static inline bool toy_read(int fd, void *buf, size_t len)
{
	return len == 0 || recv(fd, buf, len, MSG_WAITALL) == (ssize_t)len;
}

static inline void toy_main(enum toy_mode mode, int *requests)
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

static inline int toy_start(struct toy *t, int fd, enum toy_mode mode)
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

static inline int toy_requests(struct toy *t)
{
	return __atomic_load_n(t->requests, __ATOMIC_SEQ_CST);
}

/* The server ends its side; the test can still see whether the driver does. */
static inline void toy_hang_up(struct toy *t)
{
	shutdown(t->fd, SHUT_WR);
}

/* The server dies. */
static inline void toy_kill(struct toy *t)
{
	close(t->fd);
	t->fd = -1;
	kill(t->pid, SIGKILL);
	reap(t->pid, BOUNDED);
}

/* Devices */

struct nbd_dev {
	int index;
	char path[32];
};

static inline bool nbd_sys_exists(struct nbd_dev *d, const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/block/nbd%d/%s", d->index, name);
	return !access(path, F_OK);
}

/* A number in the device's directory in sysfs, -1 if there is none. */
static inline long long nbd_sys(struct nbd_dev *d, const char *name)
{
	char path[128];
	long long v = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/block/nbd%d/%s", d->index, name);
	f = fopen(path, "re");
	if (!f)
		return -1;
	if (fscanf(f, "%lld", &v) != 1)
		v = -1;
	fclose(f);
	return v;
}

static inline bool nbd_running(struct nbd_dev *d)
{
	return nbd_sys_exists(d, "pid") && nbd_sys(d, "size") > 0;
}

/* Which driver is tested; as test_common.sh decides it. */
static inline bool nbd_is_rust(void)
{
	const char *driver = getenv("NBD_DRIVER"), *ko = getenv("NBD_KO");

	return driver && *driver ? !strcmp(driver, "rust") : ko && *ko;
}

/* Is nothing of a session left? */
static inline bool nbd_idle(struct nbd_dev *d)
{
	return !nbd_sys_exists(d, "pid") && nbd_sys(d, "size") == 0;
}

/*
 * Have the driver loaded, and take a device that no other test has left unclean. Returns NULL,
 * or the reason why the test is to be skipped. A driver that cannot be loaded or has no clean
 * device left is no such reason.
 */
static inline const char *nbd_pick(struct nbd_dev *d)
{
	const char *ko = getenv("NBD_KO");
	char cmd[4300], mark[64];
	int i;

	if (geteuid())
		return "must be run as root";
	if (nbd_is_rust() && ko && access(ko, R_OK))
		return "no Rust module at NBD_KO";
	/* What an agent has forked is for nbd_give_back() to wait for. */
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	snprintf(cmd, sizeof(cmd), "'%s/test_common.sh' ensure >&2", nbd_dir());
	snprintf(mark, sizeof(mark), "/sys/block/nbd%d", NBD_DEVICES - 1);
	/* Once a program is enough: no test here unloads it. */
	if ((access(mark, F_OK) || access(NBD_MARKS "/driver", F_OK)) && system(cmd)) {
		fprintf(stderr, "# cannot load the driver\n");
		_exit(1);
	}
	for (i = 0; i < NBD_DEVICES; i++) {
		d->index = i;
		snprintf(d->path, sizeof(d->path), "/dev/nbd%d", i);
		if (nbd_sys_exists(d, "pid") || nbd_sys(d, "size"))
			continue;
		snprintf(mark, sizeof(mark), NBD_MARKS "/busy.%d", i);
		if (!mkdir(mark, 0755))
			return NULL;
	}
	fprintf(stderr, "# no clean device left\n");
	_exit(1);
}

/* End all processes of the test; the device can be used again if nothing of it is left. */
static inline bool nbd_give_back(struct nbd_dev *d)
{
	bool ok = true;
	char mark[64];
	int i;

	for (i = 0; i < 64; i++)
		if (nbd_children[i])
			kill(nbd_children[i], SIGKILL);
	for (i = 0; i < 64; i++)
		ok = (!nbd_children[i] || reap(nbd_children[i], 2000)) && ok;
	memset(nbd_children, 0, sizeof(nbd_children));
	ok = ok && WAIT_UNTIL(nbd_idle(d), 2000);
	if (ok) {
		snprintf(mark, sizeof(mark), NBD_MARKS "/busy.%d", d->index);
		rmdir(mark);
	} else {
		fprintf(stderr, "# nbd%d does not come back\n", d->index);
	}
	return ok;
}

/* The kernel's log */

/* What is logged from now on, or -errno. */
static inline int log_open(void)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		return -errno;
	lseek(fd, 0, SEEK_END);
	return fd;
}

/* The text of the next message, "" where some are lost, or NULL if there are no more. */
static inline const char *log_next(int log)
{
	static char line[8192];
	ssize_t n = read(log, line, sizeof(line) - 1);
	char *text;

	if (n <= 0)
		return n < 0 && errno == EPIPE ? "" : NULL;
	line[n] = 0;
	text = strchr(line, ';');
	if (!text)
		return "";
	text[strcspn(text, "\n")] = 0;
	return text + 1;
}

/* Is there a new message about this device with all of these words? Those about it are shown. */
static inline bool logged(int log, struct nbd_dev *d, const char *const words[])
{
	const char *text;
	bool found = false;
	char name[32];
	int i;

	snprintf(name, sizeof(name), "nbd%d:", d->index);
	while ((text = log_next(log))) {
		if (!strstr(text, name))
			continue;
		fprintf(stderr, "# log: %s\n", text);
		for (i = 0; words[i] && strstr(text, words[i]); i++)
			;
		found = found || !words[i];
	}
	return found;
}

/* Sessions */

#define SESSION_SIZE	(1LL << 20)
#define MULTI_CONN	(NBD_FLAG_HAS_FLAGS | NBD_FLAG_CAN_MULTI_CONN)

struct session {
	struct nbd_dev *dev;
	struct agent client;
	struct toy toy;
	uint32_t do_it;
};

/* A client sets one socket and the parameters up; the session is not started. */
static inline long session_setup(struct session *s, struct nbd_dev *d, enum sock_kind kind,
				 enum toy_mode mode)
{
	int fd[2];
	long ret;

	s->dev = d;
	if (make_pair(kind, fd))
		return -errno;
	ret = toy_start(&s->toy, fd[1], mode);
	if (!ret)
		ret = agent_start(&s->client, d->path);
	if (!ret)
		ret = agent_open(&s->client);
	if (!ret)
		ret = agent_set_sock(&s->client, &fd[0]);
	if (!ret)
		ret = agent_ioctl(&s->client, NBD_SET_BLKSIZE, 1024);
	if (!ret)
		ret = agent_ioctl(&s->client, NBD_SET_SIZE, SESSION_SIZE);
	if (!ret)
		ret = agent_ioctl(&s->client, NBD_SET_FLAGS, NBD_FLAG_HAS_FLAGS);
	return ret;
}

/* NBD_DO_IT; returns when the device is there. */
static inline long session_run(struct session *s)
{
	long ret;

	s->do_it = agent_do_it(&s->client);
	if (WAIT_UNTIL(nbd_running(s->dev), BOUNDED))
		return 0;
	ret = agent_wait(&s->client, s->do_it, 0);
	return ret ?: -EIO;
}

static inline long session_start(struct session *s, struct nbd_dev *d, enum sock_kind kind,
				 enum toy_mode mode)
{
	return session_setup(s, d, kind, mode) ?: session_run(s);
}

/* How NBD_DO_IT has ended. */
static inline long session_result(struct session *s)
{
	return agent_wait(&s->client, s->do_it, BOUNDED);
}

/* End it from the server's side and wait for that. */
static inline long session_stop(struct session *s)
{
	toy_hang_up(&s->toy);
	return session_result(s);
}

#endif /* NBD_TEST_AGENT */
#endif /* NBD_TEST_H */
