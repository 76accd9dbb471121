// SPDX-License-Identifier: GPL-2.0
/*
 * The I/O on a device whose server lies, and what may block.
 */
#include "lies.h"

static void slot_submit(struct liar *l, int i)
{
	static const size_t sizes[] = { 512, 512, 512, 4096, 4096, 4096, 8192, 16384 };
	struct slot *s = &l->slot[i];
	struct iocb *cb = &s->cb;
	size_t len = pick(l, 32) ? sizes[pick(l, ARRAY_SIZE(sizes))] : 65536UL << pick(l, 3);
	uint64_t off = SLOT_BASE + i * SLOT_SIZE;

	off += pick(l, (SLOT_SIZE - len) / 512 + 1) * 512;
	memset(cb, 0, sizeof(*cb));
	cb->aio_data = i;
	cb->aio_fildes = l->io;
	cb->aio_buf = (uintptr_t)s->buf;
	cb->aio_nbytes = len;
	cb->aio_offset = off;
	cb->aio_flags = IOCB_FLAG_RESFD;
	cb->aio_resfd = l->wake;
	cb->aio_lio_opcode = IOCB_CMD_PREAD;
	if (!pick(l, 3)) {
		cb->aio_lio_opcode = IOCB_CMD_PWRITE;
		memcpy(s->buf, l->image + off, len);
	} else {
		memset(s->buf, 0x55, len);
	}
	s->error_ok = !lies_strict(l);
	s->tainted = false;
	s->since = now_ms();
	fuzz->beat++;
	if (syscall(SYS_io_submit, l->aio, 1L, &cb) != 1) {
		fuzz_fail("io_submit: %s", strerror(errno));
		return;
	}
	s->busy = true;
	l->busy++;
}

void slots_fill(struct liar *l)
{
	int i;

	for (i = 0; !l->open_ret && i < SLOTS && !l->over && !fuzz->failed; i++)
		if (!l->slot[i].busy)
			slot_submit(l, i);
}

static void slot_done(struct liar *l, struct slot *s, long ret)
{
	size_t len = s->cb.aio_nbytes, i;
	bool is_read = s->cb.aio_lio_opcode == IOCB_CMD_PREAD;
	unsigned char *want = l->image + s->cb.aio_offset;

	s->busy = false;
	l->busy--;
	l->ios++;
	if (ret == (long)len) {
		l->good_ios++;
		l->ios_after++;
		for (i = 0; is_read && !s->tainted && i < len && s->buf[i] == want[i]; i++)
			;
		if (is_read && !s->tainted && i < len)
			fuzz_fail("wrong data at %#llx + %#zx of %#zx: %02x not %02x; last lie: %s",
				  (unsigned long long)s->cb.aio_offset, i, len, s->buf[i],
				  want[i], l->last);
	} else if (!s->error_ok && lies_strict(l)) {
		fuzz_fail("an I/O at %#llx has ended with %ld, for no reason; last lie: %s",
			  (unsigned long long)s->cb.aio_offset, ret, l->last);
	}
	/* What is sent from a finished write can be told. */
	memset(s->buf, 0xdd, len);
}

void slots_reap(struct liar *l)
{
	struct io_event ev[SLOTS];
	struct timespec none = {};
	int n, i;

	n = syscall(SYS_io_getevents, l->aio, 0L, (long)SLOTS, ev, &none);
	for (i = 0; i < n; i++)
		slot_done(l, &l->slot[ev[i].data], ev[i].res);
}

/* What may block */

void lies_thread(void *(*fn)(void *), struct liar *l, pthread_t *id)
{
	if (pthread_create(id, NULL, fn, l))
		fuzz_fail("no thread");
}

static void lies_wake(struct liar *l)
{
	uint64_t one = 1;

	if (write(l->wake, &one, sizeof(one)) < 0)
		fuzz_fail("no eventfd");
}

void *lies_open(void *arg)
{
	struct liar *l = arg;

	l->io = open(l->dev->path, O_RDWR | O_DIRECT | O_CLOEXEC);
	l->open_ret = l->io < 0 ? -errno : 0;
	lies_wake(l);
	return NULL;
}

