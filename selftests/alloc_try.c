// SPDX-License-Identifier: GPL-2.0
/*
 * An operation whose nth allocation fails, done by a process of its own, and the count of what has
 * come of it.
 */
#include "alloc.h"
#include "kselftest.h"

static int fail_nth(int fd, int n)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%d", n);

	return pwrite(fd, text, len, 0) == len ? 0 : -errno;
}

#define IO_BYTES	(128UL << 10)
static unsigned char io_buf[IO_BYTES] __aligned(4096);

/* What the operations consist of. */

int op_open(struct try *t)
{
	t->dev = open(t->ns->s.dev.path, O_RDWR | O_CLOEXEC | t->op->oflags);
	return t->dev < 0 ? -errno : 0;
}

int op_close(struct try *t)
{
	return close(t->dev) ? -errno : 0;
}

int op_close_after(struct try *t, int ret)
{
	if (t->dev >= 0)
		close(t->dev);
	return ret;
}

static int do_ioctl(struct try *t, unsigned long cmd, unsigned long arg)
{
	return ioctl(t->dev, cmd, arg) < 0 ? -errno : 0;
}

int op_ioctl(struct try *t)
{
	return do_ioctl(t, t->op->cmd, 0);
}

int op_set_sock(struct try *t)
{
	return do_ioctl(t, NBD_SET_SOCK, t->ns->s.fd[0]);
}

int op_set_second_sock(struct try *t)
{
	return do_ioctl(t, NBD_SET_SOCK, t->ns->s.fd[1]);
}

int op_open_and_set_sock(struct try *t)
{
	return op_open(t) ?: op_set_sock(t);
}

int op_setup(struct try *t)
{
	int ret = op_open(t), i;

	for (i = 0; i < t->ns->s.npeers && !ret; i++)
		ret = do_ioctl(t, NBD_SET_SOCK, t->ns->s.fd[i]);
	ret = ret ?: do_ioctl(t, NBD_SET_BLKSIZE, NL_BLKSIZE);
	ret = ret ?: do_ioctl(t, NBD_SET_SIZE, PEER_SIZE);
	return ret ?: do_ioctl(t, NBD_SET_FLAGS, NL_FLAGS | NBD_FLAG_CAN_MULTI_CONN);
}

static int op_genl(struct try *t)
{
	struct timeval tv = { .tv_sec = scaled(BOUNDED) / 1000 };
	int ret = genl_open(&t->genl);

	if (ret)
		return ret;
	setsockopt(t->genl.fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof(tv));
	t->msg = malloc(sizeof(*t->msg));
	if (!t->msg)
		return -ENOMEM;
	t->op->message(t->msg, t->ns);
	return 0;
}

void msg_connect(struct nl_msg *m, struct nl_session *ns)
{
	nl_begin_connect(m, ns, ns->s.dev.index, ns->s.fd, ns->s.npeers);
}

