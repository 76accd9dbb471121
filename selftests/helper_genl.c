// SPDX-License-Identifier: GPL-2.0
/*
 * The netlink interface, for tests in shell.
 *
 * Usage:
 *	helper_genl connect [-i INDEX] [-u SOCKET] [-n CONNECTIONS] [-s SIZE] [-b BLKSIZE]
 *		[-t TIMEOUT] [-D DEAD_CONN_TIMEOUT] [-c CLIENT_FLAGS] [-B BACKEND]: prints the
 *		index. With -u to the server on that Unix socket, else to toy servers that have
 *		only zeros and end with their connection.
 *	helper_genl persist ...: the same, then prints "dead" for each connection that dies, and
 *		gives the device a new one, "again", as soon as the server on the socket answers;
 *		until the device is disconnected
 *	helper_genl reconfigure -i INDEX ...: the same options, with -u and -n for new sockets; with
 *		-k K for the connections from number K on, which are replaced or added
 *	helper_genl remove INDEX K: remove the connection number K
 *	helper_genl disconnect INDEX...
 *	helper_genl status [INDEX]: prints "INDEX CONNECTED" lines
 *	helper_genl events: prints "ready", and "dead INDEX" for each connection that dies
 *	helper_genl turns FIRST LAST ROUNDS [CLIENT_FLAGS]: connect a device to a toy server, and
 *		disconnect it, that often; from FIRST to LAST and again from FIRST; stops at the
 *		first error
 *	helper_genl latency INDEX CONNECTIONS ROUNDS: connect the device to toy servers, open it,
 *		read a block, and disconnect it, that often; prints the medians in microseconds: of
 *		the connect, the open, the read, and of all three, from request to first byte
 *
 * An error is printed as its name, with what the kernel says about it; the exit status is 2.
 */
#define _GNU_SOURCE
#include <err.h>
#include <linux/un.h>
#include <stddef.h>

#include "nbd_genl.h"

static struct genl genl;
static struct nl_msg msg;
static struct nl_answer answer;

static struct {
	long long index, size, blksize, timeout, dead, cflags, first;
	const char *sock, *backend;
	int n;
} opt = { .index = -1, .size = -1, .blksize = -1, .timeout = -1, .dead = -1, .cflags = -1,
	  .first = -1, .n = 1 };

static int failed(int ret)
{
	printf("%s%s%s\n", strerrorname_np(-ret) ?: "error", *answer.text ? ": " : "", answer.text);
	return 2;
}

static int talk(void)
{
	memset(&answer, 0, offsetof(struct nl_answer, dev));
	answer.text[0] = 0;
	return nl_exchange(genl.fd, genl.family, &msg, &answer);
}

/* Connections */

static bool get(int fd, void *buf, size_t len)
{
	return recv(fd, buf, len, MSG_WAITALL) == (ssize_t)len;
}

static bool put(int fd, const void *buf, size_t len)
{
	return send(fd, buf, len, MSG_NOSIGNAL) == (ssize_t)len;
}

/* The newstyle negotiation for the default export; the connected socket, or -1. */
static int negotiate(const char *path, uint64_t *size, uint16_t *flags)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct {
		uint64_t magic, opt_magic;
		uint16_t flags;
	} __attribute__((__packed__)) hello;
	struct {
		uint32_t flags;
		uint64_t opt_magic;
		uint32_t option, len;
	} __attribute__((__packed__)) ask = {
		.flags = htobe32(3),	/* fixed newstyle, no zeroes */
		.opt_magic = htobe64(0x49484156454F5054ULL),
		.option = htobe32(1),	/* NBD_OPT_EXPORT_NAME */
	};
	struct {
		uint64_t size;
		uint16_t flags;
	} __attribute__((__packed__)) export;
	struct timeval tv = { .tv_sec = 5 }, none = {};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) ||
	    !get(fd, &hello, sizeof(hello)) || hello.opt_magic != ask.opt_magic ||
	    !put(fd, &ask, sizeof(ask)) || !get(fd, &export, sizeof(export))) {
		close(fd);
		return -1;
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof(none));
	*size = be64toh(export.size);
	*flags = be16toh(export.flags);
	return fd;
}