void *lies_do_it(void *arg)
{
	struct liar *l = arg;

	l->do_it_tid = syscall(SYS_gettid);
	l->do_it_ret = ioctl(l->config, NBD_DO_IT) ? -errno : 0;
	lies_wake(l);
	return NULL;
}

void *lies_end(void *arg)
{
	struct nl_answer answer;
	unsigned long cmd;
	struct liar *l = arg;
	struct nl_msg m;
	int ret;

	switch (l->plan.end) {
	case END_NETLINK:
	case END_SERVERS:
		nl_begin(&m, NBD_CMD_DISCONNECT, l->dev->index);
		ret = fuzz_ask(&l->genl2, &m, &answer);
		break;
	case END_SIGNAL:
		ret = pthread_kill(l->do_it, SIGUSR1);
		break;
	default:
		cmd = l->plan.end == END_CLEAR ? NBD_CLEAR_SOCK : NBD_DISCONNECT;
		ret = ioctl(l->plan.ioctl ? l->config : l->io, cmd, 0) ? -errno : 0;
		break;
	}
	l->end_ret = ret;
	lies_wake(l);
	return NULL;
}

int lies_connected(struct liar *l)
{
	struct nl_answer answer;
	struct nl_msg m;

	nl_begin(&m, NBD_CMD_STATUS, l->dev->index);
	if (fuzz_ask(&l->genl, &m, &answer) || answer.ndevs != 1)
		return -1;
	return answer.dev[0].connected;
}

/* Give this connection of the driver's a new socket, whatever it has; how it takes that. */
int lies_place(struct liar *l, int index)
{
	struct nl_answer answer;
	int fd = conn_new(l);
	struct nl_msg m;

	if (fd < 0)
		return -ENOSPC;
	fuzz_doing("replacing connection %d, after the lie %s", index, l->last);
	nl_begin(&m, NBD_CMD_RECONFIGURE, l->dev->index);
	nl_conns(&m, &index, &fd, 1);
	fuzz_ask(&l->genl, &m, &answer);
	close(fd);
	return answer.ret;
}

/* Give the driver n new sockets; how it takes them. */
int lies_sockets(struct liar *l, int cmd, int n)
{
	unsigned long flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH;
	struct nl_answer answer;
	int fd[CONNS], i, ret;
	struct nl_msg m;

	for (i = 0; i < n; i++) {
		fd[i] = conn_new(l);
		if (fd[i] < 0)
			break;
	}
	n = i;
	if (l->plan.conns > 1)
		flags |= NBD_FLAG_CAN_MULTI_CONN;
	fuzz_doing("giving %d sockets, after the lie %s", n, l->last);
	if (l->plan.ioctl) {
		ret = 0;
		for (i = 0; i < n && !ret; i++)
			ret = ioctl(l->config, NBD_SET_SOCK, fd[i]) ? -errno : 0;
		if (ret || ioctl(l->config, NBD_SET_BLKSIZE, 512) ||
		    ioctl(l->config, NBD_SET_SIZE, LIES_SIZE) ||
		    ioctl(l->config, NBD_SET_FLAGS, flags) ||
		    ioctl(l->config, NBD_SET_TIMEOUT, (unsigned long)l->plan.timeout))
			ret = ret ?: -errno;
	} else {
		nl_begin(&m, cmd, l->dev->index);
		if (cmd == NBD_CMD_CONNECT) {
			nl_u64(&m, NBD_ATTR_SIZE_BYTES, LIES_SIZE);
			nl_u64(&m, NBD_ATTR_BLOCK_SIZE_BYTES, 512);
			nl_u64(&m, NBD_ATTR_SERVER_FLAGS, flags);
			nl_u64(&m, NBD_ATTR_TIMEOUT, l->plan.timeout);
			nl_u64(&m, NBD_ATTR_DEAD_CONN_TIMEOUT, l->plan.dead);
		}
		nl_socks(&m, fd, n);
		ret = fuzz_ask(&l->genl, &m, &answer);
	}
	for (i = 0; i < n; i++)
		close(fd[i]);
	return ret;
}