void msg_reconnect(struct nl_msg *m, struct nl_session *ns)
{
	nl_begin(m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_socks(m, &ns->s.fd[0], 1);
}

void msg_resize(struct nl_msg *m, struct nl_session *ns)
{
	nl_begin(m, NBD_CMD_RECONFIGURE, ns->s.dev.index);
	nl_u64(m, NBD_ATTR_SIZE_BYTES, PEER_SIZE / 2);
	nl_u64(m, NBD_ATTR_BLOCK_SIZE_BYTES, 1024);
	nl_u64(m, NBD_ATTR_TIMEOUT, 20);
}

void msg_disconnect(struct nl_msg *m, struct nl_session *ns)
{
	nl_begin(m, NBD_CMD_DISCONNECT, ns->s.dev.index);
}

/* The kernel has done what the message asks when this returns. */
static int op_genl_send(struct try *t)
{
	t->msg->h.nlmsg_type = t->genl.family;
	t->msg->h.nlmsg_seq++;
	if (send(t->genl.fd, t->msg->buf, t->msg->h.nlmsg_len, 0) != (ssize_t)t->msg->h.nlmsg_len)
		return -errno;
	return 0;
}

/* What it has answered; that there was no memory for the answer is seen here, too. */
static int op_genl_answer(struct try *t, int ret)
{
	static char buf[1 << 16];
	struct nl_answer r = {};
	ssize_t n;

	while (!ret && (n = recv(t->genl.fd, buf, sizeof(buf), 0)) != 0) {
		struct nlmsghdr *h = (void *)buf;

		if (n < 0)
			return -errno;
		for (; NLMSG_OK(h, n); h = NLMSG_NEXT(h, n)) {
			if (h->nlmsg_type != NLMSG_ERROR)
				continue;
			nl_take_error(&r, h);
			return r.ret;
		}
	}
	return ret;
}

int op_read(struct try *t)
{
	ssize_t n = pread(t->dev, io_buf, IO_BYTES, PEER_SIZE / 4);

	if (n < 0)
		return -errno;
	return memcmp(io_buf, t->ns->s.sh->data + PEER_SIZE / 4, n) ? -EILSEQ : 0;
}

/* The same data that is there, so that all that is read is as it was. */
int op_write(struct try *t)
{
	ssize_t n;

	memcpy(io_buf, t->ns->s.sh->data + PEER_SIZE / 4, IO_BYTES);
	n = pwrite(t->dev, io_buf, IO_BYTES, PEER_SIZE / 4);
	return n < 0 || fsync(t->dev) ? -errno : 0;
}

/* Trying one */

static void try_main(struct try *t, int n)
{
	static const struct operation by_netlink = {
		.before = op_genl, .act = op_genl_send, .after = op_genl_answer
	};
	const struct operation *op = t->op->message ? &by_netlink : t->op;
	int fd = open(FAULT_NTH, O_RDWR | O_CLOEXEC), ret;
	char text[16] = "";

	t->dev = -1;
	/* A page of it that is not there would cost an allocation that is not the driver's. */
	memset(io_buf, 1, sizeof(io_buf));
	ret = fd < 0 ? -errno : 0;
	if (!ret && op->before)
		ret = op->before(t);
	if (!ret) {
		ret = fail_nth(fd, n);
		ret = ret ?: op->act(t);
		if (pread(fd, text, sizeof(text) - 1, 0) < 0)
			ret = -EIO;
		fail_nth(fd, 0);
		t->sh->left = atoi(text);
		if (op->after)
			ret = op->after(t, ret);
	} else {
		/* Not an errno of the operation's. */
		ret = -ENOTRECOVERABLE;
	}
	t->sh->ret = ret;
	nl_close_ends(&t->ns->s);
	t->sh->done = 1;
	while (!t->sh->release)
		usleep(500);
	_exit(0);
}

/* Start it, with the nth allocation failing, or none if n is 0. */
void try_start(struct try *t, struct nl_session *ns, const struct operation *op, int n)
{
	if (!t->sh) {
		t->sh = shared_memory(sizeof(*t->sh));
		if (!t->sh)
			_exit(1);
	}
	memset(t->sh, 0, sizeof(*t->sh));
	t->ns = ns;
	t->op = op;
	nbd_children_forget();
	t->pid = fork_quiet();
	if (!t->pid)
		try_main(t, n);
	nl_close_ends(&ns->s);
}

int try_result(struct try *t)
{
	if (!WAIT_UNTIL(t->sh->done || exited(t->pid), BOUNDED))
		return -ETIME;
	return t->sh->done ? t->sh->ret : -EPIPE;
}

bool try_end(struct try *t)
{
	t->sh->release = 1;
	if (!reap(t->pid, BOUNDED))
		return false;
	t->pid = 0;
	return true;
}

void tally_add(struct tally *t, int ret)
{
	t->tried++;
	if (!ret)
		t->fine++;
	else if (ret < 0 && ret > -256)
		t->error[-ret]++;
}

void tally_show(struct tally *t, const char *name, int sites)
{
	char text[512] = "";
	int i, len = 0;

	for (i = 0; i < 256; i++)
		if (t->error[i])
			len += snprintf(text + len, sizeof(text) - len, ", %d x %s", t->error[i],
					strerrorname_np(i) ?: "?");
	ksft_print_msg("%s: %d sites, %d tried: %d x success%s\n", name, sites, t->tried, t->fine,
		       text);
}

/* It has succeeded, or says that there was no memory. */
bool is_clean(int ret)
{
	return !ret || ret == -ENOMEM || ret == -ENOBUFS;
}
