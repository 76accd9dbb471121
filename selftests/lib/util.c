// SPDX-License-Identifier: GPL-2.0
/*
 * Time, files and sockets. The 32-bit agent has only this of the library.
 */
#include "nbd_test.h"

long long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000LL + ts.tv_nsec / 1000000;
}

/* How much slower than a stock kernel this one is: all deadlines are multiplied by it. */
int scaled(int ms)
{
	const char *s = getenv("NBD_TIME_SCALE");

	return s && atoi(s) > 0 ? ms * atoi(s) : ms;
}

/* How much of a long piece of work such a kernel does instead. */
long scaled_down(long n)
{
	const char *s = getenv("NBD_WORK_SCALE");

	return n / (s && atoi(s) > 0 ? atoi(s) : scaled(1)) ?: 1;
}

/* What is in a file, as text: its length, or -1. */
ssize_t read_file(const char *path, char *text, size_t len)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, len - 1);

	if (fd >= 0)
		close(fd);
	text[n > 0 ? n : 0] = 0;
	return n;
}

bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return ok;
}

/* Memory that children share, or NULL. */
void *shared_memory(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* For the report that the runner makes at the end. */
void report_count(long n, const char *what)
{
	printf("# counted: %ld %s\n", n, what);
	fflush(stdout);
}

/* Wait for descriptors for a moment, which @left gets less by. Both are in milliseconds. */
int nap(struct pollfd *p, int n, int ms, long long *left)
{
	long long start = now_ms(), took;
	int ret = poll(p, n, ms < *left ? ms : *left > 0 ? *left : 0);

	took = now_ms() - start;
	*left -= took < NAP_MOST_MS ? took : NAP_MOST_MS;
	return ret;
}

/* As poll(), until nothing is left of the time. */
int poll_while(struct pollfd *p, int n, long long *left)
{
	int ret;

	do {
		ret = nap(p, n, NAP_MS, left);
	} while (!ret && *left > 0);
	return ret;
}

int poll_for(struct pollfd *p, int n, int ms)
{
	long long left = scaled(ms);

	return poll_while(p, n, &left);
}

/* A connected pair of stream sockets: [0] is for the driver, [1] is the peer. */
int make_pair(enum sock_kind kind, int fd[2])
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
bool saw_eof(int fd, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLRDHUP };

	return poll_for(&p, 1, ms) == 1 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

/* Is the connection still there? */
bool no_eof(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLRDHUP };

	return poll(&p, 1, 0) == 0;
}

int send_msg(int ctl, const void *msg, size_t len, int fd)
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
