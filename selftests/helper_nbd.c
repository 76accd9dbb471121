// SPDX-License-Identifier: GPL-2.0
/*
 * For tests in shell: a session with a toy server that has only zeros, or only its setup, one
 * ioctl, or a device's uevents.
 *
 * Usage:
 *	helper_nbd session DEVICE [-s SIZE] [-b BLKSIZE] [-f FLAGS] [-t TIMEOUT] [-n SOCKETS]
 *		[-k unix|tcp] [-w ROOM]: prints "tid TID" of the thread that calls NBD_DO_IT and
 *		ends with the session, with status 0 if NBD_DO_IT has returned 0; a socket takes
 *		ROOM bytes before they are read
 *	helper_nbd setup DEVICE [-n SOCKETS] [-k unix|tcp]: only adds the sockets, prints "set", and
 *		keeps the device open until it is killed
 *	helper_nbd ioctl DEVICE NAME [ARGUMENT]: prints the name of the error if there is one;
 *		NAME as in linux/nbd.h, without NBD_
 *	helper_nbd uevents NAME: prints "ready", and then the action and the properties of each
 *		uevent of the device
 */
#define _GNU_SOURCE
#include <err.h>
#include <linux/netlink.h>
#include <pthread.h>

#include "nbd_test.h"

static int dev;

static void *do_it(void *arg __maybe_unused)
{
	printf("tid %ld\n", (long)syscall(SYS_gettid));
	fflush(stdout);
	return (void *)(intptr_t)(ioctl(dev, NBD_DO_IT) ? errno : 0);
}

static void set(unsigned long cmd, unsigned long arg, const char *name)
{
	if (ioctl(dev, cmd, arg))
		err(1, "%s %lu", name, arg);
}

static int session(int argc, char **argv, bool start)
{
	unsigned long size = SESSION_SIZE, blksize = 1024, flags = NBD_FLAG_HAS_FLAGS, timeout = 0;
	enum sock_kind kind = KIND_UNIX;
	int n = 1, room = 0, opt, i;
	pthread_t thread;
	void *ret;

	while ((opt = getopt(argc, argv, "s:b:f:t:n:k:w:")) != -1) {
		switch (opt) {
		case 's':
			size = strtoul(optarg, NULL, 0);
			break;
		case 'b':
			blksize = strtoul(optarg, NULL, 0);
			break;
		case 'f':
			flags = strtoul(optarg, NULL, 0);
			break;
		case 't':
			timeout = strtoul(optarg, NULL, 0);
			break;
		case 'n':
			n = atoi(optarg);
			break;
		case 'k':
			kind = !strcmp(optarg, "tcp") ? KIND_TCP : KIND_UNIX;
			break;
		case 'w':
			room = atoi(optarg);
			break;
		default:
			return 1;
		}
	}
	dev = open(argv[optind], O_RDWR | O_CLOEXEC);
	if (dev < 0)
		err(1, "%s", argv[optind]);
	for (i = 0; i < n; i++) {
		struct toy toy;
		int fd[2];

		if (make_pair(kind, fd) || toy_start(&toy, fd[1], TOY_OBEDIENT))
			err(1, "toy server");
		if (room && setsockopt(fd[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof(room)))
			err(1, "SO_SNDBUFFORCE");
		close(fd[1]);
		set(NBD_SET_SOCK, fd[0], "SET_SOCK");
		close(fd[0]);
	}
	if (!start) {
		puts("set");
		fflush(stdout);
		pause();
	}
	set(NBD_SET_BLKSIZE, blksize, "SET_BLKSIZE");
	set(NBD_SET_SIZE, size, "SET_SIZE");
	set(NBD_SET_FLAGS, flags, "SET_FLAGS");
	if (timeout)
		set(NBD_SET_TIMEOUT, timeout, "SET_TIMEOUT");
	/* In a thread of its own, so that thread id and process id differ. */
	if (pthread_create(&thread, NULL, do_it, NULL) || pthread_join(thread, &ret))
		errx(1, "thread");
	if (ret)
		errx(1, "DO_IT: %s", strerrorname_np((intptr_t)ret));
	return 0;
}

static int one_ioctl(int argc, char **argv)
{
	static const struct {
		const char *name;
		unsigned long cmd;
	} names[] = {
		{ "SET_BLKSIZE", NBD_SET_BLKSIZE }, { "SET_SIZE", NBD_SET_SIZE },
		{ "SET_SIZE_BLOCKS", NBD_SET_SIZE_BLOCKS }, { "SET_TIMEOUT", NBD_SET_TIMEOUT },
		{ "SET_FLAGS", NBD_SET_FLAGS }, { "CLEAR_SOCK", NBD_CLEAR_SOCK },
		{ "CLEAR_QUE", NBD_CLEAR_QUE }, { "DISCONNECT", NBD_DISCONNECT },
		{ "PRINT_DEBUG", NBD_PRINT_DEBUG }, { "DO_IT", NBD_DO_IT },
	};
	size_t i;

	if (argc < 3)
		return 1;
	dev = open(argv[1], O_RDONLY | O_CLOEXEC);
	if (dev < 0)
		err(1, "%s", argv[1]);
	for (i = 0; i < ARRAY_SIZE(names); i++) {
		if (strcmp(names[i].name, argv[2]))
			continue;
		if (!ioctl(dev, names[i].cmd, argc > 3 ? strtoul(argv[3], NULL, 0) : 0))
			return 0;
		printf("%s\n", strerrorname_np(errno));
		return 2;
	}
	errx(1, "no ioctl %s", argv[2]);
}

static int uevents(int argc, char **argv)
{
	struct sockaddr_nl addr = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	char buf[16384], *p;
	size_t name_len;
	ssize_t n;
	int fd;

	if (argc < 2)
		return 1;
	name_len = strlen(argv[1]);
	fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
	if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof(addr)))
		err(1, "uevents");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setlinebuf(stdout);
	printf("ready\n");
	while ((n = recv(fd, buf, sizeof(buf) - 1, 0)) > 0) {
		buf[n] = 0;
		/* action@path, then KEY=value strings. */
		if (strlen(buf) < name_len + 1 || buf[strlen(buf) - name_len - 1] != '/' ||
		    strcmp(buf + strlen(buf) - name_len, argv[1]))
			continue;
		printf("%.*s", (int)strcspn(buf, "@"), buf);
		for (p = buf + strlen(buf) + 1; p < buf + n; p += strlen(p) + 1)
			printf(" %s", p);
		printf("\n");
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc > 2 && !strcmp(argv[1], "session"))
		return session(argc - 1, argv + 1, true);
	if (argc > 2 && !strcmp(argv[1], "setup"))
		return session(argc - 1, argv + 1, false);
	if (argc > 2 && !strcmp(argv[1], "ioctl"))
		return one_ioctl(argc - 1, argv + 1);
	if (argc > 2 && !strcmp(argv[1], "uevents"))
		return uevents(argc - 1, argv + 1);
	fprintf(stderr, "usage: helper_nbd session|setup|ioctl|uevents ..., see its source\n");
	return 1;
}