/* A server that has only zeros, in a process of its own that ends with its connection. */
static int toy(void)
{
	static char zeros[1 << 16];
	struct nbd_reply reply = { .magic = htobe32(NBD_REPLY_MAGIC) };
	struct nbd_request h;
	int pair[2];
	pid_t pid;

	if (make_pair(KIND_UNIX, pair))
		return -1;
	fflush(NULL);
	pid = fork();
	if (pid) {
		close(pair[1]);
		return pair[0];
	}
	setsid();
	dup2(pair[1], 0);
	close_range(3, ~0U, 0);
	dup2(open("/dev/null", O_WRONLY), 1);
	dup2(1, 2);
	while (get(0, &h, sizeof(h)) && be32toh(h.type) != NBD_CMD_DISC) {
		uint32_t type = be32toh(h.type) & 0xffff, left = be32toh(h.len), n;

		reply.cookie = h.cookie;
		for (; type == NBD_CMD_WRITE && left; left -= n) {
			n = left < sizeof(zeros) ? left : sizeof(zeros);
			if (!get(0, zeros, n))
				_exit(0);
		}
		memset(zeros, 0, sizeof(zeros));
		put(0, &reply, sizeof(reply));
		for (; type == NBD_CMD_READ && left; left -= n) {
			n = left < sizeof(zeros) ? left : sizeof(zeros);
			if (!put(0, zeros, n))
				_exit(0);
		}
	}
	_exit(0);
}

static int make_socks(int *fd, int n, uint64_t *size, uint16_t *flags)
{
	int i;

	*size = 1 << 20;
	*flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_CAN_MULTI_CONN;
	for (i = 0; i < n; i++) {
		fd[i] = opt.sock ? negotiate(opt.sock, size, flags) : toy();
		if (fd[i] < 0) {
			while (i)
				close(fd[--i]);
			return -1;
		}
	}
	return 0;
}

static void put_options(void)
{
	if (opt.blksize >= 0)
		nl_u64(&msg, NBD_ATTR_BLOCK_SIZE_BYTES, opt.blksize);
	if (opt.timeout >= 0)
		nl_u64(&msg, NBD_ATTR_TIMEOUT, opt.timeout);
	if (opt.dead >= 0)
		nl_u64(&msg, NBD_ATTR_DEAD_CONN_TIMEOUT, opt.dead);
	if (opt.cflags >= 0)
		nl_u64(&msg, NBD_ATTR_CLIENT_FLAGS, opt.cflags);
	if (opt.backend)
		nl_str(&msg, NBD_ATTR_BACKEND_IDENTIFIER, opt.backend);
}

static int do_connect(void)
{
	uint16_t flags;
	uint64_t size;
	int fd[64], ret, i;

	if (opt.n > 64 || make_socks(fd, opt.n, &size, &flags))
		errx(1, "no connection to the server");
	nl_begin(&msg, NBD_CMD_CONNECT, opt.index);
	nl_u64(&msg, NBD_ATTR_SIZE_BYTES, opt.size >= 0 ? (uint64_t)opt.size : size);
	nl_u64(&msg, NBD_ATTR_SERVER_FLAGS, flags);
	put_options();
	nl_socks(&msg, fd, opt.n);
	ret = talk();
	for (i = 0; i < opt.n; i++)
		close(fd[i]);
	return ret;
}

static int do_reconfigure(void)
{
	int fd[64], ret, n = opt.sock ? opt.n : 0, i;
	uint16_t flags;
	uint64_t size;

	if (n > 64 || make_socks(fd, n, &size, &flags))
		return -ECONNREFUSED;
	nl_begin(&msg, NBD_CMD_RECONFIGURE, opt.index);
	if (opt.size >= 0)
		nl_u64(&msg, NBD_ATTR_SIZE_BYTES, opt.size);
	put_options();
	if (n && opt.first >= 0) {
		int index[64];

		for (i = 0; i < n; i++)
			index[i] = opt.first + i;
		nl_conns(&msg, index, fd, n);
	} else if (n) {
		nl_socks(&msg, fd, n);
	}
	ret = talk();
	for (i = 0; i < n; i++)
		close(fd[i]);
	return ret;
}

