// SPDX-License-Identifier: GPL-2.0
/*
 * Agents: processes that do to the device what the test tells them.
 */
#include "nbd_test.h"

int agent_start_as(struct agent *a, const char *path, const char *program)
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

int agent_start(struct agent *a, const char *path)
{
	return agent_start_as(a, path, "helper_agent");
}

uint32_t agent_send(struct agent *a, enum agent_op op, int flags, int slot, uint64_t arg,
		    uint64_t arg2, int fd)
{
	struct agent_msg m = { .op = op, .seq = ++a->seq, .slot = slot, .flags = flags,
			       .arg = arg, .arg2 = arg2 };

	send_msg(a->ctl, &m, sizeof(m), fd);
	return m.seq;
}

/*
 * The result of a call: 0 or more, or -errno; -ETIME if the agent is stuck, -EPIPE if it is gone.
 */
long agent_wait(struct agent *a, uint32_t seq, int ms)
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

long agent_call(struct agent *a, enum agent_op op, int flags, int slot, uint64_t arg, uint64_t arg2)
{
	return agent_wait(a, agent_send(a, op, flags, slot, arg, arg2, -1), BOUNDED);
}

long agent_open_as(struct agent *a, int slot, int flags)
{
	return agent_call(a, AGENT_OPEN, 0, slot, flags, 0);
}

long agent_open(struct agent *a)
{
	return agent_open_as(a, 0, O_RDWR);
}

/* Let udev, where it runs, finish with the devices that it has open. */
void udev_settle(void)
{
	char cmd[64];

	if (access("/run/udev/control", F_OK))
		return;
	snprintf(cmd, sizeof(cmd), "exec udevadm settle -t %d", scaled(5));
	if (system(cmd))
		printf("# udev is busy with something\n");
}

/* The openers that there are after that do not include udev. */
long agent_close(struct agent *a)
{
	long ret = agent_call(a, AGENT_CLOSE, 0, 0, 0, 0);

	udev_settle();
	return ret;
}

long agent_ioctl(struct agent *a, unsigned long cmd, unsigned long arg)
{
	return agent_call(a, AGENT_IOCTL, 0, 0, cmd, arg);
}

/* Give a descriptor to the agent, in a slot; the caller's own is closed. */
long agent_take(struct agent *a, int slot, int *fd)
{
	long ret = agent_wait(a, agent_send(a, AGENT_TAKE, 0, slot, 0, 0, *fd), BOUNDED);

	close(*fd);
	*fd = -1;
	return ret;
}

/* SET_SOCK with this descriptor; afterwards only the driver has it. */
long agent_set_sock_as(struct agent *a, int *fd, int flags)
{
	long ret = agent_take(a, AGENT_TMP, fd);

	if (ret < 0)
		return ret;
	ret = agent_call(a, AGENT_IOCTL_FD, flags, 0, NBD_SET_SOCK, AGENT_TMP);
	agent_call(a, AGENT_CLOSE, 0, AGENT_TMP, 0, 0);
	return ret;
}

long agent_set_sock(struct agent *a, int *fd)
{
	return agent_set_sock_as(a, fd, 0);
}

/* The same with a new socket, whose other end stays open. */
long agent_set_new_sock(struct agent *a)
{
	int fd[2];

	return make_pair(KIND_UNIX, fd) ? -errno : agent_set_sock(a, &fd[0]);
}

/* NBD_DO_IT in a thread of the agent; agent_wait() has the result. */
uint32_t agent_do_it(struct agent *a)
{
	return agent_send(a, AGENT_IOCTL, AGENT_ASYNC, 0, NBD_DO_IT, 0, -1);
}

long agent_read(struct agent *a, uint64_t off, uint64_t len)
{
	return agent_call(a, AGENT_READ, 0, 0, off, len);
}

/* Kill it and wait until it has exited, but leave it a zombie. */
bool agent_kill(struct agent *a)
{
	kill(a->pid, SIGKILL);
	return WAIT_UNTIL(exited(a->pid), BOUNDED);
}

/* A child process of the agent that shares its open device. */
long agent_fork(struct agent *a, struct agent *child)
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