static int do_remove(int index, int connection)
{
	int none = -1;

	nl_begin(&msg, NBD_CMD_RECONFIGURE, index);
	nl_conns(&msg, &connection, &none, 1);
	return talk();
}

static bool is_connected(void)
{
	nl_begin(&msg, NBD_CMD_STATUS, opt.index);
	return !talk() && answer.ndevs == 1 && answer.dev[0].connected;
}

static int persist(void)
{
	struct genl events;
	int dead = 0, ret, index, cmd;

	/* First, so that no death is missed. */
	ret = genl_listen(&events);
	if (!ret)
		ret = do_connect();
	if (ret)
		return failed(ret);
	opt.index = answer.index;
	printf("%lld\n", opt.index);
	opt.n = 1;
	opt.size = -1;
	opt.blksize = -1;
	opt.timeout = -1;
	opt.dead = -1;
	opt.cflags = -1;
	for (;;) {
		while ((cmd = genl_event(&events, dead ? 20 : 200, &index)) >= 0) {
			if (cmd != NBD_CMD_LINK_DEAD || index != opt.index)
				continue;
			printf("dead\n");
			dead++;
		}
		if (dead && !do_reconfigure()) {
			printf("again\n");
			dead--;
		}
		if (!is_connected())
			return 0;
	}
}

static int turns(int argc, char **argv)
{
	int first, last, rounds, i, ret;

	if (argc < 4)
		return 1;
	first = atoi(argv[1]);
	last = atoi(argv[2]);
	rounds = atoi(argv[3]);
	if (argc > 4)
		opt.cflags = atoi(argv[4]);
	for (i = 0; i < rounds; i++) {
		opt.index = first + i % (last - first + 1);
		ret = do_connect();
		if (ret) {
			printf("round %d, connect: ", i);
			return failed(ret);
		}
		nl_begin(&msg, NBD_CMD_DISCONNECT, opt.index);
		ret = talk();
		if (ret) {
			printf("round %d, disconnect: ", i);
			return failed(ret);
		}
	}
	return 0;
}

static long long now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000LL + ts.tv_nsec / 1000;
}

static int by_value(const void *a, const void *b)
{
	const int *x = a, *y = b;

	return (*x > *y) - (*x < *y);
}

/* How long each takes, in microseconds. */
enum part { CONNECT, OPEN, READ, ALL, PARTS };

/* Have a toy server answer one request, so that it is not its first run that is measured. */
static bool warm_up(int fd)
{
	static char block[4096];
	struct nbd_request h = {
		.magic = htobe32(NBD_REQUEST_MAGIC),
		.type = htobe32(NBD_CMD_READ),
		.len = htobe32(sizeof(block)),
	};
	struct nbd_reply reply;

	return put(fd, &h, sizeof(h)) && get(fd, &reply, sizeof(reply)) &&
	       get(fd, block, sizeof(block));
}

/* One round: 0 or an error. */
static int first_byte(const char *path, int took[PARTS])
{
	static char block[4096] __aligned(4096);
	long long start;
	uint16_t flags;
	uint64_t size;
	int socks[64], dev, ret, i;

	if (make_socks(socks, opt.n, &size, &flags))
		return -ECONNREFUSED;
	for (i = 0; i < opt.n; i++)
		if (!warm_up(socks[i]))
			return -EPIPE;
	nl_begin(&msg, NBD_CMD_CONNECT, opt.index);
	nl_u64(&msg, NBD_ATTR_SIZE_BYTES, size);
	nl_u64(&msg, NBD_ATTR_SERVER_FLAGS, flags);
	nl_socks(&msg, socks, opt.n);
	start = now_us();
	ret = talk();
	took[CONNECT] = now_us() - start;
	for (i = 0; i < opt.n; i++)
		close(socks[i]);
	if (ret)
		return ret;
	start = now_us();
	dev = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	took[OPEN] = now_us() - start;
	start = now_us();
	if (dev < 0 || pread(dev, block, sizeof(block), 0) != sizeof(block))
		ret = -errno;
	took[READ] = now_us() - start;
	took[ALL] = took[CONNECT] + took[OPEN] + took[READ];
	if (dev >= 0)
		close(dev);
	nl_begin(&msg, NBD_CMD_DISCONNECT, opt.index);
	i = talk();
	return ret ?: i;
}

static int latency(int argc, char **argv)
{
	static int took[PARTS][10000];
	int rounds, one[PARTS], i, j, ret;
	char path[64];

	if (argc < 4)
		return 1;
	opt.index = atoi(argv[1]);
	opt.n = atoi(argv[2]);
	rounds = atoi(argv[3]);
	if (opt.n < 1 || opt.n > 64 || rounds < 1 || rounds > 10000)
		return 1;
	snprintf(path, sizeof(path), "/dev/nbd%lld", opt.index);
	for (i = 0; i < rounds; i++) {
		ret = first_byte(path, one);
		if (ret) {
			printf("round %d: ", i);
			return failed(ret);
		}
		for (j = 0; j < PARTS; j++)
			took[j][i] = one[j];
	}
	for (j = 0; j < PARTS; j++) {
		qsort(took[j], rounds, sizeof(int), by_value);
		printf("%d%c", took[j][rounds / 2], j < ALL ? ' ' : '\n');
	}
	return 0;
}

static int show_events(void)
{
	struct genl events;
	int ret = genl_listen(&events), cmd, index;

	if (ret)
		return failed(ret);
	printf("ready\n");
	while ((cmd = genl_event(&events, -1, &index)) >= 0)
		if (cmd == NBD_CMD_LINK_DEAD)
			printf("dead %d\n", index);
	return 0;
}

static int options(int argc, char **argv)
{
	int c;

	while ((c = getopt(argc, argv, "i:u:n:s:b:t:D:c:B:k:")) != -1) {
		long long v = optarg ? strtoll(optarg, NULL, 0) : 0;

		switch (c) {
		case 'i':
			opt.index = v;
			break;
		case 'u':
			opt.sock = optarg;
			break;
		case 'n':
			opt.n = v;
			break;
		case 'k':
			opt.first = v;
			break;
		case 's':
			opt.size = v;
			break;
		case 'b':
			opt.blksize = v;
			break;
		case 't':
			opt.timeout = v;
			break;
		case 'D':
			opt.dead = v;
			break;
		case 'c':
			opt.cflags = v;
			break;
		case 'B':
			opt.backend = optarg;
			break;
		default:
			return -1;
		}
	}
	return 0;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int ret, i;

	argc--;
	argv++;
	setlinebuf(stdout);
	signal(SIGCHLD, SIG_IGN);
	ret = genl_open(&genl);
	if (ret)
		return failed(ret);
	if (!strcmp(what, "turns"))
		return turns(argc, argv);
	if (!strcmp(what, "latency"))
		return latency(argc, argv);
	if (!strcmp(what, "events"))
		return show_events();
	if (!strcmp(what, "disconnect")) {
		for (i = 1; i < argc; i++) {
			nl_begin(&msg, NBD_CMD_DISCONNECT, atoi(argv[i]));
			ret = talk();
			if (ret)
				return failed(ret);
		}
		return 0;
	}
	if (!strcmp(what, "remove") && argc == 3) {
		ret = do_remove(atoi(argv[1]), atoi(argv[2]));
		return ret ? failed(ret) : 0;
	}
	if (!strcmp(what, "status")) {
		nl_begin(&msg, NBD_CMD_STATUS, argc > 1 ? atoi(argv[1]) : -1);
		ret = talk();
		if (ret)
			return failed(ret);
		for (i = 0; i < answer.ndevs; i++)
			printf("%d %d\n", answer.dev[i].index, answer.dev[i].connected);
		return 0;
	}
	if (options(argc, argv))
		return 1;
	if (!strcmp(what, "persist"))
		return persist();
	if (!strcmp(what, "connect"))
		ret = do_connect();
	else if (!strcmp(what, "reconfigure"))
		ret = do_reconfigure();
	else
		errx(1, "usage: see the source");
	if (ret)
		return failed(ret);
	if (answer.index >= 0)
		printf("%d\n", answer.index);
	return 0;
}
